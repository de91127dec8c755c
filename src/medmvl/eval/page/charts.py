"""What the answers of a task look like as a whole: who is taken for whom, how sure they are, how long they are.

Answers come one at a time, twice over, and only counts of them are kept.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from medmvl.eval.metrics.text import normalise

_MOST_LABELS = 12  # true answers that a confusion matrix has room for
_LONGEST_LABEL = 60  # characters; longer answers are no labels
_EACH_LABEL = 3  # samples per label at least, where nothing says that the answers are a closed set
_CLOSED = ("classification", "closed", "choice")
_BINS = 15  # of a reliability diagram, as of the metric `calibration_error`
_MOST_WORDS = 5000  # longer answers count as so long
_BARS = 18  # of a histogram of lengths, at most
_NOTHING, _OTHER = None, ""  # what was given in place of a label; a label is never empty


class Charts:
    """Counts of one task's answers to its questions as they are.

    Every answer goes to `learn` first, and then, in a second pass, to `count`.

    Args:
        entry: the task's entry of scores.json.
    """

    def __init__(self, entry: Mapping[str, Any]) -> None:
        self._title, self._closed = entry["title"], entry["family"] in _CLOSED
        self._told_error = entry["metrics"].get("calibration_error")
        self._labels: dict[str, str] | None = {}
        self._n = 0
        self._pairs: Counter[tuple[str, str | None]] = Counter()
        self._said: Counter[int] = Counter()
        self._true: Counter[int] = Counter()
        self._empty = 0
        self._sure = [[0, 0.0, 0.0] for _ in range(_BINS)]

    def learn(self, record: Mapping[str, Any]) -> None:
        """Take note of a true answer."""
        self._n += 1
        truth = record["reference"]
        if self._labels is None:
            return
        label = normalise(truth) if isinstance(truth, str) else ""
        if not label or len(label) > _LONGEST_LABEL:
            self._labels = None
            return
        self._labels.setdefault(label, truth.strip())
        if len(self._labels) > _MOST_LABELS:
            self._labels = None

    def count(self, record: Mapping[str, Any]) -> None:
        """Count an answer."""
        answer, truth = record["answer"], record["reference"]
        self._said[min(len(answer.split()), _MOST_WORDS)] += 1
        self._empty += not answer.strip()
        if isinstance(truth, str):
            self._true[min(len(truth.split()), _MOST_WORDS)] += 1
        if self._labels is not None:
            given = _NOTHING if record["parsed"] is None else normalise(str(record["parsed"]))
            self._pairs[normalise(truth), given if given is _NOTHING or given in self._labels else _OTHER] += 1
        if record.get("likelihoods"):
            self._weigh(record["likelihoods"], truth)

    def _weigh(self, likelihoods: Mapping[str, float], truth: str) -> None:
        """Count how sure the model is of its likeliest option; options are one if `normalise` makes them equal."""
        options: dict[str, float] = {}
        for option, value in likelihoods.items():
            label = normalise(option)
            options[label] = max(options.get(label, -math.inf), value)
        best = max(options, key=options.__getitem__)
        confidence = 1 / sum(math.exp(value - options[best]) for value in options.values())
        bin_ = self._sure[min(max(math.ceil(confidence * _BINS) - 1, 0), _BINS - 1)]
        bin_[0] += 1
        bin_[1] += confidence
        bin_[2] += best == normalise(truth)

    def confusion(self) -> dict[str, Any] | None:
        """Return counts per true answer, for tasks whose true answers are a few labels.

        Further answers are "other", and those of which nothing could be parsed "none".
        """
        labels = sorted(self._labels or {})
        if len(labels) < 2 or not (self._closed or self._n >= _EACH_LABEL * len(labels)):
            return None
        names = self._labels or {}
        columns: list[str | None] = [*labels]
        columns += [extra for extra in (_OTHER, _NOTHING) if any(given == extra for _, given in self._pairs)]
        rows = []
        for truth in labels:
            counts = [self._pairs[truth, given] for given in columns]
            total = sum(counts)
            cells = [
                {"count": count, "heat": round(10 * count / total) if total else 0, "right": given == truth}
                for count, given in zip(counts, columns, strict=True)
            ]
            rows.append({"label": names[truth], "n": total, "cells": cells})
        kinds = {_OTHER: "other", _NOTHING: "none"}
        heads = [{"text": kinds.get(given) or names[given], "extra": given in kinds} for given in columns]
        room = sum(max(4, *map(len, str(head["text"]).split())) for head in heads)
        return {"title": self._title, "columns": heads, "rows": rows, "room": room}

    def calibration(self) -> dict[str, Any] | None:
        """Return the reliability diagram: how often the most likely option is right among those of one confidence."""
        n = sum(int(count) for count, _, _ in self._sure)
        if not n:
            return None
        most = max(count for count, _, _ in self._sure)
        bins = [
            {
                "x": round(100 * place / _BINS, 2),
                "n": int(count),
                "share": round(100 * count / most, 1),
                "confidence": round(100 * sure / count, 1),
                "accuracy": round(100 * right / count, 1),
            }
            for place, (count, sure, right) in enumerate(self._sure)
            if count
        ]
        return {
            "title": self._title,
            "n": n,
            "bins": bins,
            "width": round(100 / _BINS, 2),
            "error": sum(abs(sure - right) for _, sure, right in self._sure) / n,
            "interval": self._told_error,
            "confidence": sum(sure for _, sure, _ in self._sure) / n,
            "accuracy": sum(right for _, _, right in self._sure) / n,
        }

    def lengths(self) -> dict[str, Any] | None:
        """Return how many words answers have, beside the true ones where these are texts."""
        if not self._n:
            return None
        both = self._said + self._true
        ceiling = max(_quantile(both, 0.99), 1)
        step = math.ceil((ceiling + 1) / _BARS)
        bars = ceiling // step + 1
        return {
            "title": self._title,
            "n": self._n,
            "mean": _mean(self._said),
            "median": _quantile(self._said, 0.5),
            "longest": max(self._said, default=0),
            "true_mean": _mean(self._true) if self._true else None,
            "true_median": _quantile(self._true, 0.5) if self._true else None,
            "empty": self._empty / self._n,
            "said": _histogram(self._said, step, bars),
            "true": _histogram(self._true, step, bars),
            "bars": bars,
            "ends": (0, bars * step - 1),
        }


def _mean(counts: Mapping[int, int]) -> float:
    total = sum(counts.values())
    return sum(words * count for words, count in counts.items()) / total if total else 0.0


def _quantile(counts: Mapping[int, int], share: float) -> int:
    """Return the smallest length that at least a share of all reach or stay below; 0 of nothing."""
    wanted, seen = share * sum(counts.values()), 0
    for words in sorted(counts):
        seen += counts[words]
        if seen >= wanted:
            return words
    return 0


def _histogram(counts: Mapping[int, int], step: int, bars: int) -> Sequence[float]:
    """Return the bars' heights as shares of 100 of the highest; the last one holds all that is longer."""
    heights = [0] * bars
    for words, count in counts.items():
        heights[min(words // step, bars - 1)] += count
    highest = max(heights, default=0) or 1
    return [round(100 * height / highest, 1) for height in heights]
