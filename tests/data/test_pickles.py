"""Pickles of plain data are read as they are; whatever could run code, grow or turn in circles is refused."""

import collections
import datetime
import pickle
import pickletools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medmvl.data import pickles
from medmvl.data.pickles import read_pickle
from medmvl.data.rows import TableError

LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
KEYS = st.text() | st.integers()
PLAIN = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner) | st.tuples(inner, inner))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pickles")


def _read(folder, content: bytes):
    path = folder / "qa.pkl"
    path.write_bytes(content)
    return read_pickle(path)


def _calls_nothing(content: bytes) -> bool:
    return not any(opcode.name in ("GLOBAL", "REDUCE") for opcode, _, _ in pickletools.genops(content))


@settings(deadline=None, max_examples=60)
@given(PLAIN, st.integers(0, 5))
def test_plain_data_comes_back(folder, data, protocol) -> None:
    content = pickle.dumps(data, protocol)
    if _calls_nothing(content):  # protocols below 3 write bytes as a call of a function
        assert _read(folder, content) == data
    else:
        with pytest.raises(TableError, match="can run code"):
            _read(folder, content)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200))
def test_noise_is_refused_in_words(folder, noise) -> None:
    try:
        _read(folder, b"\x80\x04" + noise)
    except TableError as error:
        assert "qa.pkl: the pickle" in str(error)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_a_pickle_cut_off_is_refused(folder, data) -> None:
    whole = pickle.dumps([{"image": "train_0001", "question": "what?", "answer": "yes"}] * 3, 4)
    with pytest.raises(TableError, match=r"damaged|too early"):
        _read(folder, whole[: data.draw(st.integers(0, len(whole) - 1))])


def test_one_object_named_often_is_read_like_pickle_does(folder) -> None:
    label = {"yes": 1}
    data = [{"label": label, "sent": "q", "key": ("a", "a")} for _ in range(3)]
    for protocol in range(6):
        assert _read(folder, pickle.dumps(data + data + [label, label], protocol)) == data + data + [label, label]


class Evil:
    def __reduce__(self):
        return (print, ("ran",))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("thing", [Evil(), datetime.date(2020, 1, 1), collections.OrderedDict(a=1), {1, 2}, print])
def test_anything_but_plain_data_is_refused_and_nothing_runs(folder, capsys, thing, protocol) -> None:
    with pytest.raises(TableError, match=r"asks for [A-Z_0-9]+ at byte \d+, which can run code"):
        _read(folder, pickle.dumps([thing], protocol))
    assert capsys.readouterr().out == ""


def test_text_of_python_2_is_utf_8_or_latin_1(folder) -> None:
    utf8 = "naïve".encode()
    content = b"\x80\x02]q\x00(U" + bytes([len(utf8)]) + utf8 + b"U\x05na\xefveX\x06\x00\x00\x00na\xc3\xafvee."
    assert _read(folder, content) == ["naïve", "naïve", "naïve"]


def test_references_that_multiply_are_refused_at_once(folder) -> None:
    inner: list = [1] * 10
    for _ in range(12):
        inner = [inner] * 10
    started = time.monotonic()
    with pytest.raises(TableError, match="when written out"):
        _read(folder, pickle.dumps(inner, 4))
    assert time.monotonic() - started < 1


def test_long_text_named_often_is_refused(folder) -> None:
    with pytest.raises(TableError, match="larger than"):
        _read(folder, pickle.dumps(["x" * 2**20] * 1000, 4))


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"x.",  # BINBYTES8 of four exabytes
        b"\x80\x04\x8d" + (2**40).to_bytes(8, "little") + b"x.",  # BINUNICODE8
        b"\x80\x04X\xff\xff\xff\xffx.",  # BINUNICODE
        b"\x80\x02T\xff\xff\xff\x7fx.",  # BINSTRING
        b"\x80\x02\x8b\xff\xff\xff\x7f\x01.",  # LONG4
        b"\x80\x04\x95" + b"\xff" * 8 + b"N.",  # FRAME; its length says nothing, so the data alone decide
        b"\x80\x02I" + b"9" * 10_000 + b"\n.",  # a number of 10,000 digits
    ],
)
def test_declared_lengths_allocate_nothing(folder, content) -> None:
    import tracemalloc

    tracemalloc.start()
    try:
        assert _read(folder, content) is None
    except TableError as error:
        assert "damaged" in str(error)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_memo_of_a_huge_index_is_no_array(folder) -> None:
    assert _read(folder, b"\x80\x02K\x01r\xff\xff\xff\xff0j\xff\xff\xff\xff.") == 1


def test_circles_are_refused(folder) -> None:
    circle: list = []
    circle.append(circle)
    for protocol in (0, 2, 4):
        with pytest.raises(TableError, match="contains itself"):
            _read(folder, pickle.dumps(circle, protocol))
    loop: dict = {}
    loop["self"] = [loop]
    with pytest.raises(TableError, match="or in itself"):
        _read(folder, pickle.dumps(loop, 4))


def test_a_list_is_not_filled_after_it_was_counted(folder) -> None:
    late = b"\x80\x02]q\x01(]q\x00e0h\x00(K\x01e."  # [] is put into a list, then filled through the memo
    with pytest.raises(TableError, match="stands in another"):
        _read(folder, late)


def test_depth_has_an_end(folder) -> None:
    with pytest.raises(TableError, match="nested deeper"):
        _read(folder, b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".")


def test_no_file_and_a_large_one(folder, monkeypatch) -> None:
    with pytest.raises(TableError, match=r"none\.pkl: cannot be read: No such file"):
        read_pickle(folder / "none.pkl")
    monkeypatch.setattr(pickles, "LARGEST", 10)
    with pytest.raises(TableError, match="holds 11 bytes"):
        _read(folder, b"x" * 11)


def test_the_official_size_takes_seconds(folder) -> None:
    item = {"answer_type": "other", "img_id": "train_0422", "label": {"a": 1}, "question_id": 100422000, "sent": "q?"}
    data = [{**item, "label": {f"answer {n}": 1}, "question_id": n} for n in range(20_000)]
    started = time.monotonic()
    assert _read(folder, pickle.dumps(data, 3)) == data
    assert time.monotonic() - started < 20
