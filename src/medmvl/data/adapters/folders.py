"""A tree of scans, DICOM or BIDS, joined with a table of reports by patient, study, series or path."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from medmvl.core.config import Strict
from medmvl.core.schema import Image, Sample, SampleError, Volume, split_fragment
from medmvl.data.adapters.annotations import split_of
from medmvl.data.adapters.columns import DELIMITER, Columns, Delimiter
from medmvl.data.rows import Row, TableError
from medmvl.imaging.picture import ImageError
from medmvl.imaging.pseudonym import new_key, open_key, pseudonym
from medmvl.imaging.tree import Scan, find_scans

By = Literal["", "subject", "study", "accession", "series", "path"]

_TABLES = ("reports.csv", "reports.tsv", "participants.tsv")
_BY_COLUMN: dict[str, By] = {
    "participantid": "subject", "patientid": "subject", "subjectid": "subject", "subject": "subject",
    "studyinstanceuid": "study", "studyuid": "study", "accessionnumber": "accession", "accession": "accession",
    "seriesinstanceuid": "series", "seriesuid": "series", "path": "path", "file": "path", "folder": "path",
}  # fmt: skip
_VOLUMES = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".npy", ".npz")


class FolderOptions(Strict):
    """Which table and column tell the reports, what they are joined by, and which scans are shown."""

    settings: ClassVar[frozenset[str]] = frozenset(
        {"table", "delimiter", "by", "ask", "pool", "modality", "files", "key_file"}
    )

    table: str = Field(default="", description=f"table of reports in the root; default: {', '.join(_TABLES)}")
    delimiter: Delimiter = DELIMITER
    key: str = Field(
        default="", description="column that tells whose report it is; default: one called like participant_id, "
        "PatientID, StudyInstanceUID, AccessionNumber, SeriesInstanceUID or path"
    )  # fmt: skip
    by: By = Field(default="", description="what that column holds, where its name does not tell: subject, study, "
                   "accession, series, or path (of a file or folder)")  # fmt: skip
    session: str = Field(default="", description="column with the session of a BIDS subject; default: all its sessions")
    answer: str = Field(default="", description="column with the report")
    question: str = Field(default="", description="column with the question")
    ask: str = Field(default="", description="question of all rows instead; {name} stands for that column")
    pool: str = Field(default="", description="shipped pool of questions to draw from instead, such as radfm_report")
    split: str = Field(default="", description="column with the split, or train, val or test for all rows")
    modality: str = Field(default="", description="show DICOM scans of this modality only, such as CT")
    files: str = Field(default="*/anat/*", description="pattern of the BIDS files to show, such as */anat/*_T1w.nii.gz")
    key_file: str = Field(
        default="", description="secret key of DICOM patients' pseudonyms, made where it is missing; the same key "
        "gives the pseudonyms of `medmvl data deid`; default: a key that is thrown away"
    )  # fmt: skip


class Folders(Columns):
    """One sample per row of the table: all scans that its key leads to, and the report.

    Of DICOM headers only pseudonyms, the modality and series numbers reach samples; subjects of BIDS keep their names.
    Names of files and folders are not changed: de-identify a tree that says there who its patients are.
    """

    name = "folders"
    title = "A tree of scans (DICOM or BIDS) with a table of reports"
    access = "yours; --option answer=COLUMN --option ask='Describe the findings.' says what its table holds"
    tasks: ClassVar[Mapping[str, str]] = {"report": "the report of a study"}
    layout = """
