"""Samples on disk: one JSONL file per split, a manifest, and an index that finds any row at once."""

import codecs
import hashlib
import json
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np

from medmvl.core.atomic import atomic_file
from medmvl.core.log import get_logger
from medmvl.core.lookup import choices_text
from medmvl.core.schema import Sample, SampleError

MANIFEST = "manifest.json"
_FORMAT = 1
_SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class StoreError(ValueError):
    """A store that cannot be found, read or written."""


@dataclass
class _Index:
    """Where each row of a split lies, by row.

    Attributes:
        offsets, lengths: int64 bytes in the JSONL file.
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
        with atomic_file(path, "wb") as file:
            np.savez(file, digest=np.array(digest), **vars(self) | {"task_names": np.array(self.task_names, dtype=str)})


@dataclass
class _SplitWriter:
    """Appends the samples of one split and keeps its index and counts."""

    file: Any
    digest: Any = field(default_factory=hashlib.sha256)
    rows: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    tasks: Counter[str] = field(default_factory=Counter)
    patients: set[str] = field(default_factory=set)
    media: set[int] = field(default_factory=set)
    end: int = 0

    def write(self, sample: Sample, root: Path) -> None:
        data = sample.to_dict(root)
        try:
            line = json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        except UnicodeEncodeError as error:
            raise SampleError(f"a field is no valid Unicode: {error}", sample.id) from None
        self.tasks[sample.task] += 1
        key = _media_hash(_paths(data))
        self.rows.append((self.end, len(line), len(self.rows) + 1, list(self.tasks).index(sample.task), key))
        self.file.write(line)
        self.digest.update(line)
        self.end += len(line)
        self.patients.add(sample.patient)
        self.media.add(key)

    def index(self) -> _Index:
        return _index_of(self.rows, list(self.tasks))


def write_samples(folder: str | Path, samples: Iterable[Sample], *, name: str, version: str, licence: str,
                  seed: int | None = None, description: str = "", **extra: Any) -> dict[str, Any]:  # fmt: skip
    """Write samples to `<split>.jsonl` with a manifest; a store that was there stays whole until all is written.

    Paths under `folder` are written relative to it, so that the folder can be moved. Samples are taken one by one:
    only their places and ids are kept in memory.

    Args:
        folder: of the store.
        samples: in any order; one without a split goes to "train".
        name, version, licence, seed, description: what the manifest says about the data.
        extra: further JSON fields of the manifest.

    Returns:
        The manifest: what was given, and per split its file, sha256, samples, patients, media and samples per task.

    Raises:
        StoreError: no samples, or a split's name that is no file name.
        SampleError: an id occurs twice.
        DiskFullError: the write failed.
    """
    folder = Path(folder).absolute()
    writers = _write_rows(folder, samples)
    former = read_manifest(folder).get("splits", {})
    for split, writer in writers.items():
        writer.index().save(folder / f"{split}.index.npz", writer.digest.hexdigest())
    manifest = {
        "format": _FORMAT,
        "name": name,
        "version": version,
        "licence": licence,
        "description": description,
        "seed": seed,
        **extra,
        "splits": {split: _summary(split, writer) for split, writer in sorted(writers.items())},
    }
    hashes = [f"{split}:{entry['sha256']}" for split, entry in manifest["splits"].items()]
    manifest["hash"] = hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    with atomic_file(folder / MANIFEST) as file:
        json.dump(manifest, file, indent=2, ensure_ascii=False)
    for split in former.keys() - writers.keys():  # else it would pass for a split of the new data
        for suffix in (".jsonl", ".index.npz"):
            (folder / f"{split}{suffix}").unlink(missing_ok=True)
    return manifest


def _write_rows(folder: Path, samples: Iterable[Sample]) -> dict[str, _SplitWriter]:
    """Write the JSONL files, all of them or none."""
    writers: dict[str, _SplitWriter] = {}
    ids: set[bytes] = set()
    with ExitStack() as stack:
        for sample in samples:
            split = sample.split or "train"
            short = hashlib.blake2b(sample.id.encode(), digest_size=12).digest()
            if short in ids:
                raise SampleError(
                    "the id occurs twice in this store; ids tell samples apart in every report", sample.id
                )
            ids.add(short)
            if split not in writers:
                if not _SPLIT_NAME.fullmatch(split):
                    raise SampleError(f"split {split!r} is no file name: use letters, digits, '-' and '_'", sample.id)
                writers[split] = _SplitWriter(stack.enter_context(atomic_file(folder / f"{split}.jsonl", "wb")))
            writers[split].write(sample, folder)
        if not writers:
            raise StoreError(f"{folder}: no samples were given, so there is nothing to write")
        for writer in writers.values():  # a full disk shows here, before any former file is replaced
            writer.file.flush()
            os.fsync(writer.file.fileno())
    return writers


def _summary(split: str, writer: _SplitWriter) -> dict[str, Any]:
    return {
        "file": f"{split}.jsonl",
        "sha256": writer.digest.hexdigest(),
        "samples": len(writer.rows),
        "patients": len(writer.patients),
        "media": len(writer.media - {0}),
        "tasks": dict(sorted(writer.tasks.items())),
    }


def read_annotations(path: str | Path, root: str | Path | Sequence[str | Path], split: str = "") -> Iterator[Sample]:
    """Yield the samples of an annotation file: a JSON list or JSONL; canonical, or the reference's `conversations`.

    Args:
        path: the file.
        root: folder (or folders) of the media; a path that leaves it is refused.
        split: given to samples that name none.

    Raises:
        StoreError: names the file and line of broken JSON.
        SampleError: a sample is wrong.
    """
    for sample in read_each(path, root, split):
        if isinstance(sample, SampleError):
            raise sample
        yield sample


def read_each(
    path: str | Path, root: str | Path | Sequence[str | Path], split: str = ""
) -> Iterator[Sample | SampleError]:
    """As `read_annotations`, but a wrong sample is yielded as its error, in its place."""
    for row, place in _annotation_rows(Path(path)):
        try:
            sample = _sample(row, root, place)
        except SampleError as error:
            yield error
        else:
            yield sample if sample.split or not split else sample.model_copy(update={"split": split})


def _annotation_rows(path: Path) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield each row with the place where it stands."""
    with _open(path) as file:
        first = next((line for line in file if line.strip()), b"")
        file.seek(0)
        if not first.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
            places = ((line, f"{path}:{number}") for number, line in enumerate(file, start=1))
            yield from ((_decode(line, place), place) for line, place in places if line.strip())
            return
        try:
            rows = json.load(file)
        except ValueError as error:
            raise StoreError(f"{path}: not valid JSON: {error}") from None
    yield from ((row, f"item {number} of {path}") for number, row in enumerate(rows))


