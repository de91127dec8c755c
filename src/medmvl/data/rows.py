"""Rows of annotation files: CSV, JSON, JSONL and Parquet read one by one, each with the place where it stands."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from medmvl.core.log import get_logger
from medmvl.core.lookup import choices_text
from medmvl.data.json_stream import Decoder, JsonError, Unusable, Window, checked, is_doubtful, is_text

_CHUNK = 2**20  # bytes
_LONGEST_ROW = 4 * 2**20  # characters of a row of CSV; a report has some thousands
_LONGEST_LINE = 16 * 2**20  # bytes of a line of JSONL; a long conversation has some thousands
_LONGEST_CELL = 16 * 2**20  # characters of a cell of Parquet, which is in memory already
_SEPARATORS = (",", ";", "\t", "|")
_LARGEST_FILE = 512 * 2**20  # bytes of a medium inside a table
_LARGEST_UNPACKED, _MOST_PACKED = 2**30, 200  # bytes of a Parquet column chunk, and how often smaller it may be stored
_BATCH = 64  # rows of Parquet in memory; each may hold a picture


class TableError(ValueError):
    """A whole file that cannot be read: missing, no table, no JSON, cut off, or without a column that is needed."""


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
            ValueError: the field is missing (names those there are), blank, or holds a list or an object.
        """
        if isinstance(self.data.get(field), list | tuple | Mapping | bytes):
            raise ValueError(f"field {field!r} holds a {type(self.data[field]).__name__}, no text")
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
        TableError: no such file, a missing column (with those there are), one that occurs twice, a file that ends in
            the middle of its archive, a quote that is not closed as it should be, or a line that no table has.
    """
    path, count = Path(path), 0
    with _opened(path) as file:
        lines = _Lines(path, file, delimiter)
        names = _header(path, lines, columns, delimiter)
        while (row := lines.row(names)) is not None:
            if row is not _BLANK:
                count += 1
                yield row
    tell_empty(path, count)


def csv_names(path: str | Path, delimiter: str = ",") -> list[str]:
    """Return the columns of a CSV file.

    Raises:
        TableError: as for `csv_rows`.
    """
    path = Path(path)
    with _opened(path) as file:
        return _header(path, _Lines(path, file, delimiter), (), delimiter)


class _Lines:
    """The lines of a table on their way to the csv reader, as long as they make rows that a table can have.

    A quote by mistake swallows line after line until the next one. Which lines were meant to be rows of their own
    nobody can tell then, so that the file is refused, whatever its size.
    """

    def __init__(self, path: Path, file: BinaryIO, delimiter: str) -> None:
        self._path, self._text = path, _decoded(file)
        self._first, self._last, self._size = 1, 0, 0  # lines of the row so far, and its characters
        # Strict: a quote within a cell would silently shift all cells behind it.
        self._reader = csv.reader(self, delimiter=delimiter, strict=True)
        csv.field_size_limit(_LONGEST_ROW)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._text.readline(_LONGEST_ROW)
        if not line:
            raise StopIteration
        self._last += 1
        self._size += len(line)
        if self._size < _LONGEST_ROW:
            return line
        if self._last > self._first:
            raise self._unclosed(f"is not closed within {_LONGEST_ROW:,} characters")
        raise TableError(
            f"{self._path}: line {self._last} is longer than {_LONGEST_ROW:,} characters; no row of a table is"
        )

    def cells(self) -> list[str] | None:
        """Return the cells of the next row, None at the end.

        Raises:
            csv.Error: its one line is wrong.
        """
        self._first, self._size = self._last + 1, 0
        try:
            return next(self._reader, None)
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise self._unclosed("is never closed; the file is cut off (get it again)") from None
            if self._last > self._first:
                raise self._unclosed(f"is closed within a cell on line {self._last} ({error})") from None
            raise

    def row(self, names: Sequence[str]) -> Row | BadRow | None:
        """Return the next row, `_BLANK` for an empty line, None at the end."""
        try:
            cells = self.cells()
        except csv.Error as error:
            return BadRow(self._place, f"cannot be read: {error}")
        except (OSError, EOFError, zlib.error) as error:
            told = f"damaged or cut off after {self._place}: {error}; get the file again"
            raise TableError(f"{self._path}: {told}") from error
        if cells is None:
            return None
        return self._checked(names, cells) if any(cells) else _BLANK

    @property
    def _place(self) -> str:
        return f"{self._path.name}:{self._first}"

    def _checked(self, names: Sequence[str], cells: Sequence[str]) -> Row | BadRow:
        if len(cells) != len(names):
            quoted = f"; its quotes reach to line {self._last}" if self._last > self._first else ""
            told = f"has {len(cells)} cells, but the header names {len(names)} columns{quoted}"
            return BadRow(self._place, told)
        if not is_text("".join(cells)):
            return BadRow(self._place, "is no valid UTF-8; save the file as UTF-8")
        if any("\0" in cell for cell in cells):
            return BadRow(self._place, "holds a zero byte; the file is damaged, or no UTF-8")
        return Row(self._place, dict(zip(names, cells, strict=True)))

    def _unclosed(self, state: str) -> TableError:
        told = f"a quote opened on line {self._first} {state}"
        return TableError(f'{self._path}: {told}, or stands there by mistake: remove it, or write "" for it')


_BLANK = BadRow("", "")


def _header(path: Path, lines: _Lines, columns: Sequence[str], delimiter: str) -> list[str]:
    try:
        header = lines.cells()
    except (csv.Error, OSError, EOFError, zlib.error) as error:
        raise TableError(f"{path}: its first line cannot be read: {error}") from error
    if header is None:
        wanted = f" with the columns {', '.join(columns)}" if columns else ""
        raise TableError(f"{path}: the file is empty; a table{wanted} was expected")
    if not is_text("".join(header)) or any("\0" in name for name in header):
        raise TableError(f"{path}: its first line is no valid UTF-8; save the file as UTF-8")
    names = [name.strip() for name in header]
    try:
        check_columns(path, names, columns)
    except TableError as error:
        other = other_separator(names, delimiter)
        raise TableError(f"{error}; the separator looks like {other!r}") if other else error from None
    return names


def other_separator(names: Sequence[str], delimiter: str) -> str:
    """Return what more likely stands between the columns of a table than `delimiter`, by its header; "" for nothing."""
    counts = {one: sum(name.count(one) for name in names) for one in _SEPARATORS if one != delimiter}
    likely = max(counts, key=counts.__getitem__)
    return likely if counts[likely] >= len(names) else ""


def check_columns(path: Path, names: Sequence[str], columns: Sequence[str]) -> None:
    """Refuse a table that names a column twice or lacks one of `columns`.

    Raises:
        TableError: says which, and what columns there are.
    """
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise TableError(f"{path}: the column(s) {', '.join(map(repr, twice))} occur twice; rename or remove one")
    missing = [column for column in columns if column not in names]
    if missing:
        hint = choices_text(missing[0], names, "columns")
        raise TableError(f"{path}: lacks the column(s) {', '.join(map(repr, missing))}; {hint}")


def parquet_rows(path: str | Path, columns: Sequence[str] | None = None) -> Iterator[Row | BadRow]:
    """Yield the rows of a Parquet file, a few in memory at a time; places ("x.parquet:17") count rows from 1.

    Args:
        path: the file.
        columns: what to read, default all; each must be there.

    Raises:
        TableError: no such file, no or damaged Parquet, a missing column (with those there are), one that occurs
            twice, or contents that would unpack to far more than they are.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            check_columns(path, file.schema_arrow.names, columns or ())
            _check_bomb(path, file.metadata)
            number = 0
            for batch in file.iter_batches(_BATCH, columns=None if columns is None else list(columns)):
                yield from _batch(path.name, batch, number)
                number += len(batch)
    except (OSError, pa.ArrowException) as error:
        raise TableError(f"{path}: cannot be read: {error}") from error
    tell_empty(path, number)


