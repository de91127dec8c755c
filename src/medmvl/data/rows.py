"""Rows of annotation files: CSV, JSON and JSONL read one by one, each with the place where it stands."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmvl.core.lookup import choices_text

_LONGEST_CELL = 16 * 2**20  # characters; a report has some thousands


class TableError(ValueError):
    """A whole file that cannot be read: missing, no table, no JSON, or without a column that is needed."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file.

    Attributes:
        place: "reports.csv:12", for messages.
        data: name of a field -> its value, as the file has it; cells of a CSV are text.
    """

    place: str
    data: Mapping[str, Any]

    def text(self, field: str) -> str:
        """Return a field that must be there and not be blank, as text without outer white space.

        Raises:
            ValueError: the field is missing or blank; names the fields there are.
        """
        value = self.optional(field)
        if not value:
            state = "is empty" if field in self.data else f"is missing; {choices_text(field, self.data, 'fields')}"
            raise ValueError(f"field {field!r} {state}")
        return value

    def optional(self, field: str) -> str:
        """Return a field as text without outer white space, "" where it is missing, null or NaN."""
        value = self.data.get(field)
        return "" if value is None or value != value else str(value).strip()


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be read, in its place among the others."""

    place: str
    message: str


def csv_rows(path: str | Path, columns: Sequence[str] = (), delimiter: str = ",") -> Iterator[Row | BadRow]:
    """Yield the rows of a CSV file, plain or gzipped; a byte-order mark and any kind of line end are taken.

    Args:
        path: the file; "x.csv.gz" is unpacked on the way, never as a whole.
        columns: columns that it must have.
        delimiter: between two cells.

    Raises:
        TableError: no such file, a missing column (with those there are), or one that occurs twice.
    """
    path = Path(path)
    with _opened(path) as file:
        reader = csv.reader(_decoded(file), delimiter=delimiter)
        csv.field_size_limit(_LONGEST_CELL)
        header = next(reader, None)
        if header is None:
            raise TableError(f"{path}: the file is empty; a table with the columns {', '.join(columns)} was expected")
        names = [name.strip() for name in header]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise TableError(f"{path}: the column(s) {', '.join(map(repr, twice))} occur twice; rename or remove one")
        missing = [column for column in columns if column not in names]
        if missing:
            hint = choices_text(missing[0], names, "columns")
            raise TableError(f"{path}: lacks the column(s) {', '.join(map(repr, missing))}; {hint}")
        while True:
            place = f"{path.name}:{reader.line_num + 1}"
            try:
                cells = next(reader, None)
            except (csv.Error, OSError, EOFError) as error:
                yield BadRow(place, f"cannot be read: {error}")
                if not isinstance(error, csv.Error):
                    return
                continue
            if cells is None:
                return
            if not any(cells):
                continue
            if len(cells) != len(names):
                yield BadRow(place, f"has {len(cells)} cells, but the header names {len(names)} columns")
            elif any("�" in cell for cell in cells):
                yield BadRow(place, "is no valid UTF-8; save the file as UTF-8")
            else:
                yield Row(place, dict(zip(names, cells, strict=True)))


def json_rows(path: str | Path) -> Iterator[Row | BadRow]:
    """Yield the objects of a JSON list or of a JSONL file, one by one.

    Raises:
        TableError: no such file, or no JSON.
    """
    path = Path(path)
    with _opened(path) as file:
        first = file.read(4096)
        file.seek(0)
        lines = not first.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
        if lines:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _object(f"{path.name}:{number}", line)
            return
        try:
            items = json.load(file)
        except ValueError as error:
            raise TableError(f"{path}: not valid JSON: {error}") from None
    for number, item in enumerate(items):
        place = f"item {number} of {path.name}"
        yield Row(place, item) if isinstance(item, dict) else BadRow(place, f"is no object but a {type(item).__name__}")


def _object(place: str, line: bytes) -> Row | BadRow:
    try:
        data = json.loads(line.removeprefix(codecs.BOM_UTF8))
    except (ValueError, RecursionError) as error:
        return BadRow(place, f"not valid JSON: {error}")
    return Row(place, data) if isinstance(data, dict) else BadRow(place, f"is no object but a {type(data).__name__}")


def _opened(path: Path) -> Any:
    try:
        return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")
    except OSError as error:
        raise TableError(f"{path}: cannot be read: {error.strerror or error}") from error


def _decoded(file: Any) -> io.TextIOWrapper:
    return io.TextIOWrapper(file, encoding="utf-8-sig", errors="replace", newline="")
