"""From a data set as it is published to a store: what is usable is written, what is not is told and counted."""

import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from medmvl.core.atomic import atomic_file, only_writer
from medmvl.core.lookup import choices_text
from medmvl.core.schema import Sample, SampleError, split_fragment
from medmvl.data.adapters.base import Adapter, LayoutError
from medmvl.data.adapters.table import adapter
from medmvl.data.lines import StoreError
from medmvl.data.store import REFUSED, Form, read_manifest, split_names, write_manifest, write_splits

Missing = Literal["keep", "refuse"]

_TOLD = 10  # refused samples, and missing media, that are spelt out
_CLASSES = 50  # kinds of reasons that a manifest counts apart
_OF_ONE_ROW = re.compile(r"'[^']*'|\"[^\"]*\"|[\[({].*[\])}]|/\S+|\d[\d,.]*")
_LEFT = re.compile(r"\.\.?[\w-]+\.(jsonl|json|index\.npz|shards)(\.\w+)?")  # half-written files, by their names
_HASHED = 2**30  # bytes of an official file whose content goes into the fingerprint
_REMEMBERED = 10_000  # media whose presence is remembered


@dataclass
class Conversion:
    """What became of a data set.

    Attributes:
        manifest: of the store.
        refused: number of samples that could not be used; all are listed in OUT/refused.jsonl.
        told: the first of them, as messages.
        missing: number of samples whose media are not there.
        absent: the first of those media.
        media_root: the folder outside the store that holds the media; None when there are none outside.
    """

    manifest: dict[str, Any]
    refused: int
    told: list[str]
    missing: int
    absent: list[str]
    media_root: Path | None


def convert(
    name: str,
    root: str | Path,
    out: str | Path,
    *,
    tasks: Sequence[str] = (),
    splits: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    form: Form = "jsonl",
    embed: bool = False,
    missing: Missing = "keep",
    advance: Callable[[int], None] | None = None,
) -> Conversion:
    """Make a store of a data set in its official layout; it replaces the store that was at `out`, once it is whole.

    With `splits` only those are replaced; others that the same conversion made before stay.

    Args:
        name: of an adapter ("slake"), or a dotted path to one of your own.
        root: the data set as published.
        out: folder of the store.
        tasks, splits: which to take, by the adapter's names or the data set's own; default all.
        options: of the adapter.
        form: JSONL files, or Parquet shards.
        embed: the shards hold the media as well; a medium that is missing refuses its samples.
        missing: keep samples whose media are not there, or refuse them.
        advance: called with a number of samples, or refused rows, that have just been gone through.

    Raises:
        LayoutError, TableError: the data set does not look as published.
        StoreError: no sample can be used, or `out` holds something that is no store of this adapter, or splits that
            would stay were made with other options.
        BusyError: another process writes there.
        ValueError: an unknown name, task, split or option, with all known ones.
    """
    kind = adapter(name)
    wanted_splits = choose(kind.splits, splits, f"{kind.name}: split", also=kind.splits)
    chosen = choose(kind.tasks, tasks, f"{kind.name}: task"), wanted_splits
    if embed and form != "parquet":
        raise ValueError("media are embedded in Parquet shards only: add --form parquet")
    out = Path(out).absolute()
    check_free(out, kind.name)
    source = kind(root, options, unpacked := Unpacked(out))
    made = _made_by(source, options or {})
    others = _others(out, made, wanted_splits) if splits else {}
    media = _Media(out, "refuse" if embed else missing)
    origin: dict[str, Any] = {}

    def rows() -> Iterator[Sample | SampleError]:
        yield from _counted(media.checked(_samples(source, *chosen)), advance or (lambda count: None))
        # What takes long is done here, before the first file of a former store is replaced.
        unpacked.settle()
        origin.update(fingerprint(source))

    with only_writer(out), Refusals(out / REFUSED) as refusals:
        _sweep(out)
        try:
            entries = write_splits(out, rows(), form, embed, refusals.add)
        except StoreError as error:
            raise StoreError(f"{source.root}: no sample can be used. {refusals.text() or error}") from error
        manifest = write_manifest(out, _about(source, made, origin, out, media, refusals), {**others, **entries})
    outside = None if embed else media.root(source.root)
    return Conversion(manifest, refusals.count, refusals.told, media.missing, media.absent, outside)


