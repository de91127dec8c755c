"""The samples of one split as a JSONL file: written one by one, and read at any row through an index of places."""

import hashlib
import json
import os
import struct
import zipfile
import zlib
from array import array
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medmvl.core.atomic import atomic_file
from medmvl.core.log import get_logger
from medmvl.core.schema import Sample, SampleError, relative_path
from medmvl.data.tally import Tally

DAMAGED = (OSError, ValueError, LookupError, EOFError, RuntimeError, SyntaxError, TypeError, MemoryError, struct.error,
           zipfile.BadZipFile, zlib.error)  # fmt: skip
"""What a damaged .npz raises, depending on which byte it is."""


class StoreError(ValueError):
    """A store that cannot be found, read or written."""


class LineWriter:
    """Appends samples to `<split>.jsonl`; the file takes its place when `stack` closes."""

    def __init__(self, folder: Path, split: str, stack: ExitStack) -> None:
        self._folder, self._split, self._base = folder, split, str(folder)
        self._file: Any = stack.enter_context(atomic_file(folder / f"{split}.jsonl", "wb"))
        self._digest, self._lengths, self._tally = hashlib.sha256(), array("q"), Tally()
        self._media: tuple[list[str], int] = ([], 0)

    def __len__(self) -> int:
        return len(self._tally)

    def write(self, sample: Sample) -> None:
        """Append one sample.

        Raises:
            SampleError: it holds text that is no Unicode.
        """
        line, paths = encode(sample, self._base), [relative_path(path, self._base) for path in sample.media_key]
        if paths != self._media[0]:
            self._media = (paths, media_hash(paths))
        self._file.write(line)
        self._digest.update(line)
        self._lengths.append(len(line))
        self._tally.add(sample, paths, self._media[1])

    def flush(self) -> None:
        """Bring everything to the disk, so that a full one shows before a former file is replaced."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self) -> dict[str, Any]:
        """Write the index, once the file is in its place; return the entry of the manifest, {} without samples."""
        if not len(self):
            (self._folder / f"{self._split}.jsonl").unlink()
            return {}
        digest = self._digest.hexdigest()
        lengths = np.frombuffer(self._lengths, np.int64)
        index = Index(
            offsets=np.cumsum(lengths) - lengths,
            lengths=lengths,
            lines=np.arange(1, len(lengths) + 1),
            tasks=np.frombuffer(self._tally.tasks, np.int32),
            media=np.frombuffer(self._tally.media, np.uint64),
            task_names=list(self._tally.names),
        )
        index.save(self._folder / f"{self._split}.index.npz", digest)
        return {"file": f"{self._split}.jsonl", "sha256": digest, **self._tally.summary()}


class LineReader:
    """Reads a JSONL file at any row. It keeps no file open: it can be sent to other processes and used in threads.

    Args:
        path: the file.

    Attributes:
        hash: sha256 of the file as it is now.
        tasks, media, task_names: of all rows, as in `Index`.

    Raises:
        StoreError: no such file, no samples in it, or a broken line (file and line).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with opened(path) as file:
            self.hash = hashlib.file_digest(file, "sha256").hexdigest()
        self._index = _load_index(path.with_suffix(".index.npz"), self.hash) or _scan(path)
        self.tasks, self.media, self.task_names = self._index.tasks, self._index.media, self._index.task_names

    def prefix_hash(self, rows: int) -> str:
        """Return the sha256 of the file up to the end of its first rows; "" for none."""
        if not rows:
            return ""
        left = int(self._index.offsets[rows - 1] + self._index.lengths[rows - 1])
        digest = hashlib.sha256()
        with opened(self.path) as file:
            while left and (block := file.read(min(left, 2**20))):
                digest.update(block)
                left -= len(block)
        return digest.hexdigest()

    def line(self, row: int) -> int:
        """Return the number of a row's line, from 1."""
        return int(self._index.lines[row])

    def read(self, row: int) -> tuple[Mapping[str, Any], str]:
        """Return what stands at a row, and the place for messages."""
        with opened(self.path) as file:
            file.seek(self._index.offsets[row])
            line = file.read(self._index.lengths[row])
        where = f"{self.path}:{self._index.lines[row]}"
        return decode(line, where), where


