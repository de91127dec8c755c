"""The log goes on behind the checkpoint it resumes from; refused samples are listed."""

import json

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
