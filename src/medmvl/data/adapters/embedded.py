"""Pictures inside Parquet cells, as `datasets` keeps them: written out once each, named by their content."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medmvl.core.schema import Image
from medmvl.data.adapters.base import Adapter
from medmvl.data.rows import BadRow, Row, parquet_rows

_SUFFIXES = {b"\xff\xd8\xff": ".jpg", b"\x89PNG\r\n\x1a\n": ".png"}


def shards(reader: Adapter, split: str) -> list[Path]:
    """Return the files `data/SPLIT-00000-of-00003.parquet` of a split as the data set calls it, in order.

    Older uploads have a hash behind the count ("train-00000-of-00001-eb8844602202be60.parquet").

    Raises:
        LayoutError: there are none, or not all.
    """
    named = re.compile(rf"{split}-(\d+)-of-(\d+)(-[0-9a-f]+)?\.parquet")
    files = sorted(reader.root.glob("data/*.parquet"))
    found = {int(match[1]): match for path in files if (match := named.fullmatch(path.name))}
    total = next((match[2] for match in found.values()), "00001")
    names = [found[n][0] if n in found else f"{split}-{n:05}-of-{total}.parquet" for n in range(int(total))]
    return [reader.find(f"data/{name}") for name in names]


def embedded_rows(files: list[Path], columns: tuple[str, ...]) -> Iterator[Row | BadRow]:
    """Yield the rows of all files, a few at a time."""
    for file in files:
        yield from parquet_rows(file, columns)


class Pictures:
    """Unpacks pictures for one adapter; equal ones become one file."""

    def __init__(self, reader: Adapter) -> None:
        self._reader = reader
        self._paths: dict[bytes, str] = {}

    def unpack(self, cell: Any) -> Image:
        """Return the picture of a cell {"bytes": ..., "path": ...}.

        Raises:
            ValueError: no bytes, or neither JPEG nor PNG.
        """
        content = cell.get("bytes") if isinstance(cell, Mapping) else None
        if not isinstance(content, bytes) or not content:
            raise ValueError("field 'image' holds no picture; {bytes, path} is expected")
        suffix = next((suffix for start, suffix in _SUFFIXES.items() if content.startswith(start)), None)
        if suffix is None:
            raise ValueError(f"field 'image' is neither JPEG nor PNG, it begins with {content[:8]!r}")
        digest = hashlib.sha256(content).digest()
        if digest not in self._paths:
            self._paths[digest] = self._reader.unpack(f"{digest[:16].hex()}{suffix}", content)
        return Image(path=self._paths[digest])
