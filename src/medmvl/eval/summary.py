"""Several evaluations in one table: systems beside each other, beside their controls, and beside what was published."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from medmvl.core.atomic import atomic_file
from medmvl.eval.formats import FORMATS, Cell, Grid, Heading, Row, one_line
from medmvl.eval.metrics.table import find
from medmvl.eval.report import SCORES
from medmvl.eval.scale import Scale, scale_of
from medmvl.eval.suite import Baselines, Column, Reported, Suite, baselines, load_suite, suite_names
from medmvl.eval.table import CONTROLS

Entry = Mapping[str, Any]
"""A task's entry of scores.json."""

_INTERVALS = "In brackets: 95 % intervals, whole patients resampled."
_BEST = "Bold: the best measured number."
_REPORTED = "† Reported by others, not measured here."
_UNCONFIRMED = "‡ Reported, and its source does not tell that it is of this column's metric."


@dataclass(frozen=True)
class Run:
    """One evaluation.

    Attributes:
        name: what tables call the system.
        scores: what its scores.json holds.
        folder: where it lies, with its predictions.jsonl.
    """

    name: str
    scores: Mapping[str, Any]
    folder: Path = Path()

    @property
    def tasks(self) -> Mapping[str, Entry]:
        """Name -> entry of every task that was evaluated."""
        return self.scores["tasks"]


def read_runs(named: Sequence[str | Path]) -> list[Run]:
    """Read evaluations.

    Args:
        named: folders of evaluations, or their scores.json; "NAME=FOLDER" says what tables call the system. Otherwise
            it goes by the model that was evaluated, and by the folder where several went by one name.

    Raises:
        ValueError: there is no such evaluation, or two systems are called the same.
    """
    given = [_split(str(one)) for one in named]
    found = [Run(name, *_read(Path(path))) for name, path in given]
    own = [run.name or _short(one_line(str(run.scores["provenance"]["model"]))) for run in found]
    runs = []
    for run, name, (_, path) in zip(found, own, given, strict=True):
        told = run.name or (name if own.count(name) == 1 else f"{name} ({one_line(path)})")
        runs.append(replace(run, name=told))
    names = [run.name for run in runs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"several evaluations are called {', '.join(twice)}; name them: NAME=FOLDER")
    return runs


def suite_grid(runs: Sequence[Run], suite: Suite, *, reported: bool = False, controls: bool = False) -> Grid:
    """Return a suite's table: a row for each system, a column for each of the suite's.

    Args:
        runs: evaluations; what a run has not been asked stays empty.
        suite: its columns.
        reported: whether published numbers stand below, marked.
        controls: whether each system's controls stand below it.

    Raises:
        LookupNameError: a column's metric does not exist.
    """
    for column in suite.columns:
        find(column.metric)
    published = baselines(suite) if reported else None
    marks = [_Marks(column, runs) for column in suite.columns]
    rows = [row for run in runs for row in _rows(run, marks, controls)]
    rows += _counts(runs, suite)
    rows += [] if published is None else _published(published, suite)
    headings = [Heading(c.heading + m.scale.mark, c.group) for c, m in zip(suite.columns, marks, strict=True)]
    return Grid(suite.title, "system", tuple(headings), tuple(rows), tuple(_notes(runs, suite, published)))


def task_grid(runs: Sequence[Run], *, controls: bool = False) -> Grid:
    """Return a table with a row for each task that all runs share: its primary metric, for each system.

    Args:
        runs: at least one evaluation.
        controls: whether each system's controls stand beside it.

    Raises:
        ValueError: the runs share no task.
    """
    names = [name for name in runs[0].tasks if all(name in run.tasks for run in runs)]
    if not names:
        every = "; ".join(f"{run.name}: {', '.join(run.tasks) or 'none'}" for run in runs)
        raise ValueError(f"the evaluations share no task, so there is nothing to put side by side ({every})")
    conditions = ["", *(CONTROLS if controls else ())]
    headings = [Heading("metric", text=True), Heading("questions")]
    headings += [Heading(_headline(run, runs, condition)) for run in runs for condition in conditions]
    rows = []
    for name in names:
        entry = runs[0].tasks[name]
        column = Column(heading=entry["title"], task=name, metric=entry["primary"])
        mark = _Marks(column, runs)
        counts = dict.fromkeys(f"{run.tasks[name]['n']:,}" for run in runs)
        cells = [Cell(column.metric + mark.scale.mark), Cell(" / ".join(counts))]
        cells += [mark.cell(run, condition) for run in runs for condition in conditions]
        rows.append(Row(one_line(entry["title"]), tuple(cells), key=name))
    columns = [Column(heading=runs[0].tasks[name]["title"], task=name, metric="") for name in names]
    notes = [_INTERVALS, *([_BEST] if len(runs) > 1 else []), *_differences(runs, columns)]
    title = " and ".join(run.name for run in runs) if len(runs) < 3 else f"{len(runs)} systems"
    return Grid(title, "task", tuple(headings), tuple(rows), tuple(notes))


