"""Intervals that respect patients, and the baseline that needs no picture."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

_CELLS = 4_000_000  # resampled patients held at once: bounds the memory at about 64 MB


@dataclass(frozen=True, slots=True)
class Interval:
    """A score with the ends of its interval."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """Return {"value", "low", "high"}."""
        return {"value": self.value, "low": self.low, "high": self.high}


def bootstrap(
    values: np.ndarray,
    clusters: Sequence[Hashable],
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> list[Interval]:
    """Return mean and percentile bootstrap interval of each metric, whole patients resampled with replacement.

    Questions about one patient are not independent; resampling them one by one would make the interval too narrow.
    All metrics see the same resamples. One patient alone gives an interval of no width.

    Args:
        values: per-sample scores [n, metrics].
        clusters: whose sample it is, n long.
        resamples: number of bootstrap draws.
        level: coverage, 0.95 for the 2.5th to the 97.5th percentile.
        seed: of the draws.

    Raises:
        ValueError: shapes disagree, or there is no sample.
    """
    if values.ndim != 2 or len(values) != len(clusters) or not len(values):
        raise ValueError(f"bootstrap needs values [n, metrics], n clusters, n > 0; got {values.shape}, {len(clusters)}")
    numbers: dict[Hashable, int] = {}
    owner = np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters])
    # A resample's mean is a ratio of sums over drawn patients, so only sums and counts per patient are needed.
    totals = np.zeros((len(numbers), values.shape[1] + 1))
    np.add.at(totals, owner, np.column_stack([values, np.ones(len(values))]))
    rng = np.random.default_rng(seed)
    step = max(1, _CELLS // len(numbers))
    means = []
    for start in range(0, resamples, step):
        drawn = rng.integers(len(numbers), size=(min(step, resamples - start), len(numbers)))
        sums = np.stack([column[drawn].sum(axis=1) for column in totals.T], axis=1)
        means.append(sums[:, :-1] / sums[:, -1:])
    tail = 50 * (1 - level)
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail], axis=0)
    return [Interval(float(v), float(a), float(b)) for v, a, b in zip(values.mean(axis=0), low, high, strict=True)]


def most_frequent(answers: Sequence[str]) -> str:
    """Return the answer given most often; among equals the first in the alphabet.

    Raises:
        ValueError: there is no answer.
    """
    if not answers:
        raise ValueError("no answers to take the most frequent of")
    counts = Counter(answers)
    return min(counts, key=lambda answer: (-counts[answer], answer))


def mean_box(shares: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Return the mean of boxes given in shares (0..1) of their frames.

    Raises:
        ValueError: there is no box, or boxes of 4 and 6 coordinates are mixed.
    """
    if len({len(box) for box in shares}) != 1:
        raise ValueError("the mean box needs at least one box, all with the same number of coordinates")
    return tuple(float(c) for c in np.mean(np.asarray(shares, dtype=np.float64), axis=0))
