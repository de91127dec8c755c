"""From the answers of one task to its entry in scores.json: metrics with intervals, controls, probes, groups."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medmvl.core.lookup import choices_text
from medmvl.eval.metrics.metric import Answers, Mean, Statistics
from medmvl.eval.metrics.table import Options, acts, measure, refuse_unknown
from medmvl.eval.stats import bootstrap
from medmvl.eval.task import Task

Record = dict[str, Any]
"""One line of predictions.jsonl."""

_MOST_GROUPS = 40  # values of one key that are broken down; a key with more (an id) says nothing


def entry(
    task: Task,
    records: Mapping[str, Sequence[Record]],
    resamples: int,
    seed: int,
    options: Options | None = None,
    not_applicable: Mapping[str, Mapping[str, int]] | None = None,
    acting: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Score a task's answers; every sample's own values are written into its record.

    Args:
        task: says which metrics, controls, probes and groups.
        records: condition ("" = the question as it is, or the name of a control or probe) -> its records.
        resamples: bootstrap draws per interval.
        seed: of the draws.
        options: metric name -> its options, beside (and before) the task's own.
        not_applicable: control or probe -> why it has nothing to ask -> of how many samples.
        acting: what metrics that ask a model of their own may do (see `Family.sends_away`). They score the questions as
            they are, no controls and probes.

    Returns:
        The task's entry of scores.json, see docs/evaluation.md.
    """
    given = merged_options(task, options)
    real = records.get("", [])
    found: dict[str, dict[str, Statistics]] = {}
    found[""], missing = _measure(task.metrics, real, given, acting)
    quiet = [name for name in task.metrics if not acts(name)]
    for condition in (*task.controls, *task.probes):
        found[condition], _ = _measure(quiet, records.get(condition, []), given, acting)

    def intervals(condition: str, members: Sequence[int] | None = None) -> dict[str, Any]:
        patients = [record["patient"] for record in records.get(condition, [])]
        if not patients:
            return {}
        drawn = bootstrap(found[condition], patients, resamples, seed=seed, members=members)
        return {name: one.to_dict() for name, one in drawn.items()}

    metrics = intervals("")
    for name in found[""].keys() - metrics.keys():
        missing[name] = "has no value on these samples"
    return {
        "n": len(real),
        "version": task.version,
        "title": task.title,
        "family": task.family,
        "primary": task.shown,
        "patients": len({record["patient"] for record in real}),
        "unparsed": sum(record["parsed"] is None for record in real),
        "empty": sum(not record["answer"].strip() for record in real),
        "metrics": metrics,
        "controls": {control: intervals(control) for control in task.controls},
        "probes": {probe: _probe(records.get(probe, []), intervals(probe), resamples, seed) for probe in task.probes},
        "groups": {
            key: {
                value: {"n": len(members), "metrics": intervals("", members)}
                for value, members in _members(real, key).items()
            }
            for key in task.groups
        },
        "not_applicable": {condition: dict(reasons) for condition, reasons in (not_applicable or {}).items()},
        "unavailable": missing,
        "metric_options": given,
        "asked": {"prompt": task.prompt, "shots": task.shots, **task.generation.model_dump()},
    }


def merged_options(task: Task, given: Options | None) -> dict[str, dict[str, Any]]:
    """Return the options of the task's metrics, those of the caller before its own."""
    given = given or {}
    merged = {name: {**task.metric_options.get(name, {}), **given.get(name, {})} for name in task.metrics}
    return {name: options for name, options in merged.items() if options}


def check_options(options: Options, tasks: Sequence[Task]) -> None:
    """Refuse options of metrics that no task has, and options that a metric does not take, the tasks' own among them.

    Raises:
        ValueError: names the nearest metric or option, and all of them.
    """
    known = {name for task in tasks for name in task.metrics}
    for name in options:
        if name not in known:
            raise ValueError(f"metric option {name!r}: no task has this metric; {choices_text(name, known)}")
    for task in tasks:
        refuse_unknown(merged_options(task, options))


def answers_of(records: Sequence[Mapping[str, Any]]) -> Answers:
    """Return what metrics take of records."""
    ranked = [record.get("likelihoods") for record in records]
    return Answers(
        [record["parsed"] for record in records],
        [record["reference"] for record in records],
        [record["question"] for record in records],
        ranked if any(one is not None for one in ranked) else (),
    )


def _measure(
    names: Sequence[str], records: Sequence[Record], options: Options, acting: Mapping[str, Any] | None
) -> tuple[dict[str, Statistics], dict[str, str]]:
    if not records:
        return {}, {}
    found, missing = measure(names, answers_of(records), {n: o for n, o in options.items() if n in names}, acting)
    for name, statistics in found.items():
        if statistics.values is not None:
            for record, value in zip(records, statistics.values.tolist(), strict=True):
                record["scores"][name] = value if math.isfinite(value) else None
    return found, missing


def _probe(records: Sequence[Record], metrics: dict[str, Any], resamples: int, seed: int) -> dict[str, Any]:
    """Return how often the changed answer is what follows from the model's own first one, and how often it is right."""
    consistent = Mean(np.array([float(record["consistent"]) for record in records]))
    kept: dict[str, Any] = {}
    if records:
        patients = [record["patient"] for record in records]
        kept = bootstrap({"consistency": consistent}, patients, resamples, seed=seed)["consistency"].to_dict()
    return {"n": len(records), "consistency": kept, "metrics": metrics}


def _members(records: Sequence[Record], key: str) -> dict[str, list[int]]:
    """Return value of a group's key -> places of its records; {} where the key has too many values to be a group."""
    members: dict[str, list[int]] = {}
    for place, record in enumerate(records):
        if value := record["groups"].get(key, ""):
            members.setdefault(value, []).append(place)
    return dict(sorted(members.items())) if len(members) <= _MOST_GROUPS else {}
