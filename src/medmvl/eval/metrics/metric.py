"""What a metric is: statistics of every sample, from which the score of any resample follows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Floats = NDArray[np.float64]


class MetricUnavailable(ValueError):
    """A metric that cannot be computed here: a package, a model or the answers' likelihoods are missing.

    The message says what to install, or what to give. The other metrics go on.
    """


@dataclass(frozen=True)
class Answers:
    """What a model said to n questions, and what is true.

    Attributes:
        predictions: parsed answers, n long; None where nothing could be parsed.
        references: parsed true answers, n long, none of them None.
        questions: the questions' texts, n long, or empty where nobody needs them.
        likelihoods: for each question: option -> log-likelihood of that option as the answer; None where they were
            not asked for; empty where no question has them. The true answer is one of the options.
    """

    predictions: Sequence[Any]
    references: Sequence[Any]
    questions: Sequence[str] = ()
    likelihoods: Sequence[Mapping[str, float] | None] = ()

    def __post_init__(self) -> None:
        n = len(self.references)
        if len(self.predictions) != n:
            raise ValueError(f"{len(self.predictions)} predictions against {n} references; give one of each per sample")
        for name in ("questions", "likelihoods"):
            if len(getattr(self, name)) not in (0, n):
                raise ValueError(f"{len(getattr(self, name))} {name} for {n} samples; give one per sample, or none")

    def texts(self) -> tuple[list[str], list[str]]:
        """Return predictions and references as texts; an answer of which nothing could be parsed is ""."""
        return ["" if p is None else str(p) for p in self.predictions], [str(r) for r in self.references]


class Statistics(Protocol):
    """What a metric keeps of n samples.

    Attributes:
        values: the metric of every sample alone, float64 [n]; None where one sample alone has no value.
    """

    @property
    def values(self) -> Floats | None: ...

    def scores(self, weights: Floats) -> Floats:
        """Return the score [R] of R resamples, each given by how often it holds every sample, weights [R, n].

        NaN where a resample has no score, as answers of one class alone have no AUC.
        """
        ...


@dataclass(frozen=True)
class Mean:
    """A score that is the mean of the samples' values, float64 [n]."""

    values: Floats

    def scores(self, weights: Floats) -> Floats:
        """See `Statistics`."""
        return (weights @ self.values) / weights.sum(axis=1)


@dataclass(frozen=True)
class Sums:
    """A score made of sums over samples, as corpus BLEU is of matched and possible n-grams.

    Attributes:
        rows: float64 [n, k], what is summed; sparse where k is large and most of it is 0.
        combine: sums [R, k] -> scores [R].
        values: the metric of every sample alone, where it has one.
    """

    rows: "Floats | csr_array"
    combine: Callable[[Floats], Floats]
    values: Floats | None = None

    def scores(self, weights: Floats) -> Floats:
        """See `Statistics`."""
        return self.combine(weights @ self.rows)


@dataclass(frozen=True)
class Family:
    """Metrics that are computed together, because they share their work.

    Attributes:
        measure: (answers, **options) -> metric name -> its statistics; raises `MetricUnavailable`.
        options: names of the options it takes, each with a line about it; a task or a caller gives them.
        lower_is_better: names of those of its metrics that are errors.
        unbounded: names of those whose scores are no shares of 1 and may pass it, such as CIDEr.
        sends_away: for metrics that ask a model behind an endpoint: (options) -> whether it is on another machine.
            `measure` is then also given `allow_remote`, and `keep`, a folder for what was asked; neither is an option,
            so that no file of tasks or scores can set it.
    """

    measure: Callable[..., Mapping[str, Statistics]]
    options: Mapping[str, str] = field(default_factory=dict)
    lower_is_better: frozenset[str] = frozenset()
    unbounded: frozenset[str] = frozenset()
    sends_away: Callable[[Mapping[str, Any]], bool] | None = None


def each(function: Callable[[Any, Any], float], answers: Answers) -> Mean:
    """Return the statistics of a function (prediction, reference) -> float; an answer without anything parsed has 0."""
    pairs = zip(answers.predictions, answers.references, strict=True)
    return Mean(np.array([0.0 if p is None else function(p, r) for p, r in pairs], dtype=np.float64))


def mean_of(values: Floats, counted: Floats) -> Sums:
    """Return the statistics of a mean over those samples that count; 0 where none does.

    Args:
        values: float64 [n].
        counted: 1 where a sample counts and 0 where it does not, [n].
    """
    rows = np.stack([values * counted, counted], axis=1)
    return Sums(rows, lambda sums: sums[:, 0] / np.maximum(sums[:, 1], 1), rows[:, 0])
