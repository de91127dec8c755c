"""Schedule, optimizer groups, and why trained weights are float32."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from medmvl.train.optim import build_optimizer, hold_masters, schedule, set_learning_rates


@given(steps=st.integers(1, 2000), warmup=st.one_of(st.floats(0, 0.99), st.integers(1, 50)))
def test_schedule_rises_then_falls_and_never_stops_learning(steps, warmup):
    factors = [schedule(step, steps, warmup) for step in range(steps)]
    rising = math.ceil(warmup * steps) if warmup < 1 else min(int(warmup), steps)
    assert all(0 < factor <= 1 for factor in factors)
    assert all(a < b for a, b in pairwise(factors[:rising]))
    assert all(a >= b for a, b in pairwise(factors[rising:]))
    assert rising == 0 or math.isclose(factors[rising - 1], 1.0)


def test_schedule_has_the_values_of_the_paper():
    # 3 % of 1000 steps, then a cosine: at the middle of the fall half the rate is left
    assert schedule(0, 1000, 0.03) == pytest.approx(1 / 30)
    assert schedule(29, 1000, 0.03) == schedule(30, 1000, 0.03) == 1.0
    assert schedule(515, 1000, 0.03) == pytest.approx(0.5)


def test_groups_keep_their_rates_and_decay_matrices_only():
    first, second = nn.Linear(3, 2), nn.LayerNorm(4)
    groups = [
        {"part": "llm", "lr": 1e-3, "params": list(first.parameters())},
        {"part": "image.connector", "lr": 1e-4, "params": list(second.parameters())},
    ]
    optimizer = build_optimizer(groups, weight_decay=0.1)
    held = {id(p): (g["part"], g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert held[id(first.weight)] == ("llm", 1e-3, 0.1)
    assert held[id(first.bias)] == ("llm", 1e-3, 0.0)
    assert held[id(second.weight)] == ("image.connector", 1e-4, 0.0)
    assert set_learning_rates(optimizer, 0.5) == {"llm": 5e-4, "image.connector": 5e-5}
    assert {group["lr"] for group in optimizer.param_groups} == {5e-4, 5e-5}


def test_optimizer_refuses_what_would_not_learn():
    layer = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="float32"):
        build_optimizer([{"part": "llm", "lr": 1e-3, "params": list(nn.Linear(3, 2).bfloat16().parameters())}], 0)
    with pytest.raises(ValueError, match="already trained"):
        build_optimizer([{"part": part, "lr": 1e-3, "params": [layer.weight]} for part in ("llm", "heads")], 0)
    with pytest.raises(ValueError, match="nothing is trained"):
        build_optimizer([{"part": "llm", "lr": 1e-3, "params": [layer.weight.requires_grad_(False)]}], 0)


@pytest.mark.parametrize(("masters", "least", "most"), [(False, 0.0, 0.6), (True, 0.9, 1.0)])
def test_float32_masters_move_where_bf16_weights_stand_still(masters, least, most):
    """20 steps at 2e-5 lie below the spacing of most bf16 weights; AdamW on fp32 masters moves nearly all of them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.LayerNorm(256), nn.ReLU(), nn.Linear(256, 8)).bfloat16()
    if masters:
        hold_masters(model)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.0)
    data, target = torch.randn(512, 64), torch.randint(0, 8, (512,))
    for _ in range(20):
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(data if masters else data.bfloat16()).float(), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = [(now != then).float() for now, then in zip(model.parameters(), before, strict=True)]
    share = torch.cat([one.flatten() for one in moved]).mean().item()
    assert least <= share <= most
    norm = moved[2].mean().item()
    assert norm > 0.9 if masters else norm == 0.0


def test_frozen_weights_are_left_as_they_are():
    model = nn.Linear(3, 2).bfloat16().requires_grad_(False)
    hold_masters(model)
    assert model.weight.dtype == torch.bfloat16
