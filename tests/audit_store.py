"""A small clean store of made-up scans in three splits, and rows to plant faults with."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from medmvl.core.schema import Sample
from medmvl.data.store import write_samples

SPLITS = {"train": 24, "val": 8, "test": 8}
FINDINGS = ("effusion", "nodule", "fracture", "none")


def scan(seed, side=128):
    """A smooth picture [side, side] of uint8 that no other seed resembles."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))


def row(folder, split, number, pixels=None, **changes):
    """One sample about a picture of its own, written to images/; `changes` replace question, answer, id or meta."""
    name = f"images/{split}{number}.png"
    (Path(folder) / "images").mkdir(parents=True, exist_ok=True)
    Image.fromarray(scan(seed_of(split, number)) if pixels is None else pixels).save(Path(folder) / name)
    meta = {"patient": f"{split[:2]}{number}", "study": f"{split[:2]}{number}s", "modality": "CR"}
    question = changes.pop("question", "What does the film show?")
    answer = changes.pop("answer", FINDINGS[number % 4])
    content = [{"type": "image", "path": name}, {"type": "text", "text": question}]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    data = {"id": f"{split[:2]}{number}", "messages": turns, "source": "films", "task": "films/finding", "split": split}
    return data | {"meta": meta | {"answer_type": "closed"} | changes.pop("meta", {})} | changes


def seed_of(split, number):
    """The seed of a row's picture."""
    return sorted(SPLITS).index(split) * 1000 + number if split in SPLITS else 9000 + number


def rows(folder):
    """All rows of the clean store."""
    return [row(folder, split, number) for split, count in SPLITS.items() for number in range(count)]


def write(folder, made, name="films"):
    """Write rows as a store with a manifest."""
    samples = [Sample.from_dict(one, root=folder) for one in made]
    write_samples(folder, samples, name=name, version="1.0", licence="made up")
    return Path(folder)


def append(folder, split, *lines):
    """Add rows, or broken lines, behind the manifest's back."""
    with (Path(folder) / f"{split}.jsonl").open("a", encoding="utf-8") as file:
        for line in lines:
            file.write((line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)) + "\n")