class SampleStore(Sequence[Sample]):
    """The samples of one split, read from disk one by one.

    Only places and hashes are kept in memory (about 40 bytes a sample). Objects are cheap to send to other processes
    and safe in threads: every access opens the file anew.

    Args:
        folder: written by `write_samples`; a folder with plain JSONL files, or one JSONL file, serves too.
        split: which of its files.
        tasks: keep only samples with one of these tasks.
        roots: further folders that media may lie in, beside `folder`.

    Attributes:
        manifest: what `write_samples` returned; empty for plain JSONL.
        hash: sha256 of the split's file as it is now.
        task_names: names of the tasks that the rows have.

    Raises:
        StoreError: nothing there, an unknown split or task (with all known ones), or a broken line (file and line).
    """

    def __init__(
        self,
        folder: str | Path,
        split: str = "train",
        tasks: Iterable[str] | None = None,
        roots: Sequence[str | Path] = (),
    ) -> None:
        self.folder, self.split, self.path = _locate(Path(folder), split)
        self.manifest = read_manifest(self.folder)
        self._roots = (self.folder, *map(Path, roots))
        self.hash = _file_hash(self.path)
        recorded = self.manifest.get("splits", {}).get(self.split, {}).get("sha256", self.hash)
        if recorded != self.hash:
            get_logger(__name__).warning("%s has changed since its manifest was written", self.path)
        index = _load_index(self.path.with_suffix(".index.npz"), self.hash) or _scan(self.path)
        self._index = index
        self._rows = self._select(tasks)
        self.task_names = [index.task_names[code] for code in np.unique(index.tasks[self._rows])]

    def _select(self, tasks: Iterable[str] | None) -> np.ndarray:
        if tasks is None:
            return np.arange(len(self._index.offsets))
        wanted = list(tasks)
        for task in wanted:
            if task not in self._index.task_names:
                hint = choices_text(task, self._index.task_names, "tasks")
                raise StoreError(f"{self.path}: no sample has the task {task!r}; {hint}")
        codes = [self._index.task_names.index(task) for task in wanted]
        return np.flatnonzero(np.isin(self._index.tasks, codes))

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, row: int) -> Sample: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[Sample]: ...
    def __getitem__(self, row: int | slice) -> Sample | Sequence[Sample]:
        """Return sample `row` with absolute paths.

        Raises:
            SampleError: the line is no valid sample, or names a file outside the folders.
        """
        if isinstance(row, slice):
            return [self[index] for index in range(*row.indices(len(self)))]
        place = self._rows[row]
        with _open(self.path) as file:
            file.seek(self._index.offsets[place])
            line = file.read(self._index.lengths[place])
        where = f"{self.path}:{self._index.lines[place]}"
        sample = _sample(_decode(line, where), self._roots, where)
        return sample if sample.split else sample.model_copy(update={"split": self.split})

    @property
    def tasks(self) -> np.ndarray:
        """Task of every row, as int32 positions in the order of first appearance in the file."""
        return self._index.tasks[self._rows]

    @property
    def media_keys(self) -> np.ndarray:
        """One uint64 per row: equal for rows with the same media, 0 for text alone."""
        return self._index.media[self._rows]


