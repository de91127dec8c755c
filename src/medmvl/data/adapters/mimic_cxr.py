"""MIMIC-CXR and MIMIC-CXR-JPG: chest X-rays with their reports and the labels drawn from them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from medmvl.core.config import Strict
from medmvl.core.schema import Image, Sample, SampleError
from medmvl.data.adapters.base import Adapter, Finders, LayoutError
from medmvl.data.questions import draw
from medmvl.data.rows import BadRow, Row, csv_rows, json_rows

LABELS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture", "Lung Lesion",
    "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia", "Pneumothorax", "Support Devices",
)  # fmt: skip
"""Columns of the label tables."""

Report = Callable[[], str]

_NO_FINDING = "no finding"
_OF_OPTION = {"reports": "report", "section": "report", "labels": "classification", "uncertain": "classification"}
_STATES = {"1": "yes", "0": "no", "-1": "uncertain", "": ""}
_LONGEST_REPORT = 2**20  # bytes; the longest has some thousands

# A line that begins with a blank and capitals up to a colon opens a section.
_HEADING = re.compile(r"\n ([A-Z ()/,-]+):\s")
_IMPRESSION = (
    "conclusion", "ndication", "impresson", "imprression", "imoression", "impressoin", "imprssion", "impresion",
    "imperssion", "mpression", "impession",
)  # fmt: skip
_FINDINGS_HEADING = ("finding", "findins", "findindgs", "findgings", "findngs", "findnings", "finidngs")
_SPELLINGS = {**dict.fromkeys(_IMPRESSION, "impression"), **dict.fromkeys(_FINDINGS_HEADING, "findings")}
_MAIN_SECTIONS = ("impression", "findings", "history", "comparison", "addendum")
_VIEW = re.compile(
    "chest|portable|pa and lateral|lateral and pa|ap and lateral|lateral and ap|frontal and|two views|frontal view|"
    "pa view|ap view|one view|lateral view|bone window|frontal upright|frontal semi-upright|ribs|pa and lat"
)
# Studies that the official scripts cut by hand and leave out of their table of sections.
_ODD = frozenset({
    50913680, 59363654, 59279892, 59768032, 57936451, 50058765, 53356173, 53202765, 50808053, 51966317, 50743547,
    56451190, 59067458, 59215320, 55124749, 54365831, 59087630, 58157373, 56482935, 58375018, 54654948, 55157853,
    51491012, 50525523, 57564132, 59982525, 53488209, 54875119, 50196495, 56579911, 52648681, 59889364, 53514462,
    59505494, 53182247, 51410602, 56412866, 54986978, 59003148, 57150433, 56760320, 59562049, 52674888, 55258338,
    59330497, 52119491, 58235663, 50798377, 54168089, 53071062, 56724958, 54231141, 53607029, 52035334,
})  # fmt: skip


class MimicCxrOptions(Strict):
    """Which images, which text, which labels."""

    form: Literal["auto", "official", "r2gen"] = Field(
        default="auto",
        description="official: PhysioNet's tables and reports; r2gen: its annotation.json; auto: whichever is there",
    )
    section: Literal["findings", "impression", "findings_impression", "any"] = Field(
        default="findings",
        description="what a report's answer is; findings_impression: 'Findings: ... Impression: ...', what there is of "
        "both; any: findings, else impression, else the last paragraph. A report without it is refused",
    )
    images: Literal["each", "study"] = Field(
        default="each", description="each: one sample per image; study: all images of a study together, frontal first"
    )
    views: Literal["all", "frontal", "lateral"] = Field(
        default="all", description="by ViewPosition of the metadata table; other images are left out"
    )
    labels: Literal["chexpert", "negbio", "radiologist"] = Field(
        default="chexpert",
        description="table of the labels; radiologist: those read by one, for some of the test studies; the others are "
        "left out",
    )
    uncertain: Literal["negative", "positive", "refuse"] = Field(
        default="negative", description="what the label 'uncertain' counts as; refuse: studies that have one"
    )
    reports: str | None = Field(
        default=None, description="folder of the reports' p10 ... p19, where it lies elsewhere; official form only"
    )


class MimicCxr(Adapter):
    """Reports and findings of chest X-rays.

    Sections are found as the official parser finds them (`sections`). The 54 studies that the official scripts cut by
    hand, and leave out of their table of sections, are refused for reports.

    The findings named in an answer are the labels that are positive; "no finding" where none is. `meta.attributes`
    keeps all that the table states, the uncertain ones too.
    """

    name = "mimic_cxr"
    title = "MIMIC-CXR: chest X-rays with reports"
    version = "1.0"
    licence = "PhysioNet Credentialed Health Data License 1.5.0"
    access = (
        "physionet.org/content/mimic-cxr-jpg and /mimic-cxr (reports; DICOM), with training and a signed agreement; "
        "neither text nor images may be sent to services of others"
    )
    credentialed = True
    tasks: ClassVar[Mapping[str, str]] = {
        "report": "describe the image: the findings, or what the option `section` says",
        "classification": "which of 13 findings, if any? From the tables of labels",
    }
    splits: ClassVar[Mapping[str, str]] = {
        "train": "train",
        "val": "validate (val in annotation.json)",
        "test": "test",
    }
    layout = """
