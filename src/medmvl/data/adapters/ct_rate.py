"""CT-RATE: chest CT volumes with reports, 18 abnormality labels, and long, short and multiple-choice questions."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from medmvl.core.config import Strict
from medmvl.core.log import get_logger
from medmvl.core.schema import Message, Meta, Part, Sample, SampleError, Text, Volume
from medmvl.data.adapters.base import Adapter, Finders
from medmvl.data.questions import draw
from medmvl.data.rows import Row, csv_rows, json_rows

LABELS = (
    "Medical material", "Arterial wall calcification", "Cardiomegaly", "Pericardial effusion",
    "Coronary artery wall calcification", "Hiatal hernia", "Lymphadenopathy", "Emphysema", "Atelectasis", "Lung nodule",
    "Lung opacity", "Pulmonary fibrotic sequela", "Pleural effusion", "Mosaic attenuation pattern",
    "Peribronchial thickening", "Consolidation", "Bronchiectasis", "Interlobular septal thickening",
)  # fmt: skip
"""Columns of the label tables."""

_OFFICIAL = {"train": "train", "val": "valid"}
_NAME = re.compile(r"((train|valid)_\d+)_([a-z]+)_(\d+)(?:\.nii\.gz)?")
_PREFIXES = {
    "long_answer_": "long",
    "short_answer_": "short",
    "multiple_choice_": "choice",
    "report_generation_": "report",
}
_LONG_TYPES = ("free_response", "description", "conversation")
# CT-CHAT marks the end of a question with the kind of its answer; some of the marks are misspelt.
_MARKS = re.compile(
    r"(?:\s*<(?:long_answ\w*|short_answ\w*|multiple_cho\w*|report_gen\w*|provided)>)+\s*$", re.IGNORECASE
)
_OPTION = re.compile(r"\(([a-z])\)\s*(.*?)\s*(?=\([a-z]\)|$)", re.DOTALL)
_NOT_GIVEN = re.compile(r"not given\.?", re.IGNORECASE)
_NONE = "no abnormality"

Turns = list[tuple[str, str]]
"""(question, answer), in order."""


class CtRateOptions(Strict):
    """Where HU come from, and what counts as one sample."""

    hu_source: Literal["auto", "table", "already_hu"] = Field(
        default="auto",
        description="table: slope and intercept of the metadata table, for train/ and valid/, whose headers lack them; "
        "already_hu: the stored values are HU, as in train_fixed/ and valid_fixed/; auto: the fixed folder where it is "
        "there, else the table",
    )
    reconstructions: Literal["all", "one"] = Field(
        default="all",
        description="of a scan; all repeat one report. one: that with the smallest number in the table of reports",
    )
    turns: Literal["auto", "multi", "single"] = Field(
        default="auto",
        description="of a conversation: one sample (multi) or one for each question (single); auto: multi in training",
    )
    reports: Literal["table", "vqa"] = Field(
        default="table", description="task report from the table of reports, or from the VQA file with its own wordings"
    )


class CtRate(Adapter):
    """Reports, abnormality labels and questions about chest CT.

    Every volume's address says where its Hounsfield units come from, for the headers of the first release do not:
    `#slope=1&intercept=-8192` from the metadata table (never a constant: a quarter of the scans have -8192, the others
    -1024), or `#hu=already_hu` for the corrected second release, whose rescaling must not be applied again.

    Patients (`train_1`) belong to one split, as published. There is no test split: publications evaluate on `valid`,
    which is `val` here, and so must not choose models by it. Volumes listed in no_chest_*.txt are refused.

    Parts of a report that read "Not given." are left out. Labels are those of a text classifier, not of radiologists.
    """

    name = "ct_rate"
    title = "CT-RATE: chest CT with reports, labels and questions"
    version = "1.0"
    licence = "CC-BY-NC-SA-4.0"
    access = (
        "huggingface.co/datasets/ibrahimhamamci/CT-RATE, after its form; neither data nor derivatives redistributed"
    )
    tasks: ClassVar[Mapping[str, str]] = {
        "report": "write the report: 'Findings: ... Impression: ...'",
        "labels": "which of 18 abnormalities, if any?",
        "long": "questions with long answers, conversations among them",
        "short": "questions with short answers",
        "choice": "multiple-choice questions: '(b) the answer'",
        "text": "questions of the VQA file that show no volume",
    }
    splits: ClassVar[Mapping[str, str]] = {"train": "train", "val": "valid; publications test on it"}
    layout = """
