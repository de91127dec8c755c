"""Annotations of your own: forms, splits, paths; each mistake in its place."""

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter_root import build
from medmvl.core.schema import Box, Image, Sample, SampleError, Volume
from medmvl.data.adapters.annotations import Annotations
from medmvl.data.adapters.base import LayoutError
from medmvl.data.rows import TableError


def row(number, **fields):
    said = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": f"answer {number}"}]
    return {"id": str(number), "conversations": said, **fields}


def read(root, split="train", **options):
    return list(Annotations(root, options).samples(split, ["chat"]))


def write(path, rows):
    path.write_text("".join(json.dumps(one) + "\n" for one in rows) if ".jsonl" in path.name else json.dumps(rows))
    return path


@pytest.fixture
def root(tmp_path):
    return build("annotations", tmp_path / "root")


def test_every_form_becomes_the_same_kind_of_sample(root):
    first, second, third, fourth = [one for one in read(root.path, **root.options) if isinstance(one, Sample)]
    images = root.path / "images"
    assert first.media == (Image(path=str(images / "a.png")),) and first.meta.model_extra == {"domain": "ct"}
    assert second.id == "7" and [message.role for message in second.messages] == ["user", "assistant"] * 2
    assert second.media_key == (str(images / "ct/b.png"),) and second.meta.model_extra == {"model": "m"}
    assert third.media == (Volume(path=str(images / "c.npy")),) and third.answer == "(b) A nodule"
    assert fourth.media_key == (str(images / "a.png"), str(images / "ct/b.png"))
    (canonical, _) = read(root.path, "test", **root.options)
    assert canonical.meta.boxes == (Box(coords=(1, 2, 5, 6), label="cyst"),) and canonical.split == "test"


def test_mistakes_name_their_place_and_sample(root):
    wrong = [one for one in read(root.path, **root.options) if isinstance(one, SampleError)]
    assert [(error.path, error.sample_id) for error in wrong] == [
        (f"item {place} of train.json", name) for place, name in ((5, "few"), (6, "out"), (7, "mute"), (9, "strange"))
    ]
    told = ("shows <image> 2 times, but 1 image paths", "leaves the given folders", "messages", "'holdout' is unknown")
    assert all(words in error.message for words, error in zip(told, wrong, strict=True))


def test_rows_name_splits_sources_and_tasks_themselves(tmp_path):
    rows = [
        row(0),
        row(1, split="Valid", task="vqa"),
        row(2, split="test", task="slake/vqa", data_source="slake"),
    ]
    path = write(tmp_path / "mine.json", rows)
    (first,), (second,), (third,) = (read(path, split) for split in ("train", "val", "test"))
    assert (first.source, first.task) == ("annotations", "annotations/chat")
    assert (second.split, second.task) == ("val", "annotations/vqa")
    assert (third.source, third.task) == ("slake", "slake/vqa")


@pytest.mark.parametrize(
    ("name", "option", "split"),
    [
        ("dev.jsonl", "", "val"),
        ("Testing.json.gz", "", "test"),
        ("mine.json", "val", "val"),
        ("mine.json", "", "train"),
    ],
)
def test_the_file_says_the_split_of_rows_that_name_none(tmp_path, name, option, split):
    path = tmp_path / name
    write(path, [row(0)])
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    adapter = Annotations(path, {"split": option})
    assert [one for one in adapter.splits if list(adapter.samples(one, ["chat"]))] == [split]


def test_an_assistant_that_speaks_first_and_a_zero_byte_are_refused(tmp_path):
    said = {"from": "gpt", "value": "A cyst."}
    asked = {"from": "human", "value": "<image>\nWhat?"}
    system = {"from": "system", "value": "You see scans."}
    rows = [
        row(0, conversations=[said]),
        row(1, conversations=[system, said, {"from": "human", "value": "What?"}]),
        {"id": "2", "messages": [{"role": "assistant", "content": "A cyst."}]},
        row(3, image=["a\0.png"], conversations=[asked, said]),
        row(4, conversations=[system, {"from": "human", "value": "What?"}, said]),
        {"id": "5", "image": "a.png"},
    ]
    *wrong, last, none = read(write(tmp_path / "train.json", rows))
    told = ["the assistant speaks first"] * 3 + ["zero byte"]
    assert all(words in error.message for words, error in zip(told, wrong, strict=True))
    assert [error.path for error in wrong] == [f"item {number} of train.json" for number in (1, 2, 3, 4)]
    assert isinstance(last, Sample) and none.message == "'conversations' (or 'messages') is missing"