def arrow_rows(path: str | Path) -> Iterator[Row | BadRow]:
    """Yield the rows of an Arrow stream or file, mapped into memory, a few at a time; see `parquet_rows`.

    Raises:
        TableError: no such file, or no or damaged Arrow.
    """
    import pyarrow as pa

    path = Path(path)
    number = 0
    try:
        with pa.memory_map(str(path)) as source:
            for batch in _record_batches(source):
                for start in range(0, len(batch), _BATCH):
                    yield from _batch(path.name, batch.slice(start, _BATCH), number + start)
                number += len(batch)
    except (OSError, pa.ArrowException) as error:
        raise TableError(f"{path}: cannot be read: {error}") from error
    tell_empty(path, number)


def hub_features(path: str | Path) -> dict[str, Any]:
    """Return the types of columns that `datasets` wrote into a Parquet or Arrow file, {} where it did not.

    Raises:
        TableError: the file cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if Path(path).suffix == ".parquet":
            schema = pq.read_schema(path, memory_map=True)
        else:
            with pa.memory_map(str(path)) as source:
                schema = _open_arrow(source).schema
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    except (OSError, pa.ArrowException, ValueError) as error:
        raise TableError(f"{path}: cannot be read: {error}") from error
    return dict(info.get("info", {}).get("features") or {})


def _record_batches(source: Any) -> Iterator[Any]:
    reader = _open_arrow(source)
    if hasattr(reader, "num_record_batches"):
        return map(reader.get_batch, range(reader.num_record_batches))
    return iter(reader)


def _open_arrow(source: Any) -> Any:
    import pyarrow as pa

    start = source.read(6)
    source.seek(0)
    return pa.ipc.open_file(source) if start == b"ARROW1" else pa.ipc.open_stream(source)


def _batch(name: str, batch: Any, first: int) -> Iterator[Row | BadRow]:
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:
        rows = [_alone(batch.slice(index, 1)) for index in range(len(batch))]
    for number, row in enumerate(rows, start=first + 1):
        place = f"{name}:{number}"
        large = next((key for key, value in row.items() if _is_too_large(value)), None) if row else None
        if not row:
            yield BadRow(place, "holds text that is no valid UTF-8")
        elif large:
            yield BadRow(place, f"the cell {large!r} is too large for a sample")
        else:
            yield Row(place, row)


def _alone(row: Any) -> dict[str, Any]:
    try:
        return row.to_pylist()[0]
    except UnicodeDecodeError:
        return {}


def _is_too_large(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_is_too_large, value.values()))
    return isinstance(value, str | bytes) and len(value) > (_LONGEST_CELL if isinstance(value, str) else _LARGEST_FILE)


def _check_bomb(path: Path, metadata: Any) -> None:
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            unpacked = column.total_uncompressed_size
            if unpacked > max(_LARGEST_UNPACKED, _MOST_PACKED * column.total_compressed_size):
                raise TableError(
                    f"{path}: the column {column.path_in_schema!r} would unpack to {unpacked:,} bytes from "
                    f"{column.total_compressed_size:,}; no table of samples looks like this"
                )


def json_rows(path: str | Path, key: str = "", may_be_empty: bool = False) -> Iterator[Row | BadRow]:
    """Yield the objects of a JSON list or of a JSONL file, plain or gzipped, one by one.

    Only a window of the file is in memory. NaN counts as null. Places count from 1: items of lists ("item 17 of
    x.json") and lines of JSONL ("x.jsonl:17").

    Args:
        path: the file.
        key: the file is one object, and the list stands under this key ({"train": [...], "test": [...]}).
        may_be_empty: that there is nothing in it is not worth a warning.

    Raises:
        TableError: no such file, no JSON, no such key (with those there are); or, after the rows before that place, a
            file that is damaged or cut off.
    """
    path, count = Path(path), 0
    for row in _json_rows(path, key):
        count += 1
        yield row
    if not may_be_empty:
        tell_empty(path, count, key)


def _json_rows(path: Path, key: str) -> Iterator[Row | BadRow]:
    with _opened(path) as file, _as_table_error(path):
        window = Window(path, file)
        first = window.next()
        if key:
            yield from _list_under(key, path, window)
        elif first == "[":
            yield from _items(window, path.name)
            window.end()
        elif first == "{" or (first and ".jsonl" in path.name):
            file.seek(0)
            yield from _lines(path, file)
        else:
            raise TableError(f"{path}: {_no_list(first)}")


def _items(window: Window, where: str) -> Iterator[Row | BadRow]:
    for number, item in enumerate(window.items(), start=1):
        yield _row(f"item {number} of {where}", item)


def tell_empty(path: Path, count: int, key: str = "") -> None:
    """Warn where a file of samples holds none."""
    if not count:
        get_logger(__name__).warning("%s: holds no rows%s", path, f" under {key!r}" if key else "")


def json_items(path: str | Path) -> Iterator[Row | BadRow]:
    """Yield the members of one JSON object as rows {"key": ..., "value": ...}; only a window of the file is in memory.

    Raises:
        TableError: as for `json_rows`.
    """
    path = Path(path)
    with _opened(path) as file, _as_table_error(path):
        window = Window(path, file)
        for key in window.members():
            value = window.value()
            wrong = next((one for one in (key, value) if isinstance(one, Unusable)), None)
            place = f"{path.name}, {key!r}" if isinstance(key, str) else path.name
            yield BadRow(place, wrong.message) if wrong else Row(place, {"key": key, "value": value})
        window.end()


def _list_under(key: str, path: Path, window: Window) -> Iterator[Row | BadRow]:
    keys = []
    for name in window.members():
        keys.append(str(name))
        if name == key:
            yield from _items(window, f"{key!r} in {path.name}")
        else:
            window.skip()
    window.end()
    if key not in keys:
        raise TableError(f"{path}: has no list {key!r}; {choices_text(key, keys, 'keys')}")


def _lines(path: Path, file: BinaryIO) -> Iterator[Row | BadRow]:
    decoder = Decoder()
    number = 0
    while line := file.readline(_LONGEST_LINE):
        number += 1
        place = f"{path.name}:{number}"
        if len(line) == _LONGEST_LINE and not line.endswith(b"\n"):
            yield BadRow(place, f"the line is longer than {_LONGEST_LINE:,} bytes")
            while line and not line.endswith(b"\n"):
                line = file.readline(_CHUNK)
        elif line.strip():
            if number == 1 and line.removeprefix(codecs.BOM_UTF8).strip() == b"{":
                raise TableError(f"{path}: is one JSON object; a list of objects was expected, or JSONL")
            yield _row(place, _line(decoder, line))


def _line(decoder: Decoder, line: bytes) -> Any:
    text = line.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape").strip(" \t\r\n")
    try:
        value, end = decoder.decode(text, 0)
    except json.JSONDecodeError as error:
        return Unusable(f"no JSON: {error.msg} at character {error.pos}")
    if end < len(text):
        return Unusable(f"the line goes on after its object, at character {end}")
    return checked(value, text) if is_doubtful(text) else value


def _row(place: str, item: Any) -> Row | BadRow:
    if isinstance(item, dict):
        return Row(place, item)
    if isinstance(item, Unusable):
        return BadRow(place, item.message)
    return BadRow(place, f"is no object but a {type(item).__name__}")


def _no_list(first: str) -> str:
    if not first:
        return "the file is empty; get it again"
    hints = {"v": "; perhaps a placeholder of Git LFS", "<": "; perhaps a web page that says why it is not served"}
    hint = hints.get(first, "" if first.isascii() and first.isprintable() else "; save the file as UTF-8")
    return f"no JSON, it begins with {first!r}{hint}"


@contextmanager
def _as_table_error(path: Path) -> Iterator[None]:
    try:
        yield
    except JsonError as error:
        raise TableError(str(error)) from None
    except (OSError, EOFError, zlib.error) as error:
        raise TableError(f"{path}: damaged or cut off ({error}); get the file again") from error


def mentions(path: str | Path, words: str) -> bool:
    """Whether a text file, plain or gzipped, holds these words anywhere; fast, for it decodes nothing.

    Raises:
        TableError: no such file, or a damaged archive.
    """
    path, wanted, rest = Path(path), words.encode(), b""
    with _opened(path) as file, _as_table_error(path):
        while chunk := file.read(_CHUNK):
            if wanted in rest + chunk:
                return True
            rest = chunk[-len(wanted) :]
    return False


def _opened(path: Path) -> Any:
    try:
        return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")
    except OSError as error:
        raise TableError(f"{path}: cannot be read: {error.strerror or error}") from error


def _decoded(file: Any) -> io.TextIOWrapper:
    return io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
