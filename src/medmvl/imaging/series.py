"""Reads a folder of DICOM slices as a volume: its series, told apart by their headers, sorted by where they lie."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UID, RTDoseStorage, SegmentationStorage

from medmvl.core.log import get_logger
from medmvl.imaging.dicom_file import NoDicomError, clear_errors, decode, has_picture, read_header, short_hash
from medmvl.imaging.hounsfield import HuSource
from medmvl.imaging.multiframe import read_multiframe
from medmvl.imaging.picture import ImageError
from medmvl.imaging.slices import fill
from medmvl.imaging.stack import SLICE_ELEMENTS, Plane, Stack, plane, stack
from medmvl.imaging.volume import Volume

__all__ = ["read_multiframe", "read_series"]

_log = get_logger(__name__)

_SUFFIXES = (".dcm", ".dicom", ".dic", ".ima")
# What sets apart slices at one place: element -> name in messages.
_TELLS = {
    "AcquisitionNumber": "acquisition number",
    "TemporalPositionIdentifier": "temporal position",
    "EchoTime": "echo time",
    "InversionTime": "inversion time",
    "TriggerTime": "trigger time",
    "FrameReferenceTime": "frame reference time",
    "DiffusionBValue": "diffusion b-value",
    "ImageType": "image type",
}
_ELEMENTS = [*SLICE_ELEMENTS, "SeriesInstanceUID", "SeriesNumber", "SOPInstanceUID", *_TELLS]
_MOST_LISTED, _MOST_NAMED = 30, 5


@dataclass(frozen=True, eq=False)
class _File:
    """A file of the folder; what the choice between series needs is read off its header at once.

    Attributes:
        pixels_at: where its pixels begin.
        series, number: SeriesInstanceUID and SeriesNumber, "" where it states none.
        size: "rows x columns", "" for a file that is no slice.
    """

    path: Path
    header: Dataset
    pixels_at: int
    series: str
    number: str
    modality: str
    size: str
    num_frames: int
    is_localizer: bool


def read_series(folder: Path, series: str | None = None, hu: HuSource | None = None) -> Volume:
    """Read the slices of one series that lie in a folder; subfolders are not looked into.

    Slices are sorted by their positions along the normal of their plane, never by file names or instance numbers. In
    the file's own frame x grows along a row, y along a column, and z along the cross product of the two. The spacing
    along z is measured between positions; SliceThickness is not asked. Each slice is rescaled by its own slope and
    intercept; the array is int16 where that is exact, else float32. A tilted gantry is found by positions that drift
    sideways, and the volume is resampled to a straight grid; `Volume.original` then keeps the slanted one. Tolerances
    are in `stack`.

    Files that are no DICOM, DICOM files without a picture (reports, structures, directories), segmentations, doses and
    slices marked as localizers within a series are left out, and counted in the log.

    Args:
        folder: the folder.
        series: which series: its number, its SeriesInstanceUID, or the eight characters that the error lists. None
            where the folder holds one.
        hu: where HU come from, see `hounsfield.choose`; None: from the header, slice by slice.

    Raises:
        ImageError: no slices, several series and none chosen, a damaged file, or slices that make no straight, gapless
            volume: missing, doubled or uneven ones, mixed sizes, spacings, orientations or kinds of values.
    """
    files = _choose(folder, _images(folder), series)
    first = files[0]
    if len(files) == 1 and first.num_frames > 1:
        volume = read_multiframe(first.path, hu)
        if volume is None:
            raise ImageError(
                first.path,
                f"holds {first.num_frames} frames without places, which make no volume; read them one by one",
            )
        return volume
    several = [file.path.name for file in files if file.num_frames > 1]
    if several:
        raise ImageError(
            folder,
            f"{len(several)} of {len(files)} files of the series hold several frames ({several[0]}); read each "
            "by its own path",
        )
    if len(files) == 1:
        raise ImageError(folder, f"the series is one slice ({first.path.name}), a picture and no volume; read the file")
    planes = []
    for file in files:
        with clear_errors(file.path):
            planes.append(_plane(file))
    laid = stack(folder, planes)
    by_name = {file.path.name: file for file in files}
    return fill(folder, laid, _decoded(laid, by_name), hu)


def _images(folder: Path) -> list[_File]:
    """Read the headers of all slices in the folder; whatever else lies there is counted and left out."""
    found, others, without = [], 0, 0
    try:
        paths = sorted(entry for entry in folder.iterdir() if entry.is_file())
    except OSError as error:
        raise ImageError(folder, f"cannot be listed ({error.strerror or error})") from error
    for path in paths:
        with clear_errors(path):
            try:
                file = _open(path)
            except NoDicomError as error:
                if path.suffix.lower() in _SUFFIXES and not path.name.startswith("."):
                    raise ImageError(
                        path,
                        "is named like DICOM but does not start so; get the file again, or remove it if it is none",
                    ) from error
                others += 1
                continue
            if file.size:
                found.append(file)
            else:
                without += 1
    if not found:
        raise ImageError(folder, _nothing(folder, without, others))
    if without or others:
        _log.info("%s: left out %d DICOM files that are no slices and %d files of other kinds", folder, without, others)
    return found


def _open(path: Path) -> _File:
    if path.stat().st_size == 0:
        numbered = path.suffix[1:].isdigit()
        if path.name.startswith(".") or (path.suffix and path.suffix.lower() not in _SUFFIXES and not numbered):
            raise NoDicomError(path, "is empty")
        raise ImageError(path, "is empty (0 bytes); its download or copy failed, get the file again")
    with path.open("rb") as file:
        header = read_header(path, file, _ELEMENTS)
        pixels_at = file.tell()
    list(header)  # converts every element now, so that a malformed one is told with its file
    number = header.get("SeriesNumber")
    return _File(
        path,
        header,
        pixels_at,
        series=str(header.get("SeriesInstanceUID") or ""),
        number="" if number is None else str(number),
        modality=str(header.get("Modality") or ""),
        size=f"{header.Rows} x {header.Columns}" if is_slice(path, header) else "",
        num_frames=int(header.get("NumberOfFrames") or 1),
        is_localizer="LOCALIZER" in str(header.get("ImageType") or "").upper(),
    )


def is_slice(path: Path, header: Dataset) -> bool:
    """Whether a file holds a picture of the patient; refuses one that should and does not."""
    meta = getattr(header, "file_meta", {})
    kind = UID(header.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID") or "")
    if has_picture(header):
        return kind not in (SegmentationStorage, RTDoseStorage)
    if not kind or "Image Storage" in kind.name:
        raise ImageError(path, "its DICOM header ends before its pixels are described; get the file again")
    return False


def _nothing(folder: Path, without: int, others: int) -> str:
    """Say what the folder holds instead of slices, and where else they may be."""
    below = list(islice(_subfolders_with_dicom(folder), _MOST_NAMED + 1))
    if below:
        names = ", ".join(str(path.relative_to(folder)) for path in below[:_MOST_NAMED])
        more = " and more" if len(below) > _MOST_NAMED else ""
        return f"holds no DICOM slices itself, but its subfolders do ({names}{more}); name one of them"
    if without:
        return f"holds no DICOM slices, only {without} DICOM files without a picture (reports, structures, directories)"
    if others:
        return f"holds no DICOM slices, only {others} files of other kinds; name a file, or a folder of DICOM slices"
    return "is an empty folder; name a file, or a folder of DICOM slices"


def _subfolders_with_dicom(folder: Path) -> Iterator[Path]:
    """Yield the folders below that hold a file with DICOM's mark among their first few."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        if Path(parent) != folder and any(_is_marked(Path(parent, name)) for name in sorted(names)[:5]):
            yield Path(parent)


