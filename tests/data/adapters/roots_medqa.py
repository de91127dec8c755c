"""A tiny MedQA: three regions, five options and four."""

import json
from pathlib import Path

from adapter_root import Root


def item(text: str, letter: str = "B", options: str = "ABCDE", **other) -> dict:
    """Return one line as it is published."""
    texts = {name: f"Drug {name}" for name in options}
    row = {"question": text, "answer": texts[letter], "options": texts, "meta_info": "step1", "answer_idx": letter}
    return {**row, **other}


def _lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def write(folder: Path) -> Path:
    """Write the tree; three training lines of the US are wrong."""
    questions = folder / "data_clean" / "questions"
    without = item("Which field is missing?")
    del without["options"]
    wrong = [without, item("Which letter?", answer_idx="D"), item("", "A")]
    _lines(questions / "US/train.jsonl", [item("A man has pain. What is given?"), *wrong, item("And then {}?", "E")])
    _lines(questions / "US/dev.jsonl", [item("A woman?", meta_info="step2&3")])
    _lines(questions / "US/test.jsonl", [item("A child?", "C")])
    for split in ("train", "dev", "test"):
        four = item("A man?", "A", "ABCD", metamap_phrases=["man"])
        _lines(questions / f"US/4_options/phrases_no_exclude_{split}.jsonl", [four])
        _lines(questions / f"Mainland/{split}.jsonl", [item("何药?", meta_info="卫生法规")])
        _lines(questions / f"Mainland/4_options/{split}.jsonl", [item("何药?", "D", "ABCD")])
        _lines(questions / f"Taiwan/{split}.jsonl", [item("何藥?", "D", "ABCD", meta_info="taiwanese_test_Q")])
    return folder


def build(folder: Path) -> Root:
    """The US with five options."""
    counts = {
        (split, f"medqa/{t}"): n for split, n in (("train", 2), ("val", 1), ("test", 1)) for t in ("choice", "open")
    }
    return Root(write(folder), counts, {"train": 3}, names_paths=False)