dataset/train_fixed/train_1/train_1_a/train_1_a_1.nii.gz     HU; or train/, with the metadata table (option hu_source)
dataset/valid_fixed/...
dataset/metadata/train_metadata.csv, validation_metadata.csv, no_chest_train.txt, no_chest_valid.txt
dataset/radiology_text_reports/train_reports.csv, validation_reports.csv
dataset/multi_abnormality_labels/train_predicted_labels.csv, valid_predicted_labels.csv
dataset/vqa/train_vqa.json, valid_vqa.json
"""
    Options = CtRateOptions

    def samples(self, split: str, tasks: Collection[str]) -> Iterator[Sample | SampleError]:
        needed = ("vqa",) if self.options.reports == "vqa" else ()
        there = self.parts(split, tasks, partial(self._finders, tasks), needed)
        if not there:
            return
        volumes = self._volumes(split)
        if file := there.get("radiology_text_reports"):
            columns = ("VolumeName", "Findings_EN", "Impressions_EN")
            yield from self.each(csv_rows(file, columns), partial(self._report, split, volumes))
        if file := there.get("multi_abnormality_labels"):
            yield from self.each(csv_rows(file, ("VolumeName", *LABELS)), partial(self._labels, split, volumes))
        if file := there.get("vqa"):
            others: Counter[str] = Counter()
            make = partial(self._asked, split, self._from_vqa(tasks), volumes, others)
            yield from self.each(json_rows(file), make)
            if others:
                told = (
                    "%s: %d items are about reconstructions that another stands for, and left out (reconstructions=one)"
                )
                get_logger(__name__).warning(told, file, others.total())

    def _from_vqa(self, tasks: Collection[str]) -> set[str]:
        return set(tasks) - {"labels", *(() if self.options.reports == "vqa" else ("report",))}

    def _finders(self, tasks: Collection[str], split: str) -> Finders[Path]:
        """Return what finds the files that some tasks are made of; nothing is there without volumes."""
        official, names = _OFFICIAL[split], {}
        if not any((self.root / folder / name).is_dir() for name in self._trees(split) for folder in ("dataset", "")):
            return {"volumes": partial(self._find, *self._trees(split))}
        if "report" in tasks and self.options.reports == "table":
            names["radiology_text_reports"] = _reports(split)
        if "labels" in tasks:
            names["multi_abnormality_labels"] = f"multi_abnormality_labels/{official}_predicted_labels.csv"
        if self._from_vqa(tasks):
            names["vqa"] = f"vqa/{official}_vqa.json"
        return {part: partial(self._find, name) for part, name in names.items()}

    def _find(self, *names: str) -> Path:
        """Find a file of the data set's folder `dataset`, which may be the root itself."""
        return self.find(*(f"{folder}{name}" for name in names for folder in ("dataset/", "")))

    def _trees(self, split: str) -> tuple[str, ...]:
        """Return what the folder of a split's volumes may be called."""
        fixed, raw = f"{_OFFICIAL[split]}_fixed", _OFFICIAL[split]
        return (raw,) if self.options.hu_source == "table" else (fixed, raw)

    def _volumes(self, split: str) -> Volumes:
        """Settle where the volumes are and where their HU come from, before any row is read."""
        official, source = _OFFICIAL[split], self.options.hu_source
        tree, told = self._find(*self._trees(split)), None
        if source == "table" or (source == "auto" and tree.name == official):
            name = "train" if split == "train" else "validation"
            told = _rescaling(self._find(f"metadata/{name}_metadata.csv"))
        volumes = Volumes(self, official, tree, told, self._elsewhere(official))
        if self.options.reconstructions == "all":
            return volumes
        return volumes.one_of_each(csv_rows(self._find(_reports(split)), ("VolumeName",)))

    def _elsewhere(self, official: str) -> frozenset[str]:
        """Return the volumes, or whole scans, that show no chest, by their names without suffix."""
        name = f"metadata/no_chest_{official}.txt"
        if not any((self.root / folder / name).is_file() for folder in ("dataset", "")):
            return frozenset()
        lines = self._find(name).read_text("utf-8-sig", "replace").split()
        return frozenset(_bare(line.rpartition("/")[2]) for line in lines)

    def _report(self, split: str, volumes: Volumes, row: Row) -> Iterator[Sample]:
        volume = volumes[row.text("VolumeName")]
        if volume is None:
            return
        parts = {"Findings": row.optional("Findings_EN"), "Impression": row.optional("Impressions_EN")}
        given = [f"{name}: {' '.join(text.split())}" for name, text in parts.items() if _is_given(text)]
        if not given:
            raise ValueError("neither findings nor impression is given")
        key = f"report-{volume.name}"
        question = draw("ct_rate_report", key, split)
        yield self.sample(key, split, "report", question, " ".join(given), [volume.medium], **volume.meta("open"))

    def _labels(self, split: str, volumes: Volumes, row: Row) -> Iterator[Sample]:
        volume = volumes[row.text("VolumeName")]
        if volume is None:
            return
        states = {label.lower(): row.text(label).removesuffix(".0") for label in LABELS}
        wrong = [f"{label!r}: {value!r}" for label, value in states.items() if value not in ("0", "1")]
        if wrong:
            raise ValueError(f"a label is 0 or 1, got {', '.join(wrong)}")
        answer = ", ".join(label for label, value in states.items() if value == "1") or _NONE
        attributes = {label: "yes" if value == "1" else "no" for label, value in states.items()}
        names, key = list(states), f"labels-{volume.name}"
        listing = f"{', '.join(names[:-1])}, or {names[-1]}"
        question = draw("ct_rate_labels", key, split).replace("{choices}", listing)
        meta = volume.meta("open") | {"attributes": attributes}
        yield self.sample(key, split, "labels", question, answer, [volume.medium], **meta)

    def _asked(
        self, split: str, tasks: Collection[str], volumes: Volumes, others: Counter[str], row: Row
    ) -> Iterator[Sample]:
        """Yield one item of the VQA file, or each of its turns; those of reconstructions left out go to `others`."""
        kind = _kind(row)
        if kind not in tasks:
            return
        turns, shows = _turns(row.data.get("conversations"))
        name = row.optional("image")
        if shows and not name:
            raise ValueError("its question shows <image>, but the item names no image")
        volume = volumes[name] if name else None
        if name and volume is None:
            others[kind] += 1
            return
        media = [] if volume is None else [volume.medium]
        meta = {} if volume is None else volume.meta("choice" if kind == "choice" else "open")
        key = f"{_OFFICIAL[split]}_{row.text('id')}"
        if self.options.turns == "multi" or (self.options.turns == "auto" and split == "train"):
            yield self._conversation(key, split, kind, turns, media, meta)
            return
        for number, (question, answer) in enumerate(turns):
            part = key if len(turns) == 1 else f"{key}_{number}"
            choices = _choices(question) if kind == "choice" else None
            yield self.sample(part, split, kind, question, answer, media, choices=choices, **meta)

    def _conversation(
        self, key: str, split: str, kind: str, turns: Turns, media: Sequence[Volume], meta: Mapping[str, Any]
    ) -> Sample:
        messages = []
        for number, (question, answer) in enumerate(turns):
            shown: tuple[Part, ...] = tuple(media) if number == 0 else ()
            messages.append(Message(role="user", content=(*shown, Text(text=question))))
            messages.append(Message(role="assistant", content=(Text(text=answer),)))
        choices = _choices(turns[0][0]) if kind == "choice" and len(turns) == 1 else ()
        return Sample(
            id=key,
            messages=tuple(messages),
            source=self.name,
            task=f"{self.name}/{kind}",
            split=split,
            meta=Meta(choices=choices, **meta),
        )


