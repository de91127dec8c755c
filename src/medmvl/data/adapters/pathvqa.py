"""PathVQA: questions about pictures of pathology, from its pickles or from the Parquet copy."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import partial
from itertools import count
from pathlib import Path
from typing import ClassVar

from medmvl.core.schema import Image, Sample, SampleError
from medmvl.data.adapters.base import Adapter
from medmvl.data.adapters.embedded import is_copy, questions, yes_no
from medmvl.data.pickles import read_pickle
from medmvl.data.rows import BadRow, Row, TableError, tell_empty

_TYPES = {"yes/no": "closed", "other": "open", "number": "open"}


class PathVqa(Adapter):
    """Open and closed questions.

    Of the original tree `{split}_vqa.pkl` is preferred, for only it says which questions are closed; elsewhere a
    question is closed when its answer is yes or no. The two differ slightly, and so do the numbers of rows. The Parquet
    copy has lower-cased its text and keeps each picture once per question; equal pictures become one file again.
    """

    name = "pathvqa"
    title = "PathVQA: questions about pathology"
    version = "1.0"
    licence = "MIT for the questions; the pictures belong to the publishers of the books and to PEIR"
    access = "github.com/UCSD-AI4H/PathVQA (pvqa.zip), or huggingface.co/datasets/flaviagiammarino/path-vqa"
    tasks: ClassVar[Mapping[str, str]] = {"vqa": "open and closed questions, as they are published"}
    splits: ClassVar[Mapping[str, str]] = {
        "train": "train",
        "val": "val (validation in the Parquet copy)",
        "test": "test",
    }
    layout = """
pvqa/images/train/train_0001.jpg          train, val, test
pvqa/qas/train_vqa.pkl                    or pvqa/qas/train/train_qa.pkl
or, as the copy on the hub:
data/train-00000-of-00003.parquet         image, question, answer
data/validation-00000-of-00001.parquet
data/test-00000-of-00001.parquet
"""

    def samples(self, split: str, tasks: Collection[str]) -> Iterator[Sample | SampleError]:
        if is_copy(self):
            yield from questions(self, split, "validation" if split == "val" else split)
            return
        file = self.find(*(f"{top}qas/{name}" for name in _files(split) for top in ("pvqa/", "")))
        images = file.parent.parent if file.parent.name == "qas" else file.parent.parent.parent
        yield from self.each(_items(file), partial(self._item, split, count(), images / "images" / split))

    def _item(self, split: str, numbers: Iterator[int], folder: Path, row: Row) -> Iterator[Sample]:
        number = next(numbers)
        rich = "img_id" in row.data or "sent" in row.data
        image = row.text("img_id" if rich else "image")
        picture = Image(path=self.path(f"{image}.jpg", folder))
        answer = _label(row) if rich else row.text("answer")
        choices = yes_no(answer)
        kind = _type(row) if rich else "closed" if choices else "open"
        yield self.sample(
            f"{split}-{number:05}",
            split,
            "vqa",
            row.text("sent" if rich else "question"),
            answer,
            [picture],
            answer_type=kind,
            choices=choices if kind == "closed" else None,
            **{key: row.optional(key) for key in ("question_id", "question_type")},
        )


def _label(row: Row) -> str:
    """Return the answer of {"label": {answer: 1}}, the first where there are several."""
    label = row.data.get("label")
    if not isinstance(label, dict) or not label:
        raise ValueError(f"field 'label' is {{answer: 1}}, got {label!r}")
    answer = str(next(iter(label))).strip()
    if not answer:
        raise ValueError("the answer is empty")
    return answer


def _type(row: Row) -> str:
    kind = _TYPES.get(row.text("answer_type"))
    if kind is None:
        raise ValueError(f"answer_type {row.data['answer_type']!r} is unknown; known are {', '.join(_TYPES)}")
    return kind


def _files(split: str) -> tuple[str, ...]:
    return (f"{split}_vqa.pkl", f"{split}/{split}_vqa.pkl", f"{split}/{split}_qa.pkl", f"{split}_qa.pkl")


def _items(file: Path) -> Iterator[Row | BadRow]:
    """Yield the questions of a pickled list.

    Raises:
        TableError: it is no plain list.
    """
    items = read_pickle(file)
    if not isinstance(items, list):
        raise TableError(f"{file}: holds a {type(items).__name__}; a list of questions is expected")
    tell_empty(file, len(items))
    for number, item in enumerate(items, start=1):
        place = f"item {number} of {file.name}"
        yield Row(place, item) if isinstance(item, dict) else BadRow(place, f"is no dict but a {type(item).__name__}")
