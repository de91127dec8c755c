"""Tables as text: whatever names and texts hold, they stand in their cells as they are, and steer nothing."""

import csv
import io
import re
from html import unescape

from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from medmvl.eval.formats import (
    NOTHING,
    Cell,
    Grid,
    Heading,
    Row,
    comma_separated,
    latex,
    markdown,
    one_line,
    print_grid,
)

ODD = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ["=1+1", "@x", "-2", "a|b", "**b**", "<b>", "a_b", r"\x", "a&b", "50 %", "$x$", "#1", "{x}", "~", "^", "[x]",
     "a\nb", "`c`", "[link](http://x)", "![i](x)", "\x1b[31mred", "&amp;", "a\\", "\\|", "* x"]
)  # fmt: skip


def table_of(label: str, text: str, note: str = "") -> Grid:
    cells = (Cell(text), Cell("87.3", "[84.1, 90.2]", (87.3, 84.1, 90.2), best=True), Cell("81.05", mark="†"))
    headings = (Heading(label, text=True), Heading("F1", "SLAKE"), Heading("Acc", "SLAKE"))
    return Grid(
        label, "system", headings, (Row(label, cells), Row("other", (Cell(), Cell(), Cell()), "reported")), (note,)
    )


@given(ODD, ODD)
def test_markdown_shows_texts_as_they_are(label: str, text: str) -> None:
    html = (
        MarkdownIt("commonmark", {"html": True})
        .enable(["table", "strikethrough"])
        .render(markdown(table_of(label, text)))
    )
    body = re.findall(r"<td[^>]*>(.*?)</td>", html, re.DOTALL)
    plain = [unescape(re.sub(r"</?(?:strong|em)>", "", cell)) for cell in body]
    assert plain[:4] == [one_line(label), one_line(text) or NOTHING, "87.3 [84.1, 90.2]", "81.05 †"]
    assert body[2].startswith("<strong>87.3</strong>")
    assert len(body) == 8 and html.count("<table>") == 1


@given(ODD, ODD)
def test_csv_comes_back_and_holds_no_formula(label: str, text: str) -> None:
    rows = list(csv.reader(io.StringIO(comma_separated(table_of(label, text)))))
    assert [len(row) for row in rows] == [7] * 3  # label, kind, text, F1 with its ends, Acc
    assert rows[0][3:6] == ["SLAKE F1", "SLAKE F1 low", "SLAKE F1 high"]
    assert rows[1][0].removeprefix("'") == one_line(label).removeprefix("'") and rows[1][1] == "measured"
    assert rows[1][3:] == ["87.3", "84.1", "90.2", "81.05"]
    assert not any(re.match(r"\s*[=+\-@\t\r]", cell) for row in rows for cell in row)


@given(ODD, ODD, ODD)
def test_latex_is_balanced_and_escaped(label: str, text: str, note: str) -> None:
    source = latex(table_of(label, text, note))
    bare = re.sub(r"\\(?:[{}$&#_%\\])", "", source)
    assert bare.count("{") == bare.count("}")
    lines = [line for line in source.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    cells = [len(re.findall(r"(?<!\\)&", line)) for line in lines[:3]]
    assert cells == [3, 3, 3]
    outside = re.sub(r"^% needs.*$|\\[A-Za-z]+|\\.", "", source, flags=re.MULTILINE)
    assert not re.search(r"[#$%_^~]", outside.replace("$\\downarrow$", ""))
    assert r"\multicolumn{2}{c}{SLAKE}" in source and r"\cmidrule(lr){3-4}" in source
    assert source.count(r"\midrule") == 2  # below the head, and above what was reported


@given(ODD, ODD)
def test_terminals_are_not_steered(label: str, text: str) -> None:
    console = Console(width=200, file=io.StringIO(), force_terminal=False, highlight=False)
    print_grid(table_of(one_line(label), one_line(text)), console)
    said = console.file.getvalue()
    assert "\x1b" not in said and "87.3" in said and "[84.1, 90.2]" in said and "81.05 †" in said
