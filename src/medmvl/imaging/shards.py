"""Arrays by key in files that only grow: any number of processes read and write one folder, without a lock."""

from __future__ import annotations

import errno
import json
import math
import mmap
import os
import shutil
import threading
import uuid
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medmvl.core.atomic import atomic_file
from medmvl.core.log import get_logger

SHARD_BYTES = 2**30
"""A shard that has reached this size is not added to any more."""

RESERVE = 2**30
"""Bytes left free on the disk: what a cache fills up, a checkpoint cannot be written to."""

_ALIGNMENT = 2**16  # what systems ask of the place where a map of a file begins; the gaps take no disk space
_ARRAY, _NOTE = b"a", b"n"

_LOG = get_logger(__name__)


class _Place(NamedTuple):
    """Where an array lies: the name of its shard, and the JSON of its index line."""

    shard: str
    line: bytes


class _Writer:
    """A shard of this process's own. An exception in the middle leaves torn ends, after which it is not used again."""

    def __init__(self, folder: Path) -> None:
        self.name, self.end = uuid.uuid4().hex, 0
        # Unbuffered: a forked child must not inherit bytes that both processes would write.
        self._data = (folder / f"{self.name}.bin").open("xb", buffering=0)
        self._index = (folder / f"{self.name}.jsonl").open("xb", buffering=0)

    def append(self, array: np.ndarray, about: Mapping[str, Any]) -> bytes:
        """Write an array and return what its index line has to say."""
        start = -(-self.end // _ALIGNMENT) * _ALIGNMENT
        data = memoryview(np.ascontiguousarray(array, array.dtype.newbyteorder("<"))).cast("B")
        self._data.seek(start)
        _write(self._data, data)
        os.fsync(self._data.fileno())  # the index must not promise what a power failure can take away
        self.end = start + len(data)
        stored = {"at": start, "dtype": array.dtype.str.lstrip("|<>="), "shape": array.shape, "crc": zlib.crc32(data)}
        return json.dumps(stored | {"about": about}, separators=(",", ":")).encode()

    def note(self, kind: bytes, key: str, text: bytes) -> None:
        """Write an index line."""
        line = b" ".join((kind, key.encode(), text))
        _write(self._index, memoryview(b"%08x %b\n" % (zlib.crc32(line), line)))

    @property
    def is_there(self) -> bool:
        """Whether nobody has deleted the files."""
        return os.fstat(self._data.fileno()).st_nlink > 0 and os.fstat(self._index.fileno()).st_nlink > 0

    def close(self) -> None:
        """Close the files, as far as this process is concerned."""
        self._data.close()
        self._index.close()


def _size(line: Mapping[str, Any]) -> int:
    """Return the bytes of an array, given what its index line says."""
    return math.prod(line["shape"]) * np.dtype(line["dtype"]).itemsize


def _end(text: bytes) -> int:
    """Return the place in its file behind an array, given its index line."""
    line = json.loads(text)
    return int(line["at"]) + _size(line)


def _write(file: Any, data: memoryview) -> None:
    done = 0
    while done < len(data):
        done += file.write(data[done:])


class Shards:
    """A folder of arrays and short notes, each found by a key (a word without blanks).

    Every writing process has shards of its own, which nobody changes afterwards: `<id>.bin` holds arrays end to end,
    `<id>.jsonl` one line for each, written once the array is on the disk, with checksums of line and array. So a
    process that is killed leaves nothing that another could take for an array, and nobody waits for anybody. Two
    processes that store the same key at the same time store it twice. An array's checksum is compared when a process
    first looks at it (0.2 ms per MB); one that does not match is passed over.

    Objects may be sent to other processes, inherited by them and shared by threads.

    Args:
        folder: made when the first array is stored. It may be moved, and copied while nobody writes.
        readme: text of the README.txt that is put there.
    """

    def __init__(self, folder: str | Path, readme: str = "") -> None:
        self.folder, self._readme = Path(folder), readme
        self._start()

    def _start(self) -> None:
        self._places: dict[str, tuple[_Place, ...]] = {}
        self._notes: dict[str, str] = {}
        self._read: dict[str, int] = {}  # index file -> bytes taken in
        self._sound: set[_Place] = set()
        self._writer: _Writer | None = None
        self._lock, self._pid = threading.RLock(), os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "_readme": self._readme}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    def get(self, key: str) -> tuple[np.ndarray, Mapping[str, Any]] | None:
        """Return the array of a key, memory-mapped and read-only, and what was stored about it; None if there is none.

        Knows what was there at the last `refresh`, and what this object stored.
        """
        places = self._places.get(key, ())
        for place in places:
            line = json.loads(place.line)
            array = self._map(place, line)
            if array is not None:
                return array, line["about"]
        if places:
            _LOG.warning(
                "%s: an array in it is damaged or gone (%s); it is made anew. Delete the folder if this goes on: it "
                "is filled again",
                self.folder,
                ", ".join(place.shard for place in places),
            )
            self._places.pop(key, None)
        return None

    def count(self, key: str) -> int:
        """Return how often a key's array was stored, as far as `get` knows; no array is looked at."""
        return len(self._places.get(key, ()))

    def let_go(self, key: str) -> None:
        """Ask the system to keep nothing of a key's arrays in memory, so that the next look at them reads the disk."""
        for place in self._places.get(key, ()) if hasattr(os, "posix_fadvise") else ():
            line = json.loads(place.line)
            with suppress(OSError), (self.folder / f"{place.shard}.bin").open("rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), line["at"], _size(line), os.POSIX_FADV_DONTNEED)
            self._sound.discard(place)

    def note(self, key: str) -> str | None:
        """Return the note of a key, or None."""
        return self._notes.get(key)

    def put(self, key: str, array: np.ndarray, about: Mapping[str, Any]) -> None:
        """Store an array, and JSON about it.

        Raises:
            OSError: it cannot be written, or fewer than `RESERVE` bytes would stay free; nothing is stored then.
        """
        with self._alone():
            writer = self._open(array.nbytes)
            try:
                line = writer.append(array, about)
                writer.note(_ARRAY, key, line)
            except BaseException:
                self._drop()
                raise
            self._places[key] = (*self._places.get(key, ()), _Place(writer.name, line))
            if writer.end >= SHARD_BYTES:
                self._drop()

    def put_note(self, key: str, text: str) -> None:
        """Store a note: one word.

        Raises:
            OSError: as `put`.
        """
        with self._alone():
            writer = self._open(0)
            try:
                writer.note(_NOTE, key, text.encode())
            except BaseException:
                self._drop()
                raise
            self._notes[key] = text

    def refresh(self) -> None:
        """Take in what other processes have stored since the last time."""
        with self._alone():
            try:
                with os.scandir(self.folder) as entries:
                    grown = [
                        entry.name
                        for entry in entries
                        if entry.name.endswith(".jsonl") and entry.stat().st_size > self._read.get(entry.name, 0)
                    ]
            except OSError:  # no such folder yet, or none that may be read: nothing to find
                return
            for name in grown:
                self._take_in(name)

    def _take_in(self, name: str) -> None:
        shard = name.removesuffix(".jsonl")
        start = self._read.get(name, 0)
        try:
            with (self.folder / name).open("rb") as file:
                file.seek(start)
                text = file.read()
        except OSError:
            return
        complete = text[: text.rfind(b"\n") + 1]  # the rest is being written, or its writer was killed
        self._read[name] = start + len(complete)
        if self._writer is not None and self._writer.name == shard:
            return  # known already
        found = []
        for line in complete.split(b"\n"):
            checksum, _, said = line.partition(b" ")
            if checksum == b"%08x" % zlib.crc32(said):
                found.append(said.split(b" ", 2))
        there = self._bytes_there(shard)
        last = next((rest for kind, _, rest in reversed(found) if kind != _NOTE), None)
        whole = last is None or _end(last) <= there  # arrays lie end to end, so one look is enough
        for kind, key, rest in found:
            if kind == _NOTE:
                self._notes[key.decode()] = rest.decode()
            elif not whole and _end(rest) > there:
                continue  # the file was cut off, by a copy for example
            elif (place := _Place(shard, rest)) not in (known := self._places.get(key.decode(), ())):
                self._places[key.decode()] = (*known, place)

    def _bytes_there(self, shard: str) -> int:
        try:
            with (self.folder / f"{shard}.bin").open("rb", buffering=0) as file:
                return os.fstat(file.fileno()).st_size  # opened, for a network disk may remember the size of before
        except OSError:
            return 0

    def _map(self, place: _Place, line: Mapping[str, Any]) -> np.ndarray | None:
        """Return an array as it lies on the disk, or None when it is gone, cut off or damaged."""
        try:
            with (self.folder / f"{place.shard}.bin").open("rb", buffering=0) as file:
                mapped = mmap.mmap(file.fileno(), _size(line), access=mmap.ACCESS_READ, offset=line["at"])
        except (OSError, ValueError):  # ValueError: the file ends before
            return None
        if place not in self._sound:
            if zlib.crc32(mapped) != line["crc"]:
                return None
            self._sound.add(place)
        return np.frombuffer(mapped, np.dtype(line["dtype"]).newbyteorder("<")).reshape(line["shape"])

    def _alone(self) -> threading.RLock:
        """Return the lock of this process, after taking leave of what a forked child has inherited."""
        if self._pid != os.getpid():
            # The parent goes on with its shard, and its lock may be held by a thread that is not here.
            self._lock, self._pid = threading.RLock(), os.getpid()
            self._drop()
        return self._lock

    def _open(self, size: int) -> _Writer:
        """Return a writer that has room for `size` bytes more."""
        if self._writer is not None and not self._writer.is_there:
            self._drop()
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < size + RESERVE:
            message = f"{free / 2**20:,.0f} MiB are free, and {RESERVE / 2**20:,.0f} MiB are to stay free"
            raise OSError(errno.ENOSPC, message, str(self.folder))
        if self._writer is None:
            if self._readme and not (self.folder / "README.txt").exists():
                with atomic_file(self.folder / "README.txt") as file:
                    file.write(self._readme)
            self._writer = _Writer(self.folder)
        return self._writer

    def _drop(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
