"""Question sets as they are copied to the hub: Parquet with a picture, a question and an answer in every row."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any

from medmvl.core.schema import Image, Sample, SampleError
from medmvl.data.adapters.base import Adapter
from medmvl.data.rows import Row, parquet_rows

_COLUMNS = ("image", "question", "answer")
_YES_NO = (("yes", "no"), ("Yes", "No"), ("YES", "NO"))
_MAGIC = {b"\x89PNG\r\n\x1a\n": ".png", b"\xff\xd8\xff": ".jpg", b"II*\0": ".tif", b"MM\0*": ".tif", b"BM": ".bmp"}
_SUFFIX = re.compile(r"(?:\.nii)?\.[A-Za-z0-9]{1,5}$")


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


def is_copy(reader: Adapter) -> bool:
    """Whether the adapter's root holds such files."""
    return next(reader.root.glob("data/*.parquet"), None) is not None


def questions(reader: Adapter, split: str, official: str) -> Iterator[Sample | SampleError]:
    """Yield the samples (task "vqa") of one split; the copy does not tell which are closed, so its yes and no do.

    Args:
        reader: whose samples they become.
        split: of the samples.
        official: what the files call it.
    """
    numbers = count()

    def make(row: Row) -> Iterator[Sample]:
        number, question, answer = next(numbers), row.text("question"), row.text("answer")
        choices = yes_no(answer)
        known = {"answer_type": "closed" if choices else "open", "choices": choices}
        picture = Image(path=unpacked(reader, _picture(row.data["image"])))
        yield reader.sample(f"{split}-{number:05}", split, "vqa", question, answer, [picture], **known)

    for file in shards(reader, official):
        yield from reader.each(parquet_rows(file, _COLUMNS), make)


def yes_no(answer: str) -> tuple[str, str] | None:
    """Return (yes, no) in the spelling of an answer that is one of them."""
    return next((pair for pair in _YES_NO if answer in pair), None)


def unpacked(reader: Adapter, content: bytes, name: str = "") -> str:
    """Write a file that was embedded in a table; return its path. Equal contents become one file.

    Args:
        reader: whose medium it is.
        content: of the file.
        name: that it had before, for its suffix.

    Raises:
        ValueError: neither the first bytes nor the name tell what kind of file it is.
    """
    digest = hashlib.sha256(content).hexdigest()[:32]
    return reader.unpack(f"{digest[:2]}/{digest}{_suffix(content, name)}", content)


def _suffix(content: bytes, name: str) -> str:
    known = next((suffix for magic, suffix in _MAGIC.items() if content.startswith(magic)), "")
    found = ".dcm" if content[128:132] == b"DICM" else known or "".join(_SUFFIX.findall(PurePosixPath(name).name))
    if not found:
        raise ValueError("holds a file of unknown kind: neither its first bytes nor its name tell")
    return found


def _picture(cell: Any) -> bytes:
    content = cell.get("bytes") if isinstance(cell, Mapping) else None
    if not isinstance(content, bytes) or not content:
        raise ValueError("field 'image' holds no picture; {bytes, path} is expected")
    return content