files/p10/p10000032/s50414267/<dicom_id>.jpg     or .dcm
mimic-cxr-2.0.0-split.csv.gz                     tables may be unpacked: .csv
mimic-cxr-2.0.0-metadata.csv.gz                  for the option `views`
mimic-cxr-2.0.0-chexpert.csv.gz                  or -negbio.csv.gz: for the task classification; or
mimic-cxr-2.1.0-test-set-labeled.csv             for the option labels=radiologist
mimic-cxr-reports/files/p10/p10000032/s50414267.txt    for the task report; files/p10/p10000032/s50414267.txt works too

or, as R2Gen made it:
annotation.json                                  {"train": [{"id", "study_id", "subject_id", "report", "image_path"}]}
files/p10/p10000032/s50414267/<dicom_id>.jpg     or images/p10/...
"""
    Options = MimicCxrOptions

    def samples(self, split: str, tasks: Collection[str]) -> Iterator[Sample | SampleError]:
        form = self._form()
        needed = [task for option, task in _OF_OPTION.items() if option in self.options.model_fields_set]
        there = self.parts(split, tasks, lambda _: self._finders(form, tasks), needed)
        # Tables are read before the first row, so that one that is missing is no fault of the rows.
        _ = self._files, self._views, "classification" not in there or self._labelled
        if form == "official":
            rows = self._listed(split) if self.options.images == "each" else _by_study(self._listed(split))
            yield from self.each(rows, partial(self._study, split, there))
        else:
            rows = json_rows(self.find("annotation.json"), split)
            yield from self.each(rows, partial(self._r2gen, split, there))

    def _finders(self, form: str, tasks: Collection[str]) -> Finders[Path | None]:
        """Return what finds the files of each task."""
        reports = self._check_reports if form == "official" else partial(self.find, "annotation.json")
        found = {"report": reports, "classification": partial(self.find, *self._label_tables)}
        return {task: found[task] for task in found if task in tasks}

    def _form(self) -> str:
        if self.options.form != "auto":
            return str(self.options.form)
        return "r2gen" if self.find(*_table("split"), "annotation.json").suffix == ".json" else "official"

    # The official form.

    def _listed(self, split: str) -> Iterator[Row | BadRow]:
        """Yield the images of one split of the split table, with their paths."""
        official = "validate" if split == "val" else split
        for row in csv_rows(self.find(*_table("split")), ("dicom_id", "study_id", "subject_id", "split")):
            if isinstance(row, BadRow) or row.data["split"] not in ("train", "validate", "test"):
                if split == "train":  # told once, not with every split
                    told = f"its split {row.data['split']!r} is unknown" if isinstance(row, Row) else row.message
                    yield BadRow(row.place, told)
            elif row.data["split"] == official and self._is_wanted(row.data["dicom_id"]):
                try:
                    yield Row(row.place, {**row.data, "id": row.text("dicom_id"), "paths": [self._image(row)]})
                except ValueError as error:
                    yield BadRow(row.place, str(error))

    def _image(self, row: Row) -> str:
        patient, study = _number(row, "subject_id"), _number(row, "study_id")
        name = f"p{patient[:2]}/p{patient}/s{study}/{row.text('dicom_id')}{self._suffix}"
        return self.path(name, self._files)

    def _is_wanted(self, dicom_id: str) -> bool:
        return self.options.views == "all" or _kind(self._views.get(dicom_id, "")) == self.options.views

    def _view(self, paths: list[str]) -> str:
        """Return the views of some images, "PA, LATERAL"."""
        return ", ".join(filter(None, (self._views.get(Path(path).stem, "") for path in paths)))

    @cached_property
    def _views(self) -> dict[str, str]:
        """ViewPosition of every image; empty where there is no table and none is needed."""
        there = [self.root / name for name in _table("metadata") if (self.root / name).is_file()]
        if not there and self.options.views == "all":
            return {}
        rows = csv_rows(self.find(*_table("metadata")), ("dicom_id", "ViewPosition"))
        return {row.data["dicom_id"]: row.optional("ViewPosition") for row in rows if isinstance(row, Row)}

    def _study(self, split: str, tasks: Collection[str], row: Row) -> Iterator[Sample | SampleError]:
        patient, study = row.data["subject_id"], row.data["study_id"]
        paths = sorted(row.data["paths"], key=lambda path: _kind(self._view([path])) != "frontal")
        report = partial(self._report, f"p{patient[:2]}/p{patient}", study)
        yield from self._both(row, split, tasks, {"patient": patient, "study": study}, paths, report)

    def _report(self, folder: str, study: str) -> str:
        """Return the chosen section of a study's report."""
        if int(study) in _ODD:
            raise ValueError("the official parser cuts this report by hand and leaves it out of its table of sections")
        places = [base / folder / f"s{study}.txt" for base in self._report_folders]
        file = next((place for place in places if place.is_file()), None)
        if file is None:
            raise ValueError(f"has no report {places[0]}")
        if file.stat().st_size > _LONGEST_REPORT:
            raise ValueError(f"its report {file} is longer than {_LONGEST_REPORT:,} bytes")
        try:
            found = sections(file.read_text("utf-8"))
        except UnicodeDecodeError:
            raise ValueError(f"its report {file} is no valid UTF-8") from None
        text = _chosen(found, self.options.section)
        if not text:
            wanted = {"findings_impression": "findings or impression", "any": "section that describes the image"}
            lacks = wanted.get(self.options.section, self.options.section)
            raise ValueError(f"its report has no {lacks}; it has {', '.join(found)}")
        return text

    @cached_property
    def _files(self) -> Path:
        return self.find("files", "images")

    @cached_property
    def _suffix(self) -> str:
        """Of the images: that of the first one found."""
        found = (path.suffix for path in self._files.glob("p*/p*/s*/*") if path.suffix in (".jpg", ".dcm"))
        return next(found, ".jpg")

    @cached_property
    def _report_folders(self) -> list[Path]:
        if self.options.reports is not None:
            return [self.root / self.options.reports]  # an absolute path stays itself
        return [self.root / "mimic-cxr-reports" / "files", self._files]

    def _check_reports(self) -> None:
        if not any(next(folder.glob("p*/p*/s*.txt"), None) for folder in self._report_folders):
            self.find("mimic-cxr-reports/files" if self.options.reports is None else self.options.reports)
            raise LayoutError(f"{self._report_folders[0]}: holds no reports such as p10/p10000032/s50414267.txt")

    # R2Gen's form.

    def _r2gen(self, split: str, tasks: Collection[str], row: Row) -> Iterator[Sample | SampleError]:
        patient, study = _number(row, "subject_id"), _number(row, "study_id")
        paths = row.data.get("image_path")
        if not (isinstance(paths, list) and paths and all(isinstance(path, str) for path in paths)):
            raise ValueError(f"image_path is a list of paths, got {paths!r}")
        kept = [path for path in paths if self._is_wanted(Path(path).stem)]
        groups = [kept] if self.options.images == "study" else [[path] for path in kept]
        for number, group in enumerate(filter(None, groups)):
            key = row.text("id") if number == 0 else f"{row.text('id')}-{number}"
            meta = {"patient": patient, "study": study}
            files = [self.path(path, self._files) for path in group]
            part = Row(row.place, {**row.data, "id": key})
            yield from self._both(part, split, tasks, meta, files, lambda: _line(row.text("report")))

    # Both.

    def _both(
        self, row: Row, split: str, tasks: Collection[str], meta: dict[str, str], paths: list[str], report: Report
    ) -> Iterator[Sample | SampleError]:
        """Yield the samples of one image or study; what one task cannot use may serve the other."""
        media = [Image(path=path) for path in paths]
        meta |= {"view": self._view(paths), "modality": "x-ray", "answer_type": "open"}
        made = {"report": partial(self._described, report), "classification": self._classified}
        for task in filter(tasks.__contains__, made):
            if task == "classification" and not self._expects_labels(meta["study"]):
                continue
            sample_id = f"{row.text('id')}-{task}"
            try:
                yield made[task](sample_id, split, media, meta)
            except ValueError as error:
                yield SampleError(str(error), sample_id, row.place)

    def _described(self, report: Report, key: str, split: str, media: list[Image], meta: Mapping[str, str]) -> Sample:
        return self.sample(key, split, "report", draw("mimic_cxr_report", key, split), report(), media, **meta)

    def _classified(self, key: str, split: str, media: list[Image], meta: Mapping[str, str]) -> Sample:
        states = self._states(meta["study"])
        listing = f"{', '.join(_FINDINGS[:-1])}, or {_FINDINGS[-1]}"
        question = draw("mimic_cxr_findings", key, split).replace("{choices}", listing)
        answer = self._positive(states)
        return self.sample(key, split, "classification", question, answer, media, attributes=states, **meta)

    def _expects_labels(self, study: str) -> bool:
        """Whether a study without labels is a fault: radiologists read some of the test studies only."""
        return self.options.labels != "radiologist" or study in self._labelled

    def _positive(self, states: Mapping[str, str]) -> str:
        """Return the findings that are there, in the order of the table."""
        if self.options.uncertain == "refuse" and "uncertain" in states.values():
            raise ValueError("a label of it is uncertain, and the option `uncertain` says to refuse such studies")
        counted = ("yes", "uncertain") if self.options.uncertain == "positive" else ("yes",)
        return ", ".join(name for name in _FINDINGS if states.get(name) in counted) or _NO_FINDING

    def _states(self, study: str) -> dict[str, str]:
        """Return what the table states: finding -> yes, no or uncertain.

        Raises:
            ValueError: the study has no row, or one that cannot be used.
        """
        states = self._labelled.get(study)
        if states is None:
            raise ValueError(f"study has no row in the table of labels ({self.options.labels})")
        if isinstance(states, str):
            raise ValueError(states)
        return {name.lower(): state for name, state in zip(LABELS, states, strict=True) if state}

    @property
    def _label_tables(self) -> list[str]:
        return _table("test-set-labeled" if self.options.labels == "radiologist" else self.options.labels)

    @cached_property
    def _labelled(self) -> dict[str, tuple[str, ...] | str]:
        """Study -> its states in the order of `LABELS`, or what is wrong with its row."""
        found: dict[str, tuple[str, ...] | str] = {}
        same: dict[tuple[str, ...], tuple[str, ...]] = {}  # 200,000 studies share some thousand combinations
        by_hand = self.options.labels == "radiologist"
        columns = ["Airspace Opacity" if by_hand and label == "Lung Opacity" else label for label in LABELS]
        for row in csv_rows(self.find(*self._label_tables), ("study_id", *columns)):
            if isinstance(row, Row):
                given = [row.optional(column).removesuffix(".0") for column in columns]
                states = tuple(_STATES.get(value, "?") for value in given)
                wrong = f"labels in {row.place} are 1, 0, -1 or empty; another value stands there"
                found[row.data["study_id"]] = wrong if "?" in states else same.setdefault(states, states)
        return found


