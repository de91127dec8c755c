"""Reads NRRD and MetaImage (MHA, MHD): geometry from the header's own lines, values through SimpleITK.

SimpleITK gives axes and spacing even where a file states none, so its word is not taken for them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import SimpleITK as sitk

from medmvl.imaging.address import Address
from medmvl.imaging.header import DEFLATE_LIMIT, ORIENTATION_HINT, axes_of, check_length, stated_direction
from medmvl.imaging.hounsfield import Rescale, choose
from medmvl.imaging.orient import from_file
from medmvl.imaging.picture import ImageError
from medmvl.imaging.values import to_values
from medmvl.imaging.volume import Volume, check_voxels

_MAX_HEADER = 2**20
_MM = {"mm": 1.0, "millimeter": 1.0, "cm": 10.0, "m": 1000.0, "um": 0.001, "µm": 0.001, "microns": 0.001}
_SPACES = {
    "left-posterior-superior": (1, 1, 1), "lps": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1), "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1), "las": (1, -1, 1),
}  # fmt: skip
"""NRRD's spaces with a meaning in the patient, and the signs that lead to LPS."""
_ENCODINGS = {"raw": "raw", "gzip": "deflate", "gz": "deflate", "ascii": "", "text": "", "txt": "", "hex": ""}
"""NRRD's encodings that can be read, and how they pack; "" for text."""
_BYTES = {
    sitk.sitkUInt8: 1, sitk.sitkInt8: 1, sitk.sitkUInt16: 2, sitk.sitkInt16: 2, sitk.sitkUInt32: 4, sitk.sitkInt32: 4,
    sitk.sitkUInt64: 8, sitk.sitkInt64: 8, sitk.sitkFloat32: 4, sitk.sitkFloat64: 8,
}  # fmt: skip


@dataclass(frozen=True)
class _Header:
    """What is needed of a header.

    Attributes:
        size: (x, y, z).
        matrix: [3, 3], columns are the steps along x, y, z in LPS mm; None where the header does not say.
        spacing: (x, y, z) in mm where there is no matrix, or None.
        origin: in LPS mm, or None.
        data: the files of the voxels, in order; starts: at which byte of a single one.
        packing: how the voxels are packed: "raw", "deflate" or "" for anything else.
    """

    size: tuple[int, int, int]
    matrix: np.ndarray | None
    spacing: tuple[float, ...] | None
    origin: tuple[float, ...] | None
    data: tuple[Path, ...]
    starts: int
    packing: str


def read_nrrd(file: Path, address: Address) -> Volume:
    """Read a volume from .nrrd or .nhdr.

    Raises:
        ImageError: no NRRD, cut off, damaged, too large, not three axes, more than one number per voxel, a data file
            that is missing or outside the folder; voxels without extent, no space or directions, a sheared or
            senseless matrix; values as in `to_values`.
    """
    return _read(file, address, "NrrdImageIO", "it states no space and space directions")


def read_meta(file: Path, address: Address) -> Volume:
    """Read a volume from .mha or .mhd.

    Raises:
        ImageError: as `read_nrrd`.
    """
    return _read(file, address, "MetaImageIO", "it states no TransformMatrix")


def voxel_files(file: Path, kind: str) -> tuple[Path, ...]:
    """Return the files that hold the voxels of a volume; the file itself where it does.

    Args:
        file: the file with the header.
        kind: ".nrrd", ".nhdr", ".mha" or ".mhd".

    Raises:
        ImageError: the header is damaged, or names a file that is missing or outside the folder.
    """
    return _header(file, "NrrdImageIO" if kind in (".nrrd", ".nhdr") else "MetaImageIO").data


