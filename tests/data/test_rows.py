"""Rows of tables: each with its place, a bad one alone, a cut file never in silence."""

import csv
import gzip
import io
import json
import tracemalloc
import zlib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from medmvl.data import json_stream
from medmvl.data.rows import BadRow, Row, TableError, csv_names, csv_rows, json_items, json_rows, parquet_rows

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.lists(st.dictionaries(TEXT, VALUE, max_size=4), max_size=8)


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def until_error(rows):
    """Return the rows before the error, and the error."""
    found = []
    with pytest.raises(TableError) as error:
        found.extend(rows)
        pytest.fail("no error was raised")
    return found, str(error.value)


@settings(max_examples=60, deadline=None)
@given(OBJECTS, st.booleans(), st.sampled_from([None, 1]), st.integers(1, 40))
@example([{"a": '\\"]}'}, {"b": [1e-7, -0.0, "\U0001f600"]}], True, None, 1)
def test_a_list_jsonl_and_their_archives_hold_the_same_rows(tmp_path_factory, objects, ascii_only, indent, chunk):
    folder = tmp_path_factory.mktemp("json")
    whole = json.dumps(objects, ensure_ascii=ascii_only, indent=indent).encode()
    lines = "".join(json.dumps(one, ensure_ascii=ascii_only) + "\r\n" for one in objects).encode()
    under = json.dumps({"other": objects, "train": objects, "": {"train": [1]}}, ensure_ascii=ascii_only).encode()
    members = json.dumps({str(n): one for n, one in enumerate(objects)}, ensure_ascii=ascii_only).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_CHUNK", chunk)  # every place of the file is once the end of a window
        for name, content in {"x.json": whole, "bom.json": b"\xef\xbb\xbf" + whole, "x.jsonl": lines}.items():
            if not objects and name == "x.jsonl":
                continue
            plain = write(folder / name, content)
            packed = write(folder / f"{name}.gz", gzip.compress(content))
            assert [row.data for row in json_rows(plain)] == objects
            assert [row.data for row in json_rows(packed)] == objects
        assert [row.data for row in json_rows(write(folder / "u.json", under), key="train")] == objects
        items = [(row.data["key"], row.data["value"]) for row in json_items(write(folder / "m.json", members))]
        assert items == [(str(n), one) for n, one in enumerate(objects)]


def test_rows_know_their_place(tmp_path):
    listed = write(tmp_path / "x.json", '[{"a": 1},\n {"a": 2}]')
    assert [row.place for row in json_rows(listed)] == ["item 1 of x.json", "item 2 of x.json"]
    lined = write(tmp_path / "x.jsonl", '{"a": 1}\n\n{"a": 2}\n')
    assert [row.place for row in json_rows(lined)] == ["x.jsonl:1", "x.jsonl:3"]
    keyed = write(tmp_path / "k.json", '{"test": [{"a": 0}], "train": [{"a": 1}]}')
    assert list(json_rows(keyed, key="train")) == [Row("item 1 of 'train' in k.json", {"a": 1})]
    assert next(iter(json_items(keyed))) == Row("k.json, 'test'", {"key": "test", "value": [{"a": 0}]})


BAD_ITEMS = {
    b'{"a": "\xff"}': "no valid UTF-8",
    b'{"a": "\\ud800"}': "half of a character",
    b'{"a": Infinity}': "Infinity",
    b'{"a": 1, "a": 2}': "'a' twice",
    b'{"a": ' + b"1" * 5000 + b"}": "digits",
    b'{"a": ' + b"[" * 3000 + b'"\\"]"' + b"]" * 3000 + b"}": "nested too deep",
    b"17": "no object but a int",
}


