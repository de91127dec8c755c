"""Metrics of ranked options against scikit-learn, MedMNIST's evaluator and plain loops."""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from medmnist.evaluator import getACC, getAUC
from sklearn import config_context
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from medmvl.eval.metrics.metric import Answers
from medmvl.eval.metrics.table import lower_is_better, measure
from medmvl.eval.stats import bootstrap

NAMES = ["accuracy_options", "options_ranked", "calibration_error", "brier_score", "log_loss", "auc"]
Options = Mapping[str, float] | None


def answers(likelihoods: Sequence[Options], references: Sequence[str], questions: Sequence[str] = ()) -> Answers:
    return Answers([None] * len(references), references, questions, likelihoods)


def scores(names: Sequence[str], given: Answers, weights: np.ndarray | None = None) -> dict[str, float]:
    found, missing = measure(names, given)
    assert not missing, missing
    weights = np.ones(len(given.references)) if weights is None else weights
    return {name: statistics.scores(weights[None].astype(float))[0] for name, statistics in found.items()}


def softmax(logs: np.ndarray) -> np.ndarray:
    """Return probabilities, of which those stay equal that are summed in another order."""
    shifted = np.exp(logs - logs.max(axis=1, keepdims=True))
    return np.vectorize(lambda value: float(f"{value:.12g}"))(shifted / shifted.sum(axis=1, keepdims=True))


def draw_case(draw: np.random.Generator, classes: int) -> tuple[np.ndarray, np.ndarray, Answers]:
    """Return true classes, log-likelihoods and answers; every class occurs, and in half of the cases many are equal."""
    count = int(draw.integers(2 * classes, 40))
    true = np.concatenate([np.arange(classes), draw.integers(classes, size=count - classes)])
    logs = draw.normal(size=(count, classes)) * draw.choice([1, 2]) - 3
    if draw.random() < 0.5:
        logs = np.round(logs)
    options = [{f"Option {column}": value for column, value in enumerate(row)} for row in logs.tolist()]
    return true, logs, answers(options, [f"option {label}." for label in true])


@config_context(skip_parameter_validation=True, assume_finite=True)
def test_equal_to_scikit_learn() -> None:
    draw = np.random.default_rng(0)
    for _ in range(1000):
        classes = int(draw.integers(2, 6))
        true, logs, given = draw_case(draw, classes)
        chances = softmax(logs)
        found = scores(NAMES, given)
        columns = [1] if classes == 2 else range(classes)
        areas = [roc_auc_score(true == column, chances[:, column]) for column in columns]
        assert found["auc"] == pytest.approx(np.mean(areas), abs=1e-6)
        labels = range(classes)
        assert found["log_loss"] == pytest.approx(log_loss(true, chances, labels=labels), abs=1e-6)
        brier = brier_score_loss(true, chances, labels=labels, scale_by_half=False)
        assert found["brier_score"] == pytest.approx(brier, abs=1e-6)


@pytest.mark.parametrize(("task", "classes"), [("binary-class", 2), ("multi-class", 7)])
def test_equal_to_the_evaluator_of_medmnist(task: str, classes: int) -> None:
    draw = np.random.default_rng(1)
    for _ in range(100):
        true, logs, given = draw_case(draw, classes)
        chances = softmax(logs)
        found = scores(["accuracy_options", "auc"], given)
        assert found["auc"] == pytest.approx(getAUC(true[:, None], chances, task), abs=1e-6)
        assert found["accuracy_options"] == pytest.approx(getACC(true[:, None], chances, task), abs=1e-6)


def test_equal_to_the_evaluator_of_medmnist_with_many_labels() -> None:
    task, draw = "multi-label, binary-class", np.random.default_rng(2)
    for _ in range(30):
        pictures, labels = 30, 14
        true = draw.integers(2, size=(pictures, labels))
        true[:2] = [[0] * labels, [1] * labels]
        margins = np.round(draw.normal(size=true.shape) * 2, 1)
        asked = [(row, column) for row in range(pictures) for column in range(labels)]
        given = answers(
            [{"no": -1.0, "yes": -1.0 + margins[place]} for place in asked],
            ["yes" if true[place] else "no" for place in asked],
            [f"Does the picture show finding {column}?" for _, column in asked],
        )
        chances = np.round(1 / (1 + np.exp(-margins)), 12)
        found = scores(["accuracy_options", "auc_per_question"], given)
        assert found["auc_per_question"] == pytest.approx(getAUC(true, chances, task), abs=1e-6)
        assert found["accuracy_options"] == pytest.approx(getACC(true, chances, task), abs=1e-6)


