"""The optimizer and its schedule: AdamW over the tuning table's groups, linear warmup and cosine decay."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn


def schedule(step: int, steps: int, warmup: float) -> float:
    """Return the factor on every learning rate at `step`: a linear rise, then half a cosine down to zero.

    Args:
        step: optimizer step, counted from 0.
        steps: optimizer steps of the whole stage.
        warmup: below 1 the share of `steps` spent rising (rounded up), from 1 on a number of steps.

    Returns:
        A factor in (0, 1]; step 0 already trains (factor 1 / warmup steps), the last step is above zero.
    """
    rising = math.ceil(warmup * steps) if warmup < 1 else min(int(warmup), steps)
    if step < rising:
        return (step + 1) / rising
    share = (step - rising) / max(1, steps - rising)
    return 0.5 * (1.0 + math.cos(math.pi * share))


def build_optimizer(groups: Sequence[Mapping[str, object]], weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW over `groups`, each split into decayed matrices and undecayed vectors (biases, norms).

    Args:
        groups: mappings with "part" (name in the log), "lr" and "params" (fp32, require a gradient).
        weight_decay: applied to parameters of two and more dimensions.

    Raises:
        ValueError: a parameter is not fp32 (small steps would not move it), is named twice, or none is left.
    """
    split: list[dict[str, object]] = []
    seen: set[int] = set()
    for group in groups:
        params = [parameter for parameter in group["params"] if parameter.requires_grad]
        for parameter in params:
            if parameter.dtype != torch.float32:
                raise ValueError(
                    f"{group['part']}: a trainable weight is {parameter.dtype}; trainable weights must be float32."
                )
            if id(parameter) in seen:
                raise ValueError(
                    f"{group['part']}: a parameter is already trained by another part of the tuning table."
                )
            seen.add(id(parameter))
        for decay, members in (
            (weight_decay, [parameter for parameter in params if parameter.ndim >= 2]),
            (0.0, [parameter for parameter in params if parameter.ndim < 2]),
        ):
            if members:
                row = {"params": members, "lr": group["lr"], "base_lr": group["lr"], "part": group["part"]}
                split.append({**row, "weight_decay": decay})
    if not split:
        raise ValueError(
            "nothing is trained: every part of the tuning table is frozen; name at least one part under `tune`."
        )
    return torch.optim.AdamW(split, betas=(0.9, 0.999), eps=1e-8, fused=True)


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> dict[str, float]:
    """Set every group's learning rate to `factor` times its own; return the rate per part."""
    rates: dict[str, float] = {}
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
        rates[group["part"]] = group["lr"]
    return rates


def hold_masters(module: nn.Module) -> None:
    """Store what trains in float32, in place.

    In pure bf16 a step of 2e-5 is below the spacing of most weights, which then never move; a float32 master does.
    """
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
