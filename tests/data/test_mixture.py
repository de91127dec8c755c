"""The order of samples: every sample once, weights kept, exact steps, identical continuation."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medmvl.data.mixture import Mixture, Position


class FakeStore:
    """As much of a SampleStore as planning needs."""

    def __init__(self, media_keys):
        self.media_keys = np.array(media_keys, np.uint64)
        self.hash, self.task_names, self.path = str(media_keys), ["t"], "fake.jsonl"

    def __len__(self):
        return len(self.media_keys)


keys = st.lists(st.integers(0, 12), min_size=2, max_size=60)
weights = st.sampled_from([0.5, 1, 1.5, 2, 3])


@st.composite
def mixtures(draw, weight=weights):
    stores = draw(st.lists(keys, min_size=1, max_size=3))
    sources = [(FakeStore(media), draw(weight)) for media in stores]
    return Mixture(sources, draw(st.integers(1, 9)), draw(st.integers(1, 80)), draw(st.integers(0, 5)))


def flat(groups):
    return [item for group in groups for item in group]


@given(mixtures(weight=st.just(1)), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_at_weight_one_every_sample_comes_exactly_once_in_every_epoch(mixture, epoch):
    expected = {(source, row) for source, store in enumerate(mixture.stores) for row in range(len(store))}
    planned = flat(mixture.plan(epoch))
    assert len(planned) == len(mixture) and set(planned) == expected


@given(mixtures())
@settings(max_examples=60, deadline=None)
def test_over_two_epochs_every_sample_comes_as_often_as_its_weight_says(mixture):
    counts = Counter(flat(mixture.plan(0)) + flat(mixture.plan(1)))
    for source, (store, share) in enumerate(zip(mixture.stores, mixture.samples_per_epoch, strict=True)):
        low, rest = divmod(2 * share, len(store))
        seen = Counter(counts[source, row] for row in range(len(store)))
        assert seen == Counter({low: len(store) - rest} | ({low + 1: rest} if rest else {}))


@given(mixtures())
@settings(max_examples=60, deadline=None)
def test_a_group_is_one_medium_of_one_source_and_small_enough(mixture):
    for group in mixture.plan(0):
        assert 1 <= len(group) <= mixture._sources[0]._largest
        source = group[0][0]
        media = {int(mixture.stores[source].media_keys[row]) for _, row in group}
        assert {number for number, _ in group} == {source} and len(media) == 1
        assert len(group) == 1 or media != {0}


@given(mixtures(), st.integers(1, 20), st.integers(0, 30))
@settings(max_examples=80, deadline=None)
def test_steps_are_exact_and_resume_anywhere_identically(mixture, batch, stop):
    steps = list(islice(mixture.steps(batch), stop + 8))
    assert all(sum(map(len, step.groups)) == batch for step in steps)
    start = steps[stop - 1].after if stop else Position()
    assert list(islice(mixture.steps(batch, start), 8)) == steps[stop:]


@given(mixtures(), st.integers(0, 2), st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_an_epoch_goes_on_from_any_sample(mixture, epoch, start):
    assert flat(mixture.plan(epoch, start)) == flat(mixture.plan(epoch))[start:]


@given(mixtures(), st.integers(1, 16))
@settings(max_examples=40, deadline=None)
def test_the_steps_of_an_epoch_are_its_plan(mixture, batch):
    steps = list(islice(mixture.steps(batch), -(-len(mixture) // batch)))
    shown = [item for step in steps for item in flat(step.groups)]
    assert shown[: len(mixture)] == flat(mixture.plan(0)) and len(shown) - len(mixture) < batch


def test_sources_are_mixed_in_proportion_all_along():
    mixture = Mixture([(FakeStore(range(1, 1001)), 1), (FakeStore(range(1, 501)), 4)], seed=3)
    planned = flat(mixture.plan(0))
    for begin in range(0, 3000, 300):
        share = np.mean([source == 0 for source, _ in planned[begin : begin + 300]])
        assert abs(share - 1 / 3) < 0.02


def test_a_new_epoch_and_a_new_seed_change_the_order_and_nothing_else_does():
    stores = [(FakeStore(np.repeat(np.arange(1, 40), 7)), 1)]
    first = list(Mixture(stores, seed=1).plan(0))
    assert first == list(Mixture(stores, seed=1).plan(0))
    assert first != list(Mixture(stores, seed=1).plan(1))
    assert first != list(Mixture(stores, seed=2).plan(0))
    assert Mixture(stores, seed=1).fingerprint != Mixture(stores, seed=2).fingerprint


def test_the_samples_of_an_image_stay_together_up_to_the_limit():
    mixture = Mixture([(FakeStore(np.repeat(np.arange(1, 21), 10)), 1)], questions_per_image=8)
    assert Counter(map(len, mixture.plan(0))) == {5: 40}


@pytest.mark.parametrize("weight", [0, -1, 0.001, float("nan"), float("inf")])
def test_a_weight_that_leaves_nothing_is_refused(weight):
    with pytest.raises(ValueError, match="larger weight"):
        Mixture([(FakeStore([1, 2, 3]), weight)])


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match="at least one source"):
        Mixture([])
    with pytest.raises(ValueError, match="must be at least 1"):
        Mixture([(FakeStore([1]), 1)], questions_per_image=0)
    with pytest.raises(ValueError, match="global_batch=0"):
        next(Mixture([(FakeStore([1]), 1)]).steps(0))
