"""Finds the reader for a file or folder and gives one picture or volume, or an error that says what to do."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

from medmvl.core.lookup import resolve
from medmvl.imaging.address import Address, split_address
from medmvl.imaging.hounsfield import HuSource
from medmvl.imaging.picture import ImageError, Picture
from medmvl.imaging.volume import Volume

READERS: dict[str, str] = {
    **dict.fromkeys(
        (".png", ".jpg", ".jpeg", ".jpe", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".jp2", ".j2k", ".ppm", ".pgm"),
        "medmvl.imaging.raster:read_raster",
    ),
    **dict.fromkeys((".dcm", ".dicom", ".dic", ".ima"), "medmvl.imaging.dicom:read_dicom"),
    ".npy": "medmvl.imaging.raster:read_npy",
}
"""Suffix -> reader of one picture, called with the file and the number of a frame or None."""

VOLUME_READERS: dict[str, str] = {
    **dict.fromkeys((".nii", ".nii.gz", ".hdr", ".img", ".hdr.gz", ".img.gz"), "medmvl.imaging.nifti:read_nifti"),
    **dict.fromkeys((".nrrd", ".nhdr"), "medmvl.imaging.itk:read_nrrd"),
    **dict.fromkeys((".mha", ".mhd"), "medmvl.imaging.itk:read_meta"),
    **dict.fromkeys((".npy", ".npz"), "medmvl.imaging.arrays:read_array"),
    **dict.fromkeys((".dcm", ".dicom", ".dic", ".ima"), "medmvl.imaging.series:read_multiframe"),
    "folder": "medmvl.imaging.series:read_series",
}
"""Suffix -> reader of one volume, called with the file and its `Address`; the DICOM ones with what they need of it."""

_SIGNATURES = (
    (0, b"\x89PNG", ".png"),
    (0, b"\xff\xd8\xff", ".jpg"),
    (0, b"II*\x00", ".tif"),
    (0, b"MM\x00*", ".tif"),
    (0, b"\x93NUMPY", ".npy"),
    (0, b"NRRD000", ".nrrd"),
    (4, b"n+2\x00\r\n\x1a\n", ".nii"),
    (128, b"DICM", ".dcm"),
    (344, b"n+1\x00", ".nii"),
)

_DICOM = (".dcm", ".dicom", ".dic", ".ima")
_FOLDER = "folder"
_PICTURE_SUFFIXES = "a PNG, JPEG, TIFF or DICOM file"
_VOLUME_SUFFIXES = "a NIfTI, NRRD, MHA or npy file or the folder of a DICOM series"


def read_image(
    path: str | Path,
    frame: int | None = None,
    *,
    series: str | int | None = None,
    unit: str | None = None,
    hu: HuSource | None = None,
) -> Picture | Volume:
    """Read one picture or one volume.

    The reader is chosen by the file's suffix (`READERS`, `VOLUME_READERS`), or by its first bytes where the suffix is
    not known, as for DICOM files without one; a folder is a DICOM series. Whatever an argument says can stand in the
    path as well: "scan.dcm#frame=3", "study#series=2", "scan.npy#unit=HU" (see `address.KEYS`).

    Args:
        path: the file or folder.
        frame: one picture of several in a file, or one volume of several in a 4D file, counted from 0; without it such
            a file is refused.
        series: SeriesInstanceUID or number of the series, for a folder that holds several.
        unit: "HU", "0..255" or "0..1": what the values are. Arrays (.npy, .npz) are read as volumes only with it.
        hu: where Hounsfield units come from: "header" (the file's own rescaling), "already_hu" (the stored values,
            whatever the header says), `Rescale(slope, intercept)`, or a CT-RATE metadata table or its path. Without it
            only DICOM's CT has unit "HU".

    Returns:
        A `Picture`: array [H, W] or [H, W, 3] in uint8, uint16 or float32, spacing in mm, modality, unit. Or a
        `Volume`: array [D, H, W] in uint8, int16, uint16 or float32, in the canonical orientation.

    Raises:
        ImageError: no such file, empty, damaged, cut off, too large, nothing to see in it, without geometry, or
            something was said that it cannot follow.
    """
    return _read(split_address(path, frame, series=series, unit=unit, hu=hu), None)


def read_picture(path: str | Path, frame: int | None = None) -> Picture:
    """Read one picture, as `read_image`; a volume is refused.

    Raises:
        ImageError: see `read_image`.
    """
    return cast(Picture, _read(split_address(path, frame), Picture))


def read_volume(
    path: str | Path,
    frame: int | None = None,
    *,
    series: str | int | None = None,
    unit: str | None = None,
    hu: HuSource | None = None,
) -> Volume:
    """Read one volume, as `read_image`; a picture is refused.

    Raises:
        ImageError: see `read_image`.
    """
    return cast(Volume, _read(split_address(path, frame, series=series, unit=unit, hu=hu), Volume))


def _read(address: Address, wanted: type | None) -> Picture | Volume:
    file = address.file
    try:
        _check_file(file)
        kind = kind_of(file)
    except OSError as error:  # a folder above may not be entered, a name is too long, a disk fails
        raise ImageError(address.given, f"cannot be reached: {error.strerror or error}") from error
    if kind in _DICOM and address.frame is None and wanted is not Picture:
        volume = _dicom_volume(address, kind)
        if volume is not None:
            return volume
    declared = address.unit is not None or address.hu is not None
    as_volume = kind in VOLUME_READERS and kind not in _DICOM
    if as_volume and kind in READERS:  # .npy holds either
        as_volume = wanted is Volume or (wanted is None and declared)
    if as_volume and wanted is Picture:
        raise ImageError(file, f"holds a volume where a picture is wanted; name {_PICTURE_SUFFIXES}, or use it as one")
    if not as_volume and wanted is Volume:
        raise ImageError(file, f"is no volume, and one is wanted; name {_VOLUME_SUFFIXES}")
    if kind == _FOLDER:
        return cast(Volume, _dicom_volume(address, kind))
    if as_volume:
        read = cast(Callable[[Path, Address], Volume], resolve(VOLUME_READERS, kind, f"reader of {file}"))
        _refuse_others(address, kind)
        return read(file, address)
    return _picture(address, kind)


def _picture(address: Address, kind: str) -> Picture:
    _refuse_others(address, "picture")
    read = cast(Callable[[Path, int | None], Picture], resolve(READERS, kind, f"reader of {address.file}"))
    picture = read(address.file, address.frame)
    if address.frame is None:
        return picture
    return dataclasses.replace(picture, path=f"{address.file}#frame={address.frame}")


def _dicom_volume(address: Address, kind: str) -> Volume | None:
    """Read a series, or a file of several frames; None where the file is no volume."""
    reader = cast(Callable[..., Volume | None], resolve(VOLUME_READERS, kind, f"reader of {address.file}"))
    # For DICOM's CT the header's rescaling gives Hounsfield units anyway.
    hu = address.hu or ("header" if address.unit == "HU" else None)
    if kind == _FOLDER:
        _refuse_others(address, kind)
        volume = reader(address.file, address.series, hu)
    else:
        volume = reader(address.file, hu)
    if volume is None:
        return None
    _refuse_others(address, "multiframe" if kind != _FOLDER else kind)
    if address.unit not in (None, "HU") or (hu is not None and volume.unit != "HU"):
        stated = volume.unit or "unknown units"
        raise ImageError(
            address.file, f"is DICOM of modality {volume.modality or 'unknown'} in {stated}, not {address.unit or 'HU'}"
        )
    return dataclasses.replace(volume, path=address.given)


_KEYS_OF = {
    "picture": ("frame",),
    "multiframe": ("hu", "unit"),
    _FOLDER: ("series", "hu", "unit"),
    ".npy": ("unit", "hu", "orientation"),
    ".npz": ("unit", "hu", "orientation", "array"),
    **dict.fromkeys((".nrrd", ".nhdr", ".mha", ".mhd"), ("unit", "hu", "orientation")),
}
"""What can be said about each kind; NIfTI is the default."""


def _refuse_others(address: Address, kind: str) -> None:
    known = _KEYS_OF.get(kind, ("frame", "unit", "hu", "orientation"))
    for key in ("frame", "series", "unit", "hu", "orientation", "array"):
        if getattr(address, key) is not None and key not in known:
            what = {"picture": "a picture", "multiframe": "a multi-frame volume", _FOLDER: "a folder"}.get(kind)
            raise ImageError(
                address.given, f"{key} says nothing about {what or f'a {kind} file'}; it takes {', '.join(known)}"
            )


def _check_file(path: Path) -> None:
    if not path.exists():
        raise ImageError(path, f"does not exist{_where_it_ends(path)}; check the path and the data root")
    if not path.is_file() and not path.is_dir():
        raise ImageError(path, "is no regular file; name a picture or volume file")
    if path.is_file() and path.stat().st_size == 0:
        raise ImageError(path, "is empty (0 bytes); its download or copy failed, get the file again")
    if not os.access(path, os.R_OK):
        raise ImageError(path, "may not be read by this user; change its permissions")


def _where_it_ends(path: Path) -> str:
    """Say how far the path exists, or which file of the same name but another suffix does."""
    if not path.parent.is_dir():
        existing = next((str(parent) for parent in path.parents if parent.is_dir()), ".")
        return f" (the last folder of it that exists is {existing})"
    known = [suffix for suffix in (*READERS, *VOLUME_READERS) if suffix.startswith(".")]
    own = max((suffix for suffix in known if path.name.lower().endswith(suffix)), key=len, default=path.suffix)
    stem = path.name[: len(path.name) - len(own)]
    names = {stem + ending for suffix in known for ending in (suffix, suffix.upper())} | {stem}
    others = sorted(str(path.with_name(name)) for name in names if name and path.with_name(name).is_file())
    return f" (but {others[0]} does)" if others else ""


def kind_of(path: Path) -> str:
    """Return what chooses the reader of a file: a known suffix, its own or that of its first bytes; or "folder".

    Raises:
        ImageError: neither is known.
    """
    if path.is_dir():
        return _FOLDER
    name = path.name.lower()
    for suffix in ("".join(Path(name).suffixes[-2:]), Path(name).suffix):
        if suffix in READERS or suffix in VOLUME_READERS:
            return suffix
    with path.open("rb") as file:
        start = file.read(352)
    for offset, signature, kind in _SIGNATURES:
        if start[offset : offset + len(signature)] == signature:
            return kind
    raise ImageError(
        path,
        f"its suffix {Path(name).suffix!r} is not known and its first bytes are of no picture or volume; known "
        f"suffixes: {', '.join(sorted(suffix for suffix in {*READERS, *VOLUME_READERS} if suffix != _FOLDER))}",
    )