_FINDINGS = tuple(label.lower() for label in LABELS if label != "No Finding")


def _by_study(images: Iterable[Row | BadRow]) -> Iterator[Row | BadRow]:
    """Yield one row for each study, with the paths of all its images; those that cannot be used stand alone."""
    studies: dict[str, Row] = {}
    for row in images:
        if isinstance(row, BadRow):
            yield row
            continue
        study = row.data["study_id"]
        known = studies.setdefault(study, Row(row.place, {**row.data, "id": f"s{study}", "paths": []}))
        known.data["paths"].extend(row.data["paths"])
    yield from studies.values()


def sections(report: str) -> dict[str, str]:
    """Return the sections of a report by their canonical names, as the official parser finds them.

    A heading is a run of capitals up to a colon, one blank into a line; behind it the next one is looked for from the
    next line on. Known misspellings count, a name with "impression", "findings", "history", "comparison" or "addendum"
    in it means that, and one that names views ("CHEST, TWO VIEWS") means findings. Of a section that occurs twice the
    last one counts, empty findings and impressions do not. Without either, what follows the first blank line of the
    last section is the "last_paragraph".

    Source: github.com/MIT-LCP/mimic-cxr, txt/section_parser.py and create_section_files.py.
    """
    text = report.replace("\r\n", "\n")
    pieces, name, start, place = [], "preamble", 0, 0
    while heading := _HEADING.search(text, place):
        pieces.append((name, text[start : heading.start()]))
        name, start = _canonical(heading[1]), heading.end()
        line_end = text.find("\n", start)
        place = start if line_end < 0 else line_end
    pieces.append((name if pieces else "full report", text[start:]))
    pieces = [(name, words) for name, words in pieces if words.strip() or name not in ("findings", "impression")]
    found = dict(pieces)
    if pieces and not found.keys() & {"findings", "impression"}:
        last, (before, gap, rest) = pieces[-1][0], pieces[-1][1].partition("\n \n")
        if gap:
            found |= {last: before, "last_paragraph": rest}
    return {name: _line(words) for name, words in found.items()}


