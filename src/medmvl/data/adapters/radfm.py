"""RadFM's lists: captions of PMC-OA (MedMD), and the radiology sets it is tuned on (RadMD), in 2D and 3D."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from medmvl.core.config import Strict
from medmvl.core.lookup import choices_text
from medmvl.core.schema import Image, Sample, SampleError
from medmvl.data.adapters import medpix
from medmvl.data.adapters.base import Adapter, Finders, Media
from medmvl.data.adapters.radfm_scans import Scans
from medmvl.data.questions import draw
from medmvl.data.rows import Row, csv_rows, json_rows

_CASE = re.compile(r"(\d+)/\d+/[^/]+")
_LONGEST_REFERENCE = 10_000  # characters of a list of figures; a paper has some tens


class RadFmOptions(Strict):
    """Which lists, and where the files they name lie now."""

    lists: str = Field(default="", description="names of lists, with commas; default: all that lie in the root")
    prefixes: dict[str, str] = Field(
        default={},
        description="folder of RadFM's authors, as its lists write it -> folder below the root with its files now",
    )


@dataclass(frozen=True)
class _List:
    """One list: its task, the spellings of its file, the columns it must have, what makes samples of a row."""

    task: str
    files: tuple[str, ...]
    columns: tuple[str, ...]
    make: Callable[[RadFm, str, _List, str, Row], Iterator[Sample]]
    settings: Mapping[str, str] = field(default_factory=dict)


class RadFm(Adapter):
    """Rows of RadFM_data_csv as its loaders read them; every row becomes one sample (two for reports of RP3D).

    File and column names are those that the loaders of github.com/chaoyi-wu/RadFM read (its files were not seen); the
    list a sample comes from is `meta.list`. Left out: PMC-Inline (papers with figures between their sentences) and
    whatever the loaders make up at random (yes/no questions about other modalities and diseases). Prompts that RadFM
    does not publish are replaced, see the pools radfm_*. Media come before the question; contexts of case reports are
    kept whole.

    Lists write paths of their authors' machines: `prefixes` says where these files lie now.
    """

    name = "radfm"
    title = "RadFM's lists: MedMD for pre-training, RadMD for tuning"
    version = "1.0"
    licence = "lists Apache-2.0; the media keep the licences of their sources"
    access = (
        "huggingface.co/datasets/chaoyi-wu/RadFM_data_csv; media from their sources, some credentialed (MIMIC-CXR, "
        "VinDr) or restricted (Radiopaedia)"
    )
    credentialed = True
    tasks: ClassVar[Mapping[str, str]] = {
        "medmd": "what RadFM is pre-trained on beside RadMD: captions of figures (PMC-OA)",
        "radmd": "what RadFM is tuned on: reports, diagnoses, questions, case reports, RP3D, MedPix",
    }
    splits: ClassVar[Mapping[str, str]] = {"train": "train", "test": "test"}
    layout = """
data_csv/                                     or the root itself
  pmcoa_image_caption_train.csv               Figure_path, Caption
  mimic_caption_train.csv                     image_path, label
  chestxray_balance_train_new.csv             image_path, disease, label (0, 1); pcxr_, mammo_, spinexr_ too
  chestxray_new.csv                           image_path, label; pcxr_, mammo_, spinexr_ too
  pmcvqa_train.csv                            img_root_dir, Figure_path, Question, Answer; vqarad_, slakevqa_ too
  filtered_case_report_train.csv              PMC_id, img_ref, context, question, answer
  MedPix_single_train.csv, MedPix_muli_train.csv, MedPix_questions_train.csv
  radiology_vqa_train.csv                     image_path, question, answer
  radio_modality_train.csv                    image_path, answer
  radiology_article_npy_train.json            [{"npy_path": ..., "finding": ..., "impression": ..., "pre": ..., ...}]
  ...                                         the same with _test
