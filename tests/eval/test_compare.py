"""Two evaluations compared: matching, differences, tests and what is refused."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from scipy.stats import binom, ttest_rel
from typer.testing import CliRunner, Result

from medmvl.cli.commands.eval_compare import compare as command
from medmvl.core.lookup import LookupNameError
from medmvl.eval.compare import compare, comparison_grid
from medmvl.eval.formats import markdown, print_grid
from medmvl.eval.metrics.metric import Mean, Sums
from medmvl.eval.run import evaluate
from medmvl.eval.scoring import entry
from medmvl.eval.stats import bootstrap, holm, mcnemar, paired
from medmvl.eval.task import Task
from paper_model import PaperModel, write_store

SIDE, WORDS = "test/side", "test/words"


def task(name: str = SIDE, metrics: Sequence[str] = ("accuracy_strict",), **changed: Any) -> Task:
    made = {"name": name, "version": "1.0", "title": f"About {name}", "family": "closed", "source": "a/b"}
    return Task(**{**made, "metrics": list(metrics), "controls": [], **changed})


def records(right: Sequence[bool], name: str = SIDE, each: int = 1, likelihoods: bool = False) -> list[dict[str, Any]]:
    """Return answers to questions 0, 1, ..., of which `each` are about one patient; a wrong answer is "up"."""
    made = []
    for place, is_right in enumerate(right):
        truth = ("left", "right")[place % 2]
        made.append(
            {"id": f"q{place}", "task": name, "control": "", "patient": f"p{place // each}", "modality": "MR",
             "answer_type": "", "groups": {}, "media": [], "question": "Which side?", "question_boxes": [],
             "answer": truth, "parsed": truth if is_right else "up", "reference": truth, "scores": {}}
        )  # fmt: skip
        if likelihoods:
            sure = 2.0 if is_right else -1.0
            made[-1]["likelihoods"] = {side: sure if side == truth else 0.0 for side in ("left", "right")}
    return made


def write(
    folder: Path, *answered: tuple[Task, list[dict[str, Any]]], excluded: Sequence[dict[str, str]] = (), **options: Any
) -> str:
    """Write what an evaluation writes, a control among it, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks = {one.name: entry(one, {"": rows}, 20, 0, options or None) for one, rows in answered}
    told = {"model": folder.name, "model_hash": "0"}
    scores = {"provenance": told, "tasks": tasks, "excluded": list(excluded)}
    (folder / "scores.json").write_text(json.dumps(scores))
    lines = [row for _, rows in answered for row in (*rows, *({**row, "control": "blank_image"} for row in rows[:2]))]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def drawn(share: float, count: int, seed: int) -> list[bool]:
    return (np.random.default_rng(seed).random(count) < share).tolist()


# Statistics


