"""Parts of sources and tasks, budgets of tokens, the plan that is printed: all measured against what is drawn."""

from collections import Counter
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medmvl.core.schema import Sample
from medmvl.data.mixture import Mixture, Position
from medmvl.data.store import SampleStore, write_samples
from medmvl.train.mix import Looked, Plan, look, portions
from medmvl.train.recipe import Data, Recipe, Stage

SIZES = {"small": {"a": 30, "b": 10}, "large": {"c": 400, "d": 100, "e": 4}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for name, tasks in SIZES.items():
        samples = (
            Sample.from_dict(
                {
                    "id": f"{task}{number}",
                    "task": task,
                    "messages": [
                        {"role": "user", "content": "q"},
                        {"role": "assistant", "content": "w " * (number % 7)},
                    ],
                }
            )
            for task, count in tasks.items()
            for number in range(count)
        )
        write_samples(root / name, samples, name=name, version="1", licence="none")
    return root


def stage(data, **settings):
    return Stage.model_validate(
        {
            "name": "mix",
            "global_batch": 16,
            "data": data,
            "tune": {"llm": {"mode": "full", "lr": 1e-3}},
            **({} if settings.keys() & {"steps", "tokens"} else {"epochs": 1}),
            **settings,
        }
    )


def parts_of(folders, one):
    stores = [SampleStore(folders / data.source, tasks=data.tasks) for data in one.data]
    return portions(one.data, stores, [str(folders)], one.temperature)


def drawn(parts, samples, start=Position()):  # noqa: B008
    """Count the tasks of the first samples of a mixture, and return where it stopped."""
    mixture = Mixture([(part.store, part.passes) for part in parts], seed=1)
    counts, place = Counter(), start
    for step in islice(mixture.steps(16, start), samples // 16):
        counts.update(mixture[item].task for group in step.groups for item in group)
        place = step.after
    return counts, place


BOTH = [{"source": "small"}, {"source": "large"}]


@pytest.mark.parametrize(
    ("data", "settings", "expected"),
    [
        (BOTH, {}, {"a": 30 / 544, "b": 10 / 544, "c": 400 / 544, "d": 100 / 544, "e": 4 / 544}),
        (BOTH, {"temperature": 1}, {"a": 30 / 544, "b": 10 / 544, "c": 400 / 544, "d": 100 / 544, "e": 4 / 544}),
        (BOTH, {"temperature": 1e9}, {"a": 0.375, "b": 0.125, "c": 200 / 504, "d": 50 / 504, "e": 2 / 504}),
        ([{"source": "large", "tasks": {"c": 1, "d": 1, "e": 2}}], {}, {"c": 0.25, "d": 0.25, "e": 0.5}),
        ([{"source": "large", "temperature": 2}], {}, {"c": 20 / 32, "d": 10 / 32, "e": 2 / 32}),
        (
            [{"source": "small", "share": 1, "tasks": {"a": 1, "b": 3}}, {"source": "large", "share": 3}],
            {},
            {"a": 1 / 16, "b": 3 / 16, "c": 0.75 * 400 / 504, "d": 0.75 * 100 / 504, "e": 0.75 * 4 / 504},
        ),
    ],
)
def test_what_is_drawn_has_the_parts_that_are_asked_for(folders, data, settings, expected):
    parts = parts_of(folders, stage(data, **settings))
    counts, _ = drawn(parts, 16 * 400)
    total = sum(counts.values())
    assert counts.keys() == expected.keys()
    for task, share in expected.items():
        assert counts[task] / total == pytest.approx(share, abs=0.01), task


@given(st.integers(1, 60))
@settings(max_examples=15, deadline=None)
def test_a_mixture_of_parts_goes_on_where_it_stopped(folders, stop):
    parts = parts_of(folders, stage([{"source": "small"}, {"source": "large", "temperature": 3}]))
    mixture = Mixture([(part.store, part.passes) for part in parts], seed=1)
    steps = list(islice(mixture.steps(16), 80))
    again = Mixture([(part.store, part.passes) for part in parts], seed=1)
    assert list(islice(again.steps(16, steps[stop - 1].after), 80 - stop)) == steps[stop:]


def test_the_plan_says_what_is_drawn(folders):
    one = stage([{"source": "small", "weight": 2}, {"source": "large", "temperature": 2}], steps=100)
    parts = parts_of(folders, one)
    looks = [look(part.data, part.store, lambda sample, data: len(sample.answer.split()) + 1) for part in parts]
    plan = Plan.of(one, parts, [looked.mean for looked in looks])
    heading, *rows, last = plan.rows()
    assert heading[0] == "source" and [row[0] for row in rows] == ["small", "large: c", "large: d", "large: e"]
    counts, _ = drawn(parts, plan.samples)
    by_portion = [counts["a"] + counts["b"], counts["c"], counts["d"], counts["e"]]
    for row, count, part in zip(rows, by_portion, parts, strict=True):
        assert int(row[4].replace(",", "")) == pytest.approx(count, abs=16)
        assert float(row[3]) == pytest.approx(count / len(part.store), rel=0.1)
    assert last[4] == "1,600" and sum(float(row[8].rstrip("%")) for row in rows) == pytest.approx(100, abs=0.3)
    assert "large: e" in str(plan)


def test_a_budget_of_tokens_becomes_steps(folders):
    one = stage(BOTH, tokens=20_000)
    parts = parts_of(folders, one)
    looks = [look(part.data, part.store, lambda sample, data: len(sample.answer.split()) + 1, 1000) for part in parts]
    plan = Plan.of(one, parts, [looked.mean for looked in looks])
    mixture = Mixture([(part.store, part.passes) for part in parts])
    shown = 0
    for step in islice(mixture.steps(16), plan.steps):
        shown += sum(len(mixture[item].answer.split()) + 1 for group in step.groups for item in group)
    assert shown == pytest.approx(20_000, rel=0.03)
    with pytest.raises(ValueError, match="stage mix: a budget of tokens"):
        Plan.of(one, parts, [0.0, 0.0])


def test_samples_that_cannot_be_used_are_told(folders):
    (part, *_) = parts_of(folders, stage(BOTH))

    def count(sample, data):
        if sample.id == "a0":
            raise ValueError("not expected")
        return 3

    with pytest.raises(ValueError, match="not expected"):
        look(part.data, part.store, count)
    looked = look(part.data, part.store, lambda sample, data: 3)
    assert looked.mean == 3 and len(looked.tokens) == 40 and not looked.refused
    assert (looked + Looked([], ["x"])).share_refused == 1 / 41


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"data": [{"source": "a", "share": 1}], "temperature": 2}, "not both"),
        ({"data": [{"source": "a", "weight": 2}], "temperature": 2}, "not both"),
        ({"data": [{"source": "a", "tasks": {"x": 1}, "temperature": 2}]}, "not both"),
        ({"data": [{"source": "a", "tasks": {"x": 0}}]}, "greater than 0"),
        ({"data": [{"source": "a", "tasks": {}}]}, "at least one"),
        ({"data": [{"source": "a"}], "tokens": 9, "steps": 1}, "either"),
        ({"data": [{"source": "a"}], "tokens": 9, "objective": "heads"}, "reads no text"),
    ],
)
def test_measures_that_contradict_each_other_are_refused(settings, said):
    settings.setdefault("epochs", None if settings.keys() & {"tokens"} else 1)
    recipe = {
        "model": {"llm": "x/y"},
        "stages": [{"name": "s", "global_batch": 1, "tune": {"llm": {"mode": "full", "lr": 1e-3}}, **settings}],
    }
    with pytest.raises(ValueError, match=said):
        Recipe.load(recipe)


def test_the_paper_s_mixture_ships_with_its_published_shares():
    shares = {one.source: one.share for one in sources_of("medm_vl_2d", "instruct")}
    assert shares["medqa/open"] == shares["pubmedqa/question"] == 2
    assert shares["slake/vqa"] == shares["pathvqa/vqa"] == 5
    assert shares["medpix/report"] == shares["mimic_cxr/report"] == 8 and sum(shares.values()) == 50


def sources_of(recipe: str, name: str) -> list[Data]:
    return next(one.data for one in Recipe.load(recipe).stages if one.name == name)
