"""From a planned step of samples to the micro-steps of one rank, prepared in the background in a fixed order."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.context import ForkContext, ForkProcess
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from medmvl.core.layout import Layout, Segment
from medmvl.core.schema import BoxRef, Image, Message, Sample, SampleError, Volume
from medmvl.data.mixture import Group, Item, Mixture, Position, Step
from medmvl.imaging.augment import Augmentation
from medmvl.imaging.prepare import blank
from medmvl.processing.collate import Batch, collate, questions_of
from medmvl.processing.encoded import Encoded, Media
from medmvl.processing.pack import Row, arrange
from medmvl.processing.processor import Processor

_PREFETCHED = 2
Planned, Ready = TypeVar("Planned"), TypeVar("Ready")


class ModelBatch(Protocol):
    """What the loop needs of a batch, whatever the objective."""

    sample_ids: list[str]

    @property
    def num_supervised(self) -> int:
        """Terms of the loss."""

    def to(self, device: torch.device) -> ModelBatch:
        """Return it on `device`."""

    def model_inputs(self) -> dict[str, Any]:
        """Return the keyword arguments of the module's forward."""


@dataclass(frozen=True)
class Refusal:
    """A sample that was left out, and why."""

    sample_id: str
    path: str | None
    reason: str


@dataclass
class Prepared:
    """One optimizer step as one rank sees it.

    Attributes:
        batches: one per micro-step, equally many on every rank; None stands for nothing to do.
        after: position in the data after this step.
        samples: samples of this rank that made it into a batch.
        tokens: their tokens.
        slots: tokens the devices have time for, summed over ranks: the longest row of each micro-step times ranks.
        refused: samples left out, each listed by one rank only.
    """

    batches: list[ModelBatch | None]
    after: Position
    samples: int = 0
    tokens: int = 0
    slots: int = 0
    refused: list[Refusal] = field(default_factory=list)

    @property
    def supervised(self) -> int:
        """Terms of the loss on this rank."""
        return sum(batch.num_supervised for batch in self.batches if batch is not None)


class Feed(IterableDataset, Generic[Planned, Ready]):  # type: ignore[type-arg]
    """Prepares steps one after the other; in a loader process only every n-th, so that their order never changes.

    Args:
        steps: makes the iterator of planned steps.
        prepare: turns a planned step into what this rank trains on.
    """

    def __init__(self, steps: Callable[[], Iterable[Planned]], prepare: Callable[[Planned], Ready]) -> None:
        self._steps, self._prepare = steps, prepare

    def __iter__(self) -> Iterator[Ready]:
        worker = get_worker_info()
        mine, all_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        for number, step in enumerate(self._steps()):
            if number % all_workers == mine:
                yield self._prepare(step)


def loader(feed: Feed[Planned, Ready], workers: int) -> Iterable[Ready]:
    """Return the steps of a feed, prepared ahead by `workers` processes (0: in the loop), in the feed's order."""
    if workers == 0:
        return feed
    # fork: the feed holds tokenizer, stores and settings that need not be sent, and touches no GPU
    return DataLoader(
        feed,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=_PREFETCHED,
        collate_fn=_as_it_is,
        worker_init_fn=_outlive_signals,
        multiprocessing_context=_LoaderContext(),
    )


def held_out(mixture: Mixture, samples: int, step_size: int) -> Iterator[Step]:
    """Yield steps that show the first `samples` samples of a mixture's first epoch once."""
    left = min(samples, len(mixture))
    groups: list[Group] = []
    size = 0
    for group in mixture.plan(0):
        group = group[:left]
        groups.append(group)
        size, left = size + len(group), left - len(group)
        if size >= step_size or left == 0:
            yield Step(tuple(groups), Position())
            groups, size = [], 0
        if left == 0:
            return


