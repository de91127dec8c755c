"""Tables of your own, CSV, TSV or Parquet: options say which column holds the picture, the question, the answer."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError

from medmvl.core.config import Strict
from medmvl.core.lookup import choices_text, nearest
from medmvl.core.schema import Box, Image, Sample, SampleError, Volume
from medmvl.data.adapters.annotations import files_by_split, media_root, split_of
from medmvl.data.adapters.base import Adapter, Media, Words
from medmvl.data.adapters.embedded import unpacked
from medmvl.data.questions import draw, pool
from medmvl.data.rows import BadRow, Row, TableError, csv_names, csv_rows, other_separator, parquet_rows

_FIELD = re.compile(r"\{([^{}]+)\}")
_BOX = "<box>"
_NO_WORDS = {"image", "volume", "choices", "boxes"}  # columns whose cells may be lists or files
_PEEK = 100  # rows that tell the columns: those of one table are alike


def _column(what: str) -> Any:
    return Field(default="", description=f"column with {what}")


Delimiter = Literal["", ",", ";", "\t", "|"]
DELIMITER: Any = Field(default="", description="between two cells of a CSV; default: a tab in .tsv, else a comma")


class ColumnOptions(Strict):
    """Which column says what; one that is called as its option, in whatever case, need not be named.

    Attributes:
        settings: options that name no column.
    """

    settings: ClassVar[frozenset[str]] = frozenset({"ask", "pool", "separator", "delimiter", "media_root"})
    id: str = _column("the sample's id; default: the row's place")
    image: str = _column("the picture: a path, several, or the picture itself")
    volume: str = _column("the volume: a path, several, or the volume itself")
    question: str = _column("the question")
    ask: str = Field(
        default="", description="question of all rows instead; {name} stands for that column, as in '{stem} {options}'"
    )
    pool: str = Field(default="", description="shipped pool of questions to draw from instead, such as radfm_report")
    answer: str = _column("the answer; default: the boxes")
    choices: str = _column("what could be answered, as a list or separated")
    boxes: str = _column(
        "boxes as JSON, [x0, y0, x1, y1] or a list of such, in pixels of the first medium; each <box> in question and "
        "answer takes the next"
    )
    split: str = Field(
        default="", description="column with the split, or train, val or test for all rows; default: by the file's name"
    )
    task: str = _column("the task, which becomes the last part of its name")
    patient: str = _column("whom the row is about")
    study: str = _column("the study")
    modality: str = _column("the modality")
    answer_type: str = _column("the kind of answer: open, closed, choice")
    separator: str = Field(default=";", description="between several paths, or several choices, in one cell")
    delimiter: Delimiter = DELIMITER
    media_root: str = Field(
        default="", description="folder that holds the media, seen from the table; default: where the table lies"
    )


class Columns(Adapter):
    """A table with one question and one answer per row.

    Pictures inside the table are unpacked, equal ones once.
    """

    name = "table"
    title = "A table with a row per question (CSV, TSV, Parquet)"
    version = "1.1"
    licence = "as its source"
    access = "yours; --option image=COLUMN --option question=COLUMN --option answer=COLUMN says what its columns hold"
    tasks: ClassVar[Mapping[str, str]] = {"qa": "what the rows ask; a column `task` gives them names of their own"}
    splits: ClassVar[Mapping[str, str]] = {
        "train": "train",
        "val": "val, valid, validation or dev",
        "test": "test",
    }
    layout = """
