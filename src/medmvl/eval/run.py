"""Judging a model: tasks in, scores with intervals and controls out, every question and answer kept."""

import hashlib
import json
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

from medmvl import __version__
from medmvl.core.atomic import atomic_file, only_writer
from medmvl.core.config import load_yaml
from medmvl.eval.answered import AnswerLog
from medmvl.eval.ask import ask, forget_files
from medmvl.eval.conditions import ASKED
from medmvl.eval.controls import body_frame
from medmvl.eval.engines.engine import Engine
from medmvl.eval.engines.predictions import PredictionsEngine
from medmvl.eval.engines.table import Target, open_engine
from medmvl.eval.metrics.table import Options, sends_away
from medmvl.eval.report import PREDICTIONS, SCORES, write_report
from medmvl.eval.scoring import check_options, merged_options
from medmvl.eval.summary import write_tables
from medmvl.eval.task import Task, load_tasks
from medmvl.eval.team import Team, team
from medmvl.eval.trial import Trial
from medmvl.imaging.cache import PreparedStore

ANSWERS = "answers"
"""Folder of raw answers, beside scores.json."""
_PACKAGES = ("torch", "transformers", "numpy")


def evaluate(
    target: Target | str | Path,
    tasks: str | Path | Task | Sequence[str | Path | Task],
    out: str | Path | None = None,
    *,
    roots: Sequence[str | Path] | None = None,
    samples: str | Path | None = None,
    limit: int | None = None,
    shots: int | None = None,
    batch_size: int = 4096,
    resamples: int = 1000,
    seed: int = 0,
    metric_options: Options | None = None,
    logs: Sequence[str | Path] = (),
    device: str = "cpu",
    allow_code: Sequence[str] = (),
    allow_remote: bool = False,
    prepared: str | Path | None = None,
    **engine_options: Any,
) -> dict[str, Any]:
    """Judge a model on tasks, each beside its controls.

    An evaluation with an `out` that was stopped goes on where it was when it is started again: raw answers are kept in
    `out`/answers as they come, under what decides them (model, question, files, settings). Under torchrun the processes
    share the questions; the first one scores and writes.

    Args:
        target: a bundle or the path of one; "ENGINE:..." for another engine (see `eval.engines.table`); an `Engine`; or
            anything that answers samples as a bundle does.
        tasks: names ("brain_atlas/side"), groups ("brain_atlas"), suites, YAML files, or tasks.
        out: folder that receives scores.json, predictions.jsonl, report.html and tables; None writes nothing.
        roots: folders in which the tasks' data sources lie; None: those of the recipe that made the bundle, and "data".
        samples: a file of samples to ask in place of the tasks' sources; their media lie in `roots`, or beside it.
        limit: ask at most so many samples of each task; the same patients in every task.
        shots: answered examples before each question, in place of what the tasks say.
        batch_size: samples handed to the model at once.
        resamples: bootstrap draws per interval.
        seed: of the patients under `limit`, the shuffled media, the shots and the bootstrap draws.
        metric_options: metric -> its options, before those of the tasks.
        logs: training logs (JSONL) whose curves the report shows.
        device, allow_code: how a model given by its path is loaded; see `medmvl.load`.
        allow_remote: let an engine send questions and pictures to another machine. Data whose contents must not leave
            this one are refused all the same.
        prepared: folder that keeps prepared volumes between uses, as `run.prepared` of a recipe; changes no score.
        engine_options: further settings of the engine.

    Returns:
        What scores.json holds: {"provenance": ..., "tasks": {name: {"n", "version", "metrics", "controls", ...}},
        "excluded": samples that could not be asked, each with the reason}; of a file of predictions also
        "unused_predictions", those whose ids no sample has.

    Raises:
        LookupNameError, ConfigError, StoreError: a task, its settings or its data source is wrong.
        EngineError: the engine cannot go on; what it answered is kept in `out`.
        BusyError: another evaluation writes to `out`.
        DiskFullError: the results could not be written.
    """
    _check_numbers(limit=limit, shots=shots, batch_size=batch_size, resamples=resamples)
    chosen = [task if shots is None else task.model_copy(update={"shots": shots}) for task in load_tasks(tasks)]
    check_options(metric_options or {}, chosen)
    roots = _roots(target) if roots is None else roots
    body_frame.cache_clear()  # a file may have changed since the last evaluation
    forget_files()
    trials = [Trial.load(task, roots, limit, seed, samples) for task in chosen]
    crew = team()
    if crew.size > 1 and out is None:
        raise ValueError("an evaluation in several processes meets in files: give it a folder `out`")
    engine = open_engine(
        target, device=crew.device(device), allow_code=allow_code, allow_remote=allow_remote, **engine_options
    )
    _keep_at_home(engine, trials, metric_options, allow_remote)
    model = engine.identity or _nobody(engine, crew)
    with _writing(out, crew), _keeping(engine, prepared):
        log = _log(out, crew)
        try:
            for condition in _conditions(engine, chosen):
                _run(engine, trials, condition, log, crew, batch_size, model)
        finally:
            log.close()
        if not crew.first:
            crew.wait()
            return json.loads((Path(out or "") / SCORES).read_text(encoding="utf-8"))
        acting = {"allow_remote": allow_remote, "keep": None if out is None else Path(out) / ANSWERS / "judge"}
        for trial in trials:
            if "majority" in trial.task.controls:
                trial.guess()
        scores = {
            "provenance": _provenance(engine, trials, seed) | {"limit": limit},
            "tasks": {trial.task.name: trial.entry(resamples, seed, metric_options, acting) for trial in trials},
            "excluded": [asdict(one) for trial in trials for one in trial.excluded],
        }
        if isinstance(engine, PredictionsEngine):
            asked = [sample for trial in trials for sample in trial.samples.values()]
            scores["unused_predictions"] = list(engine.unmatched(asked).extra)
            scores["provenance"]["boxes"] = engine.boxes_read_as
        if out is not None:
            _write(Path(out), scores, trials)
            write_tables(out)
            write_report(out, logs)
        crew.wait()
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
    if unused := [one for scores in found for one in scores.get("unused_predictions", [])]:
        joined["unused_predictions"] = unused
    out = Path(out)
    with atomic_file(out / PREDICTIONS) as file:
        for folder in folders:
            file.write((Path(folder) / PREDICTIONS).read_text(encoding="utf-8"))
    with atomic_file(out / SCORES) as file:
        json.dump(joined, file, indent=2, allow_nan=False)
    write_tables(out)
    write_report(out, logs)
    return joined