@dataclass(frozen=True)
class Source:
    """A store, and the tasks of it that are meant (None: all)."""

    folder: Path
    tasks: tuple[str, ...] | None = None


def find_source(name: str, roots: Sequence[str | Path] = ()) -> Source:
    """Find the store that a recipe calls `name`.

    Args:
        name: a store's name ("brain_atlas"), a store and one of its tasks ("brain_atlas/side"), or a path to a store's
            folder or to a JSONL file.
        roots: folders that hold stores, each in a folder of its own; a root may itself be one.

    Raises:
        StoreError: nothing is called so; says the nearest and all known names.
    """
    direct = Path(name).expanduser()
    if _is_store(direct):
        return Source(direct)
    stores = _stores(roots)
    if name in stores:
        return Source(stores[name])
    parent, _, _ = name.partition("/")
    if parent in stores:
        known = [task for task in _tasks(stores[parent]) if task]
        if name in known:
            return Source(stores[parent], (name,))
        raise StoreError(f"source {name!r}: no sample in {stores[parent]} has this task; {choices_text(name, known)}")
    looked = ", ".join(dict.fromkeys(str(root) for root in roots)) or "none given"
    raise StoreError(
        f"source {name!r}: no such store; {choices_text(name, stores, 'known')}. Folders looked in: {looked}. "
        "A path to a folder with train.jsonl works too; `medmvl data` builds and converts data sets."
    )