def test_mcnemar_is_the_sign_test_of_what_differs() -> None:
    for first, second in ((0, 1), (0, 5), (3, 9), (10, 10), (40, 20)):
        tail = binom.cdf(min(first, second), first + second, 0.5)
        assert mcnemar(first, second) == mcnemar(second, first) == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(0, 5) == 0.0625


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])  # as R's p.adjust
    assert holm([0.04, 0.01]) == pytest.approx([0.04, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03] and holm([]) == []


def test_holm_against_its_definition() -> None:
    draw = np.random.default_rng(0)
    for _ in range(200):
        values = (draw.random(draw.integers(1, 9)) ** 3).tolist()
        ordered = sorted(values)
        for value, corrected in zip(values, holm(values), strict=True):
            steps = [(len(values) - place) * p for place, p in enumerate(ordered) if p <= value]
            assert corrected == pytest.approx(min(1.0, max(steps)))


def test_paired_differences_are_those_of_independent_patients() -> None:
    draw = np.random.default_rng(1)
    hard = draw.normal(size=400)
    first, second = hard + draw.normal(size=400) * 0.3, hard + draw.normal(size=400) * 0.3 + 0.05
    found = paired({"m": Mean(first)}, {"m": Mean(second)}, range(400), resamples=4000)["m"]
    change = second - first
    error = change.std() / 20
    assert found.difference.value == pytest.approx(change.mean(), abs=1e-12)
    assert found.difference.low == pytest.approx(change.mean() - 1.96 * error, abs=0.1 * error)
    assert found.difference.high == pytest.approx(change.mean() + 1.96 * error, abs=0.1 * error)
    assert found.p == pytest.approx(ttest_rel(second, first).pvalue, abs=0.01)
    assert found.detectable == pytest.approx((1.96 + 0.8416) * error, rel=0.05)
    # Two intervals side by side would have hidden it.
    assert found.first.high - found.first.low > 2 * (found.difference.high - found.difference.low)


def test_patients_with_many_samples_do_not_make_it_surer() -> None:
    draw = np.random.default_rng(2)
    change = draw.normal(size=40) + 0.3
    one = paired({"m": Mean(np.zeros(40))}, {"m": Mean(change)}, range(40))["m"]
    owners = np.repeat(np.arange(40), 25).tolist()
    copied = paired({"m": Mean(np.zeros(1000))}, {"m": Mean(np.repeat(change, 25))}, owners)["m"]
    assert (copied.p, copied.difference) == (one.p, one.difference)
    careless = paired({"m": Mean(np.zeros(1000))}, {"m": Mean(np.repeat(change, 25))}, range(1000))["m"]
    assert careless.p < one.p or one.p < 0.001


def test_the_test_keeps_its_level() -> None:
    draw = np.random.default_rng(3)
    wrong = 0
    for seed in range(400):
        sides = [{"m": Mean((draw.random(60) < 0.6).astype(float))} for _ in range(2)]
        wrong += paired(*sides, range(60), resamples=400, seed=seed)["m"].p < 0.05
    assert wrong / 400 == pytest.approx(0.05, abs=0.035)


def test_few_patients_show_nothing() -> None:
    zeros, ones = {"m": Mean(np.zeros(6))}, {"m": Mean(np.ones(6))}
    alone = paired(zeros, ones, ["a"] * 6)["m"]
    assert (alone.p, alone.detectable, alone.difference.value) == (1.0, None, 1.0)
    assert paired(zeros, ones, ["a", "b"] * 3)["m"].p == 0.5
    assert paired(zeros, ones, list("aabbcc"))["m"].p == 0.25
    assert paired(zeros, ones, range(6))["m"].p == pytest.approx(2**-5)
    with pytest.raises(ValueError, match="at least one sample that both"):
        paired({"m": Mean(np.zeros(0))}, {"m": Mean(np.zeros(0))}, [])


def test_undefined_scores_are_left_out() -> None:
    never = Sums(np.ones((5, 1)), lambda sums: sums[:, 0] * np.nan)
    some = Mean(np.arange(5.0))
    found = paired({"m": some, "n": never, "only": some}, {"m": some, "n": some}, range(5))
    assert set(found) == {"m"}
    assert (found["m"].p, found["m"].difference.value, found["m"].detectable) == (1.0, 0.0, 0.0)


# Evaluations


def test_real_evaluations(tmp_path: Path) -> None:
    samples = write_store(tmp_path / "data/brain_atlas", patients=20)
    tasks = [f"brain_atlas/{family}" for family in ("side", "report", "rec", "reg")]
    lost = [sample.id for sample in samples if sample.task == "brain_atlas/side"][:3]
    scores = []
    for name, model in (
        ("weak", PaperModel(samples, errs=0.9)),
        ("strong", PaperModel(samples, errs=0.05, broken=lost)),
    ):
        scores.append(evaluate(model, tasks, tmp_path / name, roots=[tmp_path / "data"], resamples=50))
    found = compare(f"weak={tmp_path}/weak", f"strong={tmp_path}/strong", resamples=300)
    assert found == json.loads(json.dumps(found, allow_nan=False))
    assert list(found["tasks"]) == tasks
    side = found["tasks"]["brain_atlas/side"]
    assert (side["n"], side["patients"], list(side["only_in_a"])) == (37, 19, lost)  # one patient lost both questions
    assert side["only_in_b"] == {} and "cut off" in side["only_in_a"][lost[0]]
    for name in tasks[1:]:
        one = found["tasks"][name]
        assert one["n"] == 40 and not one["not_compared"]
        for key, run in zip("ab", scores, strict=True):
            scored = run["tasks"][name]["metrics"]
            assert set(one["metrics"]) == set(scored)
            for metric, values in one["metrics"].items():  # all questions are shared, so these are the same numbers
                assert values[key]["value"] == pytest.approx(scored[metric]["value"], abs=1e-9)
                difference = values["b"]["value"] - values["a"]["value"]
                assert values["difference"]["value"] == pytest.approx(difference, abs=1e-9)
                assert values["difference"]["low"] <= difference <= values["difference"]["high"]
        assert one["metrics"][one["primary"]]["better"] == "b"
    said = markdown(comparison_grid(found))
    assert "strong against weak" in said and "left out 3 that weak alone answered" in said


def test_a_system_against_itself(tmp_path: Path) -> None:
    rows = records(drawn(0.6, 40, 0), likelihoods=True)
    metrics = ["accuracy_strict", "macro_f1", "bleu1_corpus", "cider", "auc", "calibration_error"]
    folder = write(tmp_path / "a", (task(metrics=metrics), rows))
    found = compare(f"x={folder}", f"y={folder}", resamples=100)["tasks"][SIDE]
    assert set(found["metrics"]) == set(metrics) and not found["not_compared"]
    for values in found["metrics"].values():
        assert (values["p"], values["p_holm"], values["better"]) == (1.0, 1.0, "")
        assert values["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert [name for name, values in found["metrics"].items() if values["lower_is_better"]] == ["calibration_error"]
    assert found["metrics"]["accuracy_strict"]["mcnemar"] == {"a_alone": 0, "b_alone": 0, "p": 1.0, "p_holm": 1.0}
    assert found["metrics"]["auc"]["mcnemar"] is None is found["metrics"]["cider"]["mcnemar"]


def test_questions_are_matched_by_id_in_any_order(tmp_path: Path) -> None:
    first, second = records(drawn(0.5, 60, 1)), records(drawn(0.8, 60, 2))
    straight = compare(write(tmp_path / "a", (task(), first)), write(tmp_path / "b", (task(), second)))
    order = np.random.default_rng(0).permutation(60)
    shuffled = compare(str(tmp_path / "a"), write(tmp_path / "c/b", (task(), [second[place] for place in order])))
    assert straight["tasks"] == shuffled["tasks"]
    values = straight["tasks"][SIDE]["metrics"]["accuracy_strict"]
    pairs = [(a["parsed"] == a["reference"], b["parsed"] == b["reference"]) for a, b in zip(first, second, strict=True)]
    test = values["mcnemar"]
    assert (test["a_alone"], test["b_alone"]) == (pairs.count((True, False)), pairs.count((False, True)))
    assert test["p"] == mcnemar(test["a_alone"], test["b_alone"])
    assert values["a"] == bootstrap({"m": Mean(np.array([float(a) for a, _ in pairs]))}, range(60), 2000)["m"].to_dict()


def test_what_only_one_answered_is_told_not_dropped_in_silence(tmp_path: Path) -> None:
    first, second = records([True] * 20), records([True] * 10 + [False] * 10)
    reason = {"id": "q0", "task": SIDE, "control": "", "reason": "the file is cut off"}
    blank = {**reason, "id": "q1", "control": "blank_image"}
    a = write(tmp_path / "a", (task(), first[:18]))
    b = write(tmp_path / "b", (task(), second[2:]), excluded=[reason, blank])
    found = compare(a, b)["tasks"][SIDE]
    assert found["n"] == 16
    assert found["only_in_a"] == {"q0": "the file is cut off", "q1": ""}
    assert found["only_in_b"] == {"q18": "", "q19": ""}
    assert found["metrics"]["accuracy_strict"]["a"]["value"] == 1.0
    assert found["metrics"]["accuracy_strict"]["b"]["value"] == 0.5
    nothing = compare(a, write(tmp_path / "c", (task(), second[18:])))
    assert nothing["tasks"][SIDE]["n"] == 0 and nothing["tasks"][SIDE]["metrics"] == {}
    print_grid(comparison_grid(nothing))


def test_other_versions_and_other_truths_are_refused(tmp_path: Path) -> None:
    rows = records([True] * 8)
    a = write(tmp_path / "a", (task(), rows), (task(WORDS), records([True] * 8, WORDS)))
    newer = write(tmp_path / "b", (task(version="1.1"), rows), (task(WORDS), records([True] * 8, WORDS)))
    with pytest.raises(ValueError, match=r"versions differ: test/side \(a: 1\.0, b: 1\.1\)"):
        compare(a, newer)
    assert list(compare(a, newer, tasks=[WORDS])["tasks"]) == [WORDS]
    changed = [{**row, "reference": "up"} if row["id"] == "q3" else row for row in rows]
    with pytest.raises(
        ValueError, match=r"true answers differ: test/side: 1 of 8 .*'q3' is 'right' in a and 'up' in c"
    ):
        compare(a, write(tmp_path / "c", (task(), changed)))


def test_tasks_of_one_alone(tmp_path: Path) -> None:
    side, words = (task(), records([True] * 4)), (task(WORDS), records([True] * 4, WORDS))
    more = (task("test/more"), records([True] * 4, "test/more"))
    found = compare(write(tmp_path / "a", side, words), write(tmp_path / "b", words, more))
    assert list(found["tasks"]) == [WORDS]
    assert (found["tasks_only_in_a"], found["tasks_only_in_b"]) == ([SIDE], ["test/more"])
    said = markdown(comparison_grid(found))
    assert "Evaluated of a alone: test/side" in said and "Evaluated of b alone: test/more" in said
    with pytest.raises(ValueError, match=r"share no task.*a: test/side, test/words; c: test/more"):
        compare(str(tmp_path / "a"), write(tmp_path / "c", more))
    with pytest.raises(ValueError, match="'test/sid' is not in both evaluations"):
        compare(str(tmp_path / "a"), str(tmp_path / "b"), tasks=["test/sid"])


def test_metrics_that_cannot_be_compared_are_named(tmp_path: Path) -> None:
    metrics = ["accuracy_strict", "auc", "cider", "token_f1"]
    knows, knows_not = records(drawn(0.6, 30, 0), likelihoods=True), records(drawn(0.6, 30, 1))
    a = write(tmp_path / "a", (task(metrics=metrics), knows))
    b = write(tmp_path / "b", (task(metrics=metrics[:3]), knows_not))
    found = compare(a, b)["tasks"][SIDE]
    assert set(found["metrics"]) == {"accuracy_strict", "cider"}
    assert found["not_compared"]["auc"].startswith("is missing in b: no question has likelihoods")
    assert found["not_compared"]["token_f1"] == "is missing in b: the task was not scored by it, or it had no value"
    fewer = write(tmp_path / "c", (task(metrics=metrics), knows[:8]))
    found = compare(a, fewer, metrics=["auc"])["tasks"][SIDE]
    assert list(found["metrics"]) == ["auc"] and not found["not_compared"]
    with pytest.raises(ValueError, match=r"no task that is compared was scored by 'rouge_l'.*Metrics: accuracy_strict"):
        compare(a, b, metrics=["rouge_l"])


def test_other_options_of_a_metric_are_other_numbers(tmp_path: Path) -> None:
    metrics = ["accuracy_strict", "token_f1"]
    folders = []
    for name, option in (("a", 1), ("b", 2)):
        folders.append(write(tmp_path / name, (task(metrics=metrics), records([True] * 6))))
        file = tmp_path / name / "scores.json"
        scores = json.loads(file.read_text())
        scores["tasks"][SIDE]["metric_options"] = {"token_f1": {"layer": option}}
        file.write_text(json.dumps(scores))
    found = compare(*folders)["tasks"][SIDE]
    assert list(found["metrics"]) == ["accuracy_strict"]
    assert (
        found["not_compared"]["token_f1"] == "was computed with other options: {'layer': 1} in a and {'layer': 2} in b"
    )


def test_code_named_in_a_file_runs_only_if_the_user_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_metrics.py").write_text("def half(prediction, reference):\n    return 0.5\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    metrics = ["accuracy_strict", "their_metrics:half"]
    folders = [write(tmp_path / name, (task(metrics=metrics), records([True] * 6))) for name in "ab"]
    del sys.modules["their_metrics"]
    found = compare(*folders)
    assert list(found["tasks"][SIDE]["metrics"]) == ["accuracy_strict"]
    assert "runs only if you name it" in found["tasks"][SIDE]["not_compared"]["their_metrics:half"]
    print_grid(comparison_grid(found))
    assert "their_metrics" not in sys.modules
    found = compare(*folders, metrics=["their_metrics:half"])["tasks"][SIDE]["metrics"]
    assert found["their_metrics:half"]["a"]["value"] == 0.5
    monkeypatch.delitem(sys.modules, "their_metrics")
    (tmp_path / "their_metrics.py").unlink()
    with pytest.raises(LookupNameError, match="leads nowhere"):
        compare(*folders, metrics=["their_metrics:half"])


def test_holm_corrects_over_the_tasks(tmp_path: Path) -> None:
    names = [f"test/t{place}" for place in range(5)]
    metrics = ["accuracy_strict", "token_f1"]
    sides = []
    for name, seed in (("a", 0), ("b", 100)):
        answered = [
            (task(one, metrics if place else metrics[:1]), records(drawn(0.4 + 0.002 * seed, 80, seed + place), one, 2))
            for place, one in enumerate(names)
        ]
        sides.append(write(tmp_path / name, *answered))
    found = compare(*sides, resamples=500)["tasks"]
    for metric, tasks in (("accuracy_strict", names), ("token_f1", names[1:])):
        values = [found[name]["metrics"][metric] for name in tasks]
        assert [one["p_holm"] for one in values] == holm([one["p"] for one in values])
        if metric == "accuracy_strict":
            tests = [one["mcnemar"] for one in values]
            assert [one["p_holm"] for one in tests] == holm([one["p"] for one in tests])
    assert all(one["better"] in ("b", "") and (one["better"] == "b") == (one["p_holm"] < 0.05) for one in values)
    assert [found[name]["patients"] for name in names] == [40] * 5
    assert "Too few resamples for 5 tasks" in markdown(comparison_grid(compare(*sides, resamples=100)))
    assert "Too few" not in markdown(comparison_grid(compare(*sides, resamples=200)))


def test_lower_is_better(tmp_path: Path) -> None:
    asked = task(metrics=["log_loss"])
    a = write(tmp_path / "a", (asked, records(drawn(0.3, 80, 0), likelihoods=True)))
    b = write(tmp_path / "b", (asked, records(drawn(0.9, 80, 1), likelihoods=True)))
    values = compare(a, b)["tasks"][SIDE]["metrics"]["log_loss"]
    assert values["difference"]["value"] < 0 and values["better"] == "b"
    assert compare(b, a)["tasks"][SIDE]["metrics"]["log_loss"]["better"] == "a"
    assert "log\\_loss ↓" in markdown(comparison_grid(compare(a, b)))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda lines: lines[:-3], "holds 5 answers of test/side, and scores.json is about 6"),
        (lambda lines: [*lines, lines[0]], "two answers to 'q0' of test/side"),
        (lambda lines: [*lines, "{"], "predictions.jsonl:9: not valid JSON"),
    ],
)
def test_broken_files(tmp_path: Path, spoil: Any, told: str) -> None:
    folders = [write(tmp_path / name, (task(), records([True] * 6))) for name in "ab"]
    file = tmp_path / "b/predictions.jsonl"
    file.write_text("\n".join(spoil(file.read_text().splitlines())))
    with pytest.raises(ValueError, match=told):
        compare(*folders)
    file.unlink()
    with pytest.raises(ValueError, match="there is no such file"):
        compare(*folders)


