"""Options ranked by likelihood: is the true one ahead, how sure is the model, and may one believe it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medmvl.eval.metrics.metric import Answers, Family, Floats, Mean, MetricUnavailable, Statistics, Sums
from medmvl.eval.metrics.text import normalise

_BINS = 15
_SMALLEST = np.finfo(np.float64).eps  # a true option's probability in the log loss, at least; as in scikit-learn
_DIGITS = 9  # of numbers that are told apart: what differs by less has only been summed in another order
_ADVICE = (
    "no question has likelihoods of its options: take an engine that knows them (a bundle does, a file of predictions "
    "does not), and a task that names its `options`"
)


@dataclass(frozen=True)
class _Ranked:
    """The questions whose options were ranked, m of n.

    Attributes:
        places: of these questions among all, [m].
        total: n.
        names: of the options that any of them has, c long, those of the first question first.
        logs: log-probabilities of a question's options, which together have probability 1, [m, c]; -inf for an option
            that it has not.
        true: column of the true option, [m].
        hit: 1 where it is the likeliest, of equally likely ones the first in its question, else 0, [m].
    """

    places: NDArray[np.intp]
    total: int
    names: tuple[str, ...]
    logs: Floats
    true: NDArray[np.intp]
    hit: Floats

    @property
    def chances(self) -> Floats:
        """Probabilities of the options, [m, c]."""
        return np.exp(self.logs)

    @property
    def of_truth(self) -> Floats:
        """Log-probability of the true option, [m]."""
        return self.logs[np.arange(len(self.true)), self.true]

    def mean(self, values: Floats) -> Statistics:
        """Return the statistics of a mean over the ranked questions, values [m]."""
        if len(self.places) == self.total:
            return Mean(values)
        rows = np.zeros((self.total, 2))
        rows[self.places] = np.stack([values, np.ones_like(values)], axis=1)
        return Sums(rows, lambda sums: _share(sums[:, 0], sums[:, 1]))


def _ranked(answers: Answers) -> _Ranked:
    """Return the questions whose options were ranked; options are one if `normalise` makes them equal.

    Likelihoods of which one is no number, or all are 0 (log-likelihood -inf), rank nothing.

    Raises:
        MetricUnavailable: there are none; says what to do.
        ValueError: a true answer is none of its question's options.
    """
    found = [(place, options) for place, options in enumerate(answers.likelihoods) if options and _rank(options)]
    if not found:
        raise MetricUnavailable(_ADVICE)
    names: dict[str, int] = {}
    columns: dict[str, int] = {}  # the same few options come again and again
    for _, options in found:
        for option in options:
            if option not in columns:
                columns[option] = names.setdefault(normalise(option), len(names))
    logs = np.full((len(found), len(names)), -np.inf)
    true, best = np.empty((2, len(found)), dtype=np.intp)
    for row, (place, options) in enumerate(found):
        for option, value in options.items():
            logs[row, columns[option]] = max(logs[row, columns[option]], value)
        reference = str(answers.references[place])
        true[row] = names.get(normalise(reference), -1)
        if true[row] not in {columns[option] for option in options}:
            raise ValueError(f"sample {place}: the true answer {reference!r} is none of the options {list(options)}")
        best[row] = columns[max(options, key=lambda option: options[option])]
    logs -= np.logaddexp.reduce(logs, axis=1, keepdims=True)
    places = np.array([place for place, _ in found])
    return _Ranked(places, len(answers.references), tuple(names), logs, true, (best == true).astype(np.float64))


def _rank(options: Mapping[str, float]) -> bool:
    return math.isfinite(max(options.values())) and not any(map(math.isnan, options.values()))


def _share(part: Floats, whole: Floats) -> Floats:
    """Return part / whole, NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def _options(answers: Answers) -> dict[str, Statistics]:
    """Judge the ranking of options and the probabilities it gives them; those of a question add up to 1.

    A question whose options were not ranked is wrong for `accuracy_options`, which is MedMNIST's ACC (of
    equally likely options the first is the answer). The others, errors all of them, need probabilities and are about
    the ranked questions alone; `options_ranked` is their share.

    `calibration_error`: 15 bins of equal width (low, high] by the probability of the likeliest option; the gaps between
    mean probability and accuracy, weighted by the bins' sizes (ECE of Guo et al., 2017).
    `brier_score`: squared differences to 1 (true option) or 0, summed over the options, so 0 to 2 as Brier has it;
    scikit-learn halves it for two options. `log_loss`: minus the natural logarithm of the true option's probability.
    """
    ranked = _ranked(answers)
    chances, truth = ranked.chances, np.zeros_like(ranked.logs)
    truth[np.arange(len(truth)), ranked.true] = 1
    return {
        "accuracy_options": Mean(_among_all(ranked, ranked.hit)),
        "options_ranked": Mean(_among_all(ranked, np.ones_like(ranked.hit))),
        "calibration_error": _calibration_error(ranked, chances.max(axis=1)),
        "brier_score": ranked.mean(((chances - truth) ** 2).sum(axis=1)),
        "log_loss": ranked.mean(-np.maximum(ranked.of_truth, np.log(_SMALLEST))),
    }


def _among_all(ranked: _Ranked, values: Floats) -> Floats:
    spread = np.zeros(ranked.total)
    spread[ranked.places] = values
    return spread


def _calibration_error(ranked: _Ranked, sure: Floats) -> Sums:
    # Three equally likely options lie on the border of two bins; rounding keeps them together.
    bins = np.clip(np.ceil(np.round(sure * _BINS, _DIGITS)).astype(np.intp) - 1, 0, _BINS - 1)
    rows = np.zeros((ranked.total, _BINS + 1))
    rows[ranked.places, bins] = sure - ranked.hit
    rows[ranked.places, _BINS] = 1
    return Sums(rows, lambda sums: _share(np.abs(sums[:, :_BINS]).sum(axis=1), sums[:, _BINS]))


