"""Tables as text: for the terminal, Markdown, LaTeX and spreadsheets; what means something there is escaped."""

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

NOTHING = "–"
"""Stands where a system has no number."""

Numbers = tuple[float | None, float | None, float | None]


@dataclass(frozen=True)
class Cell:
    """One place of a table.

    Attributes:
        text: what stands there; "" for nothing.
        around: the interval, "[84.1, 90.2]", or "".
        numbers: value, low and high in the unit of `text`, for spreadsheets; None where text is all.
        best: the best of its column.
        mark: of a footnote.
    """

    text: str = ""
    around: str = ""
    numbers: Numbers | None = None
    best: bool = False
    mark: Literal["", "†", "‡"] = ""


@dataclass(frozen=True)
class Heading:
    """The head of a column: its text, what stands above several, and whether it holds words rather than numbers."""

    name: str
    group: str = ""
    text: bool = False

    @property
    def label(self) -> str:
        """The heading where it stands alone."""
        return f"{self.group} {self.name}".lstrip()


@dataclass(frozen=True)
class Row:
    """One line of a table: a system, a control of it, what was published, or a number of questions.

    `key` names it in spreadsheets, "" for its label.
    """

    label: str
    cells: tuple[Cell, ...]
    kind: Literal["measured", "control", "reported", "count"] = "measured"
    key: str = ""


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        title: above it.
        corner: heading of the labels.
        headings: of the columns.
        rows: from top to bottom.
        notes: below it.
    """

    title: str
    corner: str
    headings: tuple[Heading, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


def one_line(text: str) -> str:
    """Return a text without line ends and control characters, which would break tables and steer terminals."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def print_grid(grid: Grid, console: Console | None = None) -> None:
    """Print a table; where its columns do not fit side by side, they become its rows, and then intervals give way.

    Args:
        grid: the table.
        console: where to; by default standard output.
    """
    console = console or Console()
    lines = next((one for one in _layouts(grid) if _total(one) <= console.width), _turned(_lines(grid, around=False)))
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
    for place, heading in enumerate(lines[0]):
        table.add_column(heading, justify="right" if place else "left", overflow="fold")
    for line in lines[1:]:
        table.add_row(*line)
    console.print(Text(grid.title, style="bold"))
    console.print(table)
    for note in grid.notes:
        console.print(Text(note, style="dim"), soft_wrap=True)


_GAP = 2  # blanks between columns on the screen

Lines = list[list[Text]]


def _layouts(grid: Grid) -> Iterator[Lines]:
    """Yield the forms in which a table can be printed, the best one first."""
    yield _lines(grid)
    yield _turned(_lines(grid))
    yield _lines(grid, around=False)


def _lines(grid: Grid, around: bool = True) -> Lines:
    head = [Text(grid.corner), *(Text(f"{heading.group}\n{heading.name}".lstrip()) for heading in grid.headings)]
    return [head, *([_label(row), *(_shown(cell, row, around) for cell in row.cells)] for row in grid.rows)]


def _turned(lines: Lines) -> Lines:
    turned = [list(column) for column in zip(*lines, strict=True)]
    return [[Text(line[0].plain.replace("\n", " ")), *line[1:]] for line in turned]


def _total(lines: Lines) -> int:
    return sum(max(_width(line[place]) for line in lines) + _GAP for place in range(len(lines[0])))


def _label(row: Row) -> Text:
    return Text(row.label, style={"measured": "", "reported": "italic"}.get(row.kind, "dim"))


def _shown(cell: Cell, row: Row, around: bool) -> Text:
    shown = Text(cell.text or NOTHING, style="bold" if cell.best else "dim" if row.kind in ("control", "count") else "")
    shown.append(f" {cell.mark}".rstrip())
    if cell.around and around:
        shown.append(f"\n{cell.around}", style="not bold dim")
    return shown


def _width(text: Text) -> int:
    return max(line.cell_len for line in text.split("\n", allow_blank=True))


def markdown(grid: Grid) -> str:
    """Return a table in Markdown, as GitHub and most others read it."""
    lines = [f"**{_md(grid.title)}**", ""]
    lines.append(_bar([_md(grid.corner), *(_md(heading.label) for heading in grid.headings)]))
    lines.append(_bar(["---", *("---" if heading.text else "--:" for heading in grid.headings)]))
    for row in grid.rows:
        label = _md(row.label)
        cells = [_md_cell(cell) for cell in row.cells]
        lines.append(_bar([f"*{label}*" if row.kind in ("control", "reported", "count") else label, *cells]))
    lines += ["", *(f"- {_md(note)}" for note in grid.notes)]
    return "\n".join(lines).rstrip() + "\n"


