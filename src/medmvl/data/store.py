"""Samples on disk: a folder with one JSONL file per split, or Parquet shards, and a manifest that counts them."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from medmvl.core.atomic import atomic_file
from medmvl.core.log import get_logger
from medmvl.core.lookup import choices_text
from medmvl.core.schema import Sample, SampleError
from medmvl.data.lines import LineReader, LineWriter, StoreError
from medmvl.data.parquet import ShardReader, ShardWriter
from medmvl.data.rows import BadRow, json_rows
from medmvl.data.tally import Ids

MANIFEST = "manifest.json"
REFUSED = "refused.jsonl"
"""Rows of the original that could not be used; no split."""

Form = Literal["jsonl", "parquet"]
_FORMAT = 1
_SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def write_samples(folder: str | Path, samples: Iterable[Sample], *, name: str, version: str, licence: str,
                  seed: int | None = None, description: str = "", **extra: Any) -> dict[str, Any]:  # fmt: skip
    """Write samples to `<split>.jsonl` with a manifest; a store that was there stays whole until all is written.

    Paths under `folder` are written relative to it, so that the folder can be moved. Samples are taken one by one:
    only some 40 bytes of each are kept in memory.

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
    splits = write_splits(folder, samples)
    about = {"name": name, "version": version, "licence": licence, "description": description, "seed": seed, **extra}
    return write_manifest(folder, about, splits)