def _header(file: Path, reader: str) -> _Header:
    with file.open("rb") as stream:
        start = stream.read(_MAX_HEADER)
    try:
        return _PARSERS[reader](file, start)
    except (KeyError, ValueError, IndexError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(file, f"its header is damaged ({error}); get the file again") from error


def _read(file: Path, address: Address, reader: str, silent: str) -> Volume:
    header = _header(file, reader)
    check_voxels(file, header.size[::-1])
    if header.matrix is not None:
        if address.orientation is not None:
            raise ImageError(file, "its header says where its axes point; leave out orientation, or repair the header")
        spacing, direction = axes_of(file, header.matrix, "header")
    elif address.orientation is None:
        raise ImageError(
            file,
            f"its header does not say where its axes point ({silent}); {ORIENTATION_HINT.format(name=address.given)}",
        )
    else:
        spacing = None if header.spacing is None else header.spacing[::-1]
        direction = stated_direction(file, address.orientation)
    if header.origin is not None and not np.isfinite(header.origin).all():
        raise ImageError(file, "its origin holds NaN or infinite numbers; repair the header")
    rescale = choose(file, Rescale(), address.hu)
    unit = "HU" if address.hu is not None else address.unit or ""
    values = to_values(_values(file, header, reader), rescale, file, unit)
    return from_file(values, spacing, header.origin, direction, address.given, unit=unit)


class _Held:
    """The buffer of a SimpleITK image as an array that keeps the image alive."""

    def __init__(self, image: sitk.Image) -> None:
        self.image = image
        self.__array_interface__ = sitk.GetArrayViewFromImage(image).__array_interface__


def _values(file: Path, header: _Header, name: str) -> np.ndarray:
    """Return the stored values [z, y, x], read-only, without a copy."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    reader.SetImageIO(name)
    try:
        reader.ReadImageInformation()
        width = _BYTES.get(reader.GetPixelID())
        size = reader.GetSize()
        if width is None or reader.GetNumberOfComponents() != 1:
            text = sitk.GetPixelIDValueAsString(reader.GetPixelID())
            raise ImageError(file, f"holds more than one number per voxel ({text}); a volume holds one")
        if size[:3] != header.size or prod(size[3:]) != 1:
            raise ImageError(
                file, f"its header is ambiguous: it reads as {header.size} and as {size} voxels; repair it"
            )
        needed = prod(header.size) * width
        if len(header.data) == 1 and header.packing:
            factor = DEFLATE_LIMIT if header.packing == "deflate" else 1
            there = header.data[0].stat().st_size - header.starts
            check_length(file, there * factor, needed, header.data[0])
        image = reader.Execute()
    except RuntimeError as error:
        raise ImageError(file, "is cut off or damaged: its voxels cannot be read; get the file again") from error
    return np.asarray(_Held(image)).reshape(header.size[::-1])


def _nrrd_header(file: Path, start: bytes) -> _Header:
    if not re.match(rb"NRRD000\d", start):
        raise ImageError(file, "is no NRRD file: it does not start with NRRD000")
    end = re.search(rb"\r?\n\r?\n", start)
    lines = start[: end.start() if end else len(start)].decode(errors="surrogateescape").splitlines()
    fields, places = {}, {}
    for place, line in enumerate(lines):
        key, _, value = line.partition(": ")
        key = key.strip().lower().replace(" ", "")
        if line.startswith("#") or ":=" in key or not value:
            continue
        if key in fields:  # what splits lines here may not split them for the library that reads the values
            raise ImageError(file, f"its header states {key!r} twice; repair it")
        fields[key], places[key] = value.strip(), place
    sizes = [int(number) for number in fields["sizes"].split()]
    _check_axes(file, sizes)
    data: tuple[Path, ...] = (file,)
    named = fields.get("datafile")
    if named is not None:
        data = _data_files(file, named, lines[places["datafile"] + 1 :])
    encoding = fields["encoding"].lower()
    if encoding not in _ENCODINGS:
        raise ImageError(file, f"is packed as {encoding!r}; known are {', '.join(_ENCODINGS)}: pack it with gzip")
    packing = _ENCODINGS[encoding]
    common = {"size": tuple(sizes[:3]), "data": data, "packing": packing}
    common["starts"] = end.end() if end and named is None else 0
    signs = _SPACES.get(fields.get("space", "").lower())
    if signs is None or "spacedirections" not in fields:
        spacing = [float(number) for number in fields.get("spacings", "").split()][:3]
        _check_spacing(file, spacing)
        return _Header(matrix=None, spacing=tuple(spacing) or None, origin=None, **common)
    scale = np.array(
        [_length(file, unit) for unit in re.findall(r'"(.*?)"', fields.get("spaceunits", ""))] or [1.0] * 3
    )
    vectors = _vectors(fields["spacedirections"])[:3]
    flip = np.array(signs) * scale[:3]
    matrix = np.array([vector[:3] for vector in vectors]).T * flip[:, None]
    if matrix.shape != (3, 3):
        raise ImageError(file, f"its space directions are not three vectors: {fields['spacedirections']}")
    origin = _vectors(fields["spaceorigin"])[0][:3] if "spaceorigin" in fields else None
    return _Header(matrix=matrix, spacing=None, origin=None if origin is None else tuple(flip * origin), **common)


def _meta_header(file: Path, start: bytes) -> _Header:
    end = re.search(rb"(?m)^ElementDataFile *= *([^\n]*)\n?", start)
    if end is None or b"=" not in start[:80]:
        raise ImageError(file, "is no MetaImage file (MHA, MHD): it has no line 'ElementDataFile = ...'")
    if start.find(b"ElementDataFile") != end.start():
        # The library that reads the values is content with blanks before it, or a colon behind.
        raise ImageError(file, "its header names ElementDataFile twice, or in the middle of a line; repair it")
    pairs = [line.partition("=") for line in start[: end.start()].decode("latin-1").splitlines()]
    fields = {key.strip(): value.strip() for key, _, value in pairs}
    sizes = [int(number) for number in fields["DimSize"].split()]
    if len(sizes) != int(fields["NDims"]):
        raise ImageError(file, f"its header says NDims = {fields['NDims']}, but DimSize = {fields['DimSize']}")
    _check_axes(file, sizes)
    named = os.fsdecode(end[1]).strip()
    local = named.upper() == "LOCAL"
    data = (file,) if local else _data_files(file, named, os.fsdecode(start[end.end() :]).splitlines())
    packed = fields.get("CompressedData", "False").upper().startswith("T")
    if packed and len(data) == 1 and "CompressedDataSize" in fields:
        starts = end.end() if local else 0
        check_length(file, data[0].stat().st_size, starts + int(fields["CompressedDataSize"]), data[0])
    axes, scale = len(sizes), _length(file, fields.get("DistanceUnits", "mm"))
    steps = _numbers(fields.get("ElementSpacing", fields.get("ElementSize", "")))
    _check_spacing(file, steps[:3])
    turn = next((fields[key] for key in ("TransformMatrix", "Rotation", "Orientation") if key in fields), None)
    place = next((fields[key] for key in ("Offset", "Position", "Origin") if key in fields), None)
    matrix = None
    if turn is not None:
        if len(steps) != axes:
            raise ImageError(file, f"its header states no spacing for its {axes} axes (ElementSpacing); repair it")
        vectors = np.reshape(_numbers(turn), (axes, axes))[:3, :3]  # one row per axis
        if np.abs(np.linalg.norm(vectors, axis=1) - 1).max() > 1e-3:
            raise ImageError(file, f"the rows of its TransformMatrix are no unit vectors ({turn}); repair the header")
        matrix = vectors.T * np.array(steps[:3]) * scale
    return _Header(
        size=(sizes[0], sizes[1], sizes[2]),
        matrix=matrix,
        spacing=tuple(step * scale for step in steps[:3]) or None,
        origin=None if place is None or matrix is None else tuple(number * scale for number in _numbers(place)[:3]),
        data=data,
        starts=end.end() if local else 0,
        packing="deflate" if packed else "raw" if fields.get("BinaryData", "False").upper().startswith("T") else "",
    )


def _check_axes(file: Path, sizes: Sequence[int]) -> None:
    if len(sizes) < 3 or prod(sizes[3:]) != 1:
        text = " x ".join(map(str, sizes))
        raise ImageError(file, f"has {len(sizes)} axes ({text} values); a volume has 3, with one number per voxel")


def _check_spacing(file: Path, steps: Sequence[float]) -> None:
    for axis, step in zip("xyz", steps, strict=False):
        if not np.isfinite(step) or step <= 0:
            raise ImageError(file, f"its header states a spacing of {step:g} along {axis}; repair the header")


def _data_files(file: Path, named: str, listed: Iterable[str]) -> tuple[Path, ...]:
    """Return the files that hold the voxels: one, those of a list, or of a pattern; all beside the header or below."""
    names = [named]
    if named.upper().startswith("LIST"):
        names = [line.strip() for line in listed if line.strip()]
    elif "%" in named:
        names = _numbered(file, named)
    for name in names:
        parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
        if ".." in parts or PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute():
            raise ImageError(file, f"takes its voxels from {name!r}, which is not beside it; put them into one folder")
    for name in names:
        if not (file.parent / name).is_file():
            raise ImageError(file, f"its voxels should be in {name!r} beside it, which is missing")
    return tuple(file.parent / name for name in names)


def _numbered(file: Path, named: str) -> list[str]:
    """Return the names that a pattern stands for: "slice%03d.raw 1 40 1" (first, last, step)."""
    found = re.fullmatch(r"([^%]*%0?\d?d[^%\s]*)\s+(\d{1,6})\s+(\d{1,6})\s+(\d{1,6})(\s+\d+)?", named)
    if found is None or int(found[4]) < 1:
        raise ImageError(file, f"takes its voxels from {named!r}, which is no pattern such as 'slice%03d.raw 1 40 1'")
    return [found[1] % number for number in range(int(found[2]), int(found[3]) + 1, int(found[4]))]


def _vectors(text: str) -> list[np.ndarray]:
    return [np.array(_numbers(inner.replace(",", " "))) for inner in re.findall(r"\((.*?)\)", text)]


def _numbers(text: str) -> list[float]:
    return [float(number) for number in text.split()]


def _length(file: Path, unit: str) -> float:
    if unit.strip().lower() not in _MM:
        raise ImageError(file, f"its header states an unknown unit of length {unit!r}; known are {', '.join(_MM)}")
    return _MM[unit.strip().lower()]


_PARSERS: dict[str, Callable[[Path, bytes], _Header]] = {"NrrdImageIO": _nrrd_header, "MetaImageIO": _meta_header}
