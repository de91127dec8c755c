"""Arrays made from files, kept on disk by what the files hold; never served for a file that has changed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np

from medmvl.core.atomic import DiskFullError
from medmvl.core.log import get_logger
from medmvl.core.schema import split_fragment
from medmvl.imaging.address import split_address
from medmvl.imaging.picture import ImageError
from medmvl.imaging.read import kind_of
from medmvl.imaging.shards import Shards

_SETTLED = 2 * 10**9  # ns; the coarsest clock of a file system (FAT) counts in 2 s
_HEADERS = (".mhd", ".mha", ".nhdr", ".nrrd")  # formats whose values may be in other files
_PAIR = re.compile(r"(?P<stem>.+)\.(?:hdr|img)(?:\.gz)?", re.IGNORECASE)  # header and values of Analyze and NIfTI

_LOG = get_logger(__name__)
Result = TypeVar("Result")


class ContentStore:
    """Arrays by the content of the files they were made from, in a folder of `Shards`.

    An entry belongs to the bytes of a file (of all files, for a folder), the fragment of its address and what was made
    of it, so the same file under another name is found, and a changed file never gets its former array. Hashing is
    saved where the path, size, inode and both times of the file are those of a file hashed before; the time of the last
    change (ctime) cannot be set by a program, and a file changed less than 2 s ago is hashed in any case.

    Objects may be pickled, inherited by forked processes and shared by threads.

    Args:
        folder: holds the arrays; made on first use. It may be moved, and used by any number of processes at a time.
        strict: raise where an entry cannot be written. False: warn once, and go on without storing.
        hashes: a store that already knows the hashes of files, and takes new ones; by default this one.
    """

    what: ClassVar[str]
    """What the arrays are, for messages."""
    readme: ClassVar[str]
    """Text of the folder's README.txt."""
    otherwise: ClassVar[str]
    """What a process does that cannot store, and how to choose another folder."""

    def __init__(self, folder: str | Path, strict: bool = False, hashes: ContentStore | None = None) -> None:
        self.folder = Path(folder)
        self._shards = Shards(folder, self.readme)
        self._strict, self._stores = strict, True
        self._hashes = hashes

    def refresh(self) -> None:
        """Take in what is there; done before processes are forked, it is done for all of them."""
        self._shards.refresh()
        if self._hashes is not None:
            self._hashes.refresh()

    def entry(self, path: str | Path, made: str, version: int) -> Entry | None:
        """Return where the array that `made` describes belongs; None where the file cannot be reached.

        Args:
            path: address of a picture or volume, fragment included.
            made: all that the array depends on beside the file.
            version: of the code that makes it.

        Raises:
            ImageError: the address makes no sense.
        """
        source = Source.look(path)
        if source is None:
            return None
        content = (self._hashes or self)._content(source)
        return Entry(digest(f"{version} {content} {source.kind} {source.fragment} {made}"), source, content)

    def get(self, key: str) -> tuple[np.ndarray, Mapping[str, Any]] | None:
        """Return an array, memory-mapped and read-only, and what was stored about it; None where it is not there."""
        found = self._shards.get(key)
        if found is None:
            self._shards.refresh()
            found = self._shards.get(key)
        return found

    def put(self, key: str, array: np.ndarray, about: Mapping[str, Any]) -> bool:
        """Store an array, and JSON about it; return whether that was done.

        Raises:
            DiskFullError: `strict`, and it cannot be written.
        """
        return self._write(lambda: self._shards.put(key, array, about))

    def steady(self, entry: Entry, read: Callable[[], Result]) -> Result:
        """Return what `read` returns, which reads the entry's file.

        Raises:
            ImageError: the file changed meanwhile; or as `read`.
        """
        result = read()
        source = entry.source
        if not source.is_as_before() or (not source.settled and source.content != entry.content):
            raise ImageError(
                source.path, "changed while it was being read; try again when nothing writes to it any more"
            )
        return result

    def _content(self, source: Source) -> str:
        """Return the hash of a source's bytes, which is remembered where its signature will tell of every change."""
        if source.settled:
            if noted := self._shards.note(source.signature):
                return noted
            self._shards.refresh()
            if noted := self._shards.note(source.signature):
                return noted
        content = source.content
        if source.settled and source.is_as_before():
            self._write(lambda: self._shards.put_note(source.signature, content))
        return content

    def _write(self, write: Callable[[], None]) -> bool:
        """Write to the folder; return whether that was done."""
        if not self._stores:
            return False
        try:
            write()
        except OSError as error:
            message = f"{self.folder}: {self.what} cannot be stored ({error.strerror or error})"
            if self._strict:
                raise DiskFullError(
                    f"{message}. What was stored before is intact: free some space, or choose another folder, and run "
                    "again: it goes on from there"
                ) from error
            self._stores = False
            _LOG.warning("%s; %s", message, self.otherwise)
            return False
        return True


class Source(NamedTuple):
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
    def look(cls, path: str | Path) -> Source | None:
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
            signature=digest(json.dumps([os.path.abspath(file), marks])),
            settled=newest < now - _SETTLED,
        )

    @property
    def content(self) -> str:
        """Hash of the bytes, and of the names where there are several files."""
        hashes = []
        for name, path in self.files:
            with open(path, "rb") as file:
                hashes.append((name, hashlib.file_digest(file, "sha256").hexdigest()))
        return hashes[0][1] if len(hashes) == 1 else digest(json.dumps(hashes))

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


class Entry(NamedTuple):
    """Where an array belongs in a `ContentStore`.

    Attributes:
        key: of the array.
        source: the file it is made from.
        content: hash of the file's bytes.
    """

    key: str
    source: Source
    content: str


def digest(text: str) -> str:
    """Return a hash of a text, which may hold a path of any bytes."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:40]
