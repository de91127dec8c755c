"""Every shipped task finds its samples in its data set as that is published, and scores from nothing to everything.

The data sets are the small ones in their official layout (tests/adapter_root.py), converted as users convert them, and
the embedded benchmark. They are asked by a model that knows every answer, and by one that says nothing.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

import adapter_root
from medmvl.core.boxes import Coords
from medmvl.core.schema import Sample
from medmvl.data.adapters.medmnist import SUBSETS
from medmvl.data.benchmarks import brain_atlas, brain_atlas_3d
from medmvl.data.convert import convert
from medmvl.eval.metrics.table import lower_is_better
from medmvl.eval.run import evaluate
from medmvl.eval.suite import baselines, load_suite, suite_names
from medmvl.eval.task import Control, Generation, Task, group_names, load_tasks, task_names
from medmvl.eval.trial import Trial

NAMES = task_names()
SETS = sorted({load_tasks(name)[0].source.partition("/")[0] for name in NAMES})
LIKELIHOODS = {"accuracy_options", "auc", "options_ranked"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a store of every data set, and with the data sets as they are published."""
    folder = tmp_path_factory.mktemp("data")
    published = folder / "published"
    for name in SETS:
        if name.startswith("brain_atlas"):
            settings = {"workers": 1} if name.endswith("3d") else {"size": 32}
            (brain_atlas_3d if name.endswith("3d") else brain_atlas).build(folder / name, patients=60, **settings)
            continue
        root = (ROOTS.get(name) or adapter_root.build)(name, published / name)
        convert(name, root.path, folder / name, options=dict(root.options))
    return folder


def _medmnist(name: str, folder: Path) -> adapter_root.Root:
    """Write all 18 subsets."""
    folder.mkdir(parents=True)
    builder = adapter_root.builder(name)
    for flag, subset in SUBSETS.items():
        shape = (28, 28, 28) if flag.endswith("3d") else (28, 28, 3) if subset.channels == 3 else (28, 28)
        labels = builder.one_each(len(subset.names))
        if subset.several:
            eye = np.eye(len(subset.names), dtype=int)
            labels = {split: eye[: len(given)].tolist() for split, given in labels.items()}
        np.savez(folder / f"{flag}.npz", **builder.arrays(28, shape, labels))
    return adapter_root.Root(folder, {})


def _slake(name: str, folder: Path) -> adapter_root.Root:
    """Add an open question to the test split, which has a closed one alone; leave one box to each name.

    Of two lungs in one picture a model can name only one: both questions are the same.
    """
    root = adapter_root.build(name, folder)
    file = folder / "imgs" / "xmlab4" / "detection.json"
    file.write_text(json.dumps(json.loads(file.read_text())[:2]))
    rows = json.loads((folder / "test.json").read_text("utf-8"))
    rows.append(adapter_root.builder(name).question(4, 11, "Which organ is the largest?", "Liver, Spleen"))
    (folder / "test.json").write_text(json.dumps(rows), "utf-8")
    return root


def _sa_med2d(name: str, folder: Path) -> adapter_root.Root:
    """Uni-Med's folders, for of the fixture no case is drawn for the test split."""
    return adapter_root.Root(adapter_root.builder(name).write_prepared(folder), {})


ROOTS = {"medmnist": _medmnist, "slake": _slake, "sa_med2d": _sa_med2d}


class Oracle:
    """Says what is true, or nothing at all; boxes as JSON, which loses no digit."""

    remote, asks = False, True

    def __init__(self, samples: Sequence[Sample], knows: bool) -> None:
        self.name = self.hash = self.identity = "oracle" if knows else "silence"
        self._truths = {sample.id: _answer(sample) if knows else "" for sample in samples}

    def answer(self, prompts: Sequence[Sample], settings: Generation) -> Iterator[tuple[int, str]]:
        yield from ((place, self._truths[prompt.id]) for place, prompt in enumerate(prompts))

    def likelihoods(
        self, prompts: Sequence[Sample], options: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, list[float]]]:
        for place, (prompt, known) in enumerate(zip(prompts, options, strict=True)):
            yield place, [0.0 if option == self._truths[prompt.id] else -9.0 for option in known]

    def boxes(self, text: str, sample: Sample) -> Sequence[Coords]:
        return [tuple(json.loads(text))] if text else []


def _answer(sample: Sample) -> str:
    refs = [part for part in sample.messages[-1].content if part.type == "box"]
    return json.dumps(sample.meta.boxes[refs[0].box].coords) if refs else sample.answer


def _entry(task: Task, data: Path, knows: bool) -> dict[str, Any]:
    trial = Trial.load(task, [data])
    plain = task.model_copy(update={"controls": [], "probes": []})
    scores = evaluate(Oracle(list(trial.samples.values()), knows), plain, roots=[data], resamples=5)
    return scores["tasks"][task.name]


