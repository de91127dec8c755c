"""Finds the reader for a file and gives one picture, or an error that says what to do."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import cast

from medmvl.core.lookup import resolve
from medmvl.imaging.picture import ImageError, Picture

READERS: dict[str, str] = {
    **dict.fromkeys(
        (".png", ".jpg", ".jpeg", ".jpe", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".jp2", ".j2k", ".ppm", ".pgm"),
        "medmvl.imaging.raster:read_raster",
    ),
    **dict.fromkeys((".dcm", ".dicom", ".dic", ".ima"), "medmvl.imaging.dicom:read_dicom"),
    ".npy": "medmvl.imaging.raster:read_npy",
}

_FRAME = re.compile(r"(?P<file>.+)#frame=(?P<frame>\d+)", re.DOTALL)
_SIGNATURES = (
    (0, b"\x89PNG", ".png"),
    (0, b"\xff\xd8\xff", ".jpg"),
    (0, b"II*\x00", ".tif"),
    (0, b"MM\x00*", ".tif"),
    (0, b"\x93NUMPY", ".npy"),
    (128, b"DICM", ".dcm"),
)


def read_image(path: str | Path, frame: int | None = None) -> Picture:
    """Read one picture.

    The reader is chosen by the file's suffix (`READERS`), or by its first bytes where the suffix is not known, as for
    DICOM files without one.

    Args:
        path: the file; "scan.dcm#frame=3" names a frame of several, counted from 0.
        frame: the same, as an argument. A file of several frames is never read without one of the two.

    Returns:
        A `Picture`: array [H, W] or [H, W, 3] in uint8, uint16 or float32, spacing in mm, modality, unit.

    Raises:
        ImageError: no such file, a folder, empty, damaged, cut off, too large, no picture in it, or no such frame.
    """
    file, frame = split_frame(path, frame)
    try:
        _check_file(file)
        kind = _kind(file)
    except OSError as error:  # a folder above may not be entered, a name is too long, a disk fails
        raise ImageError(path, f"cannot be reached: {error.strerror or error}") from error
    reader = cast(Callable[[Path, int | None], Picture], resolve(READERS, kind, f"reader of {file}"))
    picture = reader(file, frame)
    if frame is None:
        return picture
    return dataclasses.replace(picture, path=f"{file}#frame={frame}")


def split_frame(path: str | Path, frame: int | None = None) -> tuple[Path, int | None]:
    """Return the file and the frame that "file#frame=3" names; frame is None where none is named.

    Raises:
        ImageError: path and argument name different frames.
    """
    found = _FRAME.fullmatch(os.fspath(path))
    if found is None:
        return Path(path), frame
    named = int(found["frame"])
    if frame not in (None, named):
        raise ImageError(path, f"the path asks for frame {named} and the argument for frame {frame}; name one of them")
    return Path(found["file"]), named


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise ImageError(path, "is a folder; name one picture file in it")
    if not path.exists():
        raise ImageError(path, f"does not exist{_where_it_ends(path)}; check the path and the data root")
    if not path.is_file():
        raise ImageError(path, "is no regular file; name a picture file")
    if path.stat().st_size == 0:
        raise ImageError(path, "is empty (0 bytes); its download or copy failed, get the file again")
    if not os.access(path, os.R_OK):
        raise ImageError(path, "may not be read by this user; change its permissions")


def _where_it_ends(path: Path) -> str:
    """Say how far the path exists, or which file of the same name but another suffix does."""
    if not path.parent.is_dir():
        existing = next((str(parent) for parent in path.parents if parent.is_dir()), ".")
        return f" (the last folder of it that exists is {existing})"
    suffixes = {suffix for known in READERS for suffix in (known, known.upper())} | {""}
    others = sorted(str(path.with_suffix(suffix)) for suffix in suffixes if path.with_suffix(suffix).is_file())
    return f" (but {others[0]} does)" if others else ""


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in READERS:
        return suffix
    with path.open("rb") as file:
        start = file.read(132)
    for offset, signature, kind in _SIGNATURES:
        if start[offset : offset + len(signature)] == signature:
            return kind
    raise ImageError(
        path,
        f"its suffix {suffix!r} is not known and its first bytes are of no picture; known suffixes: "
        f"{', '.join(sorted(READERS))}",
    )