def choose(known: Collection[str], given: Sequence[str], what: str, also: Mapping[str, str] = {}) -> list[str]:
    """Return the keys that are meant, all if none is given.

    Args:
        known: all keys.
        given: keys, or names that the data set itself uses.
        what: for messages.
        also: key -> the data set's own names, as people read them: "validate (validation in the HF copy)".

    Raises:
        ValueError: one is unknown; says the nearest and all.
    """
    chosen = []
    for one in given:
        meant = [one] if one in known else [key for key, text in also.items() if one in _own_names(text)]
        if len(meant) != 1:
            raise ValueError(f"{what} {one!r} is unknown; {choices_text(one, known)}")
        chosen += meant
    return [key for key in known if not given or key in chosen]


def _own_names(text: str) -> list[str]:
    """Return the names in a text: what begins it, and what follows a comma, a parenthesis, "and" or "or"."""
    return [piece.split()[0] for piece in re.split(r"[;,()]|\band\b|\bor\b", text) if piece.strip()]


def check_free(out: Path, name: str) -> None:
    """Refuse a folder whose files are no earlier conversion of the same data set: they would be lost.

    Raises:
        StoreError: says what is there.
    """
    manifest = read_manifest(out)
    held = manifest.get("adapter", {}).get("name") or manifest.get("name")
    if manifest and held != name:
        raise StoreError(f"{out} holds a store of {held!r}, which would be lost; choose another folder, or remove it")
    if not manifest and (own := split_names(out)):
        raise StoreError(
            f"{out} holds {own[0]}.jsonl and no manifest: no conversion wrote it, or one was stopped at its very end; "
            "choose another folder for the store, or remove the file"
        )


