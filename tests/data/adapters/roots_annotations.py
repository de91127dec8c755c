"""Annotations in all forms that are read: canonical, the reference's, LLaVA's; a folder with one file per split."""

import json
from pathlib import Path

from PIL import Image as Picture

from adapter_root import Root


def turns(*values, asked="human", told="gpt"):
    return [{"from": told if number % 2 else asked, "value": value} for number, value in enumerate(values)]


def build(folder: Path) -> Root:
    (folder / "images/ct").mkdir(parents=True)
    for name in ("a.png", "ct/b.png"):
        Picture.new("L", (8, 6), 90).save(folder / "images" / name)
    (folder / "images/c.npy").write_bytes(b"made up")
    train = [
        {"id": "27374136_fig01", "image": ["a.png"], "conversations": turns("<image>\nWhat is it?", "A CT."),
         "task": "chat", "domain": "ct"},
        {"id": 7, "image": "ct/b.png", "conversations": turns("Side?\n<image>", "Left", "Sure?", "Yes"), "model": "m"},
        {"id": "0_1", "image3d": ["c.npy"], "conversations": turns("<image3d>\n Which?"), "answer": "(b) A nodule"},
        {"id": "both", "image": ["a.png", "ct/b.png"], "conversatons": turns("<image><image>Same?", "No.")},
        {"id": "few", "image": ["a.png"], "conversations": turns("<image><image>Same?", "No.")},
        {"id": "out", "image": ["../../outside.png"], "conversations": turns("<image>What?", "A CT.")},
        {"id": "mute", "image": ["a.png"]},
        {"id": "moved", "split": "validation", "conversations": turns("2 + 2?", "4", asked="user", told="assistant")},
        {"id": "strange", "split": "holdout", "conversations": turns("2 + 2?", "4")},
    ]  # fmt: skip
    (folder / "train.json").write_text(json.dumps(train, indent=1, ensure_ascii=False))
    parts = [{"type": "text", "text": "Find it. "}, {"type": "image", "path": "ct/b.png"}]
    test = [
        {"id": "canonical", "messages": [{"role": "user", "content": parts},
                                         {"role": "assistant", "content": [{"type": "box", "box": 0}]}],
         "meta": {"patient": "p1", "boxes": [{"coords": [1, 2, 5, 6], "label": "cyst"}]}},
        {"id": "wrong", "messages": [{"role": "user", "text": "no content"}]},
    ]  # fmt: skip
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in test))
    counts = {("train", "annotations/chat"): 4, ("val", "annotations/chat"): 1, ("test", "annotations/chat"): 1}
    return Root(folder, counts, {"train": 4, "test": 1}, {"media_root": "images"})
