"""MedPix as RadFM prepared it (MPx-Single, MPx-Multi): captions, modality and plane of pictures, reports of cases."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

from medmvl.core.lookup import choices_text
from medmvl.core.schema import Image, Sample, SampleError
from medmvl.data.adapters.base import Adapter, Finders
from medmvl.data.questions import draw
from medmvl.data.rows import Row, csv_rows

_SINGLE = {"caption": "report", "modality": "modality", "plane": "plane"}
_MULTI = {
    "diagnosis": "diagnosis",
    "findings": "findings",
    "exam": "exam",
    "discussion": "discussion",
    "ddx": "differential",
    "dxHow": "method",
    "txFollowup": "treatment",
}
LISTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "single": (("MedPix_single_{split}.csv",), ("name", "context", "type")),
    "multi": (("MedPix_muli_{split}.csv", "MedPix_multi_{split}.csv"), ("name", "context", "type", "history")),
    "questions": (("MedPix_questions_{split}.csv",), ("question", "answer", "explanation", "name")),
}
"""List -> its file's spellings, and the columns it must have."""


class MedPix(Adapter):
    """Captions, modality and plane of single pictures; reports of cases with several; questions.

    Rows with an empty cell are refused. Rows whose picture is missing are kept, and counted with the missing media.
    RadFM thins and varies the lists while it trains (a fifth of the pictures, yes/no questions with other modalities,
    half of the histories left out, measurements removed); here every row becomes one sample with its history.
    """

    name = "medpix"
    title = "MPx-Single and MPx-Multi: captions and reports from MedPix"
    version = "1.0"
    licence = "lists Apache-2.0; pictures from NLM MedPix, for education and research under its terms"
    access = "huggingface.co/datasets/chaoyi-wu/RadFM_data_csv and huggingface.co/datasets/chaoyi-wu/MedPix-Images"
    tasks: ClassVar[Mapping[str, str]] = {
        "report": "caption of one picture (MPx-Single)",
        "modality": "modality of one picture",
        "plane": "plane of one picture",
        "diagnosis": "diagnosis of a case with several pictures (MPx-Multi)",
        "findings": "findings of a case",
        "exam": "examination of a case",
        "discussion": "discussion of a case",
        "differential": "differential diagnosis of a case (ddx)",
        "method": "how the diagnosis of a case was made (dxHow)",
        "treatment": "treatment and follow-up of a case (txFollowup)",
        "vqa": "questions about one picture",
    }
    splits: ClassVar[Mapping[str, str]] = {"train": "train", "test": "test"}
    layout = """
MedPix_single_train.csv      name, context, type (caption, modality, plane); in the root or in data_csv/
MedPix_muli_train.csv        name (several, with commas), context, type, history; or MedPix_multi_train.csv
MedPix_questions_train.csv   question, answer, explanation, name
...                          the same with _test
images/synpic12345.png       or MedPix-Images/
"""

    def samples(self, split: str, tasks: Collection[str]) -> Iterator[Sample | SampleError]:
        folder = self.find("images", "MedPix-Images", "MedPix/images")
        for name, file in self.parts(split, tasks, partial(self._finders, tasks)).items():
            make = partial(MAKERS[name][0], self, split, count(), folder)
            yield from self.each(csv_rows(file, LISTS[name][1]), partial(self._kept, tasks, make))

    def _finders(self, tasks: Collection[str], split: str) -> Finders[Path]:
        wanted = [name for name, (_, made) in MAKERS.items() if not set(made).isdisjoint(tasks)]
        spelt = {name: [file.format(split=split) for file in _spellings(LISTS[name][0])] for name in wanted}
        return {name: partial(self.find, *files) for name, files in spelt.items()}

    def _kept(self, tasks: Collection[str], make: Callable[[Row], Sample], row: Row) -> Iterator[Sample]:
        sample = make(row)
        if sample.task.partition("/")[2] in tasks:
            yield sample


def single(
    reader: Adapter, split: str, numbers: Iterator[int], folder: Path, row: Row, task: str | None = None, **meta: Any
) -> Sample:
    """Return the sample of a row of the list of single pictures.

    Args:
        reader: whose sample it becomes.
        split: "train" or "test".
        numbers: count the list's rows, for ids.
        folder: of the pictures.
        row: name, context, type.
        task: of the sample; default: the type's own.
        meta: further things to keep.

    Raises:
        ValueError: an empty cell, an unknown type, or a path that leaves the root.
    """
    number, kind = next(numbers), row.text("type")
    if kind not in _SINGLE:
        raise ValueError(f"type {kind!r} is unknown; {choices_text(kind, _SINGLE, 'types')}")
    sample_id = f"single-{split}-{number:06}"
    picture = Image(path=reader.path(row.text("name"), folder))
    question = draw(f"medpix_{kind}", sample_id, split)
    answer = row.text("context")
    return reader.sample(sample_id, split, task or _SINGLE[kind], question, answer, [picture], type=kind, **meta)


def multi(
    reader: Adapter, split: str, numbers: Iterator[int], folder: Path, row: Row, task: str | None = None, **meta: Any
) -> Sample:
    """Return the sample of a row of the list of cases: name (several), context, type, history; else as `single`."""
    number, kind = next(numbers), row.text("type")
    if kind not in _MULTI:
        raise ValueError(f"type {kind!r} is unknown; {choices_text(kind, _MULTI, 'types')}")
    sample_id = f"multi-{split}-{number:06}"
    names = [name.strip() for name in row.text("name").split(",") if name.strip()]
    pictures = [Image(path=reader.path(name, folder)) for name in names]
    question = " ".join(filter(None, (row.optional("history"), draw(f"medpix_{_MULTI[kind]}", sample_id, split))))
    answer = row.text("context").replace("• ", "").strip()
    return reader.sample(sample_id, split, task or _MULTI[kind], question, answer, pictures, type=kind, **meta)


def question(
    reader: Adapter, split: str, numbers: Iterator[int], folder: Path, row: Row, task: str | None = None, **meta: Any
) -> Sample:
    """Return the sample of a row of the list of questions: question, answer, explanation, name; else as `single`."""
    sample_id = f"questions-{split}-{next(numbers):06}"
    picture = Image(path=reader.path(row.text("name"), folder))
    return reader.sample(
        sample_id,
        split,
        task or "vqa",
        row.text("question"),
        row.text("answer"),
        [picture],
        type="question",
        explanation=row.optional("explanation"),
        **meta,
    )


MAKERS: dict[str, tuple[Callable[..., Sample], tuple[str, ...]]] = {
    "single": (single, tuple(_SINGLE.values())),
    "multi": (multi, tuple(_MULTI.values())),
    "questions": (question, ("vqa",)),
}
"""List -> what makes a sample of its rows, and the tasks of these."""


def _spellings(files: Collection[str]) -> list[str]:
    return [f"{folder}{file}" for file in files for folder in ("", "data_csv/")]
