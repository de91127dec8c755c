"""How many tokens every sample of a store has, counted once per tokenizer and kept beside the store."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medmvl.core.atomic import DiskFullError, atomic_file
from medmvl.core.log import get_logger
from medmvl.core.schema import Sample, SampleError
from medmvl.data.lines import DAMAGED
from medmvl.data.store import SampleStore

REFUSED = -1
"""The count of a sample that cannot be used."""

_UNKNOWN = -2
_SAVED_AFTER = 100_000  # samples counted in one go, so that a call that is stopped has not counted in vain


def token_counts(store: SampleStore, fingerprint: str, count: Callable[[Sample], int]) -> np.ndarray:
    """Return the tokens of every sample of a store; only those are counted that never were.

    The counts are kept as `<split>.tokens-<...>.npz` in the store's folder, for all rows of the split. They hold as
    long as the rows do: rows that are appended are counted, any other change counts everything anew. A damaged file is
    told and counted anew. Several processes may do this at once; what they find is put together.

    Args:
        store: all rows of a split, or those of some tasks.
        fingerprint: of everything a count depends on beside the sample: tokenizer, template, tokens per medium.
        count: returns a sample's tokens; raises SampleError for one that cannot be used.

    Returns:
        int32, one per row of `store`; `REFUSED` where the sample cannot be used.
    """
    path = _path(store, fingerprint)
    counts = _load(path, store, fingerprint)
    missing = np.flatnonzero(counts[store.places] == _UNKNOWN)
    prefix = store.prefix_hash(store.total) if len(missing) else ""  # once: it may read the whole split
    for start in range(0, len(missing), _SAVED_AFTER):
        for row in missing[start : start + _SAVED_AFTER]:
            counts[store.places[row]] = _count(store, int(row), count)
        counts = _save(path, store, fingerprint, prefix, counts)
    return counts[store.places]


def _path(store: SampleStore, fingerprint: str) -> Path:
    short = hashlib.sha256(fingerprint.encode()).hexdigest()[:16]
    return store.folder / f"{store.split}.tokens-{short}.npz"


def _count(store: SampleStore, row: int, count: Callable[[Sample], int]) -> int:
    try:
        return count(store[row])
    except SampleError:
        return REFUSED


@dataclass(frozen=True)
class _Saved:
    """What a file holds.

    Attributes:
        fingerprint: as given.
        hash: of the split when it was counted.
        prefix: of all its rows; rows may have been appended since.
        counts: int32 per row.
    """

    fingerprint: str
    hash: str
    prefix: str
    counts: np.ndarray

    def checksum(self) -> str:
        texts = "\n".join([self.fingerprint, self.hash, self.prefix]).encode()
        return hashlib.sha256(texts + b"\n" + self.counts.tobytes()).hexdigest()


def _load(path: Path, store: SampleStore, fingerprint: str) -> np.ndarray:
    """Return a count for every row of the split, as far as they are known."""
    counts = np.full(store.total, _UNKNOWN, np.int32)
    saved = _read(path) if path.is_file() else None
    if saved is None or saved.fingerprint != fingerprint or len(saved.counts) > len(counts):
        return counts
    if saved.hash == store.hash or (saved.prefix and saved.prefix == store.prefix_hash(len(saved.counts))):
        counts[: len(saved.counts)] = saved.counts
    return counts


def _read(path: Path) -> _Saved | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            texts = {name: str(file[name]) for name in ("fingerprint", "hash", "prefix")}
            saved, checksum = _Saved(**texts, counts=file["counts"]), str(file["checksum"])
        if saved.counts.dtype != np.int32 or saved.counts.ndim != 1 or saved.checksum() != checksum:
            raise ValueError("its checksum is another")
    except DAMAGED as error:
        get_logger(__name__).warning("%s is damaged (%s); the tokens are counted once more", path, error)
        return None
    return saved


def _save(path: Path, store: SampleStore, fingerprint: str, prefix: str, counts: np.ndarray) -> np.ndarray:
    """Write the counts, with those that another process found meanwhile; return all."""
    other = _load(path, store, fingerprint)
    counts = np.where(counts == _UNKNOWN, other, counts)
    saved = _Saved(fingerprint, store.hash, prefix, counts)
    try:
        with atomic_file(path, "wb") as file:
            np.savez_compressed(file, **vars(saved), checksum=np.array(saved.checksum()))
    except DiskFullError as error:
        get_logger(__name__).warning("the counts of tokens are not kept, and counted again next time: %s", error)
    return counts
