"""Two evaluations compared: the same questions, the difference with its interval, tests, corrected for their number."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medmvl.core.lookup import choices_text
from medmvl.eval.formats import Cell, Grid, Heading, Row, one_line
from medmvl.eval.metrics.metric import Mean, Statistics
from medmvl.eval.metrics.table import METRICS, acts, measure
from medmvl.eval.page.lines import read_lines
from medmvl.eval.report import PREDICTIONS
from medmvl.eval.scale import Scale, scale_of
from medmvl.eval.scoring import answers_of
from medmvl.eval.stats import holm, mcnemar, paired
from medmvl.eval.summary import Entry, Run, asked_text, read_runs

_KEPT = ("parsed", "reference", "question", "likelihoods", "patient")  # of a record
_SHOWN = 5  # ids in a message or note
_ALPHA = 0.05

Record = Mapping[str, Any]
Answered = Mapping[str, Record]
"""Id -> record of one task."""
Comparison = dict[str, Any]
"""What `compare` returns."""


def compare(
    a: str | Path,
    b: str | Path,
    *,
    tasks: Sequence[str] = (),
    metrics: Sequence[str] = (),
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compare two evaluations on the questions that both answered; metrics are computed anew from the answers.

    Args:
        a, b: folders of evaluations; "NAME=FOLDER" says what the system is called. Differences are b minus a.
        tasks: names of those to compare; none: all that both have.
        metrics: names of those to compare; none: all with which both were scored. A function of another package runs
            only if it is named here.
        resamples: bootstrap draws, the same for both.
        level: coverage of the intervals.
        seed: of the draws.

    Returns:
        {"a", "b": {"name", "model", "model_hash", "folder"}, "resamples", "level", "seed",
        "tasks_only_in_a", "tasks_only_in_b": names,
        "tasks": {name: {"title", "version", "n", "patients", "primary",
        "only_in_a", "only_in_b": {id: why the other has no answer, "" where that is not known},
        "metrics": {name: {"a", "b", "difference": {"value", "low", "high"}, "lower_is_better", "p", "p_holm",
        "detectable", "mcnemar": {"a_alone", "b_alone", "p", "p_holm"} or None, "better": "a", "b" or ""}},
        "not_compared": {metric: reason}}}}.

        "patients", whole ones of which are resampled, are those of a. "mcnemar" is for metrics that are 0 or 1 for each
        sample. "p_holm" is corrected over the tasks: all primary metrics are one family, and so is every other metric;
        with `metrics` each of these is one. "better" is who is ahead with p_holm below 0.05. `stats.Paired` and
        `stats.mcnemar` tell what the numbers mean.

    Raises:
        ValueError: a file is missing or broken; no task is shared, or `tasks` or `metrics` names what is not; the same
            task has another version, or other true answers: the message says which.
    """
    runs = read_runs([a, b])
    names = _shared(runs, tasks)
    _refuse_versions(runs, names)
    answered = [_answers(run, names) for run in runs]
    _refuse_references(runs, answered, names)
    wanted = _wanted(runs, names, metrics)
    compared = {}
    for name in names:
        lacking = _lacking(runs, name, wanted[name], trusted={*METRICS, *metrics})
        both = [one[name] for one in answered]
        compared[name] = _task(runs, name, both, wanted[name], lacking, resamples, level, seed)
    _correct(compared, named=bool(metrics))
    return {
        **{side: _about(run) for side, run in zip("ab", runs, strict=True)},
        "resamples": resamples,
        "level": level,
        "seed": seed,
        "tasks_only_in_a": [name for name in runs[0].tasks if name not in runs[1].tasks],
        "tasks_only_in_b": [name for name in runs[1].tasks if name not in runs[0].tasks],
        "tasks": compared,
    }


def _about(run: Run) -> dict[str, str]:
    told = run.scores["provenance"]
    return {
        "name": run.name,
        "model": told["model"],
        "model_hash": told.get("model_hash", ""),
        "folder": str(run.folder),
    }


def _shared(runs: Sequence[Run], wanted: Sequence[str]) -> list[str]:
    """Return the names of the tasks to compare, in the order of the first evaluation."""
    both = [name for name in runs[0].tasks if name in runs[1].tasks]
    if not both:
        every = "; ".join(f"{run.name}: {', '.join(run.tasks) or 'none'}" for run in runs)
        raise ValueError(f"the evaluations share no task, so there is nothing to compare ({every})")
    for name in wanted:
        if name not in both:
            raise ValueError(f"task {name!r} is not in both evaluations; {choices_text(name, both, 'shared')}")
    return [name for name in both if not wanted or name in wanted]


