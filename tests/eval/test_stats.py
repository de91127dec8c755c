"""Bootstrap intervals and baselines."""

from collections.abc import Hashable, Sequence

import numpy as np
import pytest

from medmvl.eval.metrics.metric import Mean
from medmvl.eval.stats import Interval, mean_box, most_frequent
from medmvl.eval.stats import bootstrap as bootstrap_of


def bootstrap(values: np.ndarray, clusters: Sequence[Hashable], **options: int) -> list[Interval]:
    columns = {str(place): Mean(column) for place, column in enumerate(values.T)}
    return list(bootstrap_of(columns, clusters, **options).values())


def test_interval_of_independent_samples_is_the_binomial_one() -> None:
    rng = np.random.default_rng(1)
    values = (rng.random((600, 1)) < 0.7).astype(float)
    (one,) = bootstrap(values, range(600), resamples=4000, seed=0)
    spread = 1.96 * np.sqrt(values.mean() * (1 - values.mean()) / 600)
    assert one.value == pytest.approx(values.mean(), abs=1e-12)
    assert one.low == pytest.approx(one.value - spread, abs=0.006)
    assert one.high == pytest.approx(one.value + spread, abs=0.006)


def test_patients_are_drawn_whole() -> None:
    # Ten answers per patient, all right or all wrong: only 30 independent observations, not 300.
    values = np.repeat(np.arange(30) % 2, 10).astype(float)[:, None]
    (clustered,) = bootstrap(values, np.repeat(np.arange(30), 10).tolist(), seed=0)
    (naive,) = bootstrap(values, range(300), seed=0)
    ratio = (clustered.high - clustered.low) / (naive.high - naive.low)
    assert ratio == pytest.approx(np.sqrt(10), rel=0.15)
    assert clustered.value == naive.value == 0.5


def test_unequal_patients_match_a_plain_loop() -> None:
    rng = np.random.default_rng(2)
    owners = rng.integers(0, 12, 80).tolist()
    values = rng.random((80, 2))
    found = bootstrap(values, owners, resamples=3000, seed=5)
    names = sorted(set(owners))
    means = []
    for _ in range(3000):
        rows = [i for name in rng.choice(names, len(names)) for i, owner in enumerate(owners) if owner == name]
        means.append(values[rows].mean(axis=0))
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    for metric, one in enumerate(found):
        assert one.low == pytest.approx(low[metric], abs=0.01)
        assert one.high == pytest.approx(high[metric], abs=0.01)


def test_seeded_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random((50, 3))
    owners = [i % 7 for i in range(50)]
    first = bootstrap(values, owners, seed=3)
    assert first == bootstrap(values, owners, seed=3)
    assert first != bootstrap(values, owners, seed=4)
    assert all(one.low <= one.value <= one.high for one in first)
    monkeypatch.setattr("medmvl.eval.stats._CELLS", 70)  # many small steps instead of one
    assert bootstrap(values, owners, seed=3) == first


def test_one_patient_has_no_width_and_none_is_an_error() -> None:
    (one,) = bootstrap(np.array([[0.0], [1.0]]), ["a", "a"])
    assert (one.low, one.value, one.high) == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="at least one sample"):
        bootstrap(np.zeros((0, 1)), [])


def test_baselines() -> None:
    assert most_frequent(["no", "yes", "yes"]) == "yes"
    assert most_frequent(["b", "a"]) == "a"
    assert mean_box([(0, 0, 0.5, 1), (0.5, 0, 1, 1)]) == (0.25, 0, 0.75, 1)
    with pytest.raises(ValueError, match="at least one"):
        mean_box([])
    with pytest.raises(ValueError, match="no answers"):
        most_frequent([])
