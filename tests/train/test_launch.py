"""With several GPUs and no torchrun, a run starts one process for each."""

import sys

import pytest
import torch

import tiny_run
from medmvl.train import run


def judge(bundle, step):
    return {}


class Process:
    """A process that ends at once with the code that is next in line, or, without one, runs on."""

    started, codes = [], {}

    def __init__(self, command, env):
        self.command, self.env, self.killed = command, env, False
        self.started.append(self)

    def poll(self):
        return self.codes.get(int(self.env["RANK"]), 0)

    def kill(self):
        self.killed = True


@pytest.fixture
def processes(monkeypatch):
    """Pretend that there are four GPUs, and start nothing."""
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(run.subprocess, "Popen", Process)
    monkeypatch.setattr(Process, "started", [])
    monkeypatch.setattr(Process, "codes", {})
    return Process


def test_one_process_for_each_gpu(tmp_path, processes):
    folder = run.train(tiny_run.recipe(tmp_path, strategy="fsdp2"), judge=judge)
    assert [one.env["RANK"] for one in processes.started] == ["0", "1", "2", "3"]
    assert len({one.env["MASTER_PORT"] for one in processes.started}) == 1
    one = processes.started[0]
    assert one.env["WORLD_SIZE"] == "4"
    assert one.command[:4] == [sys.executable, "-m", "medmvl.train.run", str(folder / "recipe.yaml")]
    assert one.command[-2:] == ["--judge", f"{__name__}:judge"]
    assert (folder / "recipe.yaml").is_file()


def test_a_judge_that_other_processes_cannot_import_is_refused(tmp_path, processes):
    with pytest.raises(ValueError, match="cannot be imported"):
        run.train(tiny_run.recipe(tmp_path, strategy="auto"), judge=lambda bundle, step: {})
    assert not processes.started


@pytest.mark.parametrize(("codes", "left"), [({1: 3, 2: None}, 3), (dict.fromkeys(range(4), 143), 143), ({2: -9}, 9)])
def test_a_failed_process_ends_the_others(tmp_path, processes, codes, left):
    processes.codes.update(codes)
    with pytest.raises(SystemExit) as error:
        run.train(tiny_run.recipe(tmp_path, strategy="auto"))
    assert error.value.code == left
    assert all(one.killed for one in processes.started) == (left != 143)


def test_one_gpu_is_enough_for_strategy_single(tmp_path, processes):
    assert not run._should_launch(run.Recipe.load(tiny_run.recipe(tmp_path, strategy="single")))