def test_a_path_with_a_zero_byte_is_none_for_any_adapter(root):
    with pytest.raises(ValueError, match="zero byte"):
        Annotations(root.path).path("a\0.png")


def test_bad_lines_are_told_once(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(row(0, split="test")) + "\nbroken\n" + json.dumps(row(1)) + "\n")
    (error, sample) = read(path)
    assert (error.path, sample.id) == ("train.jsonl:2", "1") and [one.id for one in read(path, "test")] == ["0"]


def test_a_cut_file_is_no_silent_half(tmp_path):
    path = tmp_path / "train.json"
    path.write_text(json.dumps([row(0), row(1)], indent=1)[:-40])
    with pytest.raises(TableError, match=r"train\.json, line \d+: .*cut off"):
        read(path)


def test_media_lie_where_the_options_say(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "notes").mkdir()
    inside = str(tmp_path / "elsewhere" / "a.png")
    path = write(tmp_path / "notes" / "train.json", [
        row(0, image=["a.png"]) | {"conversations": [{"from": "human", "value": "<image>?"}]},
        row(1, image=[inside]) | {"conversations": [{"from": "human", "value": "<image>?"}]},
        row(2, image=["/etc/passwd"]) | {"conversations": [{"from": "human", "value": "<image>?"}]},
    ])  # fmt: skip
    first, second, third = read(path, media_root="../elsewhere")
    assert first.media_key == second.media_key == (inside,) and "leaves" in third.message
    with pytest.raises(LayoutError, match="media_root=nowhere: there is no folder"):
        read(path, media_root="nowhere")


def test_rows_that_share_an_id_or_have_none_get_one(tmp_path):
    """Files count from 0 each, and LLaVA's mixtures name a sample after its picture."""
    nameless = {key: value for key, value in row(0).items() if key != "id"}
    write(tmp_path / "train.json", [row(0), row(1), row(0), row(0), {**row(0), "id": "0-2"}, nameless])
    write(tmp_path / "test.json", [row(0), row(2), row(0)])
    adapter = Annotations(tmp_path)
    for _ in range(2):  # reading again changes nothing
        assert [one.id for one in adapter.samples("train", ["chat"])] == [
            "0", "1", "0-2", "0-3", "0-2-2", "train/item 6 of train.json",
        ]  # fmt: skip
        assert [one.id for one in adapter.samples("test", ["chat"])] == ["test-0", "2", "test-0-2"]


def test_paths_of_windows_and_rows_without_a_picture(tmp_path):
    rows = [
        row(0, image="ct\\a.png") | {"conversations": [{"from": "human", "value": "<image>?"}]},
        row(1, image=""),
        row(2, image=[]),
        row(3, image=None),
    ]
    first, *others = read(write(tmp_path / "train.json", rows))
    assert first.media_key == (str(tmp_path / "ct/a.png"),) and [one.media_key for one in others] == [()] * 3


def test_two_files_of_one_split_are_refused(tmp_path):
    write(tmp_path / "val.json", [row(0)])
    write(tmp_path / "dev.jsonl", [row(0)])
    with pytest.raises(LayoutError, match=r"dev\.jsonl, val\.json are of one split"):
        read(tmp_path)


WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(lambda text: "<" not in text)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3))
def test_what_is_said_comes_through(tmp_path_factory, said):
    turns = [{"from": who, "value": text} for pair in said for who, text in zip(("human", "gpt"), pair, strict=True)]
    path = write(tmp_path_factory.mktemp("said") / "x.json", [{"id": "1", "conversations": turns}])
    (sample,) = read(path)
    assert [message.role for message in sample.messages] == ["user", "assistant"] * len(said)
    assert sample.answer == said[-1][1]
