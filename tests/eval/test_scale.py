"""How metrics are written and drawn: shares in percent, errors and open scales as they are."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medmvl.eval.metrics.metric import Family
from medmvl.eval.scale import Scale, scale_of


def interval(*values: float) -> dict[str, float]:
    return dict(zip(("value", "low", "high"), values, strict=True))


def test_shares_are_percent() -> None:
    found = scale_of("iou_mean", [interval(0.873, 0.8, 0.91)])
    assert found == Scale() and found.text(0.873) == "87.3" and found.ends == ("0", "100 %") and found.mark == ""
    assert found.better(0.9, 0.8)


def test_scores_beyond_one_are_written_as_they_are() -> None:
    found = scale_of("of_another:package", [interval(3.41, 2.9, 4.2), interval(0.2, 0.1, 0.3)])
    assert (found.low, found.high, found.percent) == (0, 5, False)
    assert found.text(3.41) == "3.41" and found.place(2.5) == 0.5 and found.ends == ("0", "5")
    below = scale_of("of_another:package", [interval(-0.3, -0.4, 0.2)])
    assert (below.low, below.high) == (-0.5, 0.2) and below.text(-0.3) == "-0.300"


def test_errors_are_marked_and_no_percentages() -> None:
    found = scale_of("log_loss", [interval(0.41, 0.3, 0.5)])
    assert found.text(0.41) == "0.410" and found.mark == " ↓" and found.better(0.3, 0.4)
    assert scale_of("log_loss", [interval(0.41, 0.3, 1.5)]).high == 2
    assert scale_of("cider", [interval(0.8, 0.7, 0.9)]).text(0.8) == "0.800"


def test_a_file_of_scores_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "surprise.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert scale_of("surprise:metric", [interval(0.5, 0.4, 0.6)]).percent
    family = Family(lambda answers: {}, lower_is_better=frozenset({"surprise:metric"}))
    monkeypatch.setitem(sys.modules, "surprise", SimpleNamespace(metric=family))  # as after it was measured
    assert scale_of("surprise:metric", [interval(0.5, 0.4, 0.6)]).falls


def test_what_says_nothing_breaks_nothing() -> None:
    assert scale_of("nowhere", []) == Scale()
    assert scale_of("iou_mean", [interval(0.5, float("nan"), 0.6)]).percent


@given(st.lists(st.floats(-1e6, 1e6), min_size=1))
def test_every_value_lies_on_its_axis(values: list[float]) -> None:
    found = scale_of("of_another:package", [interval(value, value, value) for value in values])
    near = 1e-6 * max(1, *map(abs, values), 0)
    assert found.low <= min(values) + near and found.high >= max(values) - near
    assert found.high > found.low and all(0 <= found.place(value) <= 1 for value in values)
