"""F1 over the labels of reports, from which the F1 of any resample follows."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmvl.eval.metrics.metric import Floats, Sums

Bools = NDArray[np.bool_]


def micro_f1(said: Bools, true: Bools) -> Sums:
    """Return F1 over all labels of all samples together, as scikit-learn's average="micro"; 0 if nobody has any.

    Args:
        said: the answers' labels, [n, labels].
        true: the references' labels, [n, labels].
    """
    return _sums(said, true, lambda counts: _f1(counts.sum(axis=2)))


def macro_f1(said: Bools, true: Bools) -> Sums:
    """Return the mean F1 of the labels, as scikit-learn's average="macro": a label that nobody has counts as 0."""
    return _sums(said, true, lambda counts: _f1(counts).mean(axis=1))


def weighted_f1(said: Bools, true: Bools) -> Sums:
    """Return the labels' F1 weighted by how many references have them, as scikit-learn's average="weighted"."""
    return _sums(said, true, _weighted)


def _weighted(counts: Floats) -> Floats:
    support = counts[:, 0] + counts[:, 2]
    return _ratio((_f1(counts) * support).sum(axis=1), support.sum(axis=1))


def _sums(said: Bools, true: Bools, score: Callable[[Floats], Floats]) -> Sums:
    """Keep each sample's hits, false alarms and misses per label; `score` gets their sums [R, 3, labels]."""
    labels = said.shape[1]
    rows = np.concatenate([said & true, said & ~true, ~said & true], axis=1).astype(np.float64)
    return Sums(rows, lambda sums: score(sums.reshape(len(sums), 3, labels)))


def _f1(counts: Floats) -> Floats:
    """Return F1 of counts [R, 3, ...]; 0 where all are 0."""
    hits = 2 * counts[:, 0]
    return _ratio(hits, hits + counts[:, 1] + counts[:, 2])


def _ratio(above: Floats, below: Floats) -> Floats:
    found: Any = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return found
