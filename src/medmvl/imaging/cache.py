"""Prepared volumes on disk: read and fitted once, then memory-mapped; never served for a file that has changed."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medmvl.core.atomic import DiskFullError
from medmvl.core.log import get_logger
from medmvl.core.schema import split_fragment
from medmvl.imaging.address import split_address
from medmvl.imaging.fit import Fitted, fit_volume
from medmvl.imaging.picture import ImageError
from medmvl.imaging.read import kind_of, read_volume
from medmvl.imaging.shards import Shards
from medmvl.imaging.spec import VisionSpec
from medmvl.imaging.volume import Volume

FITTING = 2
"""Part of every key. Raise it when reading or fitting gives other values than before for the same file and spec, or
says more about them."""

_AFTERWARDS = {"mean", "std", "rescale", "channels"}  # fields of a spec that act on fitted values
_SETTLED = 2 * 10**9  # ns; the coarsest clock of a file system (FAT) counts in 2 s
_HEADERS = (".mhd", ".mha", ".nhdr", ".nrrd")  # formats whose values may be in other files
_PAIR = re.compile(r"(?P<stem>.+)\.(?:hdr|img)(?:\.gz)?", re.IGNORECASE)  # header and values of Analyze and NIfTI

_README = """\
Volumes as medmvl prepared them for training: a cache, made from the volumes that its data name.
It is derived from patient images: guard it as you guard those. It can be deleted at any time; it is filled again.
"""

_LOG = get_logger(__name__)


class PreparedStore:
    """Fitted volumes by content of their files and by spec, in a folder of `Shards`.

    An entry belongs to the bytes of a file (of all files, for a folder), the fragment of its address and the fields of
    the spec that `fit_volume` follows, so the same volume under another name is found, and a changed file never gets
    its former values. Hashing is saved where the path, size, inode and both times of the file are those of a file
    hashed before; the time of the last change (ctime) cannot be set by a program, and a file changed less than 2 s ago
    is hashed in any case. Warnings that reading or fitting gives are given once, when an entry is made.

    Objects may be pickled, inherited by forked processes and shared by threads.

    Args:
        folder: holds the cache; made on first use. It may be moved, and used by any number of processes at a time.
        strict: raise where an entry cannot be written. False: warn once, and go on without storing.
    """

    def __init__(self, folder: str | Path, strict: bool = False) -> None:
        self.folder = Path(folder)
        self._shards = Shards(folder, _README)
        self._strict, self._stores = strict, True

    def fitted(self, path: str | Path, spec: VisionSpec, read: Callable[[str | Path], Volume] = read_volume) -> Fitted:
        """Return `fit_volume(read(path), spec)`, from the cache where it is there; values are read-only.

        Args:
            path: address of the volume, fragment included. A file that is gone is an error even where it was stored.
            spec: of a volume encoder.
            read: what reads it; its result must follow from the address and the bytes.

        Raises:
            ImageError: as `read`; or the file changed while it was read.
            DiskFullError: `strict`, and the entry cannot be written.
        """
        return self._fitted(path, spec, read)[0]

    def refresh(self) -> None:
        """Take in what is there; done before processes are forked, it is done for all of them."""
        self._shards.refresh()

    def prepare(self, path: str | Path, spec: VisionSpec) -> int:
        """Make sure that a volume is in the cache; return the bytes that were stored, 0 where it was there.

        Raises:
            ImageError, DiskFullError: as `fitted`.
        """
        return self._fitted(path, spec, read_volume)[1]

    def _fitted(self, path: str | Path, spec: VisionSpec, read: Callable[[str | Path], Volume]) -> tuple[Fitted, int]:
        source = _Source.look(path)
        if source is None:
            return fit_volume(read(path), spec), 0  # the reader says what is wrong with it
        noted = self._shards.note(source.signature) if source.settled else None
        content = noted or self._content(source)
        key = _digest(f"{FITTING} {content} {source.kind} {source.fragment} {_spec_key(spec)}")
        found = self._shards.get(key)
        if found is None:
            self._shards.refresh()
            found = self._shards.get(key)
        if found is not None:
            return _restored(*found), 0
        fitted = fit_volume(read(path), spec)
        if not source.is_as_before() or (not source.settled and source.content != content):
            raise ImageError(path, "changed while it was being read; try again when nothing writes to it any more")
        fitted.values.flags.writeable = False
        stored = self._write(lambda: self._shards.put(key, fitted.values, _about(fitted)))
        return fitted, fitted.values.nbytes * stored

    def _content(self, source: _Source) -> str:
        """Return the hash of a source's bytes, which is remembered where its signature will tell of every change."""
        if source.settled:
            self._shards.refresh()
            if noted := self._shards.note(source.signature):
                return noted
        content = source.content
        if source.settled and source.is_as_before():
            self._write(lambda: self._shards.put_note(source.signature, content))
        return content

    def _write(self, write: Callable[[], None]) -> bool:
        """Write to the cache; return whether that was done."""
        if not self._stores:
            return False
        try:
            write()
        except OSError as error:
            message = f"{self.folder}: prepared volumes cannot be stored ({error.strerror or error})"
            if self._strict:
                raise DiskFullError(
                    f"{message}. What was stored before is intact: free some space, or choose another folder, and run "
                    "again: it goes on from there"
                ) from error
            self._stores = False
            _LOG.warning(
                "%s; this process goes on without storing, and prepares what is not there each time anew. Name another "
                "folder, or none (in a recipe run.prepared=null)",
                message,
            )
            return False
        return True