def completed(scores: Mapping[str, Any]) -> dict[str, Grid]:
    """Return the tables of the shipped suites of which an evaluation holds every task, with what was published."""
    run = Run(one_line(str(scores["provenance"]["model"])), scores)
    suites = [suite for suite in map(load_suite, suite_names()) if set(suite.tasks) <= set(run.tasks)]
    return {suite.name: suite_grid([run], suite, reported=True) for suite in suites}


def write_tables(folder: str | Path) -> list[Path]:
    """Write table.md, .tex and .csv beside an evaluation's scores.json, and the same for each suite that it completes.

    Args:
        folder: of the evaluation. A suite's table is called table_SUITE.md, and has what was published below.

    Returns:
        The files.
    """
    folder = Path(folder)
    runs = read_runs([folder / SCORES])
    grids = {"table": task_grid(runs, controls=True)}
    grids |= {f"table_{name}": grid for name, grid in completed(runs[0].scores).items()}
    files = []
    for name, grid in grids.items():
        for suffix, write in FORMATS.items():
            files.append(folder / f"{name}.{suffix}")
            with atomic_file(files[-1]) as file:
                file.write(write(grid))
    return files


class _Marks:
    """One column: how its numbers are written, and which of the measured ones is the best."""

    def __init__(self, column: Column, runs: Sequence[Run]) -> None:
        self.column = column
        found = [interval for run in runs if (interval := self.interval(run)) is not None]
        under = [one for run in runs for control in CONTROLS if (one := self.interval(run, control)) is not None]
        self.scale: Scale = scale_of(column.metric, [*found, *under])
        values = [interval["value"] for interval in found]
        best = min if self.scale.falls else max
        self._best = best(values) if len(values) > 1 else None

    def interval(self, run: Run, condition: str = "") -> Mapping[str, float] | None:
        entry = run.tasks.get(self.column.task)
        if entry is None or not entry["n"]:
            return None
        scored = entry["controls"].get(condition, {}) if condition else entry["metrics"]
        return scored.get(self.column.metric)

    def cell(self, run: Run, condition: str = "") -> Cell:
        interval = self.interval(run, condition)
        if interval is None:
            return Cell()
        unit = 100 if self.scale.percent else 1
        value, low, high = (interval[end] * unit for end in ("value", "low", "high"))
        around = f"[{self.scale.text(interval['low'])}, {self.scale.text(interval['high'])}]"
        best = not condition and interval["value"] == self._best
        return Cell(self.scale.text(interval["value"]), around, (value, low, high), best)


def _rows(run: Run, marks: Sequence[_Marks], controls: bool) -> Iterator[Row]:
    yield Row(run.name, tuple(mark.cell(run) for mark in marks))
    for control, name in CONTROLS.items() if controls else ():
        cells = tuple(mark.cell(run, control) for mark in marks)
        if any(cell.text for cell in cells):
            yield Row(f"{run.name}, {name}", cells, "control")


def _counts(runs: Sequence[Run], suite: Suite) -> Iterator[Row]:
    """Yield how many questions the numbers are of: one row where all runs agree."""
    counted = {
        run.name: tuple(Cell(f"{run.tasks[c.task]['n']:,}") if c.task in run.tasks else Cell() for c in suite.columns)
        for run in runs
    }
    if len(set(counted.values())) == 1:
        yield Row("questions", next(iter(counted.values())), "count")
        return
    for name, cells in counted.items():
        yield Row(f"questions, {name}", cells, "count")


def _published(published: Baselines, suite: Suite) -> Iterator[Row]:
    for reported in published.systems:
        cells = (_published_cell(reported, column, published.decimals) for column in suite.columns)
        yield Row(reported.system, tuple(cells), "reported")


def _published_cell(reported: Reported, column: Column, decimals: int) -> Cell:
    value = reported.values.get(column.label)
    if value is None:
        return Cell()
    mark: Literal["†", "‡"] = "‡" if reported.is_unconfirmed(column.label) else "†"
    return Cell(f"{value:.{decimals}f}", numbers=(value, None, None), mark=mark)


