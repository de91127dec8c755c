"""Arrays inside .npz archives, each opened behind its header, which is checked before anything is allocated."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from medmvl.core.lookup import choices_text
from medmvl.data.rows import TableError

_LARGEST_UNPACKED, _MOST_PACKED = 2**30, 200  # bytes of a member, and how often smaller it may be stored
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}

Opened = tuple[IO[bytes], tuple[int, ...], np.dtype[Any]]
"""Stream behind the header, shape and type."""


@contextmanager
def npz_file(file: str | Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive; whatever it is damaged by, inside the block too, is told as a `TableError`."""
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except TableError:
        raise
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError) as error:
        raise TableError(f"{file}: damaged or cut off ({error}); get the file again") from error
    except (ValueError, SyntaxError) as error:  # numpy's parser of headers
        raise TableError(f"{file}: holds an array that cannot be read ({error}); get the file again") from error


@contextmanager
def npz_stream(archive: zipfile.ZipFile, name: str) -> Iterator[Opened]:
    """Open one array, of which only the header has been unpacked then; its values come in the order of its axes.

    Raises:
        TableError: no such array, objects instead of numbers, columns first, or a size that its place in the archive
            belies.
    """
    with _opened(archive, name) as (stream, shape, kind, columns_first):
        if columns_first:
            raise TableError(f"{archive.filename}: {name} is stored columns first; a row cannot be read alone")
        yield stream, shape, kind


def npz_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Return one array as a whole, whichever way it is stored.

    Raises:
        TableError: no such array, objects instead of numbers, or a size that its place in the archive belies.
    """
    with _opened(archive, name) as (stream, shape, kind, columns_first):
        values = np.frombuffer(exactly(stream, math.prod(shape) * kind.itemsize), kind)
        return values.reshape(shape, order="F" if columns_first else "C")


def npz_header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return the shape and type of an array, nothing else of which is unpacked.

    Raises:
        TableError: as for `npz_array`.
    """
    with _opened(archive, name) as (_, shape, kind, _):
        return shape, kind


@contextmanager
def _opened(archive: zipfile.ZipFile, name: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype[Any], bool]]:
    file, known = archive.filename, [member.removesuffix(".npy") for member in archive.namelist()]
    if name not in known:
        raise TableError(f"{file}: holds no array {name!r}; {choices_text(name, known, 'arrays')}")
    member = archive.getinfo(f"{name}.npy")
    if member.file_size > max(_LARGEST_UNPACKED, _MOST_PACKED * member.compress_size):
        told = f"would unpack to {member.file_size:,} bytes from {member.compress_size:,}"
        raise TableError(f"{file}: {name} {told}; no array of images looks like this")
    with archive.open(member) as stream:
        version = npy.read_magic(stream)
        if version not in _HEADERS:
            raise TableError(f"{file}: {name} is of .npy version {version}, which numbers do not need")
        shape, columns_first, kind = _HEADERS[version](stream)
        if kind.hasobject:
            raise TableError(f"{file}: {name} is {kind}; numbers are expected")
        if stream.tell() + math.prod(shape) * kind.itemsize != member.file_size:
            raise TableError(f"{file}: {name} says {kind} {list(shape)}, but is {member.file_size:,} bytes long")
        yield stream, shape, kind, columns_first


def exactly(stream: IO[bytes], length: int) -> bytes:
    """Read `length` bytes.

    Raises:
        EOFError: fewer are left.
    """
    content = stream.read(length)
    if len(content) < length:
        raise EOFError("it ends too early")
    return content
