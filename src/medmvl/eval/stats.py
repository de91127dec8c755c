"""Intervals that respect patients, and the baseline that needs no picture."""

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medmvl.eval.metrics.metric import Floats, Statistics

_CELLS = 4_000_000  # weights held at once: bounds the memory at about 100 MB


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
    metrics: Mapping[str, Statistics],
    clusters: Sequence[Hashable],
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    members: Sequence[int] | None = None,
) -> dict[str, Interval]:
    """Return value and percentile bootstrap interval of each metric, whole patients resampled with replacement.

    Questions about one patient are not independent; resampling them one by one would make the interval too narrow.
    All metrics see the same resamples. One patient alone gives an interval of no width. Resamples without a score
    (NaN, see `Statistics`) are left out, and so is a metric that has none on the samples themselves.

    Args:
        metrics: name -> statistics of n samples.
        clusters: whose sample it is, n long.
        resamples: number of bootstrap draws.
        level: coverage, 0.95 for the 2.5th to the 97.5th percentile.
        seed: of the draws.
        members: places of the samples that count; None: all. What a metric knows of the others, such as how rare a
            word is, stays.

    Raises:
        ValueError: there is no sample.
    """
    places = np.arange(len(clusters)) if members is None else np.asarray(members)
    if not len(places):
        raise ValueError("bootstrap needs at least one sample, got none")
    drawn: dict[str, list[Floats]] = {name: [] for name in metrics}
    for drawn_weights in resampled([clusters[place] for place in places], resamples, seed):
        weights = _spread(drawn_weights, places, len(clusters))
        for name, statistics in metrics.items():
            drawn[name].append(statistics.scores(weights))
    whole = _spread(np.ones((1, len(places))), places, len(clusters))
    values = {name: float(statistics.scores(whole)[0]) for name, statistics in metrics.items()}
    return {
        name: _interval(value, np.concatenate(drawn[name]), level)
        for name, value in values.items()
        if not np.isnan(value)
    }


def _interval(value: float, drawn: Floats, level: float) -> Interval:
    """Return a value with the percentiles of what was drawn."""
    known = drawn[~np.isnan(drawn)]
    tail = 50 * (1 - level)
    ends = np.percentile(known, [tail, 100 - tail]) if len(known) else [value, value]
    # Sums of matrix products differ in their last bits with the shape of the matrices; these say nothing.
    return Interval(*np.round([value, *ends], 12).tolist())


def _spread(weights: Floats, places: NDArray[np.intp], total: int) -> Floats:
    """Return weights [R, members] as weights [R, total], 0 for the samples that do not count."""
    if len(places) == total:
        return weights
    spread = np.zeros((len(weights), total))
    spread[:, places] = weights
    return spread


def resampled(clusters: Sequence[Hashable], resamples: int, seed: int) -> Iterator[Floats]:
    """Yield weights [R, n] for `Statistics.scores`, `resamples` rows in all: how often a draw holds each sample.

    Whole clusters are drawn, as many as there are; the rows depend on nothing but clusters, count and seed.
    """
    numbers: dict[Hashable, int] = {}
    owner = np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters])
    rng = np.random.default_rng(seed)
    step = max(1, _CELLS // len(clusters))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = rng.integers(len(numbers), size=(size, len(numbers))) + len(numbers) * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * len(numbers)).reshape(size, -1)
        yield counts[:, owner].astype(np.float64)


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
