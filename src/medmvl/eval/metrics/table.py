"""The table of metrics, and the one way to apply them."""

from collections.abc import Iterable, Mapping
from typing import Any

from medmvl.core.lookup import resolve
from medmvl.eval.metrics.metric import Answers, Family, MetricUnavailable, Statistics, each

METRICS = {
    "accuracy_strict": "medmvl.eval.metrics.text:accuracy_strict",
    "token_f1": "medmvl.eval.metrics.text:token_f1",
    "rouge_l": "medmvl.eval.metrics.text:rouge_l",
    "brain_atlas_facts": "medmvl.eval.metrics.facts:brain_atlas_facts",
    "brain_atlas_3d_facts": "medmvl.eval.metrics.facts:brain_atlas_3d_facts",
    "iou_mean": "medmvl.eval.metrics.boxes:iou_mean",
    "acc_iou50": "medmvl.eval.metrics.boxes:acc_iou50",
}
"""`name -> "module:attribute"` of a function (prediction, reference) -> float for one sample, or of a `Family`."""

Options = Mapping[str, Mapping[str, Any]]
"""Metric name -> its options."""


def find(name: str) -> Any:
    """Return the function or `Family` behind a metric's name or dotted path.

    Raises:
        LookupNameError: no such metric; says the nearest and all names.
    """
    return resolve(METRICS, name, "metric")


def measure(
    names: Iterable[str], answers: Answers, options: Options | None = None
) -> tuple[dict[str, Statistics], dict[str, str]]:
    """Apply metrics, those of one family together.

    Args:
        names: metric names of `METRICS`, or dotted paths of the user's own functions.
        answers: what was said and what is true.
        options: metric name -> its options.

    Returns:
        name -> statistics, and name -> what is missing for those that cannot be computed here.

    Raises:
        LookupNameError: a name is unknown.
    """
    found: dict[str, Statistics] = {}
    missing: dict[str, str] = {}
    families: dict[tuple[int, str], Mapping[str, Statistics] | str] = {}
    for name in names:
        metric = find(name)
        if not isinstance(metric, Family):
            found[name] = each(metric, answers)
            continue
        given = dict((options or {}).get(name, {}))
        key = (id(metric), repr(sorted(given.items())))
        if key not in families:
            try:
                families[key] = metric.measure(answers, **given)
            except MetricUnavailable as error:
                families[key] = str(error)
        made = families[key]
        if isinstance(made, str):
            missing[name] = made
        else:
            found[name] = made[name]
    return found, missing


def lower_is_better(name: str) -> bool:
    """Tell whether a metric is an error."""
    metric = find(name)
    return isinstance(metric, Family) and name in metric.lower_is_better