class _Source(NamedTuple):
    """The file, or files, that a volume is read from, as the file system describes them.

    Attributes:
        path: the address.
        fragment: what the address says beside the file.
        kind: what chooses the reader, see `kind_of`.
        files: name -> path; several for a folder, and for a header with its values in another file.
        signature: hash of the path, and of all names, sizes, inodes and times.
        settled: whether every later change must change the signature too.
    """

    path: str
    fragment: str
    kind: str
    files: tuple[tuple[str, str], ...]
    signature: str
    settled: bool

    @classmethod
    def look(cls, path: str | Path) -> _Source | None:
        """Describe what an address leads to; None where that cannot be reached.

        Raises:
            ImageError: the address makes no sense.
        """
        given = os.fspath(path)
        file = split_address(given).file
        fragment = "" if file == Path(given) else split_fragment(given)[1]
        now = time.time_ns()
        try:
            kind = kind_of(file)
            files = _files(file, kind)
            states = [os.stat(one) for _, one in files]
        except (OSError, ValueError):
            return None
        if not all(stat.S_ISREG(state.st_mode) for state in states):
            return None
        marks = [
            (name, state.st_size, state.st_ino, state.st_mtime_ns, state.st_ctime_ns)
            for (name, _), state in zip(files, states, strict=True)
        ]
        newest = max((state.st_ctime_ns for state in states), default=now)
        return cls(
            path=given,
            fragment=fragment,
            kind=kind,
            files=files,
            signature=_digest(json.dumps([os.path.abspath(file), marks])),
            settled=newest < now - _SETTLED,
        )

    @property
    def content(self) -> str:
        """Hash of the bytes, and of the names where there are several files."""
        hashes = []
        for name, path in self.files:
            with open(path, "rb") as file:
                hashes.append((name, hashlib.file_digest(file, "sha256").hexdigest()))
        return hashes[0][1] if len(hashes) == 1 else _digest(json.dumps(hashes))

    def is_as_before(self) -> bool:
        """Whether nothing has touched the files since they were looked at."""
        now = self.look(self.path)
        return now is not None and now.signature == self.signature


def _files(file: Path, kind: str) -> tuple[tuple[str, str], ...]:
    """Return name and path of every file that a volume's values may come from."""
    if file.is_dir():
        with os.scandir(file) as entries:
            return tuple(sorted((entry.name, entry.path) for entry in entries if entry.is_file()))
    others = _partners(file)
    if kind in _HEADERS:
        from medmvl.imaging.itk import voxel_files

        others = [one for one in voxel_files(file, kind) if one != file]
    return ((file.name, str(file)), *((str(one.relative_to(file.parent)), str(one)) for one in others))


def _partners(file: Path) -> list[Path]:
    """Return the files beside "scan.hdr" or "scan.img" that make one volume with it."""
    found = _PAIR.fullmatch(file.name)
    if found is None:
        return []
    names = (f"{found['stem']}{suffix}" for suffix in (".hdr", ".img", ".hdr.gz", ".img.gz"))
    return [one for name in names if name != file.name and (one := file.with_name(name)).is_file()]


def entry_bytes(spec: VisionSpec) -> int:
    """Return the bytes that a volume takes in the cache."""
    return math.prod(spec.size) * (2 if spec.levels == "int16" else 1)


@lru_cache(maxsize=64)
def _spec_key(spec: VisionSpec) -> str:
    return json.dumps(spec.model_dump(mode="json", exclude=_AFTERWARDS), sort_keys=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:40]


def _about(fitted: Fitted) -> dict[str, Any]:
    told = {"file_size": fitted.file_size, "spacing": fitted.spacing, "oriented": fitted.oriented}
    return {"to_spec": fitted.to_spec.tolist(), **told}


def _restored(values: np.ndarray, about: Mapping[str, Any]) -> Fitted:
    spacing = about["spacing"]
    return Fitted(
        values,
        np.array(about["to_spec"]),
        tuple(about["file_size"]),
        None if spacing is None else tuple(spacing),
        about["oriented"],
    )