def _bar(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _md_cell(cell: Cell) -> str:
    text = _md(cell.text) or NOTHING
    return " ".join(filter(None, (f"**{text}**" if cell.best else text, _md(cell.around), cell.mark)))


_MD = re.compile(r"([\\`*_\[\]<>|~#&$!])")


def _md(text: str) -> str:
    return _MD.sub(r"\\\1", one_line(text))


def latex(grid: Grid) -> str:
    r"""Return a table in LaTeX; it needs \usepackage{booktabs}."""
    columns = "".join("l" if heading.text else "r" for heading in grid.headings)
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_tex(grid.title)}}}",
        rf"\begin{{tabular}}{{l{columns}}}",
        r"\toprule",
        *_tex_groups(grid.headings),
        _tex_line([_tex(grid.corner), *(_tex(heading.name) for heading in grid.headings)]),
    ]
    before = None
    for row in grid.rows:
        if before is None or ("reported" in (row.kind, before) and row.kind != before):
            lines.append(r"\midrule")
        before = row.kind
        lines.append(_tex_line([_tex(row.label), *map(_tex_cell, row.cells)]))
        if any(cell.around for cell in row.cells):
            lines.append(_tex_line(["", *(rf"\scriptsize {_tex(cell.around)}".rstrip() for cell in row.cells)]))
    lines += [r"\bottomrule", r"\end{tabular}"]
    if grid.notes:
        lines += [r"", r"\smallskip", r"\raggedright\footnotesize", *(rf"{_tex(note)}\\" for note in grid.notes)]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _tex_groups(headings: Sequence[Heading]) -> Iterator[str]:
    """Yield the line of the headings that span several columns, with rules below them."""
    if not any(heading.group for heading in headings):
        return
    spans: list[tuple[str, int, int]] = []
    for place, heading in enumerate(headings, start=2):
        if spans and spans[-1][0] == heading.group:
            spans[-1] = (heading.group, spans[-1][1], place)
        else:
            spans.append((heading.group, place, place))
    yield _tex_line(["", *(rf"\multicolumn{{{end - start + 1}}}{{c}}{{{_tex(name)}}}" for name, start, end in spans)])
    yield "".join(rf"\cmidrule(lr){{{start}-{end}}}" for name, start, end in spans if name)


def _tex_line(cells: Sequence[str]) -> str:
    return f"{' & '.join(cells)} \\\\"


def _tex_cell(cell: Cell) -> str:
    text = _tex(cell.text) or "--"
    text = rf"\textbf{{{text}}}" if cell.best else text
    return text + (rf"\textsuperscript{{{_tex(cell.mark)}}}" if cell.mark else "")


_TEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "†": r"\textdagger{}",
    "‡": r"\textdaggerdbl{}",
    "↓": r"$\downarrow$",
    "–": "--",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{sign: rf"\{sign}" for sign in "{}$&#_%"},
    # At the beginning of a line these would be read by \\ and tabular.
    "[": "{[}",
    "]": "{]}",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(sign, sign) for sign in one_line(text))


def comma_separated(grid: Grid) -> str:
    """Return a table as CSV: value, low and high of every number in columns of their own, notes left out.

    A text that a spreadsheet would take for a formula gets an apostrophe before it.
    """
    numeric = [any(row.cells[place].numbers for row in grid.rows) for place in range(len(grid.headings))]
    head = [grid.corner, "kind"]
    for heading, is_number in zip(grid.headings, numeric, strict=True):
        head += [heading.label, *((f"{heading.label} low", f"{heading.label} high") if is_number else ())]
    lines = [[_safe(name) for name in head]]
    for row in grid.rows:
        line = [_safe(row.key or row.label), row.kind]
        for cell, is_number in zip(row.cells, numeric, strict=True):
            line += _csv_cells(cell) if is_number else [_safe(cell.text)]
        lines.append(line)
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(lines)
    return stream.getvalue()


def _csv_cells(cell: Cell) -> list[str]:
    if cell.numbers is None:
        return [_safe(cell.text), "", ""]
    return ["" if number is None else f"{number:.6g}" for number in cell.numbers]


_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]")


def _safe(text: str) -> str:
    text = one_line(text)
    return f"'{text}" if _FORMULA.match(text) else text


FORMATS: Mapping[str, Callable[[Grid], str]] = {"md": markdown, "tex": latex, "csv": comma_separated}
"""Suffix of a file -> what writes a table in it."""