def test_a_resample_scores_as_its_samples_do() -> None:
    draw = np.random.default_rng(3)
    names = [*NAMES, "auc_per_question"]
    for _ in range(100):
        _, _, given = draw_case(draw, int(draw.integers(2, 5)))
        given = answers(given.likelihoods, given.references, [str(place % 2) for place in range(len(given.references))])
        drawn = np.sort(draw.integers(len(given.references), size=3 * len(given.references)))
        weights = np.bincount(drawn, minlength=len(given.references))
        again = answers(
            *([part[place] for place in drawn] for part in (given.likelihoods, given.references, given.questions))
        )
        found, missing = measure(names, again)
        expected = {name: one.scores(np.ones((1, len(drawn))))[0] for name, one in found.items()}
        if not missing:
            assert scores(names, given, weights) == pytest.approx(expected, abs=1e-9)


def test_many_resamples_at_once_equal_one_by_one() -> None:
    draw = np.random.default_rng(4)
    _, _, given = draw_case(draw, 4)
    weights = draw.integers(0, 3, size=(50, len(given.references))).astype(float)
    (statistics,) = measure(["auc"], given)[0].values()
    assert statistics.scores(weights) == pytest.approx([statistics.scores(row[None])[0] for row in weights], abs=1e-12)


def test_auc_by_hand() -> None:
    # Likelihoods of "yes" among the sick: 2, 1; among the well: 1, 0. Of four pairs three are right, one is equal.
    given = answers([{"yes": float(x), "no": 0.0} for x in (2, 1, 1, 0)], ["yes", "yes", "no", "no"])
    assert scores(["auc"], given) == {"auc": 3.5 / 4}
    # The second sick patient drawn twice, the first well one not at all.
    assert scores(["auc"], given, np.array([1, 2, 0, 1])) == {"auc": 1.0}
    assert np.isnan(scores(["auc"], given, np.array([1, 1, 0, 0]))["auc"])


def test_certainty_makes_no_ties() -> None:
    # All probabilities are 1.0 in double precision, and yet these are in the right order.
    given = answers([{"yes": 0.0, "no": -x} for x in (90.0, 80.0, 70.0, 60.0)], ["yes", "yes", "no", "no"])
    assert scores(["auc"], given) == {"auc": 1.0}


def test_calibration_error_by_a_plain_loop() -> None:
    draw = np.random.default_rng(5)
    for _ in range(1000):
        true, logs, given = draw_case(draw, int(draw.integers(2, 5)))
        chances = softmax(logs)
        sure, hit = chances.max(axis=1), chances.argmax(axis=1) == true
        error = 0.0
        for low in range(15):
            inside = (sure > low / 15 + 1e-9) & (sure <= (low + 1) / 15 + 1e-9)
            if inside.any():
                error += inside.mean() * abs(sure[inside].mean() - hit[inside].mean())
        assert scores(["calibration_error"], given)["calibration_error"] == pytest.approx(error, abs=1e-6)


def test_errors_by_hand() -> None:
    nine, half = np.log([0.9, 0.1]), np.log([0.5, 0.5])
    given = answers([dict(zip("ab", row.tolist(), strict=True)) for row in (nine, nine, half)], ["a", "b", "b"])
    found = scores(NAMES, given)
    assert found["accuracy_options"] == pytest.approx(1 / 3)  # of two equal ones the first is the answer
    assert found["brier_score"] == pytest.approx((2 * 0.01 + 2 * 0.81 + 2 * 0.25) / 3)
    assert found["log_loss"] == pytest.approx(-np.log(0.9 * 0.1 * 0.5) / 3)
    assert found["calibration_error"] == pytest.approx(2 / 3 * abs(0.9 - 0.5) + 1 / 3 * 0.5)
    assert [name for name in NAMES if lower_is_better(name)] == ["calibration_error", "brier_score", "log_loss"]


def test_impossible_options_stay_finite() -> None:
    never = float("-inf")
    given = answers([{"a": never, "b": -1.0}, {"a": never, "b": -1.0}, {"a": -1.0, "b": never}], ["a", "b", "a"])
    found = scores(NAMES, given)
    assert all(np.isfinite(list(found.values())))
    assert found["log_loss"] == pytest.approx(-np.log(np.finfo(float).eps) / 3)
    assert found["auc"] == 0.75
    broken = [{"a": float("nan"), "b": -1.0}, {"a": never, "b": never}, None, {}]
    assert scores(["options_ranked"], answers([*broken, {"a": -1.0, "b": -2.0}], ["a"] * 5)) == {"options_ranked": 0.2}