@pytest.mark.parametrize("name", NAMES)
def test_samples_are_found_and_all_have_true_answers(name: str, data: Path) -> None:
    (task,) = load_tasks(name)
    trial = Trial.load(task, [data])
    assert trial.samples
    assert set(trial.references) == set(trial.samples)
    assert not trial.excluded
    told = {sample.task for sample in trial.samples.values()}
    assert told == {task.source}
    for key in task.groups:
        assert any(key in dump for dump in _known(trial)), f"no sample says anything under {key!r}"


def _known(trial: Trial) -> Iterator[set[str]]:
    for sample in trial.samples.values():
        meta = sample.meta
        yield {key for key, value in (*meta, *(meta.model_extra or {}).items(), *meta.attributes.items()) if value}


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_knows_everything_is_perfect(name: str, data: Path) -> None:
    (task,) = load_tasks(name)
    entry = _entry(task, data, knows=True)
    assert entry["n"] and entry["unparsed"] == 0 and entry["empty"] == 0
    assert entry["metrics"][task.shown]["value"] == pytest.approx(1)
    if task.options:
        for metric in LIKELIHOODS & set(entry["metrics"]):
            assert entry["metrics"][metric]["value"] == pytest.approx(1), metric


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_says_nothing_has_nothing(name: str, data: Path) -> None:
    (task,) = load_tasks(name)
    entry = _entry(task, data, knows=False)
    assert entry["n"] == entry["unparsed"] == entry["empty"] > 0
    assert entry["metrics"][task.shown]["value"] == pytest.approx(0)


@pytest.mark.parametrize("name", NAMES)
def test_every_metric_is_computed_or_says_what_it_lacks(name: str, data: Path) -> None:
    (task,) = load_tasks(name)
    entry = _entry(task, data, knows=True)
    assert set(entry["metrics"]) | set(entry["unavailable"]) == set(task.metrics)
    assert task.shown in entry["metrics"] and not lower_is_better(task.shown)


def test_controls_and_probes_are_asked(data: Path) -> None:
    """One task of each kind with everything around it; most others share its base."""
    for name in ("slake/vqa_closed", "m3d/vqa_closed", "ct_rate/choice", "vqa_rad/vqa", "brain_atlas/side"):
        (task,) = load_tasks(name)
        samples = list(Trial.load(task, [data]).samples.values())
        entry = evaluate(Oracle(samples, True), task, roots=[data], resamples=5)["tasks"][name]
        assert set(entry["controls"]) == set(get_args(Control))
        assert entry["controls"]["majority"] and set(entry["probes"]) == set(task.probes)
        asked = {probe: told["n"] for probe, told in entry["probes"].items()}
        assert any(asked.values()), f"{name}: no probe applies to any sample of the fixture: {asked}"


@pytest.mark.parametrize("name", suite_names())
def test_suites_show_metrics_that_their_tasks_have(name: str) -> None:
    suite = load_suite(name)
    assert suite.name == name
    assert [task.name for task in load_tasks(name)] == suite.tasks
    assert name not in NAMES
    if name in group_names():
        assert set(suite.tasks) == {task for task in NAMES if task.startswith(f"{name}/")}


@pytest.mark.parametrize("name", suite_names())
def test_a_suite_is_one_command_and_one_table(name: str, data: Path, tmp_path: Path) -> None:
    """Everything known: every column that can be computed here says 100, beside what was published."""
    tasks = [task.model_copy(update={"controls": ["majority"], "probes": []}) for task in load_tasks(name)]
    samples = [sample for task in tasks for sample in Trial.load(task, [data]).samples.values()]
    evaluate(Oracle(samples, True), tasks, tmp_path, roots=[data], resamples=5)
    with (tmp_path / f"table_{name}.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["kind"] for row in rows[:2]] == ["measured", "count"]
    scores = json.loads((tmp_path / "scores.json").read_text("utf-8"))["tasks"]
    for column in load_suite(name).columns:
        if column.metric in scores[column.task]["unavailable"]:
            assert column.metric in ("bertscore_f1", "meteor_hf") and rows[0][column.label] == ""
        elif column.metric != "meteor_hf":  # which is below 1 for equal texts of few words
            assert rows[0][column.label] == "100", column.label
    published = baselines(load_suite(name))
    assert len(rows) == 2 + (0 if published is None else len(published.systems))


@pytest.mark.parametrize("name", suite_names())
def test_baselines_name_their_source_and_columns(name: str) -> None:
    suite = load_suite(name)
    published = baselines(suite)
    if published is None:
        assert name == "medm_vl_ct", "nothing published is known of this suite alone"
        return
    assert published.suite == name
    labels = {column.label for column in suite.columns}
    for reported in published.systems:
        assert reported.source and set(reported.values) <= labels
        assert all(0 <= value <= 100 for value in reported.values.values())
        assert reported.note or not reported.unconfirmed, "say what is not known"
