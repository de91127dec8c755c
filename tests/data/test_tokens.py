"""Counts of tokens: made once, kept as long as the rows stay what they were, never trusted when damaged."""

import json
import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from medmvl.core.schema import SampleError
from medmvl.data import tokens
from medmvl.data.store import SampleStore, write_manifest, write_splits
from medmvl.data.tokens import token_counts


class Counter:
    """Counts letters, and how often it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, sample):
        self.asked.append(sample.id)
        if sample.answer == "refuse":
            raise SampleError("no", sample.id)
        return len(sample.answer)


def row(number, answer, task="toy/a"):
    said = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": answer}]
    return json.dumps({"id": f"s{number}", "messages": said, "task": task})


@pytest.fixture
def folder(tmp_path):
    rows = [row(n, "x" * n if n != 3 else "refuse", f"toy/{'ab'[n % 2]}") for n in range(6)]
    (tmp_path / "train.jsonl").write_text("\n".join(rows) + "\n")
    return tmp_path


EXPECTED = [0, 1, 2, -1, 4, 5]


def test_rows_are_counted_once(folder):
    count = Counter()
    part = token_counts(SampleStore(folder, tasks=["toy/b"]), "qwen", count)
    assert part.tolist() == [1, -1, 5] and part.dtype == np.int32 and count.asked == ["s1", "s3", "s5"]
    assert token_counts(SampleStore(folder), "qwen", count).tolist() == EXPECTED
    assert count.asked[3:] == ["s0", "s2", "s4"]
    assert token_counts(SampleStore(folder), "qwen", count).tolist() == EXPECTED and len(count.asked) == 6
    assert token_counts(SampleStore(folder), "llama", count).tolist() == EXPECTED and len(count.asked) == 12


def test_appended_rows_are_counted_and_changed_ones_count_all_anew(folder):
    count = Counter()
    token_counts(SampleStore(folder), "qwen", count)
    with (folder / "train.jsonl").open("a") as file:
        file.write(row(6, "seven77") + "\n")
    assert token_counts(SampleStore(folder), "qwen", count).tolist() == [*EXPECTED, 7] and count.asked[6:] == ["s6"]
    text = (folder / "train.jsonl").read_text().replace("s2", "t2")
    (folder / "train.jsonl").write_text(text)
    assert token_counts(SampleStore(folder), "qwen", count).tolist() == [*EXPECTED, 7] and len(count.asked) == 14
    (folder / "train.jsonl").write_text("\n".join(text.splitlines()[:2]))
    assert token_counts(SampleStore(folder), "qwen", count).tolist() == [0, 1] and len(count.asked) == 16


def test_a_damaged_file_is_told_and_counted_anew(folder, caplog):
    token_counts(SampleStore(folder), "qwen", Counter())
    (file,) = folder.glob("train.tokens-*.npz")
    good = file.read_bytes()
    for place in range(0, len(good), 7):
        file.write_bytes(good[:place] + bytes([good[place] ^ 255]) + good[place + 1 :])
        assert token_counts(SampleStore(folder), "qwen", Counter()).tolist() == EXPECTED
    file.write_bytes(good[: len(good) // 2])
    count = Counter()
    with caplog.at_level(logging.WARNING):
        assert token_counts(SampleStore(folder), "qwen", count).tolist() == EXPECTED
    assert len(count.asked) == 6 and "counted once more" in caplog.text
    with np.load(file) as saved:
        np.savez(file.with_suffix(""), **{**saved, "counts": saved["counts"] + np.int32(1)})
    assert token_counts(SampleStore(folder), "qwen", count).tolist() == EXPECTED and len(count.asked) == 12


def test_shards_keep_counts_too(folder):
    samples = list(SampleStore(folder))
    write_manifest(folder / "p", {"name": "p"}, write_splits(folder / "p", samples, "parquet"))
    count = Counter()
    for _ in range(2):
        assert token_counts(SampleStore(folder / "p"), "qwen", count).tolist() == EXPECTED
    assert len(count.asked) == 6


def test_what_several_find_is_put_together(folder, monkeypatch):
    stores = [SampleStore(folder, tasks=[task]) for task in ("toy/a", "toy/b")] * 4
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda store: token_counts(store, "qwen", Counter()).tolist(), stores))
    assert found == [EXPECTED[0::2], EXPECTED[1::2]] * 4


def test_a_call_that_is_stopped_has_not_counted_in_vain(folder, monkeypatch):
    monkeypatch.setattr(tokens, "_SAVED_AFTER", 2)

    def stopped(sample):
        if sample.id == "s4":
            raise KeyboardInterrupt
        return len(sample.answer)

    with pytest.raises(KeyboardInterrupt):
        token_counts(SampleStore(folder), "qwen", stopped)
    count = Counter()
    token_counts(SampleStore(folder), "qwen", count)
    assert count.asked == ["s4", "s5"]


def test_the_split_is_read_once_however_often_counts_are_saved(folder, monkeypatch):
    monkeypatch.setattr(tokens, "_SAVED_AFTER", 1)
    read, whole = SampleStore.prefix_hash, []
    monkeypatch.setattr(SampleStore, "prefix_hash", lambda store, rows: whole.append(rows) or read(store, rows))
    assert token_counts(SampleStore(folder), "qwen", Counter()).tolist() == EXPECTED
    assert token_counts(SampleStore(folder), "qwen", Counter()).tolist() == EXPECTED and whole == [6]


def test_a_folder_that_cannot_be_written_costs_time_only(folder, monkeypatch, caplog):
    monkeypatch.setattr(tokens, "_path", lambda store, fingerprint: folder / "train.jsonl" / "x.npz")
    with caplog.at_level(logging.WARNING):
        assert token_counts(SampleStore(folder), "qwen", Counter()).tolist() == EXPECTED
    assert "are not kept" in caplog.text
