"""Evaluations made by hand: scores.json and predictions.jsonl in the shape that `evaluate` writes."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

CONDITIONS = ("blank_image", "shuffled_image", "question_only", "majority")


def interval(value: float, around: float = 0.05) -> dict[str, float]:
    return {"value": value, "low": value - around, "high": value + around}


def entry(n: int = 4, metrics: Mapping[str, float] | None = None, **changes: Any) -> dict[str, Any]:
    """Return a task's entry of scores.json; every control has half of the score."""
    found = {"accuracy_strict": 0.75} if metrics is None else metrics
    plain = {
        "n": n,
        "version": "1.0",
        "title": "Left or right",
        "family": "closed",
        "primary": next(iter(found), "accuracy_strict"),
        "patients": n,
        "unparsed": 0,
        "empty": 0,
        "metrics": {name: interval(value) for name, value in found.items()},
        "controls": {key: {name: interval(value / 2) for name, value in found.items()} for key in CONDITIONS},
        "probes": {},
        "groups": {},
        "not_applicable": {},
        "unavailable": {},
        "metric_options": {},
    }
    return plain | changes


def record(number: int, **changes: Any) -> dict[str, Any]:
    """Return a line of predictions.jsonl; without `changes` a right answer."""
    plain = {
        "id": f"s{number}",
        "task": "set/side",
        "control": "",
        "patient": f"p{number}",
        "modality": "MR",
        "answer_type": "closed",
        "groups": {},
        "media": [],
        "question": "Left or right?",
        "question_boxes": [],
        "prompt": "user: [image]Left or right?",
        "answer": "left",
        "parsed": "left",
        "reference": "left",
        "scores": {"accuracy_strict": 1.0},
    }
    return plain | changes


def wrong(number: int, **changes: Any) -> dict[str, Any]:
    """Return a line of predictions.jsonl with a wrong answer."""
    return record(number, **{"answer": "right", "parsed": "right", "scores": {"accuracy_strict": 0.0}} | changes)


def write_run(
    folder: Path,
    tasks: Mapping[str, Mapping[str, Any]],
    records: Iterable[Mapping[str, Any]],
    excluded: Sequence[Mapping[str, str]] = (),
    **provenance: Any,
) -> Path:
    """Write both files and return their folder."""
    about = {"model": "m", "model_hash": "a" * 64, "data_hash": "b" * 64, "seed": 0, "versions": {}, "data": []}
    scores = {"provenance": about | provenance, "tasks": tasks, "excluded": list(excluded)}
    folder.mkdir(exist_ok=True)
    (folder / "scores.json").write_text(json.dumps(scores))
    (folder / "predictions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    return folder