@pytest.mark.parametrize("bad", BAD_ITEMS, ids=lambda bad: bad[:16].decode("ascii", "replace"))
@pytest.mark.parametrize("chunk", [7, 2**20])
def test_a_bad_item_loses_no_other(tmp_path, bad, chunk, monkeypatch):
    monkeypatch.setattr(json_stream, "_CHUNK", chunk)
    good = [b'{"id": 0, "b": "\\ud83d\\ude00"}', b'{"id": 1, "b": NaN}']
    listed = write(tmp_path / "x.json", b"[" + b" ,\n".join([good[0], bad, good[1]]) + b"]")
    lined = write(tmp_path / "x.jsonl", b"\n".join([good[0], bad, good[1]]))
    for path, place in ((listed, "item 2 of x.json"), (lined, "x.jsonl:2")):
        first, wrong, last = json_rows(path)
        assert (first.data, last.data) == ({"id": 0, "b": "\U0001f600"}, {"id": 1, "b": None})
        assert isinstance(wrong, BadRow) and wrong.place == place and BAD_ITEMS[bad] in wrong.message


def test_a_key_that_is_no_text_is_a_bad_row(tmp_path):
    path = write(tmp_path / "x.json", b'{"\xff": {"a": [1]}, "good": 2}')
    wrong, good = json_items(path)
    assert isinstance(wrong, BadRow) and good.data == {"key": "good", "value": 2}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_file_cut_anywhere_gives_its_rows_and_then_an_error(tmp_path_factory, data):
    objects = [{"id": n, "text": ['\u00e4"]}', {"x": -1.5}]} for n in range(5)]
    whole = json.dumps(objects, ensure_ascii=False, indent=1).encode()
    end = data.draw(st.integers(1, len(whole) - 1))
    path = write(tmp_path_factory.mktemp("cut") / "x.json", whole[:end])
    rows, message = until_error(json_rows(path))
    assert [row.data for row in rows if isinstance(row, Row)] == objects[: len(rows)]
    assert f"{path}, line " in message and "looks cut off" in message


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('[{"a": 1},\n{"a": tru}, {"a": 3}]', "line 2: no JSON"),
        ('[{"a": 1}\n{"a": 3}]', "line 2: '{' stands where ',' or ']' is expected"),
        ('[{"a": 1}] []', "goes on after its end"),
        ('[{"a": 1},]', "no JSON"),
        ('[{"a": 1}, {"a": ' + "[" * 20_000, "nested too deep"),
    ],
)
def test_broken_json_is_an_error_with_its_line_after_the_rows_before(tmp_path, content, told):
    rows, message = until_error(json_rows(write(tmp_path / "x.json", content)))
    assert [row.data for row in rows] == [{"a": 1}] and told in message


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "the file is empty"),
        ("version https://git-lfs", "Git LFS"),
        ("<!DOCTYPE html>", "web page"),
        ('[{"a": 1}]'.encode("utf-16"), "save the file as UTF-8"),
        ('{\n "a": [1]\n}', "is one JSON object"),
    ],
)
def test_what_is_no_list_is_told(tmp_path, content, told):
    with pytest.raises(TableError, match=told):
        list(json_rows(write(tmp_path / "x.json", content)))


def test_a_key_that_is_not_there_names_those_that_are(tmp_path):
    path = write(tmp_path / "x.json", '{"train": [], "test": []}')
    with pytest.raises(TableError, match=r"did you mean 'train'.*test, train"):
        list(json_rows(path, key="trian"))
    with pytest.raises(TableError, match=r"x\.json: cannot be read: No such file"):
        list(json_rows(tmp_path / "no" / "x.json"))


def test_a_damaged_archive_is_an_error(tmp_path):
    content = gzip.compress(json.dumps([{"id": n} for n in range(5)]).encode())
    for name in ("x.json.gz", "x.jsonl.gz"):
        with pytest.raises(TableError, match="cut off"):
            list(json_rows(write(tmp_path / name, content[:-12])))
    with pytest.raises(TableError, match="get the file again"):
        list(csv_rows(write(tmp_path / "x.csv.gz", gzip.compress(b"a,b\n1,2\n" * 99)[:-12])))


