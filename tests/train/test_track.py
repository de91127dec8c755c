"""The log goes on behind the checkpoint it resumes from; refused samples are listed."""

import json
import logging

import pytest

from medmvl.train.feed import Refusal
from medmvl.train.track import Tracker, require_trackers


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_resumed_log_has_no_line_twice(tmp_path):
    tracker = Tracker(tmp_path, [], main=True)
    for step in range(1, 6):
        tracker.log("train", step, {"loss": 1.0 / step, "lr": {"llm": 1e-3}})
    tracker.refuse(5, "chat", [Refusal("a", "x.png", "broken")])
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # killed in the middle of a line
    tracker = Tracker(tmp_path, [], main=True, resumed=3)
    tracker.log("train", 4, {"loss": 0.25})
    assert [line["step"] for line in lines(tmp_path / "log.jsonl")] == [1, 2, 3, 4]
    assert lines(tmp_path / "refused.jsonl") == []


def test_the_log_names_the_first_refused_samples_and_counts_the_others(tmp_path, caplog):
    logging.getLogger("medmvl").propagate = True
    tracker = Tracker(tmp_path, [], main=True)
    for number in range(120):
        tracker.refuse(number, "chat", [Refusal(f"s{number}", None, "a line\u2028in two")])
    tracker.finish()
    assert [record.args[0].sample_id for record in caplog.records[:5]] == ["s0", "s1", "s2", "s3", "s4"]
    assert [record.args[1] for record in caplog.records[5:]] == [10, 100, 120]
    assert len((tmp_path / "refused.jsonl").read_text().split("\n")) == 121
    Tracker(tmp_path, [], main=True, resumed=99)
    assert len((tmp_path / "refused.jsonl").read_text().split("\n")) == 101


def test_only_rank_0_writes(tmp_path):
    tracker = Tracker(tmp_path, ["tensorboard"], main=False)
    tracker.log("train", 1, {"loss": 1.0})
    tracker.refuse(1, "chat", [Refusal("a", None, "too long")])
    tracker.finish()
    assert not list(tmp_path.iterdir())


def test_tracker_that_is_not_installed_is_told_before_the_run(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install wandb"):
        require_trackers(["wandb"])
