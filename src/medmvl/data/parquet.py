"""The samples of one split as Parquet shards: a row is a medium, embedded or by reference, and what is asked of it."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medmvl.core.atomic import atomic_folder
from medmvl.core.schema import Image, Sample, SampleError, Volume, relative_path
from medmvl.data.embed import LARGEST, Packed, addresses, pack, unpack
from medmvl.data.lines import StoreError, decode, encode, media_hash
from medmvl.data.tally import Tally

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

DIGEST = b"medmvl.samples.sha256"
"""Key of a shard's footer: sha256 of its samples, as lines of JSON."""

_LARGEST_ROW = 256  # samples of one medium in one row
_LARGEST_GROUP = 256  # samples that are decoded at once, at random access
_GROUP_BYTES = 16 * 2**20  # of embedded media in a row group
_SHARD_SAMPLES, _SHARD_BYTES = 100_000, 512 * 2**20
_CACHED = 8  # decoded row groups


class ShardWriter:
    """Appends samples to `<split>-00000.parquet` and so on; consecutive ones with the same media share a row.

    A row has `media_key` (uint64), `tasks` and `samples` (JSON), one each per sample, and `media` (path and bytes of
    the files, none when media stay where they are). One row group is kept in memory.
    """

    def __init__(self, folder: Path, split: str, stack: ExitStack, embed: bool) -> None:
        self._folder, self._split, self._base, self._embed = folder, split, str(folder), embed
        self._fresh: Path = stack.enter_context(atomic_folder(folder / f".{split}.shards"))
        stack.callback(self._abandon)
        self._tally, self._digests = Tally(), []
        self._shard: _Shard | None = None
        self._packed: dict[str, tuple[str, list[Packed]]] = {}  # the media of the last sample

    def __len__(self) -> int:
        return len(self._tally)

    def write(self, sample: Sample) -> None:
        """Append one sample.

        Raises:
            SampleError: it holds text that is no Unicode, or a medium that cannot be embedded.
        """
        files: list[Packed] = []
        if self._embed:
            self._packed = {path: self._packed.get(path) or pack(path, sample.id) for path in sample.media_key}
            sample = _renamed(sample, {path: address for path, (address, _) in self._packed.items()})
            files = [file for _, packed in self._packed.values() for file in packed]
            if sum(len(content) for _, content in files) > LARGEST:
                raise SampleError(f"its media have more than {LARGEST:,} bytes, too many to embed", sample.id)
        line, paths = encode(sample, self._base), [relative_path(path, self._base) for path in sample.media_key]
        key = media_hash(paths)
        if self._shard is None:
            self._shard = _Shard(self._fresh / _name(self._split, len(self._digests)))
        self._shard.add(key, sample.task, line, files)
        self._tally.add(sample, paths, key)
        if self._shard.is_full:
            self._digests.append(self._shard.close())
            self._shard = None

    def flush(self) -> None:
        """Finish the last shard, so that a full disk shows before a former file is replaced."""
        if self._shard is not None:
            self._digests.append(self._shard.close())
            self._shard = None

    def finish(self) -> dict[str, Any]:
        """Bring the shards to their places; return the entry of the manifest, {} without samples."""
        names = [_name(self._split, number) for number in range(len(self._digests))]
        staged = self._folder / f".{self._split}.shards"
        for name in names:
            os.replace(staged / name, self._folder / name)
        staged.rmdir()
        if not names:
            return {}
        return {"files": names, "sha256": _joined(self._digests), "embedded": self._embed, **self._tally.summary()}

    def _abandon(self) -> None:
        if self._shard is not None:
            self._shard.abandon()


