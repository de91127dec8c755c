"""Metrics against hand-checked numbers and independent packages."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medmvl.core.lookup import LookupNameError
from medmvl.eval.metrics.accuracy import accuracy_strict
from medmvl.eval.metrics.boxes import acc_iou50, iou
from medmvl.eval.metrics.facts import brain_atlas_3d_facts, brain_atlas_facts, facts
from medmvl.eval.metrics.metric import Answers
from medmvl.eval.metrics.table import measure


@pytest.mark.parametrize(
    ("prediction", "reference", "value"),
    [
        ("left", "left", 1),
        (" Left. ", "left", 1),
        ("LEFT\n", "left", 1),
        ("the left", "left", 0),  # contained is not equal
        ("left or right", "left", 0),
        ("", "left", 0),
        ("lef", "left", 0),
        ("small  bright\tlesion .", "Small bright lesion", 1),
    ],
)
def test_accuracy_strict(prediction: str, reference: str, value: float) -> None:
    assert accuracy_strict(prediction, reference) == value


def test_iou_by_hand() -> None:
    assert iou((0, 0, 10, 10), (0, 0, 10, 10)) == 1
    assert iou((0, 0, 10, 10), (10, 0, 20, 10)) == 0  # touching edges share nothing: corners are continuous, no +1
    assert iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(50 / 150)
    assert iou((0, 0, 0, 0, 0, 0), (0, 0, 0, 0, 0, 0)) == 0
    assert iou((0, 0, 0, 2, 2, 2), (1, 1, 1, 3, 3, 3)) == pytest.approx(1 / 15)
    assert acc_iou50((0, 0, 2, 1), (0, 0, 1, 1)) == 1  # exactly 0.5 counts
    with pytest.raises(ValueError, match="4 or 6"):
        iou((0, 0, 1, 1), (0, 0, 0, 1, 1, 1))


boxes = st.tuples(*[st.integers(0, 12)] * 4).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
)


@given(boxes, boxes)
def test_iou_counts_pixels(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    masks = []
    for x0, y0, x1, y1 in (a, b):
        mask = np.zeros((12, 12), bool)
        mask[y0:y1, x0:x1] = True
        masks.append(mask)
    union = (masks[0] | masks[1]).sum()
    assert iou(a, b) == pytest.approx((masks[0] & masks[1]).sum() / union if union else 0.0)
    assert iou(a, b) == pytest.approx(iou(b, a))


def test_facts_judge_what_a_report_says() -> None:
    truth = "Axial T1 image. There is a small bright lesion in the left frontal lobe."
    assert facts(truth) == {
        "plane": {"axial"},
        "contrast": {"t1"},
        "brightness": {"bright"},
        "size": {"small"},
        "side": {"left"},
        "region": {"frontal lobe"},
        "lesion": {"present"},
    }
    reworded = "This axial image shows a small bright lesion in the left frontal lobe."
    assert brain_atlas_facts(reworded, truth) == 1
    assert brain_atlas_facts(reworded.replace("left", "right"), truth) == pytest.approx(5 / 6)
    assert brain_atlas_facts(reworded.replace("left", "left and right"), truth) == pytest.approx(5 / 6)
    assert brain_atlas_facts("This axial image shows no lesion.", truth) == pytest.approx(1 / 6)
    normal = "Technique: axial T1. Findings: normal brain. Impression: no lesion."
    assert brain_atlas_facts("This axial image shows no lesion.", normal) == 1
    assert brain_atlas_facts(truth, normal) == pytest.approx(1 / 6)  # invention costs
    assert brain_atlas_facts("", normal) == 0


def test_facts_of_volumes_have_the_contrast_in_place_of_the_plane() -> None:
    truth = "FLAIR image. There is a large dark lesion in the right cerebellum."
    assert brain_atlas_3d_facts("This FLAIR image shows a large dark lesion in the right cerebellum.", truth) == 1
    assert brain_atlas_3d_facts(truth.replace("FLAIR", "T2"), truth) == pytest.approx(5 / 6)
    assert brain_atlas_3d_facts(f"Axial {truth}", truth) == 1  # a volume has no plane to be wrong about


def score(name: str, predictions: list, references: list) -> float:
    found, missing = measure([name], Answers(predictions, references))
    assert not missing
    return float(found[name].scores(np.ones((1, len(references))))[0])


def test_an_answer_without_anything_parsed_scores_nothing() -> None:
    texts = ["accuracy_strict", "token_f1", "rouge_l", "brain_atlas_facts", "brain_atlas_3d_facts"]
    found, _ = measure(texts, Answers(["no lesion", None, ""], ["no lesion"] * 3))
    for name, statistics in found.items():
        assert statistics.values is not None and statistics.values.tolist() == [1, 0, 0], name
    assert score("accuracy_strict", ["a", "b"], ["a", "a"]) == 0.5
    assert score("iou_mean", [None], [(0, 0, 1, 1)]) == 0.0
    with pytest.raises(LookupNameError, match="did you mean 'token_f1'"):
        score("tokenf1", ["a"], ["a"])
    with pytest.raises(ValueError, match="2 predictions against 1"):
        Answers(["a", "b"], ["a"])


def test_a_metric_of_the_users_own() -> None:
    assert score("math:dist", [(0.0, 0.0)], [(3.0, 4.0)]) == 5.0