def _refuse_versions(runs: Sequence[Run], names: Sequence[str]) -> None:
    wrong = []
    for name in names:
        versions = [run.tasks[name]["version"] for run in runs]
        if versions[0] != versions[1]:
            wrong.append(f"{name} ({', '.join(f'{run.name}: {v}' for run, v in zip(runs, versions, strict=True))})")
    if wrong:
        raise ValueError(
            f"not comparable, for the tasks' versions differ: {'; '.join(wrong)}. Evaluate again with one version, or "
            "name the other tasks alone"
        )


def _answers(run: Run, names: Collection[str]) -> dict[str, dict[str, Record]]:
    """Return the answers to questions as they are, without controls and probes: task -> id -> record."""
    found: dict[str, dict[str, Record]] = {name: {} for name in names}
    file = run.folder / PREDICTIONS
    if not file.is_file():
        raise ValueError(f"{file}: there is no such file; an evaluation's answers are needed to compare it")
    for record in read_lines(file):
        if record["task"] in found and record["control"] == "":
            if record["id"] in found[record["task"]]:
                raise ValueError(f"{file}: two answers to {record['id']!r} of {record['task']}")
            found[record["task"]][record["id"]] = {key: record.get(key) for key in _KEPT}
    for name, records in found.items():
        if len(records) != run.tasks[name]["n"]:
            raise ValueError(
                f"{file}: holds {len(records)} answers of {name}, and scores.json is about {run.tasks[name]['n']}; "
                "evaluate again"
            )
    return found


def _refuse_references(runs: Sequence[Run], answered: Sequence[Mapping[str, Answered]], names: Sequence[str]) -> None:
    wrong = []
    for name in names:
        first, second = (one[name] for one in answered)
        other = [key for key in first if key in second and first[key]["reference"] != second[key]["reference"]]
        if other:
            key = other[0]
            wrong.append(
                f"{name}: {len(other)} of {len(first.keys() & second.keys())} questions ({_some(other)}); {key!r} is "
                f"{first[key]['reference']!r} in {runs[0].name} and {second[key]['reference']!r} in {runs[1].name}"
            )
    if wrong:
        raise ValueError(f"not comparable, for the true answers differ: {'; '.join(wrong)}")


def _wanted(runs: Sequence[Run], names: Sequence[str], asked: Sequence[str]) -> dict[str, list[str]]:
    """Return task -> metrics that either evaluation was scored with, or tried to be, as far as they are asked for."""
    every = {
        name: list(dict.fromkeys(metric for run in runs for metric in _metrics(run.tasks[name]))) for name in names
    }
    known = {metric for found in every.values() for metric in found}
    for metric in asked:
        if metric not in known:
            hint = choices_text(metric, known, "metrics")
            raise ValueError(f"no task that is compared was scored by {metric!r}; {hint}")
    return {name: [metric for metric in found if not asked or metric in asked] for name, found in every.items()}


def _metrics(entry: Entry) -> Iterable[str]:
    return [*entry["metrics"], *entry.get("unavailable", {})]


def _task(
    runs: Sequence[Run],
    name: str,
    answered: Sequence[Answered],
    wanted: Sequence[str],
    lacking: dict[str, str],
    resamples: int,
    level: float,
    seed: int,
) -> dict[str, Any]:
    """Compare one task, p-values not yet corrected."""
    entries = [run.tasks[name] for run in runs]
    common = [key for key in answered[0] if key in answered[1]]
    patients = [answered[0][key]["patient"] for key in common]
    scored, missing = _measured(
        entries, [[one[key] for key in common] for one in answered], [m for m in wanted if m not in lacking]
    )
    found = paired(*scored, patients, resamples, level, seed) if common else {}
    for metric in wanted:
        if metric not in found:
            lacking.setdefault(metric, missing.get(metric, "has no value on the questions that both answered"))
    return {
        "title": entries[0].get("title", name),
        "version": entries[0]["version"],
        "n": len(common),
        "patients": len(set(patients)),
        "primary": entries[0]["primary"],
        "asked": {side: asked_text(entry) for side, entry in zip("ab", entries, strict=True)},
        "only_in_a": _alone(name, answered[0], answered[1], runs[1]),
        "only_in_b": _alone(name, answered[1], answered[0], runs[0]),
        "metrics": {
            metric: {
                "a": one.first.to_dict(),
                "b": one.second.to_dict(),
                "difference": one.difference.to_dict(),
                "lower_is_better": scale_of(metric, ()).falls,
                "p": one.p,
                "detectable": one.detectable,
                "mcnemar": _mcnemar(*(side[metric] for side in scored)),
            }
            for metric, one in found.items()
        },
        "not_compared": lacking,
    }


