"""The mixture of a stage: which part each source and task has in it, how often it comes round, how many tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from medmvl.core.schema import Sample, SampleError
from medmvl.data.store import SampleStore
from medmvl.imaging.address import split_address
from medmvl.train.recipe import Data, Stage, passes

LOOKED_AT = 64
"""Samples of each portion that are encoded to tell its tokens."""

HEADING = ("source", "split", "samples", "repeats", "shown", "share", "tokens each", "tokens", "of tokens")

Count = Callable[[Sample, Data], int]
"""Returns a sample's tokens, media included; raises SampleError for one that training would refuse."""


@dataclass(frozen=True)
class Portion:
    """A source, or one task of it, in a mixture.

    Attributes:
        data: as the recipe names it.
        store: its samples.
        passes: how often an epoch goes over them.
    """

    data: Data
    store: SampleStore
    passes: float

    @property
    def name(self) -> str:
        """The source, and the task where the portion is one of several."""
        source, task = self.data.source, self.store.task_names[0] if self.data.by_task else ""
        if not task or task == source or task.startswith(f"{source}/"):
            return task or source
        return f"{source}: {task}"

    @property
    def per_epoch(self) -> int:
        """Samples that an epoch takes."""
        return round(len(self.store) * self.passes)


def portions(
    data: Sequence[Data], stores: Sequence[SampleStore], roots: Sequence[str], temperature: float | None = None
) -> list[Portion]:
    """Return the portions of a mixture: its sources, those with shares of tasks cut into their tasks.

    Args:
        data, stores: the sources, and the samples of each.
        roots: further folders that media may lie in.
        temperature: of the stage; see `passes`.
    """
    amounts = passes(data, [len(store) for store in stores], temperature)
    return [
        portion
        for one, store, amount in zip(data, stores, amounts, strict=True)
        for portion in _by_task(one, store, amount, roots)
    ]


def _by_task(data: Data, store: SampleStore, amount: float, roots: Sequence[str]) -> list[Portion]:
    if not data.by_task:
        return [Portion(data, store, amount)]
    tasks = [SampleStore(store.folder, store.split, [name], roots=roots) for name in store.task_names]
    shares = [
        data.tasks[task.task_names[0]] if isinstance(data.tasks, dict) else len(task) ** (1 / (data.temperature or 1))
        for task in tasks
    ]
    scale = amount * len(store) / sum(shares)
    return [Portion(data, task, share * scale / len(task)) for task, share in zip(tasks, shares, strict=True)]


@dataclass
class Looked:
    """What some samples turned out to be.

    Attributes:
        tokens: of those that can be used; 0 each where nobody counts.
        refused: what is wrong with each of the others.
    """

    tokens: list[int] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    @property
    def share_refused(self) -> float:
        """Refused ones among those looked at."""
        return len(self.refused) / max(1, len(self.refused) + len(self.tokens))

    @property
    def mean(self) -> float:
        """Tokens of a sample; 0 where there is none."""
        return sum(self.tokens) / max(1, len(self.tokens))

    def __add__(self, other: Looked) -> Looked:
        """Return both together."""
        return Looked(self.tokens + other.tokens, self.refused + other.refused)


def look(data: Data, store: SampleStore, count: Count, samples: int = LOOKED_AT) -> Looked:
    """Look at about `samples` samples of a store, spread evenly over it; no pixels are read."""
    looked = Looked()
    for row in range(0, len(store), max(1, len(store) // samples)):
        try:
            sample = store[row]
            for path in () if data.media == "drop" else sample.media_key:
                if not Path(split_address(path).file).exists():
                    raise SampleError("no such file", sample.id, path)
            looked.tokens.append(count(sample, data))
        except SampleError as error:
            looked.refused.append(str(error))
    return looked


def num_steps(stage: Stage, epoch: int, tokens: float = 0.0) -> int:
    """Return the optimizer steps of a stage; the last one is filled up from the next epoch.

    Args:
        stage: it gives `steps`, `epochs` or `tokens`.
        epoch: samples of an epoch.
        tokens: mean length of a sample, which turns a budget of tokens into samples.

    Raises:
        ValueError: a budget of tokens where nothing could be counted.
    """
    if stage.steps is not None:
        return stage.steps
    if stage.tokens is None:
        return max(1, math.ceil(epoch * (stage.epochs or 1) / stage.global_batch))
    if not tokens:
        raise ValueError(f"stage {stage.name}: a budget of tokens needs samples that can be counted, and none could")
    return max(1, round(stage.tokens / tokens / stage.global_batch))


@dataclass(frozen=True)
class Plan:
    """What a stage shows, portion by portion.

    Attributes:
        parts: the portions.
        tokens: mean length of a sample of each, media included; 0 where nothing could be counted.
        steps: optimizer steps.
        samples: shown in all.
    """

    parts: Sequence[Portion]
    tokens: Sequence[float]
    steps: int
    samples: int

    @classmethod
    def of(cls, stage: Stage, parts: Sequence[Portion], tokens: Sequence[float]) -> Self:
        """Plan a stage.

        Raises:
            ValueError: a budget of tokens where nothing could be counted.
        """
        epoch = sum(part.per_epoch for part in parts)
        mean = sum(part.per_epoch * each for part, each in zip(parts, tokens, strict=True)) / epoch
        steps = num_steps(stage, epoch, mean)
        return cls(parts, tokens, steps, steps * stage.global_batch)

    def rows(self) -> list[tuple[str, ...]]:
        """Return a table, its heading first and its sums last.

        "repeats" is how often a portion's samples are shown, "shown" how many samples that makes. Tokens come from the
        mean length of some samples; "-" where nothing could be counted.
        """
        epoch = sum(part.per_epoch for part in self.parts)
        counts = [self.samples * part.per_epoch / epoch for part in self.parts]
        amounts = [count * each for count, each in zip(counts, self.tokens, strict=True)]
        total = sum(amounts)
        rows = [HEADING]
        for part, count, each, amount in zip(self.parts, counts, self.tokens, amounts, strict=True):
            size = len(part.store)
            tokens = (f"{each:.0f}", _millions(amount), f"{amount / total:.1%}") if each else ("-", "-", "-")
            shown = (f"{size:,}", f"{count / size:.3g}", f"{count:,.0f}", f"{count / self.samples:.1%}")
            rows.append((part.name, part.data.split, *shown, *tokens))
        size = sum(len(part.store) for part in self.parts)
        every = _millions(total) if all(self.tokens) else "-"
        return [*rows, ("all", "", f"{size:,}", "", f"{self.samples:,}", "", "", every, "")]

    def __str__(self) -> str:
        """Return the table as lines; the first two columns are flush left."""
        rows = self.rows()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = []
        for row in rows:
            cells = [f"{cell:{'<' if i < 2 else '>'}{widths[i]}}" for i, cell in enumerate(row)]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)


def _millions(count: float) -> str:
    return f"{count / 1e6:,.1f} M" if count >= 1e6 else f"{count:,.0f}"
