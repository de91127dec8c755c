"""Intervals and tests that respect patients, and the baseline that needs no picture."""

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

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


@dataclass(frozen=True, slots=True)
class Paired:
    """Two systems on the same samples.

    Attributes:
        first, second: their scores.
        difference: second minus first.
        p: two-sided p-value of no difference.
        detectable: how large a difference must be to be found four times in five with these samples; None where there
            is one patient alone.
    """

    first: Interval
    second: Interval
    difference: Interval
    p: float
    detectable: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return it as nested dicts."""
        return asdict(self)


def paired(
    first: Mapping[str, Statistics],
    second: Mapping[str, Statistics],
    clusters: Sequence[Hashable],
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Paired]:
    """Return the paired bootstrap of two systems: both are scored on the same resamples of whole patients.

    What makes a sample hard for both cancels out in the difference, which is therefore known far better than two
    intervals side by side suggest.

    The p-value is twice the share of resamples whose difference lies on the other side of 0 (one is added to both
    counts), so that it agrees with the interval. It is never below 2^(1-k) for k patients, the smallest that an exact
    test could give: with two patients nothing is ever shown.

    Args:
        first, second: name -> statistics of the same n samples; metrics that both have are compared.
        clusters: whose sample it is, n long.
        resamples: number of bootstrap draws.
        level: coverage of the intervals; also of the test that `detectable` is about.
        seed: of the draws.

    Returns:
        Name -> comparison; a metric without a score on the samples (NaN) is left out.

    Raises:
        ValueError: there is no sample.
    """
    if not len(clusters):
        raise ValueError("a comparison needs at least one sample that both systems answered, got none")
    sides = {name: (first[name], second[name]) for name in first if name in second}
    drawn: dict[str, list[Floats]] = {name: [] for name in sides}
    for weights in resampled(clusters, resamples, seed):
        for name, both in sides.items():
            drawn[name].append(np.stack([side.scores(weights) for side in both]))
    whole = np.ones((1, len(clusters)))
    found = {}
    for name, both in sides.items():
        values = np.array([side.scores(whole)[0] for side in both])
        if not np.isnan(values).any():
            found[name] = _paired(values, np.concatenate(drawn[name], axis=1), len(set(clusters)), level)
    return found


def _paired(values: Floats, drawn: Floats, patients: int, level: float) -> Paired:
    """Compare two scores [2], drawn again [2, R]."""
    drawn = drawn[:, ~np.isnan(drawn).any(axis=0)]
    differences = np.round(drawn[1] - drawn[0], 12)
    beyond = 1 + min((differences <= 0).sum(), (differences >= 0).sum())
    normal = NormalDist()
    margin = normal.inv_cdf((1 + level) / 2) + normal.inv_cdf(0.8)
    return Paired(
        _interval(values[0], drawn[0], level),
        _interval(values[1], drawn[1], level),
        _interval(values[1] - values[0], differences, level),
        float(min(1.0, max(2 * beyond / (1 + len(differences)), 2.0 ** (1 - patients)))),
        float(np.round(margin * differences.std(), 12)) if patients > 1 and len(differences) else None,
    )


def mcnemar(first_alone: int, second_alone: int) -> float:
    """Return the two-sided p-value of McNemar's exact test.

    Args:
        first_alone: samples that only the first system has right.
        second_alone: samples that only the second one has right.

    Samples count as independent; where patients have several, `paired` is the one to trust.
    """
    from scipy.stats import binomtest

    discordant = first_alone + second_alone
    return float(binomtest(first_alone, discordant).pvalue) if discordant else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's method: one below 0.05 is wrong in 5 % of all families."""
    order = np.argsort(p_values, kind="stable")
    steps = np.asarray(p_values, dtype=np.float64)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected.tolist()


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