def _canonical(heading: str) -> str:
    name = heading.lower().strip()
    if name in _SPELLINGS:
        return _SPELLINGS[name]
    main = next((section for section in _MAIN_SECTIONS if section in name), None)
    return main or ("findings" if _VIEW.search(name) else name)


def _chosen(found: Mapping[str, str], section: str) -> str:
    """Return the text that the option asks for, "" where the report does not have it."""
    if section == "any":
        return next(filter(None, (found.get(name) for name in ("findings", "impression", "last_paragraph"))), "")
    if section == "findings_impression":
        return " ".join(f"{name.capitalize()}: {found[name]}" for name in ("findings", "impression") if found.get(name))
    return found.get(section, "")


def _line(text: str) -> str:
    return " ".join(text.split())


def _kind(view: str) -> str:
    """Return "frontal", "lateral" or "" of a ViewPosition such as "PA", "AP AXIAL", "LL", "XTABLE LATERAL"."""
    if view.split(" ")[0] in ("AP", "PA"):
        return "frontal"
    return "lateral" if "LATERAL" in view or view in ("LL", "RL") else ""


def _number(row: Row, field: str) -> str:
    value = row.text(field)
    if not re.fullmatch(r"\d{8}", value):
        raise ValueError(f"{field} has 8 digits, not so the one here")
    return value


def _table(kind: str) -> list[str]:
    return [f"mimic-cxr-{version}-{kind}.csv{packed}" for version in ("2.0.0", "2.1.0") for packed in (".gz", "")]
