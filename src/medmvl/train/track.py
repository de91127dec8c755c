"""What a run tells while it trains: JSON lines, TensorBoard or Weights & Biases, a progress bar, refused samples."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from medmvl.core.atomic import DiskFullError, atomic_file
from medmvl.core.log import get_logger
from medmvl.core.schema import SampleError
from medmvl.train.feed import Refusal

_LOG = get_logger(__name__)
_SHOWN = 5
"""Refused samples of a stage that the log names."""


class Tracker:
    """Writes a run's log files on rank 0; on the other ranks it does nothing.

    Args:
        folder: of the run; gets log.jsonl, refused.jsonl and the trackers' files.
        names: "tensorboard", "wandb".
        main: whether this is rank 0.
        resumed: optimizer step from which the run goes on (0: from the start); what was logged behind it is dropped.

    Raises:
        ValueError: a tracker's package is not installed.
    """

    def __init__(self, folder: Path, names: Sequence[str], main: bool, resumed: int = 0) -> None:
        self._folder, self._main, self._started = folder, main, time.time()
        self._bar: Any = None
        self._task: Any = None
        self._names, self._resumed = names, resumed
        self._trackers: list[Any] | None = None
        self._refused: Counter[str] = Counter()
        if not main:
            return
        for file in ("log.jsonl", "refused.jsonl"):
            _drop_behind(folder / file, resumed)

    def log(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Append a line to log.jsonl, and its numbers to the trackers as "kind/name"."""
        if not self._main:
            return
        line = {"kind": kind, "step": step, "time": round(time.time(), 3), **values}
        _append(self._folder / "log.jsonl", [line])
        flat = {f"{kind}/{name}": value for name, value in _flatten(values) if isinstance(value, int | float)}
        if self._trackers is None:  # accelerate's trackers can start only after its first Accelerator
            self._trackers = [_open_tracker(name, self._folder, self._resumed) for name in self._names]
        for tracker in self._trackers:
            tracker.log(flat, step=step)

    def refuse(self, step: int, stage: str, refused: Iterable[Refusal]) -> None:
        """Append refused samples to refused.jsonl; warn of a stage's first ones, then of their number as it grows."""
        rows = [{"step": step, "stage": stage, **asdict(one)} for one in refused]
        if not self._main or not rows:
            return
        _append(self._folder / "refused.jsonl", rows)
        for number, row in enumerate(rows, self._refused[stage] + 1):
            if number <= _SHOWN:
                _LOG.warning("refused %s", SampleError(row["reason"], row["sample_id"], row["path"]))
            elif math.log10(number).is_integer():
                _LOG.warning("%s: %d samples refused so far; refused.jsonl lists all", stage, number)
        self._refused[stage] += len(rows)

    def begin(self, stage: str, total: int, done: int) -> None:
        """Open the progress bar of a stage."""
        if not self._main or not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        self._bar = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),  # the bar alone gives way on a narrow screen
            TextColumn("{task.completed}/{task.total}  {task.fields[numbers]}", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True, min_width=5)),
            console=Console(stderr=True),
            expand=True,
        )
        self._task = self._bar.add_task(stage, total=total, completed=done, numbers="")
        self._bar.start()

    def advance(self, stage: str, done: int, total: int, values: Mapping[str, Any], announce: bool) -> None:
        """Move the progress bar; without a terminal print a plain line when `announce` is set."""
        if not self._main:
            return
        numbers = (
            f"loss {values['loss']:.3f}  {values['samples_per_s']:.3g} samples/s  "
            f"{values['tokens_per_s'] / 1000:.3g}k tokens/s  pad {100 * values['padding']:.0f}%"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=done, numbers=numbers)
        elif announce:
            _LOG.info("%s %d/%d  %s  ETA %s", stage, done, total, numbers, _clock(values["eta_s"]))

    def end(self) -> None:
        """Close the progress bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def finish(self) -> None:
        """Close everything, and tell how many samples were refused."""
        self.end()
        for stage, number in self._refused.items():
            _LOG.warning("%s: %d samples refused; %s lists them", stage, number, self._folder / "refused.jsonl")
        for tracker in self._trackers or ():
            tracker.finish()


def memory_gib(device: torch.device) -> float:
    """Return the peak memory: of the GPU since the start of the process, or of this process on a CPU (GiB)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def require_trackers(names: Iterable[str]) -> None:
    """Check that the trackers' packages are installed.

    Raises:
        ValueError: one is missing; says how to install it.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"run.trackers: {name} is not installed; `pip install {name}`, or leave it out")


def _open_tracker(name: str, folder: Path, resumed: int) -> Any:
    from accelerate.tracking import TensorBoardTracker, WandBTracker

    if name == "wandb":
        tracker = WandBTracker("medmvl", name=folder.name, dir=str(folder), resume="allow", id=folder.name)
    else:
        tracker = TensorBoardTracker("tensorboard", logging_dir=folder, purge_step=resumed + 1 if resumed else None)
    tracker.main_process_only = False  # this is rank 0, and accelerate's state comes and goes with the stages
    tracker.start()
    return tracker


def _append(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    except OSError as error:
        raise DiskFullError(
            f"{path}: could not be written ({error.strerror or error}); free some space and resume"
        ) from error


def _drop_behind(path: Path, step: int) -> None:
    """Remove the lines of steps behind `step`, and a half-written last line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").split("\n")[:-1]:  # not splitlines: text may hold U+2028
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:
            break
    with atomic_file(path) as file:
        file.writelines(kept)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