def test_questions_without_likelihoods_are_wrong_and_told() -> None:
    sure = {"a": 0.0, "b": -2.0}
    given = answers([sure, sure, None, None], ["a", "b", "a", "b"])
    found = scores(NAMES, given)
    assert found["accuracy_options"] == 0.25 and found["options_ranked"] == 0.5
    ranked_alone = scores(NAMES, answers([sure, sure], ["a", "b"]))
    for name in ("calibration_error", "brier_score", "log_loss", "auc"):
        assert found[name] == pytest.approx(ranked_alone[name])
    # A part of the samples without any likelihoods has no such score, which is not 0, the best of errors.
    statistics, _ = measure(NAMES, given)
    intervals = bootstrap(statistics, range(4), resamples=50, members=[2, 3])
    assert set(intervals) == {"accuracy_options", "options_ranked"}
    assert intervals["accuracy_options"].value == 0
    some = bootstrap(statistics, range(4), resamples=200)
    json.dumps({name: one.to_dict() for name, one in some.items()}, allow_nan=False)
    assert set(some) == set(NAMES)


def test_the_order_of_options_decides_between_equal_ones_only() -> None:
    draw = np.random.default_rng(7)
    for _ in range(50):
        logs = draw.normal(size=(30, 4))
        references = draw.choice(list("abcd"), 30).tolist()
        ordered = [dict(zip("abcd", row, strict=True)) for row in logs.tolist()]
        shuffled = [{name: options[name] for name in draw.permutation(list(options))} for options in ordered]
        given = scores(NAMES, answers(shuffled, references))
        assert given == pytest.approx(scores(NAMES, answers(ordered, references)), abs=1e-12)
    equal = answers([{"b": 0.0, "a": 0.0}, {"a": 0.0, "b": 0.0}], ["a", "a"])
    assert scores(["accuracy_options"], equal) == {"accuracy_options": 0.5}


def test_options_may_differ_from_question_to_question() -> None:
    given = answers(
        [{"liver": -1.0, "heart": -2.0}, {"lung": -1.0, "liver": -3.0}, {"heart": -1.0, "lung": -1.5}],
        ["liver", "lung", "lung"],
    )
    found = scores(["accuracy_options", "auc"], given)
    assert found["accuracy_options"] == pytest.approx(2 / 3)
    liver = 1.0  # 0.73 against 0.12 and, where nobody could say it, 0
    lung = 1.0  # 0.88 and 0.38 against 0
    assert found["auc"] == pytest.approx((liver + lung) / 2)


def test_what_is_missing_is_named() -> None:
    for given in (Answers(["a"], ["a"]), answers([None, None], ["a", "b"]), answers([{}], ["a"])):
        found, missing = measure(NAMES, given)
        assert not found and set(missing) == set(NAMES)
        assert all("engine that knows them" in text and "`options`" in text for text in missing.values())
    sure = {"a": 0.0, "b": -1.0}
    found, missing = measure(NAMES, answers([sure, sure], ["a", "a"]))
    assert set(missing) == {"auc"} and "same true answer" in missing["auc"]
    _, missing = measure(["auc_per_question"], answers([sure, sure], ["a", "b"]))
    assert "texts are needed" in missing["auc_per_question"]
    _, missing = measure(["auc_per_question"], answers([sure, sure], ["a", "b"], ["Which?", "What?"]))
    assert "`auc` compares them all" in missing["auc_per_question"]
    _, missing = measure(["auc"], answers([sure, sure], ["a", "c"]))
    assert "sample 1: the true answer 'c' is none of the options" in missing["auc"]


def test_interval_of_the_auc_is_about_as_wide_as_theory_says() -> None:
    draw = np.random.default_rng(6)
    true = draw.random(600) < 0.4
    margins = draw.normal(size=600) + 1.2 * true
    given = answers([{"yes": float(x), "no": 0.0} for x in margins], np.where(true, "yes", "no").tolist())
    interval = bootstrap(measure(["auc"], given)[0], range(600), resamples=1000)["auc"]
    area = roc_auc_score(true, margins)
    # DeLong's variance from the placement of every sample.
    above = (margins[true][:, None] > margins[~true]).astype(float)
    spread = np.sqrt(above.mean(axis=1).var(ddof=1) / true.sum() + above.mean(axis=0).var(ddof=1) / (~true).sum())
    assert interval.value == pytest.approx(area, abs=1e-9)
    assert (interval.high - interval.low) / (2 * 1.96 * spread) == pytest.approx(1, abs=0.1)