def _made_by(source: Adapter, options: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": source.name, "version": source.version, "options": json.loads(json.dumps(dict(options)))}


def _others(out: Path, made: Mapping[str, Any], chosen: Sequence[str]) -> dict[str, Any]:
    """Return the entries of the splits at `out` that are not converted now, and stay.

    Raises:
        StoreError: they were made otherwise; together they would be no data set.
    """
    former = read_manifest(out)
    others = {split: entry for split, entry in former.get("splits", {}).items() if split not in chosen}
    if others and former.get("adapter") != made:
        raise StoreError(
            f"{out} holds the split(s) {', '.join(others)}, made by {former.get('adapter')}, while this is {made}; "
            "convert all splits together, or choose another folder"
        )
    return others


def _sweep(out: Path) -> None:
    """Remove what a killed conversion left half written; nobody else writes there now."""
    for path in out.iterdir():
        if _LEFT.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _samples(source: Adapter, tasks: Sequence[str], splits: Sequence[str]) -> Iterator[Sample | SampleError]:
    for split in splits:
        try:
            yield from source.samples(split, tasks)
        except LayoutError as error:
            raise LayoutError(f"{error}\nTo convert what is there, name it with --split and --task.") from error


def _counted(samples: Iterable[Sample | SampleError], advance: Callable[[int], None]) -> Iterator[Sample | SampleError]:
    count = 0
    for count, sample in enumerate(samples, start=1):
        if count % 512 == 0:
            advance(512)
        yield sample
    advance(count % 512)


class _Media:
    """Looks whether media are there, and where; once for those that follow each other."""

    def __init__(self, out: Path, missing: Missing) -> None:
        self._own, self._refuse = f"{out}{os.sep}", missing == "refuse"
        self._known: dict[str, bool] = {}
        self._outside = ""  # the folder that all media outside the store have in common
        self.missing = 0
        self.absent: list[str] = []

    def checked(self, samples: Iterable[Sample | SampleError]) -> Iterator[Sample | SampleError]:
        """Yield the samples; those whose media are missing are counted, or become errors."""
        for sample in samples:
            lacking = "" if isinstance(sample, SampleError) else self._lacking(sample)
            if not lacking:
                yield sample
                continue
            self.missing += 1
            yield SampleError("no such file", sample.id, lacking) if self._refuse else sample

    def root(self, official: Path) -> Path | None:
        """Return the folder of the media outside the store: the data set's own, when they lie in it."""
        if not self._outside:
            return None
        folder = Path(self._outside)
        return official if folder.is_relative_to(official) else folder

    def _lacking(self, sample: Sample) -> str:
        for path in sample.media_key:
            if not self._is_there(path):
                return path
        return ""

    def _is_there(self, path: str) -> bool:
        found = self._known.get(path)
        if found is None:
            if len(self._known) == _REMEMBERED:
                self._known.clear()
            file = split_fragment(path)[0] if "#" in path else path
            found = self._known[path] = os.path.exists(file)
            if not found and len(self.absent) < _TOLD:
                self.absent.append(path)
            if not path.startswith((self._own, self._outside or "\0")):
                folder = os.path.dirname(file)
                common = os.path.commonpath([folder, self._outside]) if self._outside else folder
                self._outside = common.rstrip(os.sep) + os.sep
        return found


class Refusals:
    """Rows that cannot be used: each in OUT/refused.jsonl, counted by kind, the first ones as messages.

    The file takes its place on a clean exit; one of an earlier conversion goes when nothing was refused.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._stack = path, ExitStack()
        self._file: Any = None
        self.count = 0
        self.told: list[str] = []
        self.kinds: Counter[str] = Counter()

    def __enter__(self) -> "Refusals":
        self._stack.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)
        if self._file is None and error[0] is None:
            self._path.unlink(missing_ok=True)

    def add(self, error: SampleError) -> None:
        """Note one."""
        if self._file is None:
            self._file = self._stack.enter_context(atomic_file(self._path, "wb"))
        place = None if error.path is None else str(error.path)
        row = {"id": error.sample_id, "place": place, "reason": error.message}
        self._file.write(json.dumps(row).encode() + b"\n")  # ASCII: an id can be no Unicode
        self.count += 1
        if len(self.told) < _TOLD:
            self.told.append(str(error))
        kind = _OF_ONE_ROW.sub("...", error.message)[:120]
        self.kinds[kind if kind in self.kinds or len(self.kinds) < _CLASSES else "other reasons"] += 1

    def text(self) -> str:
        """Return how many were refused, and the first of them; "" for none."""
        if not self.count:
            return ""
        more = [f"and {self.count - _TOLD:,} more"] if self.count > _TOLD else []
        return "\n  ".join([f"{self.count:,} were refused:", *self.told, *more])


class Unpacked:
    """Writes media that a data set keeps inside other files below OUT/media.

    Two contents of one name are refused: one patient's picture would become another's. A file that an earlier
    conversion wrote stays as it is, for the store shows it until the new one is whole; another content of its name gets
    a name of its own.
    """

    def __init__(self, out: Path) -> None:
        self._folder = out / "media"
        self._written: set[int] = set()
        self._marks: dict[str, str] = {}  # name -> what tells it from an earlier conversion's file

    def __call__(self, name: str, content: bytes) -> str:
        """Write one file; what is there with the same bytes stays.

        Raises:
            ValueError: the name leads out of the folder, or was given to another content before.
        """
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or "\0" in name or "\\" in name or any(p.startswith(".") for p in parts):
            raise ValueError(f"{name!r} is no name for a file below {self._folder}")
        path = self._folder.joinpath(*parts)
        there = _holds(path, content)
        mark = hashlib.sha256(content).hexdigest()[:16] if path.exists() and not there else ""
        if (mark and hash(name) in self._written) or self._marks.get(name, mark) != mark:
            raise ValueError(f"two different media are called {name!r}")
        if mark:
            path, self._marks[name] = path.with_name(f"{mark}-{path.name}"), mark
            there = _holds(path, content)
        else:
            self._written.add(hash(name))
        if not there:
            _write(path, content)
        return str(path)

    def settle(self) -> None:
        """Bring everything to the disk: at once, for one by one takes milliseconds each."""
        if self._written or self._marks:
            os.sync()


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content


def _write(path: Path, content: bytes) -> None:
    """Write a file in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_bytes(content)
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def _about(
    source: Adapter,
    made: Mapping[str, Any],
    origin: Mapping[str, Any],
    out: Path,
    media: _Media,
    refused: Refusals,
) -> dict[str, Any]:
    """Return what the manifest says beside the splits; `origin` is the `fingerprint` of the official files."""
    return {
        "name": out.name,
        "version": source.version,
        "licence": source.licence,
        "access": source.access,
        "credentialed": source.credentialed,
        "description": source.title,
        "adapter": made,
        "source": dict(origin),
        "refused": {"samples": refused.count, "reasons": dict(refused.kinds.most_common())},
        "missing_media": media.missing,
    }


def fingerprint(source: Adapter) -> dict[str, Any]:
    """Return the official files that an adapter read, with sizes, and one hash over their names, sizes and contents.

    Files of more than 1 GiB count by name and size only, and so do folders: media are not walked through.
    """
    files: dict[str, int | None] = {}
    digest = hashlib.sha256()
    for path in sorted(source.found or _beside(source.root)):
        size = path.stat().st_size if path.is_file() else None
        name = os.path.relpath(path, source.root)
        files[name] = size
        digest.update(f"{name}\0{size}\0".encode("utf-8", "surrogateescape"))
        if size is not None and size <= _HASHED:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return {"files": files, "sha256": digest.hexdigest()}


def _beside(root: Path) -> list[Path]:
    suffixes = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".gz", ".xlsx", ".txt")
    return [path for path in root.iterdir() if path.name.lower().endswith(suffixes) and path.is_file()]
