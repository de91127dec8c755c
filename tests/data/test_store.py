"""Stores: what is written is read back, and whatever is wrong is named by file and line."""

import errno
import json
import os
import pickle
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medmvl.core.atomic import DiskFullError
from medmvl.core.schema import Image, Message, Meta, Sample, SampleError, Text
from medmvl.data.store import SampleStore, StoreError, find_source, read_annotations, split_names, write_samples

ABOUT = {"name": "toy", "version": "1.0", "licence": "CC0"}


def sample(number, split="train", task="toy/a", path=None, text="What?"):
    media = () if path is None else (Image(path=str(path)),)
    return Sample(
        id=f"s{number}",
        messages=(
            Message(role="user", content=(*media, Text(text=text))),
            Message(role="assistant", content="that"),
        ),
        source="toy",
        task=task,
        split=split,
        meta=Meta(patient=f"p{number // 2}"),
    )


@pytest.fixture
def toy(tmp_path):
    folder = tmp_path / "toy"
    samples = [
        sample(n, "test" if n > 7 else "train", f"toy/{'ab'[n % 2]}", folder / f"images/{n // 2}.png")
        for n in range(10)
    ]
    write_samples(folder, samples, **ABOUT, seed=5, note="extra")
    return folder, samples


def test_samples_come_back_equal_and_the_manifest_counts_them(toy):
    folder, samples = toy
    store = SampleStore(folder)
    assert list(store) == samples[:8] and list(SampleStore(folder, "test")) == samples[8:]
    assert store[-1] == samples[7] and list(store[2:4]) == samples[2:4]
    assert store.manifest["splits"]["train"] == {
        "file": "train.jsonl",
        "sha256": store.hash,
        "samples": 8,
        "patients": 4,
        "media": 4,
        "tasks": {"toy/a": 4, "toy/b": 4},
    }
    assert (store.manifest["seed"], store.manifest["licence"], store.manifest["note"]) == (5, "CC0", "extra")
    with pytest.raises(IndexError):
        store[8]


def test_tasks_and_media_are_known_without_reading_samples(toy):
    folder, _ = toy
    store = SampleStore(folder, tasks=["toy/b"])
    assert len(store) == 4 and store.task_names == ["toy/b"] and store[0].task == "toy/b"
    keys = SampleStore(folder).media_keys
    assert keys.dtype == np.uint64 and (keys[0::2] == keys[1::2]).all() and len(set(keys)) == 4


def test_a_moved_store_finds_its_files(toy, tmp_path):
    folder, _ = toy
    shutil.move(folder, tmp_path / "moved")
    assert SampleStore(tmp_path / "moved")[0].media[0].path == str(tmp_path / "moved/images/0.png")


def test_a_store_survives_pickling(toy):
    store = SampleStore(toy[0])
    assert pickle.loads(pickle.dumps(store))[3] == store[3]


@given(st.lists(st.text(max_size=40), min_size=1, max_size=8))
@settings(max_examples=30, deadline=None)
def test_any_text_survives(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("texts")
    samples = [sample(number, text=text) for number, text in enumerate(texts)]
    write_samples(folder, samples, **ABOUT)
    assert list(SampleStore(folder)) == samples


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"splits": []}',
        '{"splits": {"train": []}}',
        '{"splits": {"train": {"sha256": "0"}}}',
        '{"splits": {"train": {"files": [], "sha256": "0"}}}',
        '{"splits": {"train": {"files": ["train-00000.parquet"]}}}',
        '{"splits": {"train": {"files": ["../train-00000.parquet"], "sha256": "0"}}}',
        '{"splits": {"train": {"file": "..", "sha256": "0"}}}',
        '{"splits": {"train": {"file": "/etc/hosts", "sha256": "0"}}}',
    ],
)
def test_what_is_no_manifest_is_told_and_leads_nowhere(toy, content):
    folder, _ = toy
    (folder / "manifest.json").write_text(content)
    for use in (lambda: SampleStore(folder), lambda: split_names(folder), lambda: find_source("x/y", [folder])):
        with pytest.raises(StoreError, match=r"manifest\.json: (is no manifest|not valid JSON).*remove it"):
            use()


def test_plain_jsonl_without_manifest_serves(tmp_path):
    row = {"id": 7, "conversations": [{"from": "human", "value": "<image>\nQ"}, {"from": "gpt", "value": "A"}]}
    lines = [json.dumps(row | {"image": ["a.png"]}), "", json.dumps(sample(1).to_dict())]
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    for store in (SampleStore(tmp_path / "own.jsonl"), SampleStore(tmp_path, "own")):
        assert [s.id for s in store] == ["7", "s1"] and store[0].split == "own"
        assert store[0].media[0].path == str(tmp_path / "a.png")
        assert (store.media_keys == 0).tolist() == [False, True] and store.manifest == {}


def test_a_file_that_changed_is_read_anew_with_a_warning(toy, caplog):
    folder, _ = toy
    lines = (folder / "train.jsonl").read_text().splitlines()
    (folder / "train.jsonl").write_text("\n".join(lines[:3]))
    with caplog.at_level("WARNING"):
        assert [s.id for s in SampleStore(folder)] == ["s0", "s1", "s2"]
    assert "train.jsonl has changed" in caplog.text


def test_a_damaged_index_costs_time_only(toy, caplog):
    folder, samples = toy
    for kept in (0, 100, -300):
        index = (folder / "train.index.npz").read_bytes()
        (folder / "train.index.npz").write_bytes(index[:kept])
        with caplog.at_level("WARNING"):
            assert [s.id for s in SampleStore(folder)] == [s.id for s in samples if s.split == "train"]
        assert "index.npz is damaged" in caplog.text
        caplog.clear()
        (folder / "train.index.npz").write_bytes(index)


