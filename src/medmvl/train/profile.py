"""Where the time of a stage goes: a stopwatch with named spans, and what `medmvl train --profile` tells of it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medmvl.core.log import get_logger

_LOG = get_logger(__name__)
FORWARD = "forward: words, logits and loss"
_REST = "the rest: logs, checkpoints, validation"
_TRACED = 2
"""The step, counted from 0, whose operations are traced: the first ones are slower than all others."""
_KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm"),
    "convolutions": ("convolution",),
    "attention": ("scaled_dot_product",),
    "optimizer": ("_adamw_",),
    "copies": ("aten::copy_", "aten::cat", "aten::index_select", "aten::index_copy", "aten::fill_", "aten::clone"),
}


class Stopwatch:
    """Books every second under the innermost span that is open at the time."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.open: list[str] = []
        self.wait: Callable[[], object] = lambda: None
        """Called before time is read: waits for a device that works on while Python goes on."""
        self._since = time.perf_counter()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Open a span for the time of a `with` block."""
        self.begin(name)
        try:
            yield
        finally:
            self.end()

    def begin(self, name: str) -> None:
        """Open a span."""
        self.book()
        self.open.append(name)

    def end(self) -> None:
        """Close the innermost span."""
        self.book()
        self.open.pop()

    def book(self) -> None:
        """Count the time until now."""
        self.wait()
        now = time.perf_counter()
        self.seconds[self.open[-1] if self.open else _REST] += now - self._since
        self._since = now


class Profile:
    """Times the parts of a model in the forward pass, traces one step, and tells both.

    Args:
        watch: of the loop.
        parts: name -> module that is called in the forward pass.
        device: of the model.
        folder: gets STAGE.txt and STAGE.json, a trace for chrome://tracing or Perfetto.
        stage: name of the stage.
    """

    def __init__(
        self, watch: Stopwatch, parts: Mapping[str, nn.Module], device: torch.device, folder: Path, stage: str
    ) -> None:
        self._watch, self._device, self._folder, self._stage = watch, device, folder, stage
        self._steps = self._counted = 0
        self._trace: Any = None
        self._before: dict[str, float] = {}
        self._operations = ""
        if device.type == "cuda":
            watch.wait = torch.cuda.synchronize
        self._hooks = [hook for name, part in parts.items() for hook in self._time(name, part)]

    def step_done(self) -> None:
        """Count a step that has ended. The first one and the traced one are left out of the times."""
        self._steps += 1
        if self._trace is not None:
            self._end_trace()
        elif self._steps == 1:
            self._watch.book()
            self._watch.seconds.clear()
        else:
            self._counted += 1
        if self._steps == _TRACED:
            self._watch.book()
            self._before = dict(self._watch.seconds)
            self._trace = torch.profiler.profile()
            self._trace.__enter__()

    def finish(self) -> None:
        """Stop, write the table and log it."""
        for hook in self._hooks:
            hook.remove()
        self._watch.wait = lambda: None
        if self._trace is not None:
            self._end_trace()
        self._watch.book()
        if not self._counted:
            _LOG.info("profile of stage %s: %d steps are too few to tell", self._stage, self._steps)
            return
        text = f"{self._table()}\n{self._operations}"
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / f"{self._stage}.txt").write_text(text, encoding="utf-8")
        _LOG.info("profile of stage %s, also in %s\n%s", self._stage, self._folder, text.split("\n\n")[0])

    def _time(self, name: str, part: nn.Module) -> Iterator[Any]:
        """Hook a span onto a module; not where the backward pass recomputes it, nor in validation."""
        entered: list[bool] = []

        def before(*_: Any) -> None:
            entered.append(self._watch.open[:1] == [FORWARD])
            if entered[-1]:
                self._watch.begin(f"forward: {name}")

        def after(*_: Any) -> None:
            if entered.pop():
                self._watch.end()

        yield part.register_forward_pre_hook(before)
        yield part.register_forward_hook(after, always_call=True)

    def _end_trace(self) -> None:
        self._trace.__exit__(None, None, None)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._trace.export_chrome_trace(str(self._folder / f"{self._stage}.json"))
        self._operations = self._told(self._trace.key_averages())
        self._trace = None
        self._watch.book()
        self._watch.seconds.clear()
        self._watch.seconds.update(self._before)

    def _table(self) -> str:
        total = sum(self._watch.seconds.values())
        rows = sorted(self._watch.seconds.items(), key=lambda row: -row[1])
        lines = [f"{'seconds a step':>50}{'share':>9}"]
        lines += [f"{name:40}{spent / self._counted:10.4f}{spent / total:9.1%}" for name, spent in rows]
        return "\n".join([*lines, f"{'all':40}{total / self._counted:10.4f}{self._counted:5} steps"])

    def _told(self, averages: Any) -> str:
        """Return the share of each kind of operation in the traced step, and the operations that took most."""
        on_gpu = self._device.type == "cuda"
        column = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        kinds: dict[str, float] = defaultdict(float)
        for one in averages:
            found = (kind for kind, names in _KINDS.items() if any(_is(one.key, name) for name in names))
            kinds[next(found, "all others")] += getattr(one, column)
        total = sum(kinds.values()) or 1.0
        shares = "  ".join(f"{kind} {spent / total:.0%}" for kind, spent in sorted(kinds.items(), key=lambda x: -x[1]))
        return f"operations of one step: {shares}\n\n{averages.table(sort_by=column, row_limit=20)}"


def _is(operation: str, name: str) -> bool:
    return operation == name if name.startswith("aten::") else name in operation
