"""How the benches measure: processor and wall time, memory of a process, and where a figure is written down."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


def memory_mib(key: str) -> float:
    """Return a figure of this process in MiB: VmRSS (memory now) or VmHWM (its peak)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:"))


def forget_peak() -> None:
    """Let this process's peak of memory begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def record(path: Path | None, what: str, seconds: Mapping[str, float]) -> None:
    """Append what was measured, processor seconds by way, as a line of JSON: `plot_ratios.py` draws them."""
    if path is not None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"what": what, "seconds": dict(seconds)}) + "\n")


@dataclass(frozen=True)
class Spent:
    """Seconds of processor and wall time, for all rows forward and backward, and for clipping and the optimizer."""

    rows: tuple[float, float]
    update: tuple[float, float]


class Clock:
    """Tells processor and wall seconds since it was last asked."""

    def __init__(self) -> None:
        self._last = (time.process_time(), time.perf_counter())

    def __call__(self) -> tuple[float, float]:
        """Return both, and start anew."""
        now = (time.process_time(), time.perf_counter())
        before, self._last = self._last, now
        return now[0] - before[0], now[1] - before[1]