def test_a_line_without_end_is_one_bad_row(tmp_path, monkeypatch):
    monkeypatch.setattr("medmvl.data.rows._LONGEST_LINE", 64)
    path = write(tmp_path / "x.jsonl", '{"a": 1}\n{"a": "' + "x" * 500 + '"}\n{"a": 3}\n')
    first, wrong, last = json_rows(path)
    assert (first.data, last.data) == ({"a": 1}, {"a": 3}) and "longer than 64" in wrong.message
    assert last.place == "x.jsonl:3"


def test_a_list_is_read_in_bounded_memory_and_one_huge_item_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "x.json", json.dumps([{"id": n, "text": "x" * 1000} for n in range(20_000)]))
    tracemalloc.start()
    assert sum(1 for _ in json_rows(path)) == 20_000
    assert tracemalloc.get_traced_memory()[1] < 12 * 2**20  # the file has 20 MB
    tracemalloc.stop()
    monkeypatch.setattr(json_stream, "LONGEST", 2**20)
    with pytest.raises(TableError, match="longer than 1,048,576 characters"):
        list(json_rows(write(tmp_path / "y.json", '["' + "x" * 2**22 + '"]')))


BOMBS = {
    "x.csv.gz": (b"a,b\n1,", b",2\n3,4\n"),
    "quoted.csv.gz": (b'a,b\n1,"', b'",2\n3,4\n'),
    "x.tsv.gz": (b"a\tb\n1\t", b"\n3\t4\n"),
    "x.jsonl.gz": (b'{"a": 1}\n{"a": "', b'"}\n{"a": 3}\n'),
    "x.json.gz": (b'[{"a": 1}, {"a": "', b'"}, {"a": 3}]'),
}


@pytest.fixture(scope="module")
def bombs(tmp_path_factory):
    """Archives of some hundred kilobytes, each with one line of 256 MiB in it."""
    folder = tmp_path_factory.mktemp("bombs")
    for name, (before, after) in BOMBS.items():
        packer = zlib.compressobj(1, wbits=31)
        middle = b"".join(packer.compress(b"x" * 2**20) for _ in range(256))
        head = zlib.compressobj(1, wbits=31)
        tail = zlib.compressobj(1, wbits=31)
        parts = (head.compress(before) + head.flush(), middle + packer.flush(), tail.compress(after) + tail.flush())
        write(folder / name, b"".join(parts))
    return folder


@pytest.mark.parametrize("name", BOMBS)
def test_a_line_that_unpacks_to_far_more_than_it_is_takes_no_memory(bombs, name):
    tracemalloc.start()
    try:
        rows, told = [], ""
        try:
            rows += (json_rows if ".json" in name else csv_rows)(bombs / name)
        except TableError as error:
            told = str(error)
        assert tracemalloc.get_traced_memory()[1] < 90 * 2**20
    finally:
        tracemalloc.stop()
    if name == "x.jsonl.gz":
        assert [type(row) for row in rows] == [Row, BadRow, Row] and rows[2].place == "x.jsonl.gz:3"
    else:
        where = "line 1: one value" if name == "x.json.gz" else "line 2"
        assert f"{bombs / name}" in told and f"{where} is longer than" in told


def test_a_plain_line_that_no_table_has_is_told_with_its_number(tmp_path):
    path = write(tmp_path / "x.csv", "a,b\n1,2\n3," + "x" * 5 * 2**20 + "\n5,6\n")
    rows, told = until_error(csv_rows(path))
    assert [row.data for row in rows] == [{"a": "1", "b": "2"}] and "line 3 is longer than 4,194,304" in told
    longest = write(tmp_path / "y.csv", 'a,b\n"' + "line\n" * 400_000 + '",2\n')
    assert len(next(csv_rows(longest)).data["a"]) == 2_000_000


