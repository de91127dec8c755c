"""The table of metrics, and the one way to apply them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from medmvl.core.lookup import resolve

METRICS = {
    "accuracy_strict": "medmvl.eval.metrics.text:accuracy_strict",
    "token_f1": "medmvl.eval.metrics.text:token_f1",
    "rouge_l": "medmvl.eval.metrics.text:rouge_l",
    "brain_atlas_facts": "medmvl.eval.metrics.facts:brain_atlas_facts",
    "brain_atlas_3d_facts": "medmvl.eval.metrics.facts:brain_atlas_3d_facts",
    "iou_mean": "medmvl.eval.metrics.boxes:iou_mean",
    "acc_iou50": "medmvl.eval.metrics.boxes:acc_iou50",
}
"""`name -> "module:attribute"` of a function (prediction, reference) -> float in 0..1 for one sample."""


def per_sample(names: Sequence[str], predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, np.ndarray]:
    """Return the values of every sample, one float64 array [n] per metric.

    Args:
        names: metric names of `METRICS`, or dotted paths of the user's own functions.
        predictions: parsed answers; None (nothing could be parsed) scores 0 in every metric.
        references: parsed true answers, none of them None.

    Raises:
        LookupNameError: a name is unknown.
        ValueError: the two sequences differ in length.
    """
    if len(predictions) != len(references):
        raise ValueError(
            f"{len(predictions)} predictions against {len(references)} references; give one of each per sample"
        )
    values = {}
    for name in names:
        metric: Any = resolve(METRICS, name, "metric")
        pairs = zip(predictions, references, strict=True)
        values[name] = np.array([0.0 if p is None else metric(p, r) for p, r in pairs], dtype=np.float64)
    return values


def score(names: Sequence[str], predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
    """Return the mean over samples of every metric; NaN without samples."""
    values = per_sample(names, predictions, references)
    return {name: float(array.mean()) if array.size else float("nan") for name, array in values.items()}