def _lacking(runs: Sequence[Run], name: str, wanted: Sequence[str], trusted: Collection[str]) -> dict[str, str]:
    """Return metric -> why it cannot be compared, as far as the scores tell; they can name code, which is not run."""
    lacking = {}
    for metric in wanted:
        if metric not in trusted:
            lacking[metric] = "is a function of another package, which runs only if you name it as a metric"
        elif acts(metric):
            lacking[metric] = "asks a model behind an endpoint, which only an evaluation does"
        options = [run.tasks[name].get("metric_options", {}).get(metric, {}) for run in runs]
        if options[0] != options[1]:
            told = " and ".join(f"{one} in {run.name}" for run, one in zip(runs, options, strict=True))
            lacking[metric] = f"was computed with other options: {told}"
        for run in runs:
            entry = run.tasks[name]
            if metric not in entry["metrics"]:
                reason = entry.get("unavailable", {}).get(metric, "the task was not scored by it, or it had no value")
                lacking[metric] = f"is missing in {run.name}: {reason}"
    return lacking


def _measured(
    entries: Sequence[Entry], records: Sequence[Sequence[Record]], wanted: Sequence[str]
) -> tuple[list[dict[str, Statistics]], dict[str, str]]:
    """Return the statistics of both sides, and metric -> what is missing for it."""
    sides, missing = [], {}
    for entry, side in zip(entries, records, strict=True):
        options = {name: one for name, one in entry.get("metric_options", {}).items() if name in wanted}
        found, reasons = measure(wanted, answers_of(side), options) if side else ({}, {})
        sides.append(found)
        missing |= reasons
    return sides, missing


def _mcnemar(first: Statistics, second: Statistics) -> dict[str, Any] | None:
    """Test a metric that is right (1) or wrong (0) for each sample, and a mean of these."""
    if not (isinstance(first, Mean) and isinstance(second, Mean)):
        return None
    if not all(np.isin(side.values, (0.0, 1.0)).all() for side in (first, second)):
        return None
    a_alone, b_alone = int((first.values > second.values).sum()), int((first.values < second.values).sum())
    return {"a_alone": a_alone, "b_alone": b_alone, "p": mcnemar(a_alone, b_alone)}


def _alone(name: str, own: Answered, other: Answered, lacks: Run) -> dict[str, str]:
    """Return id -> why the other evaluation has no answer to it."""
    told = {
        one["id"]: one["reason"]
        for one in lacks.scores.get("excluded", ())
        if one["task"] == name and one["control"] == ""
    }
    return {key: told.get(key, "") for key in own if key not in other}


def _correct(compared: Mapping[str, Any], named: bool) -> None:
    """Add corrected p-values, and who is better, to what was compared."""
    families: dict[str, list[dict[str, Any]]] = {}
    for task in compared.values():
        for metric, found in task["metrics"].items():
            families.setdefault("" if metric == task["primary"] and not named else metric, []).append(found)
    for family in families.values():
        for found, p in zip(family, holm([found["p"] for found in family]), strict=True):
            ahead = "b" if (found["difference"]["value"] > 0) != found["lower_is_better"] else "a"
            found["p_holm"] = p
            found["better"] = ahead if p < _ALPHA else ""
        tested = [found["mcnemar"] for found in family if found["mcnemar"]]
        for test, p in zip(tested, holm([test["p"] for test in tested]), strict=True):
            test["p_holm"] = p