mine.csv       image,question,answer    or columns of any name; .tsv, .parquet and .csv.gz are read as well
images/...     anywhere beside it; a folder with train.csv, val.csv and test.csv is read, too
"""
    one_file = True
    Options = ColumnOptions

    def samples(self, split: str, tasks: Collection[str]) -> Iterator[Sample | SampleError]:
        for file, usual in self.files():
            columns = self.columns(file)
            if split == usual or "split" in columns:
                rows = (row for row in self.rows(file) if _belongs(row, columns.get("split", ""), split, usual))
                folder = self.media_folder(file)
                yield from self.each(rows, partial(self._samples, columns=columns, split=split, folder=folder))

    def files(self) -> list[tuple[Path, str]]:
        """Return the tables, each with the split of rows that name none."""
        return files_by_split(self, (".csv", ".tsv", ".parquet", ".csv.gz", ".tsv.gz"), self.split_of_all)

    def rows(self, file: Path) -> Iterator[Row | BadRow]:
        """Yield the rows of one table."""
        if file.suffix == ".parquet":
            return parquet_rows(file)
        return csv_rows(file, delimiter=self._delimiter(file))

    def media_folder(self, file: Path) -> str:
        """Return the folder that the paths in a table are relative to."""
        return media_root(self, self.options.media_root) if self.options.media_root else str(file.parent)

    @property
    def split_of_all(self) -> str:
        """The split that the options give to all rows, "" where they name none or a column."""
        return self.options.split if self.options.split in self.splits else ""

    def columns(self, file: Path) -> dict[str, str]:
        """Return what is where in a table: role -> column.

        Raises:
            TableError: a column that the options name is not there, or nothing says what is asked or answered.
        """
        there = self.names(file)
        if not there:
            return {}  # no row can be read, and each will be told
        roles = self.Options.model_fields.keys() - self.options.settings
        named = {role: column for role in sorted(roles) if (column := getattr(self.options, role))}
        if self.split_of_all and self.split_of_all not in there:
            del named["split"]
        columns = _own(roles, there) | named
        asked = [(f"ask, {{{name}}}", name) for name in _FIELD.findall(self.options.ask)]
        wrong = [
            f"{option}: there is no column {column!r}; {_meant(option, column, there)}"
            for option, column in [*named.items(), *asked]
            if column not in there
        ]
        wrong += [_missing(role, there) for role in self._unsaid(columns)]
        if self.options.pool:
            pool(self.options.pool)
        if wrong and self._is_csv(file) and (other := other_separator(there, self._delimiter(file))):
            wrong = [f"the separator looks like {other!r}: add delimiter={other!r}"]
        if wrong:
            raise TableError("\n  ".join([f"{file}: the options do not fit its columns", *wrong]))
        return columns

    def names(self, file: Path) -> list[str]:
        """Return the columns of a table."""
        if self._is_csv(file):
            return [name for name in csv_names(file, self._delimiter(file)) if name]
        rows = islice(self.rows(file), _PEEK)
        return list(dict.fromkeys(name for row in rows if isinstance(row, Row) for name in row.data))

    @staticmethod
    def _is_csv(file: Path) -> bool:
        return file.name.lower().endswith((".csv", ".tsv", ".csv.gz", ".tsv.gz"))

    def _delimiter(self, file: Path) -> str:
        return self.options.delimiter or ("\t" if ".tsv" in file.name.lower() else ",")

    def _unsaid(self, columns: Mapping[str, str]) -> list[str]:
        """Return the roles that nothing fills, and none can do without."""
        asked = "question" in columns or self.options.ask or self.options.pool
        return [*(() if asked else ("question",)), *(() if columns.keys() & {"answer", "boxes"} else ("answer",))]

    def _samples(self, row: Row, columns: Mapping[str, str], split: str, folder: str) -> tuple[Sample, ...]:
        row = self.by_role(row, columns)
        name = row.optional("id") or f"{split}/{row.place}"
        question = self.question(row, name, split)
        media = [*self._media(row, "image", Image, folder), *self._media(row, "volume", Volume, folder)]
        boxes = _boxes(row.data.get("boxes"))
        if boxes and not media:
            raise ValueError("has boxes, but nothing they could lie on: no picture and no volume")
        numbers = iter(range(len(boxes)))
        asked = _words(question, numbers)
        answer = _words(row.text("answer"), numbers) if "answer" in columns else _listed(list(numbers))
        kept = {field: row.optional(field) for field in ("patient", "study", "modality", "answer_type")}
        choices = tuple(str(one) for one in self._several(row.data.get("choices")))
        task = row.optional("task") or next(iter(self.tasks))
        return (self.sample(name, split, task, asked, answer, media, boxes, choices=choices, **kept),)

    def by_role(self, row: Row, columns: Mapping[str, str]) -> Row:
        """Return the row with its cells called by what they are for.

        Raises:
            ValueError: a cell that should be text holds something else, or the split is unknown.
        """
        data = {role: row.data.get(column) for role, column in columns.items()}
        for role in data.keys() - _NO_WORDS:
            if isinstance(data[role], list | dict | bytes):
                raise ValueError(f"{role}: the column {columns[role]!r} holds a {type(data[role]).__name__}, no text")
        if self.options.ask:
            data["question"] = _FIELD.sub(lambda field: row.optional(field[1]), self.options.ask)
        ready = Row(row.place, data)
        if (named := ready.optional("split")) and split_of(named) is None:
            raise ValueError(f"split {named!r} is unknown; {choices_text(named, self.splits, 'splits')}")
        return ready

    def question(self, row: Row, name: str, split: str) -> str:
        """Return what the sample `name` asks."""
        return draw(self.options.pool, name, split) if self.options.pool else row.text("question")

    def _several(self, cell: Any) -> list[Any]:
        """Return what stands in a cell: a list as such or in JSON, several texts with a separator, or one."""
        if isinstance(cell, str):
            listed = _json(cell) if cell.lstrip().startswith("[") else None
            cell = listed if isinstance(listed, list) else [part.strip() for part in cell.split(self.options.separator)]
        return [one for one in (cell if isinstance(cell, list) else [cell]) if one not in (None, "") and one == one]

    def _media(self, row: Row, role: str, kind: type[Image] | type[Volume], folder: str) -> list[Media]:
        cells = self._several(row.data.get(role))
        if role in row.data and not cells:
            raise ValueError(f"field {role!r} is empty")
        return [kind(path=self._address(cell, folder)) for cell in cells]

    def _address(self, cell: Any, folder: str) -> str:
        """Return the path of a medium: named, or unpacked from bytes or {"bytes": ..., "path": ...}."""
        given = cell if isinstance(cell, Mapping) else {"bytes": cell} if isinstance(cell, bytes) else {"path": cell}
        content, path = given.get("bytes"), given.get("path")
        if content:
            return unpacked(self, content, str(path or ""))
        if not isinstance(path, str):
            raise ValueError(f"holds neither a path nor a picture, but a {type(path).__name__}")
        return self.path(path, folder)


def _own(roles: Collection[str], there: Sequence[str]) -> dict[str, str]:
    """Return role -> the column that is called so: exactly, else in another case, where only one is."""
    found = {}
    for role in roles:
        alike = [name for name in there if name.casefold() == role]
        if role in there or len(alike) == 1:
            found[role] = role if role in there else alike[0]
    return found


def _meant(option: str, column: str, there: Sequence[str]) -> str:
    """Return the option as it should be written, where a column differs by case and blanks only, else all columns."""
    alike = [name for name in there if name.casefold() == column.strip().casefold()]
    if len(alike) == 1 and not option.startswith("ask"):
        return f"write {option}={alike[0]}"
    return choices_text(column, there, "columns")


def _missing(role: str, there: Sequence[str]) -> str:
    others = {"question": "ask=TEXT or pool=NAME", "answer": "boxes=COLUMN"}[role]
    column = nearest(role, there) or "COLUMN"
    return f"{role}: say which column holds it, {role}={column} (or {others}); columns: {', '.join(there)}"


def _belongs(row: Row | BadRow, column: str, split: str, usual: str) -> bool:
    """Whether a row is for this split; what names no known one goes, to be refused, with those that name none."""
    named = row.optional(column) if column and isinstance(row, Row) else ""
    return (split_of(named) or usual) == split


def _boxes(cell: Any) -> list[Box]:
    given = _json(cell) if isinstance(cell, str) else cell
    if given is None or given == []:
        return []
    listed = given if isinstance(given, list) else [given]
    try:
        return [Box(coords=one) for one in (listed if isinstance(listed[0], list) else [listed])]
    except ValidationError as error:
        raise ValueError(f"boxes: {error.errors()[0]['msg']}; give [x0, y0, x1, y1], or a list of such") from None


def _json(cell: str) -> Any:
    try:
        return json.loads(cell) if cell.strip() else None
    except ValueError:
        return cell


def _words(text: str, boxes: Iterator[int]) -> Words:
    """Return the text with a box in place of each mark; `boxes` are their numbers."""
    first, *others = text.split(_BOX)
    words: list[str | int] = [first] if first else []
    for after in others:
        number = next(boxes, None)
        if number is None:
            raise ValueError(f"shows more {_BOX} than the row has boxes")
        words += [number, after] if after else [number]
    return words


def _listed(boxes: Sequence[int]) -> Words:
    """Return an answer of boxes alone."""
    if not boxes:
        raise ValueError("field 'boxes' is empty, and there is no answer")
    return [piece for number in boxes for piece in (", ", number)][1:]
