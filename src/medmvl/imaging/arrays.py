"""Reads volumes from numpy's .npy and .npz, which say nothing of themselves: what the values are must be told."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from medmvl.core.lookup import choices_text
from medmvl.imaging.address import UNITS, Address
from medmvl.imaging.header import DEFLATE_LIMIT, check_length, stated_direction
from medmvl.imaging.hounsfield import Rescale, choose
from medmvl.imaging.orient import from_file
from medmvl.imaging.picture import ImageError
from medmvl.imaging.values import to_values
from medmvl.imaging.volume import Volume, check_voxels

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_array(file: Path, address: Address) -> Volume:
    """Read [D, H, W] or [1, D, H, W], never unpickling.

    Spacing and origin are unknown; so are left and right, unless the address states an orientation.

    Raises:
        ImageError: no unit, another shape, no numbers, pickled objects, cut off, too large; several arrays in a .npz
            and none chosen; values as in `to_values`, or outside the unit.
    """
    if address.unit is None and address.hu is None:
        raise ImageError(
            file,
            f"an array does not say what its values are; say so in the path, '{file}#unit=HU', or by "
            f"read_image(path, unit='HU'): {', '.join(UNITS)}",
        )
    direction = None if address.orientation is None else stated_direction(file, address.orientation)
    try:
        with _opened(file, address.array) as stream:
            stored = _load(file, stream)
    except ImageError:
        raise
    except Exception as error:  # numpy's parser of headers and zipfile answer damaged files with many kinds
        raise ImageError(
            file, f"cannot be read as .npy or .npz ({error}); save it with numpy.save, without objects"
        ) from error
    unit = "HU" if address.hu is not None else address.unit or ""
    values = to_values(stored, choose(file, Rescale(), address.hu), file, unit)
    return from_file(values, None, None, direction, address.given, unit=unit)


@contextmanager
def _opened(file: Path, name: str | None) -> Iterator[IO[bytes]]:
    """Open the array: the file itself, or the one member of a .npz, or the one named."""
    if not zipfile.is_zipfile(file):
        with file.open("rb") as stream:
            yield stream
        return
    with zipfile.ZipFile(file) as archive:
        names = [member.removesuffix(".npy") for member in archive.namelist() if member.endswith(".npy")]
        if name is None and len(names) != 1:
            raise ImageError(
                file,
                f"holds {len(names)} arrays ({', '.join(names)}); name one by the path '{file}#array=NAME&unit=HU'",
            )
        if name is not None and name not in names:
            raise ImageError(file, f"holds no array {name!r}; {choices_text(name, names, 'arrays')}")
        with archive.open(f"{name or names[0]}.npy") as stream:
            yield stream


def _load(file: Path, stream: IO[bytes]) -> np.ndarray:
    """Return the array [D, H, W] in memory of its own; its header is looked at before anything is allocated."""
    version = npy.read_magic(stream)
    if version not in _HEADERS:
        raise ImageError(file, f"is of .npy version {version}, which numbers do not need; save it with numpy.save")
    shape, fortran, dtype = _HEADERS[version](stream)
    if dtype.kind not in "uif" or len(shape) not in (3, 4) or (len(shape) == 4 and shape[0] != 1):
        raise ImageError(file, f"holds {dtype} {list(shape)}; a volume is a number array [D, H, W] or [1, D, H, W]")
    check_voxels(file, shape[-3:])
    needed = int(np.prod(shape)) * dtype.itemsize
    check_length(file, file.stat().st_size * DEFLATE_LIMIT, needed)
    values = np.empty(int(np.prod(shape)), dtype)
    target, done = memoryview(values.view(np.uint8)), 0
    while done < needed and (piece := stream.read(min(2**20, needed - done))):
        target[done : done + len(piece)] = piece
        done += len(piece)
    check_length(file, done, needed)
    values = values.reshape(shape, order="F" if fortran else "C")
    return values[0] if len(shape) == 4 else values