def write_splits(
    folder: str | Path,
    samples: Iterable[Sample | SampleError],
    form: Form = "jsonl",
    embed: bool = False,
    refuse: Callable[[SampleError], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Write the files of all splits, or none of them; a store is whole with `write_manifest` only.

    Args:
        folder, samples: as for `write_samples`.
        form: one JSONL file per split, or Parquet shards.
        embed: Parquet shards hold the media files as well.
        refuse: takes what is wrong with a sample, the others go on; without it the first mistake is raised.

    Returns:
        Per split its entry of the manifest.
    """
    folder = Path(folder).absolute()
    writers: dict[str, LineWriter | ShardWriter] = {}
    with ExitStack() as stack:
        for sample in _fresh(samples, refuse):
            try:
                split = sample.split or "train"
                if split not in writers:
                    writers[split] = _writer(folder, split, form, embed, stack, sample.id)
                writers[split].write(sample)
            except SampleError as error:
                _refuse(error, refuse)
        if not any(map(len, writers.values())):
            raise StoreError(f"{folder}: no samples were given, so there is nothing to write")
        for writer in writers.values():  # a full disk shows here, before any former file is replaced
            writer.flush()
    entries = {split: writer.finish() for split, writer in sorted(writers.items())}
    return {split: entry for split, entry in entries.items() if entry}


def write_manifest(
    folder: str | Path, about: Mapping[str, Any], splits: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Write the manifest beside the files of `write_splits`, and remove files of the former one; return it."""
    folder = Path(folder).absolute()
    hashes = [f"{split}:{entry['sha256']}" for split, entry in splits.items()]
    manifest = {
        "format": _FORMAT,
        **about,
        "splits": splits,
        "hash": hashlib.sha256("\n".join(hashes).encode()).hexdigest(),
    }
    former = read_manifest(folder).get("splits", {})
    with atomic_file(folder / MANIFEST) as file:
        json.dump(manifest, file, indent=2, ensure_ascii=False)
    gone = {name for entry in former.values() for name in _files(entry)}
    for name in gone - {name for entry in splits.values() for name in _files(entry)}:  # else splits of the new data
        (folder / name).unlink(missing_ok=True)
    return manifest


def _files(entry: Mapping[str, Any]) -> list[str]:
    """Return the names of a split's files, as a manifest lists them."""
    return entry.get("files") or [entry["file"], Path(entry["file"]).with_suffix(".index.npz").name]


def _fresh(samples: Iterable[Sample | SampleError], refuse: Callable[[SampleError], None] | None) -> Iterator[Sample]:
    """Yield the samples whose ids did not occur before."""
    ids = Ids()
    for sample in samples:
        if isinstance(sample, SampleError):
            _refuse(sample, refuse)
        elif ids.add(sample.id):
            yield sample
        else:
            told = "the id occurs twice in this store; ids tell samples apart in every report"
            _refuse(SampleError(told, sample.id), refuse)


def _refuse(error: SampleError, refuse: Callable[[SampleError], None] | None) -> None:
    if refuse is None:
        raise error
    refuse(error)


def _writer(
    folder: Path, split: str, form: Form, embed: bool, stack: ExitStack, sample_id: str
) -> LineWriter | ShardWriter:
    if not _SPLIT_NAME.fullmatch(split) or f"{split}.jsonl" == REFUSED:
        raise SampleError(f"split {split!r} is no file name: use letters, digits, '-' and '_'", sample_id)
    return LineWriter(folder, split, stack) if form == "jsonl" else ShardWriter(folder, split, stack, embed)


def read_annotations(path: str | Path, root: str | Path | Sequence[str | Path], split: str = "") -> Iterator[Sample]:
    """Yield the samples of an annotation file: a JSON list or JSONL; canonical, or the reference's `conversations`.

    Args:
        path: the file.
        root: folder (or folders) of the media; a path that leaves it is refused.
        split: given to samples that name none.

    Raises:
        TableError: the file cannot be read, or ends too early.
        SampleError: a sample is wrong, or its JSON is; names the place.
    """
    for sample in read_each(path, root, split):
        if isinstance(sample, SampleError):
            raise sample
        yield sample


def read_each(
    path: str | Path, root: str | Path | Sequence[str | Path], split: str = ""
) -> Iterator[Sample | SampleError]:
    """As `read_annotations`, but a wrong sample is yielded as its error, in its place."""
    for row in json_rows(path):
        if isinstance(row, BadRow):
            yield SampleError(row.message, "?", row.place)
            continue
        try:
            sample = _sample(row.data, root, row.place)
        except SampleError as error:
            yield error
        else:
            yield sample if sample.split or not split else sample.model_copy(update={"split": split})


class SampleStore(Sequence[Sample]):
    """The samples of one split, read from disk one by one.

    Only places and hashes are kept in memory (about 40 bytes a sample). Objects are cheap to send to other processes
    and safe in threads: every access opens the file anew.

    Args:
        folder: written by `write_samples` or `medmvl data convert`; a folder with plain JSONL files, or one JSONL file,
            serves too.
        split: which of its files.
        tasks: keep only samples with one of these tasks.
        roots: further folders that media may lie in, beside `folder`.

    Attributes:
        folder, split: what was found.
        path: the split's file; of Parquet shards the first one.
        manifest: what `write_samples` returned; empty for plain JSONL.
        hash: sha256 of the split's samples as they are now.
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
        self.folder, self.split, self._reader = _locate(Path(folder), split)
        self.path, self.hash = self._reader.path, self._reader.hash
        self.manifest = read_manifest(self.folder)
        self._roots = (self.folder, *map(Path, roots))
        if self.manifest.get("splits", {}).get(self.split, {}).get("sha256", self.hash) != self.hash:
            get_logger(__name__).warning("%s has changed since its manifest was written", self.path)
        self._rows = self._select(tasks)
        names = self._reader.task_names
        self.task_names = [names[code] for code in np.unique(self._reader.tasks[self._rows])]

    def _select(self, tasks: Iterable[str] | None) -> np.ndarray:
        if tasks is None:
            return np.arange(len(self._reader.tasks))
        known, wanted = self._reader.task_names, list(tasks)
        for task in wanted:
            if task not in known:
                raise StoreError(f"{self.path}: no sample has the task {task!r}; {choices_text(task, known, 'tasks')}")
        return np.flatnonzero(np.isin(self._reader.tasks, [known.index(task) for task in wanted]))

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
        data, where = self._reader.read(int(self._rows[row]))
        sample = _sample(data, self._roots, where)
        return sample if sample.split else sample.model_copy(update={"split": self.split})

    @property
    def places(self) -> np.ndarray:
        """Number of every row in the whole split, whose tasks may be more."""
        return self._rows

    def line(self, row: int) -> int:
        """Return the number of a row's line in its file, from 1; in Parquet shards that of the row in the split."""
        return self._reader.line(int(self._rows[row]))

    @property
    def total(self) -> int:
        """Rows of the whole split."""
        return len(self._reader.tasks)

    def prefix_hash(self, rows: int) -> str:
        """Return what stands for the first rows of the split and stays when others are appended; "" for none."""
        return self._reader.prefix_hash(rows)

    @property
    def tasks(self) -> np.ndarray:
        """Task of every row, as int32 positions in the order of first appearance in the file."""
        return self._reader.tasks[self._rows]

    @property
    def media_keys(self) -> np.ndarray:
        """One uint64 per row: equal for rows with the same media, 0 for text alone."""
        return self._reader.media[self._rows]


@dataclass(frozen=True)
class Source:
    """A store, and the tasks of it that are meant (None: all)."""

    folder: Path
    tasks: tuple[str, ...] | None = None


def find_source(name: str, roots: Sequence[str | Path] = ()) -> Source:
    """Find the store that a recipe calls `name`.

    Args:
        name: a store's name ("slake"), a store and one of its tasks ("slake/vqa"), or a path to a store's folder or to
            a JSONL file. A store in another folder gives its tasks another first part: in a folder `mine`, "mine/vqa"
            is its task "slake/vqa".
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
    parent, _, rest = name.partition("/")
    if parent in stores:
        return Source(stores[parent], (_task(name, rest, stores[parent]),))
    looked = ", ".join(dict.fromkeys(str(root) for root in roots)) or "none given"
    raise StoreError(
        f"source {name!r}: no such store; {choices_text(name, stores, 'known')}. Folders looked in: {looked}. "
        "A path to a folder with train.jsonl works too; `medmvl data` builds and converts data sets."
    )


def _task(name: str, rest: str, folder: Path) -> str:
    """Return the task of a store that is called `name`, or ends in `rest` as no other does."""
    known = [task for task in _tasks(folder) if task]
    meant = [name] if name in known else [task for task in known if task.partition("/")[2] == rest]
    if len(meant) == 1:
        return meant[0]
    if meant:
        raise StoreError(f"source {name!r}: {folder} has several such tasks ({', '.join(meant)}); list them as `tasks`")
    raise StoreError(f"source {name!r}: no sample in {folder} has this task; {choices_text(name, known)}")


def split_names(folder: str | Path) -> list[str]:
    """Return the splits of a store, [] where there is none: those of its manifest, and further JSONL files."""
    folder = Path(folder)
    lines = {file.stem for file in folder.glob("*.jsonl") if file.name != REFUSED}
    return sorted(lines | read_manifest(folder).get("splits", {}).keys())


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
    """Say whether there are samples; quickly, for every folder beside a store is asked."""
    if path.is_file():
        return path.suffix == ".jsonl"
    if not path.is_dir():
        return False
    return any(path.glob("*.jsonl")) or ((path / MANIFEST).is_file() and any(path.glob("*-00000.parquet")))


def _tasks(folder: Path) -> list[str]:
    """Return the tasks of all splits."""
    splits = read_manifest(folder).get("splits")
    if splits:
        return sorted({task for entry in splits.values() for task in entry.get("tasks", {})})
    files = [folder / f"{split}.jsonl" for split in split_names(folder)]
    return sorted({task for file in files for task in SampleStore(file).task_names})


def _locate(path: Path, split: str) -> tuple[Path, str, LineReader | ShardReader]:
    """Return folder, split and reader of a store."""
    path = path.absolute()
    if path.is_file():
        return path.parent, path.stem, LineReader(path)
    if not path.is_dir():
        raise StoreError(f"{path}: there is no such folder or JSONL file")
    entry = read_manifest(path).get("splits", {}).get(split, {})
    if "files" in entry:
        return path, split, ShardReader(path, _files(entry), entry["sha256"])
    if not (path / f"{split}.jsonl").is_file():
        raise StoreError(f"{path}: no split {split!r}; {choices_text(split, split_names(path))}")
    return path, split, LineReader(path / f"{split}.jsonl")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return what `write_samples` noted about a store, {} where there is no manifest.

    Raises:
        StoreError: the manifest is broken.
    """
    path = folder / MANIFEST
    return decode_manifest(path.read_bytes(), str(path)) if path.is_file() else {}


def decode_manifest(content: bytes, where: str) -> dict[str, Any]:
    """Return a manifest, whose files are known to be names in its own folder.

    Raises:
        StoreError: it is none; says where.
    """
    try:
        manifest = json.loads(content)
    except ValueError as error:
        raise StoreError(f"{where}: not valid JSON: {error}; remove it, and write the store again") from None
    splits = manifest.get("splits", {}) if isinstance(manifest, dict) else None
    if not isinstance(splits, dict) or not all(map(_is_entry, splits.values())):
        raise StoreError(f"{where}: is no manifest of a store; remove it, and write the store again")
    return manifest


def _is_entry(entry: object) -> bool:
    """Whether a manifest's entry of a split names files beside it, and the hash of their samples."""
    if not isinstance(entry, dict) or not isinstance(entry.get("tasks", {}), dict):
        return False
    names = entry["files"] if "files" in entry else [entry.get("file")]
    if not isinstance(names, list) or not names or not isinstance(entry.get("sha256"), str):
        return False
    return all(isinstance(name, str) and name not in ("", "..") and Path(name).name == name for name in names)


def _sample(data: Mapping[str, Any], roots: str | Path | Sequence[str | Path] | None, where: str) -> Sample:
    try:
        return Sample.from_dict(data, root=roots)
    except SampleError as error:
        raise SampleError(f"{where}: {error.message}", error.sample_id, error.path) from None
