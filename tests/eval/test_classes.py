"""Scores over classes against scikit-learn and by hand."""

import warnings
from typing import Any

import numpy as np
import pytest
from sklearn import config_context
from sklearn.metrics import balanced_accuracy_score, f1_score

from medmvl.eval.metrics.metric import Answers
from medmvl.eval.metrics.table import measure
from medmvl.eval.stats import bootstrap, resampled

NAMES = ["balanced_accuracy", "macro_f1", "micro_f1", "weighted_f1"]
WORDS = ["left", "right", "both sides", "none of them", "unclear"]


def scores(predictions: list, references: list, weights: np.ndarray | None = None) -> dict[str, float]:
    found, missing = measure(NAMES, Answers(predictions, references))
    assert not missing
    weights = np.ones(len(references)) if weights is None else weights
    return {name: statistics.scores(weights[None].astype(float))[0] for name, statistics in found.items()}


def of_sklearn(predictions: Any, references: Any) -> dict[str, float]:
    numbers = {word: place for place, word in enumerate([*WORDS, "perhaps"])}  # faster than words
    predictions, references = (np.array([numbers[word] for word in words]) for words in (predictions, references))
    classes = sorted(set(references.tolist()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about answers that are no classes
        return {
            "balanced_accuracy": balanced_accuracy_score(references, predictions),
            **{
                f"{average}_f1": f1_score(references, predictions, labels=classes, average=average, zero_division=0)
                for average in ("macro", "micro", "weighted")
            },
        }


def cases() -> list[tuple[list[str], list[str]]]:
    draw = np.random.default_rng(0)
    made = []
    for _ in range(1000):
        count = int(draw.integers(1, 30))
        known = WORDS[: draw.integers(1, len(WORDS))]
        made.append((draw.choice(WORDS, count).tolist(), draw.choice(known, count).tolist()))
    return made


@config_context(skip_parameter_validation=True, assume_finite=True)
def test_equal_to_scikit_learn() -> None:
    for predictions, references in cases():
        assert scores(predictions, references) == pytest.approx(of_sklearn(predictions, references), abs=1e-9)


def test_a_resample_scores_as_its_samples_do() -> None:
    draw = np.random.default_rng(1)
    for predictions, references in cases()[:200]:
        weights = np.bincount(draw.integers(len(references), size=len(references)), minlength=len(references))
        drawn = [np.repeat(np.array(texts), weights).tolist() for texts in (predictions, references)]
        assert scores(predictions, references, weights) == pytest.approx(of_sklearn(*drawn), abs=1e-9)


def test_by_hand() -> None:
    # yes: 1 of 3 found, 1 of 1 right; no: 1 of 1 found, 1 of 2 right. One answer is no class, one says nothing.
    found = scores(["Yes.", "no", "maybe", "no"], ["yes", "yes", "yes", "no"])
    assert found["balanced_accuracy"] == pytest.approx((1 / 3 + 1) / 2)
    assert found["macro_f1"] == pytest.approx((2 * 1 / (1 + 3) + 2 * 1 / (2 + 1)) / 2)
    assert found["micro_f1"] == pytest.approx(2 * 2 / (3 + 4))
    assert found["weighted_f1"] == pytest.approx((3 * 0.5 + 1 * 2 / 3) / 4)
    # What cannot be read is as wrong as what is no class: neither is dropped.
    assert scores(["Yes.", "no", None, "no"], ["yes", "yes", "yes", "no"]) == found


def test_a_guesser_of_the_frequent_class_gains_nothing() -> None:
    found = scores(["no"] * 100, ["no"] * 95 + ["yes"] * 5)
    assert found["balanced_accuracy"] == 0.5
    assert found["macro_f1"] < 0.5 < found["weighted_f1"]
    assert found["micro_f1"] == pytest.approx(0.95)


def test_many_classes_stay_small() -> None:
    references = [f"answer {place % 4000}" for place in range(20_000)]
    found, _ = measure(NAMES, Answers(references[1:] + references[:1], references))
    assert found["macro_f1"].rows.nnz <= 3 * len(references)  # 240 million cells if it were dense
    interval = bootstrap({"macro_f1": found["macro_f1"]}, range(len(references)), resamples=20)["macro_f1"]
    assert interval.value == interval.high == 0


def test_intervals_cover_the_truth_of_clusters() -> None:
    draw = np.random.default_rng(2)
    references = draw.choice(["left", "right"], 400).tolist()
    predictions = [r if draw.random() < 0.8 else "perhaps" for r in references]
    (statistics,) = measure(["macro_f1"], Answers(predictions, references))[0].values()
    interval = bootstrap({"macro_f1": statistics}, range(400), resamples=100)["macro_f1"]
    assert interval.low < interval.value < interval.high
    plain = [
        of_sklearn(*(np.repeat(np.array(texts), row.astype(int)).tolist() for texts in (predictions, references)))
        for weights in resampled(range(400), 100, 0)
        for row in weights
    ]
    ends = np.percentile([one["macro_f1"] for one in plain], [2.5, 97.5])
    assert (interval.low, interval.high) == pytest.approx(tuple(ends), abs=1e-9)