@dataclass(frozen=True)
class _Comparison:
    """Samples in the order of a score, lowest first, and which of them should be high.

    Attributes:
        order: places of the samples, [k].
        negative: 0 for those that should be high and 1 for the others, in that order, [k].
        positives: where in the order those stand that should be high, [p].
        below, upto: for each of them: how many of the order have a lower score, and how many no higher one, [p].
    """

    order: NDArray[np.intp]
    negative: Floats
    positives: NDArray[np.intp]
    below: NDArray[np.intp]
    upto: NDArray[np.intp]

    @classmethod
    def of(cls, places: NDArray[np.intp], scores: Floats, positive: NDArray[np.bool_]) -> "_Comparison":
        ranks = np.argsort(scores, kind="stable")
        ordered, high = scores[ranks], positive[ranks]
        mine = ordered[high]
        return cls(
            places[ranks],
            (~high).astype(np.float64),
            np.flatnonzero(high),
            np.searchsorted(ordered, mine, side="left"),
            np.searchsorted(ordered, mine, side="right"),
        )

    def area(self, weights: Floats) -> Floats:
        """Return the area under the curve [R], weights transposed [n, R]: pairs in the right order, equal ones half."""
        mine = weights[self.order]
        lower = np.zeros((len(mine) + 1, mine.shape[1]))
        np.cumsum(mine * self.negative[:, None], axis=0, out=lower[1:])
        high = mine[self.positives]
        pairs = np.einsum("pr,pr->r", high, lower[self.below] + lower[self.upto]) / 2
        return _share(pairs, high.sum(axis=0) * lower[-1])


@dataclass(frozen=True)
class Areas:
    """Mean over groups of the mean area under their ROC curves; an area without both kinds of samples is left out.

    Attributes:
        groups: comparisons of each group.
        values: None: a sample alone has no area.
    """

    groups: Sequence[Sequence[_Comparison]]
    values: None = None

    def scores(self, weights: Floats) -> Floats:
        """See `Statistics`."""
        columns = np.ascontiguousarray(weights.T)
        return _mean([_mean([one.area(columns) for one in group]) for group in self.groups])


def _mean(areas: Sequence[Floats]) -> Floats:
    """Return the mean over what is not NaN, and NaN where nothing is."""
    stacked = np.stack(areas)
    known = ~np.isnan(stacked)
    return _share(np.where(known, stacked, 0.0).sum(axis=0), known.sum(axis=0).astype(np.float64))


def _auc(answers: Answers) -> dict[str, Statistics]:
    """Area under the ROC curve of each class among the true answers against the others, mean over the classes.

    The score of a class is the probability of its option, 0 where a question has it not. With two options both classes
    have the same area: MedMNIST's AUC for binary and multi-class tasks.
    """
    ranked = _ranked(answers)
    odds = _log_odds(ranked.logs)
    areas = _one_against_rest(ranked, odds, np.arange(len(ranked.places)))
    if not areas:
        raise MetricUnavailable("all ranked questions have the same true answer, and one class alone has no AUC")
    return {"auc": Areas([areas])}


def _auc_per_question(answers: Answers) -> dict[str, Statistics]:
    """`auc` among the samples that are asked the same question, mean over the questions: MedMNIST's multi-label AUC.

    One yes/no question for each label then is what one column of scores is there.
    """
    ranked = _ranked(answers)
    if not answers.questions:
        raise MetricUnavailable("the questions' texts are needed to tell which samples are asked the same question")
    odds = _log_odds(ranked.logs)
    rows: dict[str, list[int]] = {}
    for row, place in enumerate(ranked.places):
        rows.setdefault(answers.questions[place], []).append(row)
    groups = [_one_against_rest(ranked, odds, np.array(members)) for members in rows.values()]
    groups = [areas for areas in groups if areas]
    if not groups:
        raise MetricUnavailable("no question has different true answers for different samples; `auc` compares them all")
    return {"auc_per_question": Areas(groups)}


def _one_against_rest(ranked: _Ranked, odds: Floats, rows: NDArray[np.intp]) -> list[_Comparison]:
    """Return a comparison for each class among the true answers of some ranked questions, [] if there is one class."""
    places, true = ranked.places[rows], ranked.true[rows]
    classes = np.unique(true)
    if len(classes) < 2:
        return []
    if len(ranked.names) == 2:
        classes = classes[1:]  # both have the same area
    return [_Comparison.of(places, odds[rows, column], true == column) for column in classes]


def _log_odds(logs: Floats) -> Floats:
    """Return log(p / (1 - p)) for log-probabilities [m, c]: in the order of p, yet distinct where p is all but 1."""
    top = logs.argmax(axis=1, keepdims=True)
    others = logs.copy()
    np.put_along_axis(others, top, -np.inf, axis=1)
    with np.errstate(divide="ignore"):
        odds = logs - np.log1p(-np.exp(logs))  # exact for all options but the likeliest
    likeliest = np.take_along_axis(logs, top, axis=1) - np.logaddexp.reduce(others, axis=1, keepdims=True)
    np.put_along_axis(odds, top, likeliest, axis=1)
    return np.round(odds, _DIGITS)


_ERRORS = frozenset({"calibration_error", "brier_score", "log_loss"})
OPTIONS = Family(_options, lower_is_better=_ERRORS, unbounded=frozenset({"brier_score", "log_loss"}))
AUC = Family(_auc)
AUC_PER_QUESTION = Family(_auc_per_question)