@dataclass
class Index:
    """Where each row of a JSONL file lies.

    Attributes:
        offsets, lengths: int64 bytes in the file.
        lines: int64 line numbers, from 1.
        tasks: int32 positions in `task_names`.
        media: uint64 hash of the media's paths; 0 for text alone.
        task_names: names in order of appearance.
    """

    offsets: np.ndarray
    lengths: np.ndarray
    lines: np.ndarray
    tasks: np.ndarray
    media: np.ndarray
    task_names: list[str]

    def save(self, path: Path, digest: str) -> None:
        """Write the index of the file with this sha256."""
        with atomic_file(path, "wb") as file:
            np.savez(file, digest=np.array(digest), **vars(self) | {"task_names": np.array(self.task_names, dtype=str)})


def encode(sample: Sample, base: str) -> bytes:
    """Return one line of JSON, with its end; paths below `base` are relative to it."""
    try:
        return sample.to_json(base).encode() + b"\n"
    except UnicodeEncodeError as error:
        raise SampleError(f"a field is no valid Unicode: {error}", sample.id) from None


def decode(line: bytes | str, where: str) -> Mapping[str, Any]:
    """Return the JSON object of a line.

    Raises:
        StoreError: it is none; says where.
    """
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise StoreError(f"{where}: a line holds one JSON object, got {type(data).__name__}")
    return data


def opened(path: Path) -> Any:
    """Open a file for reading, or raise StoreError."""
    try:
        return path.open("rb")
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror or error}") from error


def media_paths(data: Mapping[str, Any]) -> list[str]:
    """Return the media's paths as a file has them; a malformed row has none, its error comes when it is used."""
    if "conversations" in data:
        try:
            return list(Sample.from_dict(data).media_key)
        except SampleError:
            return []
    messages = data.get("messages")
    messages = messages if isinstance(messages, list) else []
    contents = [message.get("content") for message in messages if isinstance(message, dict)]
    parts = [part for content in contents if isinstance(content, list) for part in content if isinstance(part, dict)]
    return [str(part.get("path")) for part in parts if part.get("type") in ("image", "volume")]


def media_hash(paths: Sequence[str]) -> int:
    """Return 8 bytes that stand for the paths, never 0 for any; 0 for none."""
    if not paths:
        return 0
    text = "\0".join(paths).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) or 1


def _load_index(path: Path, digest: str) -> Index | None:
    """Return the saved index, or None when it is missing, damaged or belongs to other content: it only saves time."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as saved:
            if str(saved["digest"]) != digest:
                return None
            fields = {name: saved[name] for name in ("offsets", "lengths", "lines", "tasks", "media")}
            return Index(**fields, task_names=saved["task_names"].tolist())
    except DAMAGED as error:
        get_logger(__name__).warning("%s is damaged (%s); the samples are read once more instead", path, error)
        return None


def _scan(path: Path) -> Index:
    """Read a JSONL file once and note where its rows are."""
    offsets, lengths, lines, tasks, media = array("q"), array("q"), array("q"), array("i"), array("Q")
    names: dict[str, int] = {}
    offset = 0
    with opened(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                data = decode(line, f"{path}:{number}")
                offsets.append(offset)
                lengths.append(len(line))
                lines.append(number)
                tasks.append(names.setdefault(str(data.get("task", "")), len(names)))
                media.append(media_hash(media_paths(data)))
            offset += len(line)
    if not offsets:
        raise StoreError(f"{path}: the file holds no samples")
    columns = {"offsets": offsets, "lengths": lengths, "lines": lines, "tasks": tasks, "media": media}
    return Index(**{name: np.array(values) for name, values in columns.items()}, task_names=list(names))