class _Shard:
    """One file while it is written."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        self._writer = pq.ParquetWriter(
            path,
            schema(),
            compression={name: "none" if name.endswith("bytes") else "zstd" for name in _COLUMNS},
            use_dictionary=["tasks.list.element"],
            write_statistics=False,
            write_page_checksum=True,
        )
        self._digest, self._samples, self._bytes = hashlib.sha256(), 0, 0
        self._rows: list[dict[str, Any]] = []
        self._waiting, self._waiting_bytes = 0, 0

    @property
    def is_full(self) -> bool:
        return self._samples >= _SHARD_SAMPLES or self._bytes >= _SHARD_BYTES

    def add(self, key: int, task: str, line: bytes, files: Sequence[Packed]) -> None:
        row = self._rows[-1] if self._rows else None
        if row is None or key == 0 or row["media_key"] != key or len(row["samples"]) == _LARGEST_ROW:
            if self._waiting >= _LARGEST_GROUP or self._waiting_bytes >= _GROUP_BYTES:
                self._write_group()
            media = [{"path": path, "bytes": content} for path, content in files]
            row = {"media_key": key, "tasks": [], "samples": [], "media": media}
            self._rows.append(row)
            self._waiting_bytes += sum(len(content) for _, content in files)
        row["tasks"].append(task)
        row["samples"].append(line.rstrip(b"\n"))
        self._digest.update(line)
        self._samples += 1
        self._waiting += 1
        self._bytes += len(line)

    def _write_group(self) -> None:
        import pyarrow as pa

        columns = [pa.array([row[field.name] for row in self._rows], field.type) for field in schema()]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=schema()))
        self._bytes += self._waiting_bytes
        self._rows, self._waiting, self._waiting_bytes = [], 0, 0

    def close(self) -> str:
        """Write what waits and the footer; return the digest of the samples."""
        if self._rows:
            self._write_group()
        self._writer.add_key_value_metadata({DIGEST.decode(): self._digest.hexdigest()})
        self._writer.close()
        return self._digest.hexdigest()

    def abandon(self) -> None:
        self._writer.close()


class ShardReader:
    """Reads Parquet shards at any row. It keeps no file open, and a few decoded row groups of text.

    Args:
        folder: of the shards.
        names: of the shards, in order.
        digest: what the manifest says about their samples.

    Attributes:
        path: the first shard.
        hash: sha256 over the samples of all shards, as their footers say; pages have checksums of their own.
        tasks, media, task_names: int32 and uint64 of all rows, and the names that `tasks` counts.

    Raises:
        StoreError: a shard is missing, damaged, or of other samples than the manifest's.
    """

    def __init__(self, folder: Path, names: Sequence[str], digest: str) -> None:
        self._folder, self._paths = folder, [folder / name for name in names]
        self.path = self._paths[0]
        opened = [_open(path) for path in self._paths]
        self._footers = [file.metadata for file in opened]
        self._digests = [_digest_of(file) for file in opened]
        self.hash = _joined(self._digests)
        if self.hash != digest:
            raise StoreError(f"{self.path}: the shards are of other samples than the manifest; convert them again")
        self._groups = [(shard, group) for shard, file in enumerate(opened) for group in range(file.num_row_groups)]
        heights = [file.metadata.row_group(group).num_rows for file in opened for group in range(file.num_row_groups)]
        self._group_starts = np.cumsum(heights) - heights
        sizes, self.tasks, self.media, self.task_names = _columns(self._paths, opened)
        self._row_starts = np.cumsum(sizes) - sizes
        by_shard = np.split(sizes, np.cumsum([file.metadata.num_rows for file in opened])[:-1])
        self._shard_ends = np.cumsum([part.sum() for part in by_shard])
        self._cache: list[tuple[int, pa.ListArray]] = []

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_cache": []}

    def prefix_hash(self, rows: int) -> str:
        """Return what stands for the first rows; "" unless they end with a shard."""
        ends = np.flatnonzero(self._shard_ends == rows)
        return _joined(self._digests[: int(ends[0]) + 1]) if len(ends) else ""

    def line(self, row: int) -> int:
        """Return the number of a row in the split, from 1."""
        return row + 1

    def read(self, row: int) -> tuple[Mapping[str, Any], str]:
        """Return the sample of a row, its embedded media unpacked, and the place for messages.

        Raises:
            SampleError: the shard is damaged here.
        """
        place = int(np.searchsorted(self._row_starts, row, "right")) - 1
        group = int(np.searchsorted(self._group_starts, place, "right")) - 1
        where = f"{self._paths[self._groups[group][0]]}, sample {row} of the split"
        texts = self._texts(group, where)[place - int(self._group_starts[group])].values
        data = decode(texts[row - int(self._row_starts[place])].as_py(), where)
        if not all((self._folder / address).exists() for address in addresses(data)):
            self._unpack(group, where)
        return data, where

    def _texts(self, group: int, where: str) -> "pa.ListArray":
        found = next((texts for number, texts in self._cache if number == group), None)
        if found is None:
            found = self._read(group, "samples", where)
            self._cache = [(group, found), *self._cache[: _CACHED - 1]]
        return found

    def _unpack(self, group: int, where: str) -> None:
        """Write all media of a row group: they are read together anyhow."""
        rows = self._read(group, "media", where).to_pylist()
        try:
            unpack(self._folder, [(file["path"], file["bytes"]) for row in rows for file in row])
        except (OSError, ValueError) as error:
            raise SampleError(f"its media cannot be unpacked: {error}", "?", where) from error

    def _read(self, group: int, column: str, where: str) -> "pa.ListArray":
        shard, number = self._groups[group]
        try:
            # Arrow's own threads do not survive a fork, so none are used.
            table = _open(self._paths[shard], self._footers[shard]).read_row_group(number, [column], use_threads=False)
        except (OSError, ValueError) as error:
            raise SampleError(f"the shard is damaged here: {error}", "?", where) from error
        return table.column(column).combine_chunks()


_COLUMNS = ("media_key", "tasks.list.element", "samples.list.element", "media.list.element.path",
            "media.list.element.bytes")  # fmt: skip


def schema() -> "pa.Schema":
    """Return the columns of a shard."""
    import pyarrow as pa

    media = pa.list_(pa.struct([("path", pa.string()), ("bytes", pa.binary())]))
    texts = pa.list_(pa.string())
    return pa.schema([("media_key", pa.uint64()), ("tasks", texts), ("samples", texts), ("media", media)])


def _name(split: str, number: int) -> str:
    return f"{split}-{number:05d}.parquet"


def _joined(digests: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _renamed(sample: Sample, names: Mapping[str, str]) -> Sample:
    """Return the sample with other paths of its media."""
    messages = [
        message.model_copy(
            update={
                "content": tuple(
                    part.model_copy(update={"path": names[part.path]}) if isinstance(part, Image | Volume) else part
                    for part in message.content
                )
            }
        )
        for message in sample.messages
    ]
    return sample.model_copy(update={"messages": tuple(messages)})


def _open(path: Path, footer: "pq.FileMetaData | None" = None) -> "pq.ParquetFile":
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path, metadata=footer, pre_buffer=False, page_checksum_verification=True)
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read as Parquet: {error}") from error


def _digest_of(file: "pq.ParquetFile") -> str:
    return (file.metadata.metadata or {}).get(DIGEST, b"").decode()


def _columns(
    paths: Sequence[Path], files: Sequence["pq.ParquetFile"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Return samples per row; task, and hash of the media, per sample; and the names of the tasks."""
    import pyarrow.compute as pc

    sizes, tasks, media = [], [], []
    names: dict[str, int] = {}
    for path, file in zip(paths, files, strict=True):
        try:
            table = file.read(["media_key", "tasks"], use_threads=False)
        except (OSError, ValueError) as error:
            raise StoreError(f"{path}: is damaged: {error}; convert the data again") from error
        sizes.append(pc.list_value_length(table["tasks"]).to_numpy())
        coded = pc.list_flatten(table["tasks"]).combine_chunks().dictionary_encode()
        codes = np.array([names.setdefault(name, len(names)) for name in coded.dictionary.to_pylist()], np.int32)
        tasks.append(codes[coded.indices.to_numpy()])
        media.append(np.repeat(table["media_key"].to_numpy(), sizes[-1]))
    return np.concatenate(sizes), np.concatenate(tasks), np.concatenate(media), list(names)