def _is_marked(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _choose(folder: Path, files: Sequence[_File], series: str | None) -> list[_File]:
    """Return the files of the series asked for, without its localizers."""
    groups: dict[str, list[_File]] = {}
    for file in files:
        groups.setdefault(file.series, []).append(file)
    chosen = list(groups)
    if series is not None:
        chosen = [uid for uid in groups if str(series) in (uid, short_hash(uid), groups[uid][0].number)]
    if len(chosen) != 1:
        if series is None:
            problem = f"holds {len(groups)} series and none was chosen; name one, as in '{folder}#series=...'"
        else:
            problem = f"{len(chosen) or 'none'} of its series {'are' if chosen else 'is'} {series!r}; name one"
        raise ImageError(folder, f"{problem}:\n{_listing(groups)}")
    members = groups[chosen[0]]
    rest = [file for file in members if not file.is_localizer]
    if rest and len(rest) < len(members):
        _log.info("%s: left out %d localizers of the series", folder, len(members) - len(rest))
    return rest or members


def _listing(groups: dict[str, list[_File]]) -> str:
    """Describe each series in a line, without anything that names a patient, study or machine."""
    numbers = [files[0].number for files in groups.values()]
    lines = []
    for uid, files in groups.items():
        number, modality = files[0].number, files[0].modality or "unknown modality"
        names = [number] if number and numbers.count(number) == 1 else []
        names += [short_hash(uid)] if uid else []
        sizes = sorted({file.size for file in files})
        count = sum(file.num_frames for file in files)
        lines.append(
            f"  series={' or '.join(names) or 'unnamed'}: {modality}, {count} "
            f"{'slices' if count > 1 else 'slice'} of {', '.join(sizes[:3])}"
        )
    more = [f"  and {len(lines) - _MOST_LISTED} more"] if len(lines) > _MOST_LISTED else []
    return "\n".join([*sorted(lines)[:_MOST_LISTED], *more])


def _plane(file: _File) -> Plane:
    tells = {name: file.header.get(element) for element, name in _TELLS.items()}
    identity = str(file.header.get("SOPInstanceUID") or "")
    return plane(file.path, file.path.name, file.header, 0, tells, identity)


def _decoded(laid: Stack, files: dict[str, _File]) -> Iterator[tuple[int, np.ndarray]]:
    # One after the other: gdcm, pydicom and Pillow hold the interpreter's lock while they decode, threads gain nothing.
    for place, one in enumerate(laid.planes):
        file = files[one.name]
        with clear_errors(file.path), file.path.open("rb") as opened:
            yield place, decode(file.path, opened, file.header, 0, file.pixels_at)