@dataclass
class ChatPreparer:
    """Turns the samples of a step into packed rows and deals them to the ranks.

    Every rank counts the tokens of all samples (text only) and makes the same plan; it reads pixels for its own rows.

    Attributes:
        read: returns the sample of an item; raises SampleError for a broken one.
        processor: of the stage (its template).
        row_tokens: longest row.
        position_limit: longest sample that may share a row; None for any, 0 for none.
        towers: towers that must run in every micro-step, with a blank input where a row has no media of theirs.
        drop_media: train on the text alone.
        augmentation, seed: see `Processor.encode`.
        rank, world: this process among all.
    """

    read: Callable[[Item], Sample]
    processor: Processor
    row_tokens: int
    position_limit: int | None
    towers: Sequence[str]
    drop_media: Sequence[bool]
    augmentation: Augmentation | None
    seed: tuple[int, ...]
    rank: int
    world: int

    def __call__(self, step: Step) -> Prepared:
        """Prepare one step."""
        encoded, refused = self._encode(step)
        packed, single = arrange(encoded, self.row_tokens, self.position_limit, multiple=self.world)
        # Ranks wait for each other, so rows of like length are done at the same time.
        rows = sorted(packed + single, key=lambda row: -row.num_tokens)
        rounds = max(1, -(-len(rows) // self.world))
        own = rows[self.rank :: self.world]
        slots = sum(
            self.world * max(row.num_tokens for row in rows[start : start + self.world])
            for start in range(0, len(rows), self.world)
        )
        prepared = Prepared([], step.after, slots=slots, refused=refused if self.rank == 0 else [])
        seen: set[str] = set()
        for row in own:
            whole = self._without_broken(row, prepared.refused)
            prepared.batches.append(self._with_blanks(collate(whole)) if whole else None)
            if whole:
                prepared.tokens += whole.num_tokens
                seen.update(whole.sample_ids)
        prepared.samples = len(seen)
        prepared.batches += [None] * (rounds - len(own))
        return prepared

    def filler(self) -> Batch:
        """Return a row of two tokens and blank media, for a micro-step in which this rank has nothing to learn."""
        ids = torch.zeros(2, dtype=torch.long)
        batch = Batch(
            ids=ids[None],
            positions=torch.tensor([[0, 1]]),
            layout=Layout((Segment(0, 2),)),
            pixels={},
            media_positions={},
            logit_index=torch.tensor([0]),
            targets=ids[1:],
            owner=torch.tensor([0]),
            sample_ids=["(filler)"],
        )
        return self._with_blanks(batch)

    def _encode(self, step: Step) -> tuple[list[Encoded], list[Refusal]]:
        encoded: list[Encoded] = []
        refused: list[Refusal] = []
        pool: dict[str, Media] = {}
        for group in step.groups:
            seed = (*self.seed, step.after.epoch, *group[0])
            for item in group:
                name = None
                try:
                    sample = self.read(item)
                    name = sample.id
                    if self.drop_media[item[0]]:
                        sample = without_media(sample)
                    encoded.append(self.processor.encode(sample, self.augmentation, seed, pool))
                except SampleError as error:
                    # A picture that several samples share names the first of them.
                    refused.append(Refusal(name or error.sample_id, text_of(error.path), error.message))
        return encoded, refused

    def _without_broken(self, row: Row, refused: list[Refusal]) -> Row | None:
        """Read the media of a row; return the row without the groups whose media cannot be read."""
        kept = []
        for group in row.groups:
            try:
                for medium in group.media:
                    _ = medium.shown
            except SampleError as error:
                refused += [
                    Refusal(name, text_of(error.path), error.message) for name in dict.fromkeys(group.sample_ids)
                ]
            else:
                kept.append(group)
        return Row(tuple(kept)) if kept else None

    def _with_blanks(self, batch: Batch) -> Batch:
        pixels, features = dict(batch.pixels), dict(batch.features)
        places, asked = dict(batch.media_positions), dict(batch.questions)
        for name in self.towers:
            if name in pixels or name in features:
                continue
            tower, kept = self.processor.towers[name], self.processor.kept.get(name)
            places[name] = torch.zeros(0, dtype=torch.long)
            if kept is not None:
                features[name] = torch.from_numpy(kept.blank)[None]
                continue
            pixels[name] = torch.from_numpy(blank(tower.spec))[None]
            if tower.questions is not None:
                asked[name] = questions_of([tower.questions.encode("")], [0])
        return replace(batch, pixels=pixels, features=features, media_positions=places, questions=asked)


def without_media(sample: Sample) -> Sample:
    """Return the sample as text alone.

    Raises:
        SampleError: it shows a box, which means nothing without its image, or nothing is left.
    """
    messages: list[Message] = []
    for message in sample.messages:
        if any(isinstance(part, BoxRef) for part in message.content):
            raise SampleError("it shows a box, which text alone cannot; choose tasks without boxes", sample.id)
        content = tuple(part for part in message.content if not isinstance(part, Image | Volume))
        if content:
            messages.append(message.model_copy(update={"content": content}))
    if not messages:
        raise SampleError("it has no text", sample.id)
    meta = sample.meta.model_copy(update={"boxes": ()})
    return sample.model_copy(update={"messages": tuple(messages), "meta": meta})


def text_of(path: object) -> str | None:
    """Return a path as text, None for none."""
    return None if path is None else str(path)


def _outlive_signals(_: int) -> None:
    """Let a signal to all processes (torchrun, Slurm, Ctrl-C) end the trainer alone, which still needs this one."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _LoaderProcess(ForkProcess):
    """Told apart from other processes of the program that trains."""


class _LoaderContext(ForkContext):
    Process = _LoaderProcess


def _end_loaders() -> None:
    """End the loader processes that are left when Python exits, as those of a loop that an error has left.

    multiprocessing would ask them to with SIGTERM, which they ignore, and then wait for them for ever.
    """
    left = [process for process in multiprocessing.active_children() if isinstance(process, _LoaderProcess)]
    if left:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would tell of workers that were killed
    for process in left:
        process.kill()


atexit.register(_end_loaders)


def _as_it_is(value: Ready) -> Ready:
    return value