reports.csv                       StudyInstanceUID,report     or PatientID, AccessionNumber, SeriesInstanceUID, path
any/folders/with/*.dcm            one row per study; or, as BIDS,
participants.tsv                  participant_id, and the report
sub-01/anat/sub-01_T1w.nii.gz
"""
    one_file = False
    Options = FolderOptions

    def samples(self, split: str, tasks: Collection[str]) -> Iterator[Sample | SampleError]:
        for one in super().samples(split, tasks):
            # Without the cell called id, which can be a patient's.
            yield SampleError(one.message, "?", one.path) if isinstance(one, SampleError) else one
        if split == self.files()[0][1]:
            for error in self._broken:
                place = os.path.relpath(error.path, self.root)
                yield SampleError(str(error).removeprefix(f"{error.path}: "), "?", place)

    def files(self) -> list[tuple[Path, str]]:
        table = self.find(self.options.table) if self.options.table else self.find(*_TABLES)
        return [(table, self.split_of_all or split_of(table.name.partition(".")[0]) or "train")]

    def media_folder(self, file: Path) -> str:
        return str(self.root)

    def columns(self, file: Path) -> dict[str, str]:
        columns = super().columns(file)
        if not columns:
            return columns
        there = self.names(file)
        column = columns.get("key") or next((name for name in there if _folded(name) in _BY_COLUMN), None)
        if column is None:
            raise TableError(f"{file}: key: say which column tells the scans, key=COLUMN; columns: {', '.join(there)}")
        if not self._by(column):
            raise TableError(f"{file}: by: say what {column!r} holds, by=subject, study, accession, series or path")
        return columns | {"key": column}

    def _by(self, column: str) -> By:
        return self.options.by or _BY_COLUMN.get(_folded(column), "")

    def _samples(self, row: Row, columns: Mapping[str, str], split: str, folder: str) -> tuple[Sample, ...]:
        row = self.by_role(row, columns)
        name = f"{split}/{row.place}"
        scans = self._scans(self._by(columns["key"]), row.text("key"), row.optional("session"), folder)
        if not scans:
            raise ValueError("its key leads to no scan in the tree")
        if len({scan.patient for scan in scans}) > 1:
            raise ValueError("its key leads to scans of several patients")
        media = [Volume(path=scan.address) if scan.is_volume else Image(path=scan.address) for scan in scans]
        studies = sorted({scan.names.get("study", "") for scan in scans})
        modality = ", ".join(sorted({scan.modality for scan in scans if scan.modality}))
        known = {"patient": scans[0].patient, "study": studies[0] if len(studies) == 1 else "", "modality": modality}
        asked = self.question(row, name, split)
        return (self.sample(name, split, "report", asked, row.text("answer"), media, **known),)

    def _scans(self, by: By, key: str, session: str, folder: str) -> list[Scan]:
        """Return the scans that a cell of the table leads to, in their order in the tree."""
        if by == "path":
            return self._at(self.path(key, folder))
        if self._is_bids:
            if by != "subject":
                raise ValueError(f"a BIDS tree knows subjects and paths only, no {by}")
            return self._of_subject(_label(key, "sub-"), _label(session, "ses-") if session else "")
        return self._index.get((by, pseudonym(self._secret, key)), [])

    def _at(self, address: str) -> list[Scan]:
        file = split_fragment(address)[0]
        if not os.path.exists(file):
            raise ValueError("there is no such file or folder")
        if os.path.isfile(file) and not file.lower().endswith(".dcm"):
            subject = Path(file).relative_to(self.root).parts[0] if self._is_bids else ""
            return [Scan(address, file.lower().endswith(_VOLUMES), "", subject or address, {})]
        found = list(find_scans(file, self._secret))
        broken = [error for error in found if isinstance(error, ImageError)]
        if broken:
            raise ValueError(f"holds a file that cannot be read: {broken[0]}")
        scans = [scan for scan in found if isinstance(scan, Scan)]
        return [scan for scan in scans if scan.address == address] if address != file else scans

    def _of_subject(self, subject: str, session: str) -> list[Scan]:
        files = sorted((self.root / subject / session).rglob("*.nii*"))
        shown = [path for path in files if fnmatch(path.relative_to(self.root).as_posix(), self.options.files)]
        study = {"study": f"{subject}/{session}"} if session else {}
        return [Scan(str(path), True, path.name.partition(".")[0].rpartition("_")[2], subject, study) for path in shown]

    @cached_property
    def _is_bids(self) -> bool:
        return (self.root / "dataset_description.json").is_file() or any(self.root.glob("sub-*"))

    @cached_property
    def _secret(self) -> bytes:
        return open_key(Path(self.options.key_file).expanduser()) if self.options.key_file else new_key()

    @cached_property
    def _index(self) -> dict[tuple[str, str], list[Scan]]:
        """All scans of a DICOM tree by the pseudonyms of what their headers say; fills `_broken`."""
        index: dict[tuple[str, str], list[Scan]] = defaultdict(list)
        for scan in find_scans(self.root, self._secret):
            if isinstance(scan, ImageError):
                self._broken.append(scan)
            elif self.options.modality.upper() in ("", scan.modality.upper()):
                for name in scan.names.items():
                    index[name].append(scan)
        return index

    @cached_property
    def _broken(self) -> list[ImageError]:
        return []


def _folded(name: str) -> str:
    return name.lower().replace("_", "").replace(" ", "")


def _label(text: str, prefix: str) -> str:
    """Return a label of BIDS, letters and digits, with its prefix."""
    label = text.removeprefix(prefix)
    if not (label.isascii() and label.isalnum()):
        raise ValueError(f"its key is no label of BIDS: {prefix} and letters or digits")
    return f"{prefix}{label}"
