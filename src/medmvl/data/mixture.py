"""Which samples come when: media groups drawn from weighted sources, the same for every number of processes."""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from medmvl.core.schema import Sample
from medmvl.data.store import SampleStore

Item = tuple[int, int]
"""A sample: the source's number, the row in its store."""

Group = tuple[Item, ...]
"""Samples with the same media, to share one encoding; a text-only sample stands alone."""


class Position(NamedTuple):
    """How far the data has been used: whole epochs, and samples of the running one. Saved for resuming."""

    epoch: int = 0
    sample: int = 0


@dataclass(frozen=True)
class Step:
    """The samples of one optimizer step.

    Attributes:
        groups: their sizes add up to the global batch.
        after: where the next step begins.
    """

    groups: tuple[Group, ...]
    after: Position


class Mixture:
    """Plans the order of samples from several stores.

    Each source is an endless row of passes over its samples, each pass shuffled anew and free of repetition. An epoch
    takes round(weight x samples) of them and goes on where the last one ended: with weight 1 every sample comes once
    per epoch, with 2 twice, with 0.5 once in two epochs. Sources are interleaved in proportion all along the epoch.

    A pass shuffles the media, then plans one window of samples after the other: the samples of one medium are cut into
    groups of at most `questions_per_image`, and the groups of the window shuffled. The plan depends on nothing but the
    arguments, so every process makes the same one.

    Args:
        sources: (store, weight) in fixed order; weights count samples and are relative to the store's own length.
        questions_per_image: largest group.
        window: samples planned at a time.
        seed: of every shuffle.

    Raises:
        ValueError: no source, a weight that yields no sample, or a size below 1.
    """

    def __init__(
        self,
        sources: Sequence[tuple[SampleStore, float]],
        questions_per_image: int = 8,
        window: int = 10_000,
        seed: int = 0,
    ) -> None:
        if not sources:
            raise ValueError("a mixture needs at least one source")
        if questions_per_image < 1 or window < 1:
            raise ValueError(f"questions_per_image={questions_per_image} and window={window} must be at least 1")
        self.stores = tuple(store for store, _ in sources)
        self.samples_per_epoch = tuple(_share(store, weight) for store, weight in sources)
        self._sources = tuple(
            _Source(store.media_keys, questions_per_image, window, (seed, number))
            for number, (store, _) in enumerate(sources)
        )
        settings = [[store.hash, *store.task_names, weight] for store, weight in sources]
        text = json.dumps([settings, questions_per_image, window, seed])
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()
        """Equal for mixtures that make the same plan from the same data; a position fits no other."""

    def __len__(self) -> int:
        """Return the number of samples in an epoch."""
        return sum(self.samples_per_epoch)

    def __getitem__(self, item: Item) -> Sample:
        """Read one sample."""
        source, row = item
        return self.stores[source][row]

    def plan(self, epoch: int, start: int = 0) -> Iterator[Group]:
        """Yield the media groups of an epoch, without its first `start` samples (the group there is cut)."""
        totals = self.samples_per_epoch
        streams = [source.groups(epoch * total, total) for source, total in zip(self._sources, totals, strict=True)]
        used = [0] * len(totals)
        while True:
            # The source that lags behind most is next, so that the proportion holds everywhere, not only in sum.
            number = min(range(len(totals)), key=lambda index: used[index] / totals[index])
            if used[number] == totals[number]:
                return
            rows = next(streams[number])
            used[number] += len(rows)
            group = tuple((number, row) for row in rows)[start:]
            start = max(0, start - len(rows))
            if group:
                yield group

    def steps(self, global_batch: int, start: Position = Position()) -> Iterator[Step]:  # noqa: B008
        """Yield steps of exactly `global_batch` samples, without end: an epoch's last step goes on into the next.

        A group that does not fit is cut; its rest opens the next step.

        Args:
            global_batch: samples per optimizer step, over all processes.
            start: `after` of the last step done; the steps that follow are the same as without interruption.
        """
        if global_batch < 1:
            raise ValueError(f"global_batch={global_batch} must be at least 1")
        epoch, used = start
        groups: list[Group] = []
        missing = global_batch
        while True:
            for group in self.plan(epoch, used):
                while group:
                    head, group = group[:missing], group[missing:]
                    groups.append(head)
                    missing -= len(head)
                    used += len(head)
                    if missing == 0:
                        yield Step(tuple(groups), Position(epoch, used))
                        groups, missing = [], global_batch
            epoch, used = epoch + 1, 0


def _share(store: SampleStore, weight: float) -> int:
    count = round(len(store) * weight) if math.isfinite(weight) else 0
    if count < 1:
        raise ValueError(f"{store.path}: weight {weight} of {len(store)} samples leaves none; give a larger weight")
    return count


class _Source:
    """The endless row of passes over one store."""

    def __init__(self, media_keys: np.ndarray, largest: int, window: int, seed: tuple[int, ...]) -> None:
        self._largest, self._window, self._seed = largest, window, seed
        keys, media = np.unique(media_keys, return_inverse=True)
        alone = np.flatnonzero(media_keys == 0)  # text alone shares nothing, so each row is a medium of its own
        media[alone] = len(keys) + np.arange(len(alone))
        _, media, self._sizes = np.unique(media, return_inverse=True, return_counts=True)
        self._rows = np.argsort(media, kind="stable")
        self._starts = np.cumsum(self._sizes) - self._sizes

    def groups(self, start: int, count: int) -> Iterator[list[int]]:
        """Yield groups of rows: `count` samples from number `start` of the endless row on, cut at both ends."""
        one_pass = len(self._rows)
        number, skip = divmod(start, one_pass)
        while count:
            for group in self._pass(number, skip):
                yield group[:count]
                count -= len(group[:count])
                if not count:
                    return
            number, skip = number + 1, 0

    def _pass(self, number: int, skip: int) -> Iterator[list[int]]:
        """Yield the groups of one pass without its first `skip` samples."""
        media = np.random.default_rng([*self._seed, number]).permutation(len(self._sizes))
        # A window ends with the medium that fills it: window k holds the media that begin in [k, k+1) x window.
        begins = np.cumsum(self._sizes[media]) - self._sizes[media]
        for window, members in enumerate(_runs(media, begins // self._window)):
            size = int(self._sizes[members].sum())
            if skip >= size:
                skip -= size
                continue
            for group in self._plan_window(members, np.random.default_rng([*self._seed, number, window])):
                rest = group[skip:]
                skip = max(0, skip - len(group))
                if rest:
                    yield rest

    def _plan_window(self, media: np.ndarray, rng: np.random.Generator) -> list[list[int]]:
        groups = []
        for medium in media:
            begin, size = self._starts[medium], self._sizes[medium]
            rows = self._rows[begin : begin + size]
            if size > 1:
                rows = rng.permutation(rows)
            parts = -(-size // self._largest)
            groups += [part.tolist() for part in np.array_split(rows, parts)] if parts > 1 else [rows.tolist()]
        return [groups[index] for index in rng.permutation(len(groups))]


def _runs(values: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """Cut `values` where `labels`, which only grow, change."""
    return np.split(values, np.flatnonzero(np.diff(labels)) + 1)