def _conditions(engine: Engine, tasks: Sequence[Task]) -> list[str]:
    """Return what is asked, the questions as they are first: "", then the controls and probes that any task has."""
    if not engine.asks:
        return [""]
    wanted = {"", *(name for task in tasks for name in (*task.controls, *task.probes))}
    return [condition for condition in ASKED if condition in wanted]


def _run(
    engine: Engine,
    trials: Sequence[Trial],
    condition: str,
    log: AnswerLog,
    crew: Team,
    batch_size: int,
    model: str,
) -> None:
    """Ask all tasks under one condition together, so that all questions about one file meet."""
    asking = [trial for trial in trials if not condition or condition in (*trial.task.controls, *trial.task.probes)]
    asked = [trial.requests(condition) for trial in asking]
    said = iter(ask(engine, [request for requests in asked for request in requests], log, crew, batch_size, model))
    for trial, requests in zip(asking, asked, strict=True):
        trial.record(requests, list(islice(said, len(requests))), engine.boxes)


def _keep_at_home(engine: Engine, trials: Sequence[Trial], options: Options | None, allow_remote: bool) -> None:
    """Refuse to show data to another machine, be it the model's or a judge's, that must not leave this one."""
    for trial in trials:
        judges = [name for name, own in merged_options(trial.task, options).items() if sends_away(name, own)]
        away = [engine.name] * engine.remote + [f"the endpoint of {name}" for name in judges]
        if away and trial.about.get("credentialed"):
            raise ValueError(
                f"{away[0]} is another machine, and the contents of {trial.about['name']} must not leave this one (its "
                "data are credentialed); evaluate a model, and a judge, on this machine"
            )
        if judges and not allow_remote:
            raise ValueError(
                f"{away[-1]} is another machine, which would see questions and answers of {trial.task.name}; allow it "
                "with --allow-remote (allow_remote=True)"
            )


def _check_numbers(**given: int | None) -> None:
    for name, value in given.items():
        least = 0 if name == "shots" else 1
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def _nobody(engine: Engine, crew: Team) -> str:
    """Return a name for a model that does not tell what it is: its answers are of use to this evaluation only.

    Raises:
        ValueError: several processes could not know that they ask the same model.
    """
    if crew.size > 1:
        raise ValueError(f"{engine.name} does not tell its `hash`, so that processes cannot share its answers")
    return uuid4().hex


@contextmanager
def _writing(out: str | Path | None, crew: Team) -> Iterator[None]:
    """Keep the folder to this evaluation."""
    if out is None or not crew.first:
        yield
        return
    with only_writer(out):
        yield


def _log(out: str | Path | None, crew: Team) -> AnswerLog:
    log = AnswerLog(None if out is None else Path(out) / ANSWERS, crew.rank)
    if crew.first:
        log.tidy()
    crew.wait()
    log.refresh()
    return log


@contextmanager
def _keeping(engine: Engine, folder: str | Path | None) -> Iterator[None]:
    """Let the engine's processor keep prepared volumes in a folder meanwhile."""
    processor = getattr(engine, "processor", None)
    if folder is None or processor is None:
        yield
        return
    before = getattr(processor, "store", None)
    processor.store = PreparedStore(folder)
    try:
        yield
    finally:
        processor.store = before


def _roots(target: Target | str | Path) -> list[str]:
    """Return the folders in which data is looked for unless the caller names some."""
    if isinstance(target, str | Path):
        file = Path(str(target).removeprefix("bundle:")) / "recipe.yaml"
        recipe = file.read_text(encoding="utf-8") if file.is_file() else None
    else:
        recipe = getattr(target, "recipe", None)
    run = load_yaml(recipe).get("run", {}) if recipe else {}
    return [*run.get("data_roots", []), "data"]


def _provenance(engine: Engine, trials: Sequence[Trial], seed: int) -> dict[str, Any]:
    versions = {"medmvl": __version__, "python": platform.python_version()}
    data = "\n".join(sorted({trial.data_hash for trial in trials}))
    about = {(trial.about["name"], trial.data_hash): trial.about for trial in trials}
    return {
        "model": engine.name,
        "model_hash": engine.hash,
        "data_hash": hashlib.sha256(data.encode()).hexdigest(),
        "data": list(about.values()),
        "seed": seed,
        "versions": versions | {package: version(package) for package in _PACKAGES},
    }


def _write(out: Path, scores: dict[str, Any], trials: Sequence[Trial]) -> None:
    with atomic_file(out / PREDICTIONS) as file:
        for trial in trials:
            for records in trial.records.values():
                file.writelines(json.dumps(r, ensure_ascii=False, allow_nan=False) + "\n" for r in records)
    with atomic_file(out / SCORES) as file:
        json.dump(scores, file, indent=2, allow_nan=False)