# The command


def called(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    metrics = ["accuracy_strict", "token_f1"]
    return [
        write(tmp_path / name, (task(metrics=metrics), records(drawn(share, 60, seed), each=2)))
        for name, share, seed in (("old", 0.3, 0), ("new", 0.9, 1))
    ]


def test_command_on_the_screen(folders: list[str]) -> None:
    said = called(*folders).stdout
    assert "new against old" in said and "60 (30)" in said and "accuracy_strict" in said
    assert "token_f1" not in said and "1 further comparisons: --metric NAME" in said
    assert "McNemar's exact test takes questions as independent" in said
    found = compare(*folders)["tasks"][SIDE]["metrics"]["accuracy_strict"]
    assert f"+{100 * found['difference']['value']:.1f}" in said and "<0.001" in said
    said = called(*folders, "--metric", "token_f1", "--resamples", "50", "--task", SIDE).stdout
    assert "token_f1" in said and "accuracy_strict" not in said and "50 times" in said
    assert f"-{100 * found['difference']['value']:.1f}" in called(*folders[::-1]).stdout


def test_command_into_files(folders: list[str], tmp_path: Path) -> None:
    out = tmp_path / "deep/comparison.json"
    assert f"comparison: {out}" in called(*folders, "--out", str(out), "--seed", "3").stdout
    assert json.loads(out.read_text("utf-8")) == compare(*folders, seed=3)
    out = tmp_path / "comparison.md"
    assert called(*folders, "--out", str(out)).exit_code == 0
    assert out.read_text("utf-8") == markdown(comparison_grid(compare(*folders)))
    assert "token\\_f1" in out.read_text("utf-8")
    wrong = called(*folders, "--out", str(tmp_path / "comparison.txt"))
    assert isinstance(wrong.exception, ValueError) and "no comparison is written as 'txt'" in str(wrong.exception)
    assert not (tmp_path / "comparison.txt").exists()