def test_broken_json_is_named_by_file_and_line(toy):
    folder, _ = toy
    with (folder / "train.jsonl").open("a") as file:
        file.write('\n{"id": \n')
    with pytest.raises(StoreError, match=r"train\.jsonl:10: not valid JSON"):
        SampleStore(folder)


def test_a_wrong_sample_is_named_by_file_line_and_id_on_use_and_others_stay_usable(toy):
    folder, _ = toy
    with (folder / "train.jsonl").open("a") as file:
        file.write('{"id": "odd", "mesages": []}\n')
    store = SampleStore(folder)
    assert store[7].id == "s7"
    with pytest.raises(SampleError, match=r"sample 'odd'.*train\.jsonl:9: .*did you mean 'messages'"):
        store[8]


def test_a_wrong_annotation_of_the_reference_breaks_on_use_only(tmp_path):
    good = {"id": "a", "image": "x.png", "conversations": [{"from": "human", "value": "<image> Q"}], "answer": "A"}
    lines = [good, {**good, "id": "odd", "image": []}, {"id": "none", "messages": 5}, {**good, "id": "b"}]
    (tmp_path / "train.jsonl").write_text("\r\n".join(map(json.dumps, lines)))
    store = SampleStore(tmp_path)
    assert (store[0].id, store[3].id) == ("a", "b") and store.media_keys[0] == store.media_keys[3] != 0
    for row, said in ((1, "'odd'.*train.jsonl:2: .*<image> 1 times"), (2, "'none'.*train.jsonl:3")):
        with pytest.raises(SampleError, match=said):
            store[row]


def test_a_field_that_is_no_unicode_is_refused_by_id(tmp_path):
    odd = sample(0).model_copy(update={"meta": Meta(patient="p\ud800")})
    with pytest.raises(SampleError, match=r"'s0'.*no valid Unicode"):
        write_samples(tmp_path, [odd], **ABOUT)
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_leaves_the_folders_is_refused_unless_its_folder_is_given(tmp_path):
    write_samples(tmp_path / "s", [sample(0, path=tmp_path / "pictures/x.png")], **ABOUT)
    with pytest.raises(SampleError, match=r"train\.jsonl:1: .*leaves the given folders") as caught:
        SampleStore(tmp_path / "s")[0]
    assert caught.value.path.endswith("pictures/x.png")
    assert SampleStore(tmp_path / "s", roots=[tmp_path / "pictures"])[0].media[0].path.endswith("x.png")


def test_an_id_that_occurs_twice_or_a_strange_split_is_refused(tmp_path):
    with pytest.raises(SampleError, match=r"'s0'.*occurs twice"):
        write_samples(tmp_path, [sample(0), sample(0, "test")], **ABOUT)
    with pytest.raises(SampleError, match="no file name"):
        write_samples(tmp_path, [sample(0, "../x")], **ABOUT)
    with pytest.raises(StoreError, match="no samples"):
        write_samples(tmp_path, [], **ABOUT)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_former_store_whole(toy, monkeypatch):
    folder, samples = toy
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match="No space left"):
        write_samples(folder, samples[:5], **ABOUT)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_writing_anew_removes_splits_that_are_gone(toy):
    folder, samples = toy
    write_samples(folder, samples[:3], **ABOUT)
    with pytest.raises(StoreError, match="no split 'test'; Choices: train"):
        SampleStore(folder, "test")


def test_unknown_names_are_answered_with_the_known_ones(toy):
    folder, _ = toy
    with pytest.raises(StoreError, match=r"'toy/c'.*Tasks: toy/a, toy/b"):
        SampleStore(folder, tasks=["toy/c"])
    with pytest.raises(StoreError, match="did you mean 'train'"):
        SampleStore(folder, "trian")
    with pytest.raises(StoreError, match="no such folder"):
        SampleStore(folder / "nothing")


def test_sources_are_found_by_name_task_and_path(toy):
    folder, _ = toy
    roots = [folder.parent]
    assert find_source("toy", roots).folder == folder and find_source("toy", [folder]).folder == folder
    assert find_source("toy/b", roots).tasks == ("toy/b",)
    assert find_source(str(folder)).tasks is None
    assert find_source(str(folder / "train.jsonl")).folder == folder / "train.jsonl"
    with pytest.raises(StoreError, match=r"'tou'.*did you mean 'toy'"):
        find_source("tou", roots)
    with pytest.raises(StoreError, match=r"'toy/d'.*toy/a, toy/b"):
        find_source("toy/d", roots)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_annotation_files_are_read_in_both_forms(tmp_path, form, mark):
    rows = [
        {"id": n, "image": ["a.png"], "conversations": [{"from": "human", "value": "<image> Q"}], "answer": "A"}
        for n in range(2)
    ]
    text = json.dumps(rows) if form == "json" else "\n".join(map(json.dumps, rows))
    (tmp_path / "rows").write_text(mark + text)
    read = list(read_annotations(tmp_path / "rows", tmp_path, split="val"))
    assert [(s.id, s.split, s.answer) for s in read] == [("0", "val", "A"), ("1", "val", "A")]
    rows[1]["image"] = ["../a.png"]
    (tmp_path / "rows").write_text(json.dumps(rows) if form == "json" else "\n".join(map(json.dumps, rows)))
    with pytest.raises(SampleError, match=r"item 2 of .*rows|rows:2"):
        list(read_annotations(tmp_path / "rows", tmp_path))
