"""SLAKE: questions in English and Chinese about 642 CT, MRI and X-ray slices, and boxes of their organs."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property, partial
from itertools import count
from pathlib import PurePosixPath
from typing import Any, ClassVar, Literal

from pydantic import Field

from medmvl.core.config import Strict
from medmvl.core.schema import Box, Image, Sample, SampleError
from medmvl.data.adapters.base import Adapter, Finders
from medmvl.data.adapters.regions import corners, regions
from medmvl.data.rows import BadRow, Row, json_rows

_NAME = re.compile(r"\w[\w.-]*")
_BOXES = "imgs/*/detection.json"
_YES_NO = {"en": ("Yes", "No"), "zh": ("是", "不是")}


class SlakeOptions(Strict):
    """Which questions."""

    languages: Literal["en", "zh", "both"] = Field(
        default="en",
        description="of the questions; rows in Chinese whose image belongs to another split in English are refused",
    )


class Slake(Adapter):
    """Visual questions, referring expressions (REC: name to box) and region captions (REG: box to name).

    One image belongs to one split: that of its English rows, or of `train.txt`, `validate.txt` and `test.txt` where
    these lie in the root. The Chinese rows are published with another partition (142 images of its training rows are
    test images in English), so a row whose image belongs to another split is refused. An object that has several boxes
    gives several samples.
    """

    name = "slake"
    title = "SLAKE: visual questions, organ boxes"
    version = "1.0"
    licence = "CC-BY-4.0"
    access = "huggingface.co/datasets/BoKelvin/SLAKE, or www.med-vqa.com/slake; unpack imgs.zip"
    tasks: ClassVar[Mapping[str, str]] = {
        "vqa": "open and closed questions, as they are published",
        "rec": "where is this organ? The answer is a box",
        "reg": "what is in this box? The answer is a name",
    }
    splits: ClassVar[Mapping[str, str]] = {
        "train": "train",
        "val": "validate (validation in the HF copy)",
        "test": "test",
    }
    layout = """
train.json                     [{"img_name": "xmlab1/source.jpg", "question": ..., "answer": ..., ...}, ...]
validate.json                  or validation.json
test.json
train.txt, validate.txt, test.txt   optional: names of the image folders
imgs/xmlab1/source.jpg
imgs/xmlab1/detection.json     [{"Liver": [x, y, width, height]}, ...]
"""
    Options = SlakeOptions

    def samples(self, split: str, tasks: Collection[str]) -> Iterator[Sample | SampleError]:
        self.find("imgs")
        _ = self._homes  # files that are missing are no fault of the rows
        there = self.parts(split, tasks, partial(self._finders, tasks))
        if "questions" in there:
            yield from self.each(self._rows(split), partial(self._question, split, count()))
        if "detection.json" in there:
            wanted = [task for task in ("rec", "reg") if task in tasks]
            for folder in [folder for folder, home in self._homes.items() if home == split]:
                yield from self.each(self._boxes(folder), partial(self._box, split, wanted, folder))

    def _finders(self, tasks: Collection[str], split: str) -> Finders[Any]:
        found: dict[str, Callable[[], Any]] = {}
        if "vqa" in tasks:
            found["questions"] = partial(self._rows, split)
        if {"rec", "reg"} & set(tasks):
            found["detection.json"] = lambda: next(self.root.glob(_BOXES), None) or self.find(_BOXES)
        return found

    def _rows(self, split: str) -> Iterator[Row | BadRow]:
        files = {"train": ("train.json",), "val": ("validate.json", "validation.json"), "test": ("test.json",)}
        return json_rows(self.find(*files[split]))

    def _question(self, split: str, numbers: Iterator[int], row: Row) -> Iterator[Sample]:
        number, language = next(numbers), row.text("q_lang")
        if self.options.languages not in (language, "both"):
            return
        picture = Image(path=self.path(row.text("img_name"), self.root / "imgs"))
        folder = _folder(row)
        home = self._homes.get(folder, split)
        if home != split:
            raise ValueError(f"left out of {split}: its image {folder} belongs to {home}, where its English rows are")
        kind, answer = row.text("answer_type").lower(), row.text("answer")
        if kind not in ("open", "closed"):
            raise ValueError(f"answer_type is OPEN or CLOSED, got {row.data['answer_type']!r}")
        known = ("img_id", "qid", "location", "modality", "content_type", "base_type")
        yield self.sample(
            f"vqa-{split}-{number:05}",
            split,
            "vqa",
            row.text("question"),
            answer,
            [picture],
            answer_type=kind,
            choices=_YES_NO[language] if kind == "closed" and answer in _YES_NO.get(language, ()) else None,
            q_lang=language,
            **{key: row.optional(key) for key in known},
        )

    @cached_property
    def _homes(self) -> dict[str, str]:
        """The split of every image folder."""
        lists = {"train": "train.txt", "val": "validate.txt", "test": "test.txt"}
        if all((self.root / name).is_file() for name in lists.values()):
            texts = {split: self.find(name).read_text("utf-8-sig") for split, name in lists.items()}
            return {folder: split for split, text in texts.items() for folder in text.split()}
        homes: dict[str, dict[str, str]] = {"en": {}, "zh": {}}
        for split in lists:  # an image that stands in several is kept for testing
            for row in self._rows(split):
                if isinstance(row, Row) and row.optional("q_lang") in homes and _NAME.fullmatch(_folder(row)):
                    homes[row.optional("q_lang")][_folder(row)] = split
        return {**homes["zh"], **homes["en"]}

    def _boxes(self, folder: str) -> Iterator[Row | BadRow]:
        """Yield {"object", "box", "number"} of each entry of a detection.json."""
        name = f"imgs/{folder}/detection.json"
        try:
            rows = list(json_rows(self.path(name), may_be_empty=True))
        except ValueError as error:
            yield BadRow(name, str(error))
            return
        for number, row in enumerate(rows):
            place = f"item {number + 1} of {name}"
            if isinstance(row, BadRow):
                yield BadRow(place, row.message)
            elif len(row.data) != 1:
                yield BadRow(place, f"names {len(row.data)} objects; one is expected, {{name: [x, y, width, height]}}")
            else:
                ((thing, box),) = row.data.items()
                yield Row(place, {"object": thing, "box": box, "number": number})

    def _box(self, split: str, tasks: Collection[str], folder: str, row: Row) -> Iterator[Sample]:
        thing, number = row.text("object"), row.data["number"]
        box = Box(coords=corners(row.data["box"]), label=thing)
        picture = Image(path=self.path(f"imgs/{folder}/source.jpg"))
        yield from regions(self, f"{folder}-{number}", split, tasks, picture, box, "uni_med")


def _folder(row: Row) -> str:
    """Return "xmlab1" of "xmlab1/source.jpg"."""
    return PurePosixPath(row.optional("img_name").replace("\\", "/")).parent.as_posix()
