"""Where time goes: every second is booked once, and profiling changes nothing that is learned."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import tiny_run
from medmvl.train import profile
from medmvl.train.profile import FORWARD, Profile, Stopwatch
from medmvl.train.run import train


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [0.0]
    monkeypatch.setattr(profile.time, "perf_counter", lambda: now[0])

    def pass_time(seconds):
        now[0] += seconds

    return pass_time


def test_a_second_counts_for_the_innermost_span_alone(clock):
    watch = Stopwatch()
    clock(1)
    with watch("outer"):
        clock(2)
        with watch("inner"):
            clock(4)
        clock(8)
    with pytest.raises(KeyError), watch("outer"):
        clock(16)
        raise KeyError
    assert watch.open == []
    assert watch.seconds["outer"] == 26
    assert watch.seconds["inner"] == 4
    with watch("next"):
        clock(32)
    assert sum(watch.seconds.values()) == 63


def test_parts_are_timed_in_the_forward_pass_of_counted_steps_only(clock, tmp_path, caplog, monkeypatch):
    class Part(nn.Module):
        def forward(self):
            clock(3)

    averages = Profile._told
    monkeypatch.setattr(Profile, "_told", lambda *given: clock(50) or averages(*given))  # telling is no training
    watch, part = Stopwatch(), Part()
    told = Profile(watch, {"llm": part}, torch.device("cpu"), tmp_path / "profile", "align")
    for _ in range(5):  # the first one and the traced one do not count
        with watch(FORWARD):
            clock(1)
            part()
        with watch("backward"):
            part()  # recomputed activations
        part()  # validation
        told.step_done()
    with caplog.at_level("INFO"):
        told.finish()
    part()
    rows = {line[:40].strip(): line[40:].split() for line in caplog.text.split("\n\n")[0].splitlines()}
    assert rows["forward: llm"] == ["3.0000", "30.0%"]
    assert rows[FORWARD] == ["1.0000", "10.0%"]
    assert rows["backward"] == ["3.0000", "30.0%"]
    assert rows["all"] == ["10.0000", "3", "steps"]
    assert "operations of one step: " in (tmp_path / "profile" / "align.txt").read_text()


def test_two_steps_are_too_few_to_tell(tmp_path, caplog):
    told = Profile(Stopwatch(), {}, torch.device("cpu"), tmp_path / "profile", "align")
    told.step_done()
    with caplog.at_level("INFO"):
        told.finish()
    assert "1 steps are too few to tell" in caplog.text
    assert not (tmp_path / "profile").exists()


def test_a_profiled_run_learns_the_same_and_leaves_table_and_trace(tmp_path):
    found = []
    for name in ("plain", "profiled"):
        tiny_run.write_data(tmp_path / name)
        recipe = tiny_run.recipe(tmp_path / name, tiny_run.stage(steps=6))
        found.append(train(recipe, overrides=["run.profile=true"] if name == "profiled" else []))
    plain, profiled = found
    assert not (plain / "profile").exists()
    table = (profiled / "profile" / "chat.txt").read_text().split("\n\n")[0]
    names = [line[:40].strip() for line in table.splitlines()]
    for part in ("forward: image.encoder", "forward: image.connector", "forward: llm", "backward", "optimizer"):
        assert part in names
    trace = json.loads((profiled / "profile" / "chat.json").read_text())
    assert any(event.get("name") == "aten::mm" for event in trace["traceEvents"])
    first, second = (load_file(folder / "bundle" / "model.safetensors") for folder in found)
    assert all(torch.equal(first[name], second[name]) for name in first)
