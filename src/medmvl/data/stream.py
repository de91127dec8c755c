"""Samples of a store in Parquet, streamed: shuffled, shared among processes, and resumed where they stopped."""

import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medmvl.core.lookup import choices_text
from medmvl.core.schema import Sample, SampleError
from medmvl.data.embed import unpack
from medmvl.data.lines import StoreError, decode
from medmvl.data.store import MANIFEST, decode_manifest

if TYPE_CHECKING:
    from datasets import IterableDataset

Text = tuple[str, str]
"""A sample as JSON, and its place."""


def stream(
    url: str | Path,
    split: str = "train",
    *,
    buffer: int = 10_000,
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
    epoch: int = 0,
    cache: str | Path | None = None,
    roots: Sequence[str | Path] = (),
    state: Mapping[str, Any] | None = None,
) -> "Stream":
    """Open a store in Parquet for one pass, that reads as it goes.

    The shards are shuffled, and the rows within windows of `buffer` samples. Samples of one medium stay together, for
    they can share its encoding. All ranks together see every sample of the split once per epoch. Each reads shards of
    its own where they divide evenly among the ranks, else all shards, and takes every n-th row.

    Args:
        url: folder of the store, on this machine or wherever fsspec leads ("s3://bucket/slake"; access is its matter).
        split: which one.
        buffer: samples that are shuffled among each other; their texts are in memory, their media on disk.
        seed, epoch: of the shuffle; another epoch has another order.
        rank, world: which of how many processes this is.
        cache: folder for embedded media; default the store's own, which must then be on this machine.
        roots: further folders on this machine that media may lie in.
        state: `Stream.state` of an interrupted pass with the same arguments.

    Raises:
        StoreError: no store in Parquet there, or no such split.
        ValueError: a wrong number, or a state of another pass.
    """
    if not 0 <= rank < world or buffer < 1:
        raise ValueError(f"rank={rank} must lie in 0..world-1 (world={world}), and buffer={buffer} be at least 1")
    here = "://" not in str(url)
    if cache is None and not here:
        raise ValueError(f"{url} is not on this machine: name a folder for its media, cache=...")
    address = str(Path(url).absolute()) if here else str(url).rstrip("/")
    entry = _entry(address, split)
    order = np.random.default_rng([seed, epoch]).permutation(len(entry["files"]))
    shards = [f"{address}/{entry['files'][number]}" for number in order]
    settings = {"hash": entry["sha256"], "split": split, "buffer": buffer, "seed": seed, "epoch": epoch,
                "rank": rank, "world": world}  # fmt: skip
    folder = Path(address if cache is None else cache).absolute()
    folders = [folder, *([Path(address)] if here else []), *map(Path, roots)]
    return Stream(_rows(shards, rank, world), settings, folder, list(dict.fromkeys(folders)), state)


class Stream(Iterator[Sample | SampleError]):
    """One pass over a rank's share; made by `stream`.

    Media are on this machine when a sample is yielded. One that cannot be used is yielded as its error, in its place.

    Attributes:
        state: where the pass is, as JSON; with it `stream` goes on with the sample that would have come next.
    """

    def __init__(
        self,
        rows: "IterableDataset",
        settings: Mapping[str, Any],
        folder: Path,
        roots: Sequence[Path],
        state: Mapping[str, Any] | None,
    ) -> None:
        self._rows, self._settings, self._folder, self._roots = rows, dict(settings), folder, roots
        self._window, self._taken = 0, 0
        if state is not None:
            self._check(state)
            rows.load_state_dict(json.loads(json.dumps(state["rows"])))
            self._window = state["window"]
        self._left: list[Text] = []
        self._source = iter(rows)
        # Rows that were told where to begin only say so themselves once they are on their way.
        self._begin = self._state_of_rows() if state is None else state["rows"]
        for _ in range(0 if state is None else state["taken"]):
            self._next_text()

    @property
    def state(self) -> dict[str, Any]:
        """Where the pass is: its arguments, the window, and how much of it is used."""
        return {**self._settings, "window": self._window, "taken": self._taken, "rows": self._begin}

    def __next__(self) -> Sample | SampleError:
        text, place = self._next_text()
        try:
            sample = Sample.from_dict(decode(text, place), self._roots)
            return sample if sample.split else sample.model_copy(update={"split": self._settings["split"]})
        except SampleError as error:
            return SampleError(error.message, error.sample_id, error.path or place)

    def _next_text(self) -> Text:
        if self._taken and not self._left:
            self._window, self._taken, self._begin = self._window + 1, 0, self._state_of_rows()
        if not self._left:
            self._left = self._read_window()
        self._taken += 1
        return self._left.pop()

    def _read_window(self) -> list[Text]:
        """Return the samples of the next window, last one first.

        Raises:
            StopIteration: there is none.
        """
        rows: list[list[Text]] = []
        while sum(map(len, rows)) < self._settings["buffer"]:
            row = self._next_row()
            if row is None:
                break
            rows.append(self._texts(row))
        if not rows:
            raise StopIteration
        keys = ("seed", "epoch", "rank")
        rng = np.random.default_rng([*(self._settings[key] for key in keys), self._window])
        return [text for number in rng.permutation(len(rows)) for text in reversed(rows[number])]

    def _next_row(self) -> Mapping[str, Any] | None:
        try:
            return next(self._source, None)
        except (OSError, ValueError) as error:
            raise StoreError(f"split {self._settings['split']!r}: a shard cannot be read on: {error}") from error

    def _texts(self, row: Mapping[str, Any]) -> list[Text]:
        place = f"split {self._settings['split']}, media {row['media_key']}"
        try:
            unpack(self._folder, [(file["path"], file["bytes"]) for file in row["media"] or ()])
        except (OSError, ValueError) as error:
            raise StoreError(f"{place}: its media cannot be unpacked into {self._folder}: {error}") from error
        return [(text, place) for text in row["samples"]]

    def _state_of_rows(self) -> dict[str, Any]:
        return json.loads(json.dumps(self._rows.state_dict()))

    def _check(self, state: Mapping[str, Any]) -> None:
        other = [key for key, value in self._settings.items() if state.get(key) != value]
        if other:
            told = ", ".join(f"{key}={state.get(key)!r} there, {self._settings[key]!r} here" for key in other)
            raise ValueError(f"the state is of another pass: {told}")


def _rows(shards: Sequence[str], rank: int, world: int) -> "IterableDataset":
    """Return a rank's rows in the order of the shards: whole shards where these divide evenly, else every n-th row."""
    from datasets import IterableDataset, load_dataset
    from datasets.distributed import split_dataset_by_node

    rows = load_dataset("parquet", data_files={"all": list(shards)}, split="all", streaming=True)
    if not isinstance(rows, IterableDataset):
        raise StoreError(f"{shards[0]}: cannot be streamed")
    return split_dataset_by_node(rows, rank, world)


def _entry(address: str, split: str) -> dict[str, Any]:
    """Return what the manifest says about a split."""
    import fsspec

    try:
        with fsspec.open(posixpath.join(address, MANIFEST), "rb") as file:
            content = file.read()
    except (OSError, ValueError) as error:
        raise StoreError(f"{address}/{MANIFEST} cannot be read: {error}; is there a store?") from error
    splits = decode_manifest(content, f"{address}/{MANIFEST}").get("splits", {})
    if split not in splits:
        raise StoreError(f"{address}: no split {split!r}; {choices_text(split, splits)}")
    if "files" not in splits[split]:
        raise StoreError(f"{address} holds lines of JSON; convert the data with --form parquet to stream it")
    return splits[split]