@dataclass(frozen=True, slots=True)
class Scan:
    """One volume: its name without suffix, its address, and whose it is."""

    name: str
    medium: Volume
    patient: str
    study: str

    def meta(self, answer_type: str) -> dict[str, Any]:
        return {"patient": self.patient, "study": self.study, "modality": "ct", "answer_type": answer_type}


@dataclass(frozen=True)
class Volumes:
    """The volumes of one split, by their names in tables and annotations.

    Attributes:
        adapter: whose paths they are.
        official: "train" or "valid".
        tree: folder of the patients' folders.
        told: name -> (slope, intercept) of the metadata table, or what is wrong with its row; None: values are HU.
        elsewhere: names of volumes, or of whole scans, that show no chest.
        chosen: scan -> number of the reconstruction that stands for it; None: all stand for themselves.
    """

    adapter: CtRate
    official: str
    tree: Path
    told: Mapping[str, tuple[float, float] | str] | None
    elsewhere: frozenset[str]
    chosen: Mapping[str, int] | None = None

    def __getitem__(self, name: str) -> Scan | None:
        """Return the volume of a name, or None where another reconstruction stands for it.

        Raises:
            ValueError: no such name in this split, one that shows no chest, or one whose HU are unknown.
        """
        self.adapter.path(name)
        found = _NAME.fullmatch(name)
        if found is None or found[2] != self.official:
            raise ValueError(f"{name!r} is no volume of this split: {self.official}_1_a_1.nii.gz is expected")
        patient, scan, bare = found[1], f"{found[1]}_{found[3]}", _bare(name)
        if self.elsewhere & {bare, scan}:
            raise ValueError(f"{bare} shows no chest, says no_chest_{self.official}.txt")
        if self.chosen is not None and self.chosen.get(scan) != int(found[4]):
            return None
        path = self.adapter.path(f"{patient}/{scan}/{bare}.nii.gz", self.tree)
        return Scan(bare, Volume(path=f"{path}#{self._fragment(bare)}"), patient, scan)

    def _fragment(self, bare: str) -> str:
        if self.told is None:
            return "hu=already_hu"
        told = self.told.get(bare, f"{bare} has no row in the metadata table, so its HU are unknown")
        if isinstance(told, str):
            raise ValueError(told)
        return f"slope={told[0]:.10g}&intercept={told[1]:.10g}"

    def one_of_each(self, rows: Iterator[Any]) -> Volumes:
        """Return these volumes with one reconstruction for each scan, the smallest usable number in a table."""
        chosen: dict[str, int] = {}
        for row in rows:
            found = _NAME.fullmatch(row.optional("VolumeName")) if isinstance(row, Row) else None
            if found and found[2] == self.official:
                scan, number = f"{found[1]}_{found[3]}", int(found[4])
                if not self.elsewhere & {_bare(found[0]), scan}:
                    chosen[scan] = min(number, chosen.get(scan, number))
        return Volumes(self.adapter, self.official, self.tree, self.told, self.elsewhere, chosen)