def _notes(runs: Sequence[Run], suite: Suite, published: Baselines | None) -> Iterator[str]:
    if runs:
        yield _INTERVALS
    if len(runs) > 1:
        yield _BEST
    yield from _differences(runs, suite.columns)
    for run in runs:
        yield from _unavailable(run, suite)
    if published is None:
        return
    yield _REPORTED
    if any(reported.unconfirmed for reported in published.systems):
        yield _UNCONFIRMED
    told: dict[str, list[str]] = {}
    for reported in published.systems:
        told.setdefault("; ".join(filter(None, (reported.source, reported.note))), []).append(reported.system)
    for source, systems in told.items():
        yield f"{', '.join(systems)}: {source}."


def _unavailable(run: Run, suite: Suite) -> Iterator[str]:
    """Yield why numbers of a run are missing, though their tasks were evaluated."""
    reasons: dict[str, list[str]] = {}
    for column in suite.columns:
        entry = run.tasks.get(column.task)
        if entry is None or not entry["n"] or column.metric in entry["metrics"]:
            continue
        undefined = f"not scored by {column.metric} (task version {entry['version']}), or undefined on these answers"
        reason = entry.get("unavailable", {}).get(column.metric, undefined)
        reasons.setdefault(reason, []).append(column.label)
    for reason, labels in reasons.items():
        yield f"{run.name}, {', '.join(labels)}: {one_line(reason)}"


def _differences(runs: Sequence[Run], columns: Sequence[Column]) -> Iterator[str]:
    """Yield what keeps the numbers of several runs from being comparable, and what could not be asked."""
    for task in dict.fromkeys(column.task for column in columns):
        versions = {run.name: run.tasks[task]["version"] for run in runs if task in run.tasks}
        if len(set(versions.values())) > 1:
            told = ", ".join(f"{name} {version}" for name, version in versions.items())
            yield f"Not comparable: {task} was evaluated in several versions ({told})."
        asked = {run.name: asked_text(run.tasks[task]) for run in runs if task in run.tasks}
        if len(set(asked.values())) > 1:
            told = "; ".join(f"{name}: {how}" for name, how in asked.items())
            yield f"Not asked alike: {task} ({told})."
        counts = {run.name: run.tasks[task]["n"] for run in runs if task in run.tasks}
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{name} {count:,}" for name, count in counts.items())
            yield f"Not the same questions: of {task} were answered {told}."
    data = {run.scores["provenance"].get("data_hash") for run in runs}
    if len(data) > 1 and len({frozenset(run.tasks) for run in runs}) == 1:
        yield "Not the same data: the evaluations have different data hashes."
    for run in runs:
        if excluded := len(run.scores.get("excluded", ())):
            yield f"{run.name}: {excluded:,} questions could not be asked; its scores.json lists them."


def asked_text(entry: Entry) -> str:
    """Return how a task's questions were put."""
    return ", ".join(f"{key} {value}" for key, value in entry.get("asked", {}).items())


def _headline(run: Run, runs: Sequence[Run], condition: str) -> str:
    if not condition:
        return "score" if len(runs) == 1 else run.name
    return CONTROLS[condition] if len(runs) == 1 else f"{run.name}, {CONTROLS[condition]}"


def _short(model: str) -> str:
    """Return a model's address for tables: a long path goes by its last two parts ("a/b/c" -> "b/c")."""
    engine, colon, path = model.rpartition(":")
    parts = Path(path).parts
    return model if "#" in model or len(parts) < 3 else f"{engine}{colon}{'/'.join(parts[-2:])}"


def _split(named: str) -> tuple[str, str]:
    """Return (name, path) of "NAME=PATH", ("", path) of a path; a path that exists is one, whatever it is called."""
    name, equals, path = named.partition("=")
    return (one_line(name), path) if equals and name and not Path(named).exists() else ("", named)


def _read(path: Path) -> tuple[Mapping[str, Any], Path]:
    file = path / SCORES if path.is_dir() else path
    try:
        scores = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: no scores of an evaluation can be read: {error}") from None
    told = scores.get("provenance", {}) if isinstance(scores, dict) else {}
    if "model" not in told or not isinstance(scores.get("tasks"), dict):
        raise ValueError(f"{file}: holds no scores of an evaluation; name a folder that `medmvl eval ... --out` wrote")
    return scores, file.parent