def comparison_grid(comparison: Comparison, every: bool = True) -> Grid:
    """Return a comparison as a table: a row for each task and metric.

    Args:
        comparison: of `compare`.
        every: all metrics; else each task's primary one, or its first where that was not compared.
    """
    first, second = (comparison[side]["name"] for side in "ab")
    headings = [Heading("metric", text=True), Heading("questions (patients)"), Heading(first), Heading(second)]
    headings += [Heading("difference"), Heading("p"), Heading("p Holm"), Heading("p McNemar")]
    rows = []
    for name, task in comparison["tasks"].items():
        shown = list(task["metrics"])
        shown = sorted(shown, key=lambda metric: metric != task["primary"])
        for metric in shown if every else shown[:1]:
            rows.append(Row(one_line(task["title"]), tuple(_cells(task, metric)), key=name))
        if not shown:
            nothing = [Cell("–"), Cell(_count(task)), *(Cell() for _ in headings[2:])]
            rows.append(Row(one_line(task["title"]), tuple(nothing), key=name))
    notes = tuple(_notes(comparison, every))
    return Grid(f"{second} against {first}", "task", tuple(headings), tuple(rows), notes)


def _cells(task: Mapping[str, Any], metric: str) -> Iterator[Cell]:
    found = task["metrics"][metric]
    scale = scale_of(metric, [found["a"], found["b"]])
    yield Cell(metric + scale.mark)
    yield Cell(_count(task))
    for side in ("a", "b"):
        yield _cell(found[side], scale.text, scale)
    yield _cell(found["difference"], lambda value: _signed(scale, value), scale, bool(found["better"]))
    yield Cell(_p(found["p"]))
    yield Cell(_p(found["p_holm"]))
    yield Cell(_p(found["mcnemar"]["p"])) if found["mcnemar"] else Cell()


def _count(task: Mapping[str, Any]) -> str:
    return f"{task['n']:,} ({task['patients']:,})"


def _cell(interval: Mapping[str, float], text: Any, scale: Scale, sure: bool = False) -> Cell:
    unit = 100 if scale.percent else 1
    value, low, high = (interval[end] for end in ("value", "low", "high"))
    return Cell(text(value), f"[{text(low)}, {text(high)}]", (unit * value, unit * low, unit * high), sure)


def _signed(scale: Scale, value: float) -> str:
    text = scale.text(abs(value))
    if not text.strip("0."):
        return text
    return ("+" if value > 0 else "-") + text


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _notes(comparison: Comparison, every: bool) -> Iterator[str]:
    first, second = (comparison[side]["name"] for side in "ab")
    tasks = comparison["tasks"]
    yield (
        f"Difference: {second} minus {first}, on the questions that both answered. In brackets: "
        f"{100 * comparison['level']:g} % intervals, whole patients resampled {comparison['resamples']:,} times, the "
        "same ones for both."
    )
    yield "p: two-sided, from the same resamples; Holm: corrected over the tasks. Bold: Holm's p is below 0.05."
    if any(task["patients"] < task["n"] for task in tasks.values()):
        yield "McNemar's exact test takes questions as independent, which those about one patient are not: trust p."
    if 2 * len(tasks) / (1 + comparison["resamples"]) >= _ALPHA:
        yield f"Too few resamples for {len(tasks)} tasks: Holm's p cannot fall below {_ALPHA}. Raise --resamples."
    further = sum(len(task["metrics"]) - 1 for task in tasks.values() if task["metrics"])
    if further and not every:
        yield f"{further} further comparisons: --metric NAME shows one metric, --out FILE writes all."
    for name, task in tasks.items():
        if task["asked"]["a"] != task["asked"]["b"]:
            yield f"{name} was not asked alike. {first}: {task['asked']['a']}; {second}: {task['asked']['b']}."
        for owner, side in ((first, "only_in_a"), (second, "only_in_b")):
            if task[side]:
                yield f"{name}: left out {len(task[side]):,} that {owner} alone answered: {_some(task[side])}"
    for owner, side in ((first, "tasks_only_in_a"), (second, "tasks_only_in_b")):
        if comparison[side]:
            yield f"Evaluated of {owner} alone: {', '.join(comparison[side])}"
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, task in tasks.items():
        for metric, reason in task["not_compared"].items():
            reasons.setdefault((metric, reason), []).append(name)
    for (metric, reason), names in reasons.items():
        yield f"Not compared: {metric} of {', '.join(names)} {one_line(reason)}"


def _some(ids: Iterable[str]) -> str:
    ids = list(ids)
    more = f" and {len(ids) - _SHOWN:,} more" if len(ids) > _SHOWN else ""
    return ", ".join(map(repr, ids[:_SHOWN])) + more