pmc_oa/                                       figures of pmcoa_image_caption
figures/PMC123_fig1.jpg                       figures of case reports
images/synpic1.png                            pictures of MedPix
...                                           other media as the lists name them, or where `prefixes` says
"""
    Options = RadFmOptions

    def samples(self, split: str, tasks: Collection[str]) -> Iterator[Sample | SampleError]:
        self._scans = Scans(self)
        for name, file in self._files(split, tasks).items():
            rows = json_rows(file) if file.suffix == ".json" else csv_rows(file, LISTS[name].columns)
            yield from self.each(rows, partial(self._row, split, name, count()))

    def _row(self, split: str, name: str, numbers: Iterator[int], row: Row) -> Iterator[Sample]:
        return LISTS[name].make(self, split, LISTS[name], f"{name}-{split}-{next(numbers):07}", row)

    def _files(self, split: str, tasks: Collection[str]) -> dict[str, Path]:
        """Return the lists to read: those that the option names, or those of the tasks that are there."""
        asked = [name.strip() for name in self.options.lists.split(",") if name.strip()]
        for name in asked:
            if name not in LISTS:
                raise ValueError(f"{self.name}: unknown list {name!r}; {choices_text(name, LISTS, 'lists')}")
        wanted = [name for name in asked or LISTS if LISTS[name].task in tasks]

        def finders(split: str) -> Finders[Path]:
            return {name: partial(self.find, *_spellings(LISTS[name].files, split)) for name in wanted}

        # A task has many lists, so that its name does not ask for each of them.
        return self.parts(split, self.tasks, finders, needed=asked)

    def place(self, given: str, below: str = "") -> str:
        """Return where a file of a list lies now.

        Raises:
            ValueError: it is in a folder of the authors and `prefixes` does not say where that is now, or leaves the
                root.
        """
        for old, new in self.options.prefixes.items():
            if given.startswith(old.rstrip("/") + "/"):
                return self.path(f"{new}/{given[len(old.rstrip('/')) + 1 :]}")
        if given.startswith("/") and not given.startswith(f"{self.root}{os.sep}"):
            raise ValueError(
                f"the path {given!r} leaves {self.root}: it is a path of RadFM's authors; option prefixes says where "
                "their folders lie now, as {'/gpfs/home/cs/leijiayu/data': 'images'}"
            )
        return self.path(given, self.root / below)

    def media(self, given: Any) -> list[Media]:
        """Return the media of a path, or of a list of paths."""
        paths = given if isinstance(given, list) else [given]
        return [medium for path in paths for medium in self._scans.media(self.place(str(path).strip()))]


def _caption(reader: RadFm, split: str, one: _List, key: str, row: Row) -> Iterator[Sample]:
    media = [Image(path=reader.place(row.text("Figure_path"), "pmc_oa"))]
    yield reader.sample(
        key, split, one.task, draw("medpix_caption", key, split), row.text("Caption"), media, list="pmc_oa"
    )


def _labelled(reader: RadFm, split: str, one: _List, key: str, row: Row) -> Iterator[Sample]:
    """Reports and diagnoses in words."""
    question = draw(one.settings["pool"], key, split)
    media = reader.media(row.text("image_path"))
    yield reader.sample(key, split, one.task, question, row.text("label"), media, list=_name(key))


def _binary(reader: RadFm, split: str, one: _List, key: str, row: Row) -> Iterator[Sample]:
    answer = {"0": "no", "1": "yes", "0.0": "no", "1.0": "yes"}.get(row.text("label"))
    if answer is None:
        raise ValueError(f"label is 0 or 1, got {row.data['label']!r}")
    question = draw("radfm_sign", key, split).replace("{}", row.text("disease"))
    media = reader.media(row.text("image_path"))
    kind = {"answer_type": "closed", "choices": ("yes", "no"), "list": _name(key)}
    yield reader.sample(key, split, one.task, question, answer, media, **kind)


def _question(reader: RadFm, split: str, one: _List, key: str, row: Row) -> Iterator[Sample]:
    """Questions about one picture; its folder stands in a column of its own."""
    media = reader.media(os.path.join(row.optional("img_root_dir"), row.text("Figure_path")))
    yield reader.sample(key, split, one.task, row.text("Question"), row.text("Answer"), media, list=_name(key))


def _case(reader: RadFm, split: str, one: _List, key: str, row: Row) -> Iterator[Sample]:
    paper = row.text("PMC_id")
    figures = [reader.place(f"{paper}_{figure}.jpg", "figures") for figure in _literal(row.text("img_ref"))]
    question = f"{row.optional('context')}\n{row.text('question').replace('Q:', '')}".strip()
    answer = row.text("answer").replace("A:", "").strip()
    media = [Image(path=path) for path in figures]
    yield reader.sample(key, split, one.task, question, answer, media, patient=paper, list=_name(key))


def _scan_question(reader: RadFm, split: str, one: _List, key: str, row: Row) -> Iterator[Sample]:
    media = reader.media(row.text("image_path"))
    yield reader.sample(key, split, one.task, row.text("question"), row.text("answer"), media, list=_name(key))


def _modality(reader: RadFm, split: str, one: _List, key: str, row: Row) -> Iterator[Sample]:
    path, answer = row.text("image_path"), row.text("answer")
    question, case = draw("medpix_modality", key, split), _CASE.search(path)
    meta = {"patient": case[1] if case else "", "list": _name(key)}
    yield reader.sample(key, split, one.task, question, answer, reader.media(path), **meta)


def _report(reader: RadFm, split: str, one: _List, key: str, row: Row) -> Iterator[Sample]:
    """A case of RP3D: its report, and the features of its disease where they are given."""
    media = reader.media(row.data.get("npy_path") or row.data.get("image_path") or "")
    known = " ".join(filter(None, (row.optional("pat"), row.optional("pre"))))
    sections = {"Finding": row.optional("finding"), "Impression": row.optional("impression")}
    report = " ".join(f"{title}: {text}" for title, text in sections.items() if text)
    if not report:
        raise ValueError("both 'finding' and 'impression' are empty")
    first = row.data["image_path"][0] if isinstance(row.data.get("image_path"), list) and row.data["image_path"] else ""
    case = _CASE.search(str(first))
    meta = {"patient": case[1] if case else "", "list": _name(key), "title": row.optional("title")}
    question = f"{known} {draw('medpix_caption', key, split)}".strip()
    yield reader.sample(f"{key}-report", split, one.task, question, report, media, **meta)
    if features := _joined(row.data.get("radiographic_features")):
        names = _joined(row.data.get("articles"))
        answer = f"{names} The radiographic features can be summarized as follows. {features}".strip()
        question = f"{known} {draw('radfm_features', key, split)}".strip()
        yield reader.sample(f"{key}-features", split, one.task, question, answer, media, **meta)


def _medpix(reader: RadFm, split: str, one: _List, key: str, row: Row) -> Iterator[Sample]:
    make, _ = medpix.MAKERS[one.settings["list"]]
    number = int(key.rpartition("-")[2])
    folder = reader.find("images", "MedPix-Images", "MedPix/images")
    sample = make(reader, split, iter((number,)), folder, row, task=one.task, list=_name(key))
    yield sample.model_copy(update={"id": key})


def _name(key: str) -> str:
    """Return the list of "pmcvqa-train-0000017"."""
    return key.split("-")[0]


def _literal(text: str) -> list[str]:
    """Return the list that a cell writes as Python does: "['fig1', 'fig2']".

    Raises:
        ValueError: it is none.
    """
    try:
        found = ast.literal_eval(text) if len(text) <= _LONGEST_REFERENCE else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(isinstance(one, str) and one for one in found):
        raise ValueError(f"img_ref is a list of figures, as \"['fig1']\"; got {text[:80]!r}")
    return found


def _joined(value: Any) -> str:
    pieces = value if isinstance(value, list) else [value]
    return " ".join(str(piece).strip() for piece in pieces if piece)


def _spellings(files: Collection[str], split: str) -> list[str]:
    filled = [file.format(split=split) for file in files if split == "train" or "{split}" in file]
    return [f"{folder}{file}" for file in filled for folder in ("data_csv/", "")]


_VQA = ("Figure_path", "Question", "Answer")
_XRAYS = ("chestxray", "pcxr", "mammo", "spinexr")

LISTS: dict[str, _List] = {
    "pmc_oa": _List(
        "medmd",
        ("pmcoa_image_caption_{split}.csv", "pmc_oa_image_caption_{split}.csv"),
        ("Figure_path", "Caption"),
        _caption,
    ),
    "mimic_caption": _List(
        "radmd", ("mimic_caption_{split}.csv",), ("image_path", "label"), _labelled, {"pool": "radfm_report"}
    ),
    **{
        f"{name}_balance": _List(
            "radmd",
            (f"{name}_balance_train_new.csv", f"{name}_balance_{{split}}.csv"),
            ("image_path", "disease", "label"),
            _binary,
        )
        for name in _XRAYS
    },
    **{
        name: _List(
            "radmd",
            (f"{name}_train_new.csv", f"{name}_new.csv", f"{name}_{{split}}.csv"),
            ("image_path", "label"),
            _labelled,
            {"pool": "radfm_labels"},
        )
        for name in _XRAYS
    },
    "pmcvqa": _List("radmd", ("pmcvqa_{split}.csv", "PMC_VQA_{split}.csv"), _VQA, _question),
    "vqarad": _List("radmd", ("vqarad_{split}.csv", "VQA_RAD_{split}.csv"), _VQA, _question),
    "slakevqa": _List("radmd", ("slakevqa_{split}.csv",), _VQA, _question),
    "case_report": _List(
        "radmd",
        ("filtered_case_report_{split}.csv", "filtered_casa_report_{split}.csv"),
        ("PMC_id", "img_ref", "context", "question", "answer"),
        _case,
    ),
    **{
        f"medpix_{name}": _List("radmd", files, columns, _medpix, {"list": name})
        for name, (files, columns) in medpix.LISTS.items()
    },
    "radiology_vqa": _List(
        "radmd", ("radiology_vqa_{split}.csv",), ("image_path", "question", "answer"), _scan_question
    ),
    "radio_modality": _List("radmd", ("radio_modality_{split}.csv",), ("image_path", "answer"), _modality),
    "radiology": _List("radmd", ("radiology_article_npy_{split}.json", "radiology_{split}.json"), (), _report),
}
"""Name, as in the option `lists` and in `meta.list` -> the list."""
