"""Judging a model: tasks in, scores with intervals and controls out, every question and answer kept."""

import hashlib
import json
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from medmvl import __version__
from medmvl.core.atomic import atomic_file
from medmvl.core.config import load_yaml
from medmvl.eval.ask import Target, ask
from medmvl.eval.controls import body_frame
from medmvl.eval.report import PREDICTIONS, SCORES, write_report
from medmvl.eval.task import Task, load_tasks
from medmvl.eval.trial import Trial
from medmvl.imaging.cache import PreparedStore

_PACKAGES = ("torch", "transformers", "numpy")
_SHOWN = ("", "blank_image", "shuffled_image")  # what the model is shown when asked; "" = the sample's own media


def evaluate(
    target: Target | str | Path,
    tasks: str | Path | Task | Sequence[str | Path | Task],
    out: str | Path | None = None,
    *,
    roots: Sequence[str | Path] | None = None,
    limit: int | None = None,
    batch_size: int = 256,
    resamples: int = 1000,
    seed: int = 0,
    logs: Sequence[str | Path] = (),
    device: str = "cpu",
    allow_code: Sequence[str] = (),
    prepared: str | Path | None = None,
) -> dict[str, Any]:
    """Judge a model on tasks, each beside its controls.

    Args:
        target: a bundle, the path of one, or anything that answers samples as a bundle does (`Target`).
        tasks: names ("brain_atlas/side"), groups ("brain_atlas"), YAML files, or tasks.
        out: folder that receives scores.json, predictions.jsonl and report.html; None writes nothing.
        roots: folders in which the tasks' data sources lie; None: those of the recipe that made the bundle, and "data".
        limit: ask at most so many samples of each task; the same patients in every task.
        batch_size: samples handed to the model at once.
        resamples: bootstrap draws per interval.
        seed: of the patients under `limit`, the shuffled media and the bootstrap draws.
        logs: training logs (JSONL) whose curves the report shows.
        device, allow_code: how a bundle given by its path is loaded; see `medmvl.load`.
        prepared: folder that keeps prepared volumes between uses, as `run.prepared` of a recipe; changes no score.

    Returns:
        What scores.json holds: {"provenance": ..., "tasks": {name: {"n", "version", "metrics", "controls", ...}},
        "excluded": samples that could not be asked, each with the reason}.

    Raises:
        LookupNameError, ConfigError, StoreError: a task, its settings or its data source is wrong.
        DiskFullError: the results could not be written.
    """
    chosen = load_tasks(tasks)
    roots = _roots(target) if roots is None else roots
    body_frame.cache_clear()  # a file may have changed since the last evaluation
    trials = [Trial.load(task, roots, limit, seed) for task in chosen]
    model = _opened(target, device, allow_code)
    with _keeping(model, prepared):
        for condition in _SHOWN:
            _run(model, trials, condition, batch_size, seed)
    for trial in trials:
        if "majority" in trial.task.controls:
            trial.guess()
    scores = {
        "provenance": _provenance(target, model, trials, seed),
        "tasks": {trial.task.name: trial.scores(resamples, seed) for trial in trials},
        "excluded": [asdict(one) for trial in trials for one in trial.excluded],
    }
    if out is not None:
        _write(Path(out), scores, trials)
        write_report(out, logs)
    return scores


def join(folders: Sequence[str | Path], out: str | Path, logs: Sequence[str | Path] = ()) -> dict[str, Any]:
    """Put several evaluations into one scores.json, predictions.jsonl and report.html, as of several models of one run.

    Args:
        folders: what `evaluate` wrote to; no task may occur twice.
        out: folder that receives the joined files.
        logs: as for `evaluate`.

    Returns:
        The joined scores; their provenance names every model, and holds each one's own in "parts".

    Raises:
        ValueError: a task occurs twice.
        DiskFullError: the results could not be written.
    """
    found = [json.loads((Path(folder) / SCORES).read_text(encoding="utf-8")) for folder in folders]
    names = [name for scores in found for name in scores["tasks"]]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"evaluations in {', '.join(map(str, folders))} share tasks: {', '.join(twice)}")
    parts = [scores["provenance"] for scores in found]
    joined = {
        "provenance": parts[0]
        | {key: " + ".join(part[key] for part in parts) for key in ("model", "model_hash", "data_hash")}
        | {"data": [one for part in parts for one in part["data"]], "parts": parts},
        "tasks": {name: entry for scores in found for name, entry in scores["tasks"].items()},
        "excluded": [one for scores in found for one in scores["excluded"]],
    }
    out = Path(out)
    with atomic_file(out / PREDICTIONS) as file:
        for folder in folders:
            file.write((Path(folder) / PREDICTIONS).read_text(encoding="utf-8"))
    with atomic_file(out / SCORES) as file:
        json.dump(joined, file, indent=2, allow_nan=False)
    write_report(out, logs)
    return joined


def _run(model: Target, trials: Sequence[Trial], condition: str, batch_size: int, seed: int) -> None:
    """Ask all tasks under one condition together, so that all questions about one file meet."""
    asking = [trial for trial in trials if not condition or condition in trial.task.controls]
    requests = [(trial, request) for trial in asking for request in trial.requests(condition, seed)]
    if not requests:
        return
    answers, excluded = ask(model, [request for _, request in requests], batch_size)
    for index, (trial, request) in enumerate(requests):
        if index in answers:
            trial.record(request, answers[index], model.processor.boxes_from_text)
        else:
            trial.exclude(request.sample.id, condition, excluded[index])


@contextmanager
def _keeping(model: Target, folder: str | Path | None) -> Iterator[None]:
    """Let the model's processor keep prepared volumes in a folder meanwhile."""
    if folder is None:
        yield
        return
    before = getattr(model.processor, "store", None)
    model.processor.store = PreparedStore(folder)
    try:
        yield
    finally:
        model.processor.store = before


def _roots(target: Target | str | Path) -> list[str]:
    """Return the folders in which data is looked for unless the caller names some."""
    if isinstance(target, str | Path):
        file = Path(target) / "recipe.yaml"
        recipe = file.read_text(encoding="utf-8") if file.is_file() else None
    else:
        recipe = getattr(target, "recipe", None)
    run = load_yaml(recipe).get("run", {}) if recipe else {}
    return [*run.get("data_roots", []), "data"]


def _opened(target: Target | str | Path, device: str, allow_code: Sequence[str]) -> Target:
    if not isinstance(target, str | Path):
        return target
    from medmvl.bundle import load

    return load(target, device=device, allow_code=allow_code)


def _provenance(given: Target | str | Path, model: Target, trials: Sequence[Trial], seed: int) -> dict[str, Any]:
    versions = {"medmvl": __version__, "python": platform.python_version()}
    data = "\n".join(sorted({trial.data_hash for trial in trials}))
    return {
        "model": str(given) if isinstance(given, str | Path) else type(model).__name__,
        "model_hash": getattr(model, "hash", ""),
        "data_hash": hashlib.sha256(data.encode()).hexdigest(),
        "data": list({str(trial.source.folder): trial.about for trial in trials}.values()),
        "seed": seed,
        "versions": versions | {package: version(package) for package in _PACKAGES},
    }


def _write(out: Path, scores: dict[str, Any], trials: Sequence[Trial]) -> None:
    with atomic_file(out / PREDICTIONS) as file:
        for trial in trials:
            for records in trial.records.values():
                file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    with atomic_file(out / SCORES) as file:
        json.dump(scores, file, indent=2, allow_nan=False)