@pytest.mark.parametrize("lines", [3, 3_000, 120_000])
@pytest.mark.parametrize("ending", ["", 'z.png,"closed, after all",1', 'z.png,5" wide,1'])
@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz", "x.tsv"])
def test_a_stray_quote_never_swallows_rows_in_silence(tmp_path, lines, ending, name):
    """However long the file is, and wherever the next quote stands."""
    middle = "".join(f"images/patient{n:07}/scan.png,What is to be seen here?,{n}\n" for n in range(lines))
    content = f'image,question,answer\nfirst.png,q,a\nb.png,"q,a\n{middle}{ending}\n'
    delimiter = "\t" if ".tsv" in name else ","
    content = content.replace(",", delimiter).encode()
    path = write(tmp_path / name, gzip.compress(content, 1) if ".gz" in name else content)
    rows, told = until_error(csv_rows(path, delimiter=delimiter))
    assert len(rows) == 1 and f"{path}: a quote opened on line 3 is" in told and "by mistake" in told


def test_a_row_of_several_lines_with_other_cells_tells_how_far_it_reaches(tmp_path):
    _, wrong, last = csv_rows(write(tmp_path / "x.csv", 'a,b\n1,2\n"q,3\n4,5\n6"\n7,8\n'))
    assert wrong.place == "x.csv:3" and "its quotes reach to line 5" in wrong.message and last.place == "x.csv:6"


@pytest.mark.parametrize(
    ("name", "content", "read"),
    [
        ("x.json", "[]", json_rows),
        ("x.json.gz", gzip.compress(b"[ ]", mtime=0), json_rows),
        ("x.csv", "a,b\n", csv_rows),
        ("under.json", '{"train": []}', lambda path: json_rows(path, "train")),
    ],
)
def test_a_file_without_rows_is_told(tmp_path, caplog, name, content, read):
    path = write(tmp_path / name, content)
    with caplog.at_level("WARNING"):
        assert list(read(path)) == []
    assert f"{path}: holds no rows" in caplog.text


def test_an_empty_table_says_so_and_names_no_columns_that_nobody_asked_for(tmp_path):
    with pytest.raises(TableError, match=r"is empty; a table was expected$"):
        list(csv_rows(write(tmp_path / "x.csv", "")))
    with pytest.raises(TableError, match=r"is empty; a table with the columns a, b was expected$"):
        list(csv_rows(tmp_path / "x.csv", ("a", "b")))


@pytest.mark.parametrize("other", [";", "\t", "|"])
def test_another_separator_is_told(tmp_path, other):
    path = write(tmp_path / "x.csv", f"image{other}question{other}answer, if any\n")
    with pytest.raises(TableError, match=r"lacks the column.*the separator looks like"):
        list(csv_rows(path, ["image"]))
    assert csv_names(path, other) == ["image", "question", "answer, if any"]


CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(CELL, CELL.map(lambda cell: cell + "x")), max_size=6), st.sampled_from([",", "\t"]))
def test_csv_gives_back_what_was_written(tmp_path_factory, rows, delimiter):
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=delimiter)
    writer.writerows([("a", "b"), *rows])
    content = buffer.getvalue().encode()
    folder = tmp_path_factory.mktemp("csv")
    expected = [dict(zip("ab", row, strict=True)) for row in rows]
    for name, data in {
        "x.csv": content,
        "b.csv": b"\xef\xbb\xbf" + content,
        "x.csv.gz": gzip.compress(content),
    }.items():
        read = list(csv_rows(write(folder / name, data), ["a"], delimiter))
        assert [row.data for row in read] == expected


def test_a_character_that_somebody_else_lost_is_no_reason_to_refuse(tmp_path):
    """U+FFFD stands in texts that were taken from the web; the file itself is valid."""
    (row,) = csv_rows(write(tmp_path / "x.csv", "id,text\n1,5\ufffdmm\n"))
    assert row.text("text") == "5\ufffdmm"