def _stores(roots: Sequence[str | Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for root in map(Path, roots):
        if _is_store(root):
            found.setdefault(read_manifest(root).get("name") or root.name, root)
        for folder in sorted(root.iterdir()) if root.is_dir() else []:
            if _is_store(folder):
                found.setdefault(folder.name, folder)
    return found


def _is_store(path: Path) -> bool:
    if path.is_file():
        return path.suffix == ".jsonl"
    return path.is_dir() and any(path.glob("*.jsonl"))


def _tasks(folder: Path) -> list[str]:
    """Return the tasks of all splits."""
    splits = read_manifest(folder).get("splits")
    if splits:
        return sorted({task for entry in splits.values() for task in entry["tasks"]})
    return sorted({task for file in folder.glob("*.jsonl") for task in SampleStore(file).task_names})


def _locate(path: Path, split: str) -> tuple[Path, str, Path]:
    """Return folder, split and file of a store."""
    path = path.absolute()
    if path.is_file():
        return path.parent, path.stem, path
    if not path.is_dir():
        raise StoreError(f"{path}: there is no such folder or JSONL file")
    file = path / f"{split}.jsonl"
    if not file.is_file():
        raise StoreError(f"{path}: no split {split!r}; {choices_text(split, (f.stem for f in path.glob('*.jsonl')))}")
    return path, split, file


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return what `write_samples` noted about a store, {} where there is no manifest.

    Raises:
        StoreError: the manifest is broken.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise StoreError(f"{path}: not valid JSON: {error}; write the store again") from None


def _file_hash(path: Path) -> str:
    with _open(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror or error}") from error


def _load_index(path: Path, digest: str) -> _Index | None:
    """Return the saved index, or None when it is missing, damaged or belongs to other content: it only saves time."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as saved:
            if str(saved["digest"]) != digest:
                return None
            fields = {name: saved[name] for name in ("offsets", "lengths", "lines", "tasks", "media")}
            return _Index(**fields, task_names=saved["task_names"].tolist())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        get_logger(__name__).warning("%s is damaged (%s); the samples are read once more instead", path, error)
        return None


def _scan(path: Path) -> _Index:
    """Read a JSONL file once and note where its rows are."""
    rows, tasks, offset = [], {}, 0
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                where = f"{path}:{number}"
                data = _decode(line, where)
                code = tasks.setdefault(str(data.get("task", "")), len(tasks))
                rows.append((offset, len(line), number, code, _media_hash(_paths(data))))
            offset += len(line)
    if not rows:
        raise StoreError(f"{path}: the file holds no samples")
    return _index_of(rows, list(tasks))


def _index_of(rows: list[tuple[int, int, int, int, int]], task_names: list[str]) -> _Index:
    offsets, lengths, lines, tasks, media = zip(*rows, strict=True)
    return _Index(
        offsets=np.array(offsets, np.int64),
        lengths=np.array(lengths, np.int64),
        lines=np.array(lines, np.int64),
        tasks=np.array(tasks, np.int32),
        media=np.array(media, np.uint64),
        task_names=task_names,
    )


def _decode(line: bytes, where: str) -> Mapping[str, Any]:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise StoreError(f"{where}: a line holds one JSON object, got {type(data).__name__}")
    return data


def _sample(data: Mapping[str, Any], roots: str | Path | Sequence[str | Path] | None, where: str) -> Sample:
    try:
        return Sample.from_dict(data, root=roots)
    except SampleError as error:
        raise SampleError(f"{where}: {error.message}", error.sample_id, error.path) from None


def _paths(data: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the media's paths as written; a malformed row is left to `SampleStore.__getitem__`, on use."""
    if "conversations" in data:
        try:
            return Sample.from_dict(data).media_key
        except SampleError:
            return ()
    messages = data.get("messages")
    messages = messages if isinstance(messages, list) else []
    contents = [message.get("content") for message in messages if isinstance(message, dict)]
    parts = [part for content in contents if isinstance(content, list) for part in content if isinstance(part, dict)]
    return tuple(str(part.get("path")) for part in parts if part.get("type") in ("image", "volume"))


def _media_hash(paths: tuple[str, ...]) -> int:
    """Return 8 bytes that stand for the paths, never 0 for any; 0 for none."""
    if not paths:
        return 0
    return int.from_bytes(hashlib.blake2b(json.dumps(paths).encode(), digest_size=8).digest()) or 1
