"""VQA-RAD: questions that clinicians asked about radiology images, from the official JSON or the Parquet copy."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import partial
from itertools import count
from pathlib import Path
from typing import ClassVar

from medmvl.core.lookup import choices_text, nearest
from medmvl.core.schema import Image, Sample, SampleError
from medmvl.data.adapters.base import Adapter
from medmvl.data.adapters.embedded import is_copy, questions, yes_no
from medmvl.data.rows import BadRow, Row, json_rows

_PHRASES = {"freeform": "train", "para": "train", "test_freeform": "test", "test_para": "test"}
_META = ("qid", "qid_linked_id", "phrase_type", "image_organ", "question_type", "evaluation")


class VqaRad(Adapter):
    """Open and closed questions, free and paraphrased.

    Test rows are those whose `phrase_type` begins with `test_` (451 of 2,248). Training and test share most images, by
    design, and paraphrases of one question are linked by `qid_linked_id`; `question_rephrase` is kept where there is
    one. A question without a known phrase type is refused with the training rows.
    """

    name = "vqa_rad"
    title = "VQA-RAD: questions about radiology images; its test images are training images too"
    version = "1.1"
    licence = "CC0-1.0"
    access = (
        "osf.io/89kps, or huggingface.co/datasets/flaviagiammarino/vqa-rad; training and test share images, so a score "
        "on it says nothing about new patients"
    )
    tasks: ClassVar[Mapping[str, str]] = {"vqa": "open and closed questions, as they are published"}
    splits: ClassVar[Mapping[str, str]] = {"train": "freeform and para", "test": "test_freeform and test_para"}
    layout = """
VQA_RAD Dataset Public.json               [{"qid": 0, "phrase_type": "freeform", "image_name": "synpic54610.jpg", ...}]
VQA_RAD Image Folder/synpic54610.jpg
or, as the copy on the hub:
data/train-00000-of-00001-*.parquet       image, question, answer
data/test-00000-of-00001-*.parquet
"""

    def samples(self, split: str, tasks: Collection[str]) -> Iterator[Sample | SampleError]:
        if is_copy(self):
            yield from questions(self, split, split)
            return
        file = self.find("VQA_RAD Dataset Public.json", "VQA_RAD_Dataset_Public.json")
        folder = self.find("VQA_RAD Image Folder", "VQA_RAD_Image_Folder", "images")
        rows = (row for row in json_rows(file) if _split(row) == split)
        yield from self.each(rows, partial(self._item, split, count(), folder))

    def _item(self, split: str, numbers: Iterator[int], folder: Path, row: Row) -> Iterator[Sample]:
        number, phrase = next(numbers), row.text("phrase_type")
        if phrase not in _PHRASES:
            raise ValueError(f"phrase_type {phrase!r} is unknown; {choices_text(phrase, _PHRASES)}")
        kind = nearest(row.text("answer_type"), ("open", "closed"))
        if kind is None:
            raise ValueError(f"answer_type is OPEN or CLOSED, got {row.data['answer_type']!r}")
        answer = row.text("answer")
        yield self.sample(
            f"{split}-{number:05}",
            split,
            "vqa",
            row.text("question"),
            answer,
            [Image(path=self.path(row.text("image_name"), folder))],
            study=row.optional("image_case_url"),
            answer_type=kind,
            choices=yes_no(answer) if kind == "closed" else None,
            question_rephrase=row.optional("question_rephrase").removeprefix("NULL"),
            **{key: row.optional(key) for key in _META},
        )


def _split(row: Row | BadRow) -> str:
    return "train" if isinstance(row, BadRow) else _PHRASES.get(row.optional("phrase_type"), "train")