def _reports(split: str) -> str:
    return f"radiology_text_reports/{'train' if split == 'train' else 'validation'}_reports.csv"


def _bare(name: str) -> str:
    return name.removesuffix(".nii.gz")


def _rescaling(file: Path) -> dict[str, tuple[float, float] | str]:
    """Read the metadata table; a row that is wrong costs its own volume only."""
    found: dict[str, tuple[float, float] | str] = {}
    for row in csv_rows(file, ("VolumeName", "RescaleSlope", "RescaleIntercept")):
        if isinstance(row, Row):
            try:
                slope, intercept = float(row.text("RescaleSlope")), float(row.text("RescaleIntercept"))
                usable = math.isfinite(slope) and slope != 0 and math.isfinite(intercept)
            except ValueError:
                usable = False
            name = _bare(row.optional("VolumeName"))
            found[name] = (slope, intercept) if usable else f"{row.place} gives no slope and intercept for {name}"
    return found


def _is_given(text: str) -> bool:
    return bool(text) and not _NOT_GIVEN.fullmatch(text)


def _kind(row: Row) -> str:
    """Return the task of a VQA item: from its id, else from the type of its first question.

    Raises:
        ValueError: neither tells.
    """
    key, turns = row.text("id"), row.data.get("conversations")
    if not row.optional("image") and "<image>" not in str(turns):
        return "text"
    for prefix, task in _PREFIXES.items():
        if key.startswith(prefix):
            return task
    first = turns[0] if isinstance(turns, list) and turns and isinstance(turns[0], dict) else {}
    kind = str(first.get("type") or "")
    if not kind:
        raise ValueError(f"its id begins with none of {', '.join(_PREFIXES)}, and its question has no type")
    named = {"multiple_choice": "choice", "report_generation": "report", **dict.fromkeys(_LONG_TYPES, "long")}
    return named.get(kind, "short")


def _turns(given: Any) -> tuple[Turns, bool]:
    """Return questions and answers, without marks and placeholders, and whether the first one shows an image.

    Raises:
        ValueError: no turns of human and gpt in turn, one without words, or <image> elsewhere.
    """
    whole = isinstance(given, list) and given and all(isinstance(turn, dict) for turn in given)
    if not whole or [turn.get("from") for turn in given] != ["human", "gpt"] * (len(given) // 2):
        raise ValueError("its conversations are not turns of human and gpt, in this order")
    texts = [turn.get("value") if isinstance(turn.get("value"), str) else "" for turn in given]
    shows = "<image>" in texts[0]
    texts[0] = texts[0].replace("<image>", "", 1)
    texts = [(_MARKS.sub("", text) if number % 2 == 0 else text).strip() for number, text in enumerate(texts)]
    for number, text in enumerate(texts):
        if not text:
            raise ValueError(f"turn {number} of its conversations says nothing")
        if "<image" in text:
            raise ValueError(f"turn {number} of its conversations shows an image again; one stands in the first")
    return list(zip(texts[::2], texts[1::2], strict=True)), shows


def _choices(question: str) -> tuple[str, ...]:
    """Return the options of "Which ...? (a) this (b) that", () where they are not (a), (b), (c) in order."""
    found = _OPTION.findall(question)
    in_order = [letter for letter, _ in found] == [chr(ord("a") + number) for number in range(len(found))]
    return tuple(text for _, text in found) if in_order and all(text for _, text in found) else ()
