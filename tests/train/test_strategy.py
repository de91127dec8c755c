"""A strategy is honoured or refused loudly."""

import pytest
from torch import nn

from medmvl.train import strategy
from medmvl.train.optim import build_optimizer
from medmvl.train.strategy import Engine, StrategyError, resolve_strategy


def test_auto_is_single_for_one_process_and_ddp_for_several():
    assert resolve_strategy("auto", 1) == "single"
    assert resolve_strategy("auto", 2) == "ddp"


@pytest.mark.parametrize(
    ("asked", "world", "hint"),
    [
        ("single", 2, "2 processes"),
        ("ddp", 1, "process group"),
        ("zero3", 1, "process group"),
        ("zero", 1, "choose auto"),
    ],
)
def test_strategy_that_does_not_fit_is_refused(asked, world, hint, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(StrategyError, match=hint):
        resolve_strategy(asked, world)


def test_missing_deepspeed_is_told(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StrategyError, match=r"medmvl\[deepspeed\]"):
        resolve_strategy("zero3", 2)


@pytest.mark.parametrize("asked", ["ddp", "fsdp2", "zero3"])
def test_run_stops_when_accelerate_falls_back(asked, monkeypatch):
    """Whatever accelerate sets up instead, the engine compares it with what was asked for."""

    def fallen_back(*_):
        plain = accelerator("single", "fp32", 1.0)
        plain.state.fsdp_plugin = type("Plugin", (), {})()
        return plain

    accelerator = strategy._accelerator
    monkeypatch.setattr(strategy, "_accelerator", fallen_back)
    engine = Engine(asked, "fp32", 1.0)
    layer = nn.Linear(2, 2)
    with pytest.raises(StrategyError, match=f"{asked} was asked for"):
        engine.prepare(layer, build_optimizer([{"part": "all", "lr": 1e-3, "params": list(layer.parameters())}], 0))
    with pytest.raises(StrategyError, match="2 processes were started"):
        monkeypatch.setenv("WORLD_SIZE", "2")
        engine.prepare(layer, build_optimizer([{"part": "all", "lr": 1e-3, "params": list(layer.parameters())}], 0))
