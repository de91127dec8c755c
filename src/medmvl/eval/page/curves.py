"""Training logs as curves."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medmvl.eval.page.lines import read_lines

_POINTS = 300  # of a curve, at most
Points = Sequence[tuple[float, float]]


def curves(logs: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Return one panel per stage of every log, as far as it logged a training loss.

    Raises:
        ValueError: a line of a log is no JSON object.
    """
    panels = []
    for log in map(Path, logs):
        before = f"{log.parent.name}: " if len(logs) > 1 else ""  # stages of two logs may share a name
        stages: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: {"train": [], "validation": []})
        for number, row in enumerate(read_lines(log)):
            kind = row.get("kind", "train")
            if kind in ("train", "validation") and isinstance(row.get("loss"), int | float):
                stages[str(row.get("stage", log.parent.name))][kind].append((row.get("step", number), row["loss"]))
        panels += [
            _curve(before + name, losses["train"], losses["validation"])
            for name, losses in stages.items()
            if losses["train"]
        ]
    return panels


def _curve(name: str, train: Points, validation: Points) -> dict[str, Any]:
    """Thin out and smooth one stage's losses, in a frame of 100 x 100 with the loss from 0 upwards."""
    steps, values = np.array(train, dtype=np.float64).T
    keep = np.unique(np.linspace(0, len(steps) - 1, _POINTS).astype(int))
    width = max(1, len(values) // 25)
    padded = np.pad(values, (width // 2, width - 1 - width // 2), mode="edge")
    smooth = np.convolve(padded, np.ones(width) / width, mode="valid")
    top = float(np.quantile(values, 0.995)) or 1.0
    span = max(steps[-1] - steps[0], 1)

    def line(points: Iterable[tuple[float, float]]) -> str:
        return " ".join(f"{100 * (x - steps[0]) / span:.2f},{100 - 100 * min(y / top, 1):.2f}" for x, y in points)

    return {
        "name": name,
        "raw": line(zip(steps[keep], values[keep], strict=True)),
        "smooth": line(zip(steps[keep], smooth[keep], strict=True)),
        "validation": line(validation),
        "top": top,
        "last": float(smooth[-1]),
        "last_validation": validation[-1][1] if validation else None,
        "first_step": int(steps[0]),
        "last_step": int(steps[-1]),
    }
