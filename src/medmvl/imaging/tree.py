"""Finds the pictures and volumes of a tree of DICOM files by their headers; whom they show leaves it as pseudonyms."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset

from medmvl.imaging.deid import patient_of
from medmvl.imaging.dicom_file import NoDicomError, clear_errors, read_header, short_hash
from medmvl.imaging.picture import ImageError
from medmvl.imaging.pseudonym import pseudonym
from medmvl.imaging.series import is_slice

_NAMES = {
    "subject": "PatientID",
    "study": "StudyInstanceUID",
    "accession": "AccessionNumber",
    "series": "SeriesInstanceUID",
}
_ELEMENTS = [
    *_NAMES.values(), "SOPClassUID", "SOPInstanceUID", "SeriesNumber", "Modality", "ImageType", "NumberOfFrames",
    "Rows", "Columns", "BitsAllocated", "PhotometricInterpretation",
]  # fmt: skip
_PICTURES = {"CR", "DX", "MG", "RG", "RF", "XA", "US", "IO", "PX", "XC", "ES", "GM", "OP", "SM"}
"""Modalities whose files are pictures of their own; slices of the others make volumes."""


@dataclass(frozen=True)
class Scan:
    """A picture or volume of a tree.

    Attributes:
        address: where it is, as `imaging.address` writes it.
        is_volume: whether it is a volume.
        modality: as the header has it.
        patient: pseudonym of the patient, the same as in de-identified files.
        names: "subject", "study", "accession" and "series" -> pseudonym of what the header says; lacking where it says
            nothing.
    """

    address: str
    is_volume: bool
    modality: str
    patient: str
    names: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class _File:
    path: Path
    header: Dataset
    frames: int
    patient: str

    @property
    def is_alone(self) -> bool:
        """Whether it is a picture or volume of its own, and no slice of one."""
        return self.frames > 1 or self.says("Modality") in _PICTURES

    def says(self, element: str) -> str:
        value = self.header.get(element)
        return "" if value is None else str(value).strip()


def find_scans(top: str | Path, key: bytes) -> Iterator[Scan | ImageError]:
    """Yield what a file, or a tree of folders, holds: volumes as series of one folder, and single pictures.

    Files of other kinds, DICOM without a picture, and localizers are passed over. Links to folders are not followed.

    Args:
        top: a file or folder.
        key: secret of `pseudonym`.

    Yields:
        Scans in the order of their folders and series numbers; in their place what cannot be told: damaged headers,
        and a series whose files name several patients.
    """
    top = Path(top)
    if top.is_file():
        yield from _scans([top], key)
        return
    for parent, folders, names in os.walk(top):
        folders.sort()
        yield from _scans([Path(parent, name) for name in sorted(names)], key)


def _scans(paths: Sequence[Path], key: bytes) -> Iterator[Scan | ImageError]:
    """Yield the scans of one folder."""
    series: dict[str, list[_File]] = {}
    for path in paths:
        try:
            if file := _read(path, key):
                series.setdefault(file.says("SeriesInstanceUID"), []).append(file)
        except ImageError as error:
            yield error
    numbers = Counter(files[0].says("SeriesNumber") for files in series.values())
    for files in sorted(series.values(), key=_order):
        if len({file.patient for file in files}) > 1:
            yield ImageError(files[0].path.parent, "one of its series names several patients; set their files apart")
            continue
        yield from (_scan(str(file.path), file, file.frames > 1, key) for file in files if file.is_alone)
        yield from _slices([file for file in files if not file.is_alone], numbers, key)


def _read(path: Path, key: bytes) -> _File | None:
    """Return a file that holds a picture or slice, else None."""
    with clear_errors(path), path.open("rb") as file:
        try:
            header = read_header(path, file, _ELEMENTS)
        except NoDicomError:
            if path.suffix.lower() == ".dcm" and not path.name.startswith("."):
                raise  # a slice that is lost would be missed by nobody
            return None
        list(header)  # converts every element now, so that a malformed one is told with its file
        if not is_slice(path, header):
            return None
        return _File(path, header, int(header.get("NumberOfFrames") or 1), pseudonym(key, patient_of(header)))


def _slices(files: list[_File], numbers: Counter[str], key: bytes) -> Iterator[Scan]:
    """Yield the scan of one series' slices; `numbers` are those of all series in the folder."""
    kept = [file for file in files if "LOCALIZER" not in file.says("ImageType").upper()]
    if len(kept) == 1:
        yield _scan(str(kept[0].path), kept[0], False, key)
    elif kept:
        folder, number = str(kept[0].path.parent), kept[0].says("SeriesNumber")
        name = number if number and numbers[number] == 1 else short_hash(kept[0].says("SeriesInstanceUID"))
        yield _scan(folder if numbers.total() == 1 else f"{folder}#series={name}", kept[0], True, key)


def _scan(address: str, file: _File, is_volume: bool, key: bytes) -> Scan:
    names = {kind: pseudonym(key, text) for kind, element in _NAMES.items() if (text := file.says(element))}
    return Scan(address, is_volume, file.says("Modality"), file.patient, names)


def _order(files: list[_File]) -> tuple[bool, int, str]:
    number = files[0].says("SeriesNumber")
    return not number.isdigit(), int(number) if number.isdigit() else 0, str(files[0].path)