@pytest.mark.parametrize("value", [["a"], {"a": 1}, b"a"])
def test_what_is_no_text_does_not_become_one(value):
    with pytest.raises(ValueError, match=rf"'words' holds a {type(value).__name__}, no text"):
        Row("x.json:1", {"words": value}).text("words")
    assert Row("x.json:1", {"words": 3}).text("words") == "3"


def test_bad_rows_of_a_csv_stand_in_their_place(tmp_path):
    content = b'id,text\r\n1,"two\nlines"\r\n2\r\n3,\xff\r\n\r\n4,a\0b\r\n5,"a"b\r\n6,last\r\n'
    rows = list(csv_rows(write(tmp_path / "x.csv", content)))
    assert [row.place for row in rows] == [f"x.csv:{line}" for line in (2, 4, 5, 7, 8, 9)]
    assert rows[0].data["text"] == "two\nlines" and rows[-1].data == {"id": "6", "text": "last"}
    told = ["has 1 cells", "no valid UTF-8", "zero byte", "cannot be read"]
    assert all(word in row.message for word, row in zip(told, rows[1:-1], strict=True))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "the file is empty"),
        (b"id,id,b\n1,2,3\n", "'id' occur twice"),
        (b"id,Text\n1,2\n", r"lacks the column\(s\) 'text'; did you mean 'Text'\?"),
        ("id,text\n".encode("utf-16"), "no valid UTF-8"),
        (b'id,text\n1,a\n2,"b\n3,c\n', "a quote opened on line 3 is never closed"),
    ],
)
def test_a_csv_that_cannot_be_used_at_all(tmp_path, content, told):
    with pytest.raises(TableError, match=told):
        list(csv_rows(write(tmp_path / "x.csv", content), ["text"]))


def test_columns_without_a_name_may_be_several(tmp_path):
    (row,) = csv_rows(write(tmp_path / "x.csv", "id,,\n1,,\n"))
    assert row.data["id"] == "1"


@pytest.fixture
def parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    def save(columns, **options):
        path = tmp_path / "x.parquet"
        pq.write_table(pa.table(columns), path, **options)
        return path

    return save


def test_parquet_rows_come_batch_by_batch_with_their_place(parquet):
    pictures = [{"bytes": bytes([n % 256]), "path": f"{n}.png"} for n in range(150)]
    path = parquet({"n": list(range(150)), "text": ["a", None, "b"] * 50, "image": pictures}, row_group_size=40)
    rows = list(parquet_rows(path, ["image", "n"]))
    assert [row.place for row in rows] == [f"x.parquet:{n + 1}" for n in range(150)]
    assert [row.data for row in rows] == [{"image": pictures[n], "n": n} for n in range(150)]
    assert next(parquet_rows(path)).data["text"] == "a"


def test_bad_parquet_is_told(parquet, tmp_path, monkeypatch):
    import pyarrow as pa

    damaged = pa.array([b"good", b"\xff", b"long text"], pa.binary()).view(pa.string())
    path = parquet({"text": damaged})
    monkeypatch.setattr("medmvl.data.rows._LONGEST_CELL", 5)
    first, second, third = parquet_rows(path)
    assert first.data == {"text": "good"} and "no valid UTF-8" in second.message and "too large" in third.message
    with pytest.raises(TableError, match=r"lacks the column.*'txt'; did you mean 'text'"):
        list(parquet_rows(path, ["txt"]))
    with pytest.raises(TableError, match="cannot be read"):
        list(parquet_rows(write(tmp_path / "y.parquet", path.read_bytes()[:-9])))
    with pytest.raises(TableError, match="cannot be read"):
        list(parquet_rows(tmp_path / "none.parquet"))


def test_a_parquet_bomb_is_refused_before_it_is_unpacked(parquet, monkeypatch):
    monkeypatch.setattr("medmvl.data.rows._LARGEST_UNPACKED", 2**20)
    path = parquet({"text": ["x" * 2**24]}, compression="zstd", use_dictionary=False)
    with pytest.raises(TableError, match="would unpack to 16,7"):
        next(parquet_rows(path))
