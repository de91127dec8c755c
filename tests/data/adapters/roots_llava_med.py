"""LLaVA-Med as its scripts download it, with made-up figures."""

import json
from pathlib import Path

from PIL import Image as Picture

from adapter_root import Root

DOMAIN = {"chest_xray": True, "mri": False, "histology": False, "gross": False, "ct_scan": False}


def turns(*values):
    return [{"from": "gpt" if number % 2 else "human", "value": value} for number, value in enumerate(values)]


def build(folder: Path) -> Root:
    for name in ("images", "alignment", "instruct"):
        (folder / name).mkdir(parents=True)
    Picture.new("RGB", (6, 4)).save(folder / "images/32432162_F1.jpg")
    known = {"id": "32432162_F1", "image": "32432162_F1.jpg", "domain": DOMAIN}
    alignment = [
        known | {"conversations": turns("Describe the image.\n<image>", "A chest X-ray.")},
        known | {"id": "2_F1", "image": "../../outside.png", "conversations": turns("<image>\nDescribe.", "A scan.")},
    ]
    instruct = [
        {"id": "32432162_F1", "image": "32432162_F1.jpg",
         "conversatons": turns("<image>\nWhat is seen?", "A chest.", "Which modality?", "X-ray.")},
        {"id": "3_F1", "conversations": turns("What is seen?", "Nothing.")},
        {"image": "32432162_F1.jpg", "conversations": turns("What is seen?\n<image>", "Nothing.")},
    ]  # fmt: skip
    (folder / "alignment/llava_med_alignment_500k.json").write_text(json.dumps(alignment))
    for variant in ("10k", "60k", "60k_inline_mention"):
        rows = instruct if variant == "60k" else instruct[:1]
        (folder / f"instruct/llava_med_instruct_{variant}.json").write_text(json.dumps(rows))
    counts = {("train", "llava_med/alignment"): 1, ("train", "llava_med/instruct"): 1}
    return Root(folder, counts, {"train": 3})
