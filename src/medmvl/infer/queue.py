"""Prompts that wait to be read: neighbours that share a beginning side by side, their media fetched ahead of time."""

import math
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from medmvl.core.schema import SampleError
from medmvl.model.kept import Kept
from medmvl.processing.encoded import IGNORE, Branch, Encoded
from medmvl.processing.pack import Group, shared

_SEEN = 512
"""Prompts that are sorted at a time; those about one medium stay together, up to eight times as many."""

_AHEAD_BYTES = 256 << 20
"""Pixels that are fetched ahead of time take no more than this, apart from those of one beginning."""


class Asked(NamedTuple):
    """What is asked.

    Attributes:
        number: that tells prompts apart.
        prompt: as tokens, or why it cannot be asked.
        growth: tokens by which it may grow.
    """

    number: int
    prompt: Encoded | SampleError
    growth: int


@dataclass(eq=False)
class Beginning:
    """What some prompts share, or one prompt as a whole.

    Attributes:
        head: what is read first, with its media; None once it was.
        shared: tokens of the head; 0 where it is a whole prompt.
        members: the prompts that go on from here and were not taken yet.
        views: media on their way.
        kept: what reading the head left.
        logits: [vocabulary] behind a whole prompt.
        error: why the head cannot be read.
    """

    head: Group | None
    shared: int
    members: "deque[Member]" = field(default_factory=deque)
    views: list[Future[Any]] = field(default_factory=list)
    kept: Kept | None = None
    logits: Tensor | None = None
    error: SampleError | None = None


@dataclass(eq=False)
class Member:
    """A prompt that waits.

    Attributes:
        beginning: what it shares, or is.
        number: place in what was asked.
        id: of its sample.
        ids: its own tokens.
        growth: see `Asked`.
    """

    beginning: Beginning
    number: int
    id: str
    ids: np.ndarray
    growth: int

    @property
    def most(self) -> int:
        """Own tokens that it may come to."""
        return len(self.ids) + self.growth


class Queue:
    """What waits to be read, the longest first.

    Args:
        asked: prompts, each next to those about the same media if possible. Taken bit by bit: a hundred thousand need
            not be in memory.
    """

    def __init__(self, asked: Iterable[Asked]) -> None:
        self.failed: list[tuple[int, SampleError]] = []
        """Numbers of prompts that cannot be answered, and why, to be taken away by who tells it."""
        self._coming = iter(asked)
        self._next = next(self._coming, None)
        self._waiting: deque[Beginning] = deque()
        self._disk = ThreadPoolExecutor(1, "media")

    def __bool__(self) -> bool:
        return bool(self._waiting or self._next or self.failed)

    def close(self) -> None:
        """Stop fetching."""
        self._disk.shutdown(cancel_futures=True)

    def take(self, count: int, busy: int, most: int, held: int, room: float | None) -> list[Member]:
        """Return the next prompts, at least one if nothing is in work.

        Args:
            count: most prompts to take.
            busy: prompts in work.
            most: own tokens that the longest of them may come to.
            held: tokens they share.
            room: tokens that there is memory for; None: not known yet, so that one prompt is taken.
        """
        self._look_ahead(count)
        taken: list[Member] = []
        while self._waiting and len(taken) < count:
            beginning = self._waiting[0]
            member, begun = beginning.members[0], bool(taken) and taken[-1].beginning is beginning
            most = max(most, member.most)
            held += 0 if begun or beginning.kept else beginning.shared
            if (taken or busy) and (room is None or held + most * (busy + len(taken) + 1) > room):
                break
            taken.append(beginning.members.popleft())
            if not beginning.members:
                self._waiting.popleft()
        return taken

    def fetch(self, beginnings: Iterable[Beginning]) -> None:
        """Send for media in the order in which they will be needed, until enough are on their way."""
        coming = 0
        for beginning in chain(beginnings, self._waiting):
            if beginning.head is not None and beginning.head.media:
                coming += sum(4 * m.spec.channels * math.prod(m.spec.size) for m in beginning.head.media)
                self._send(beginning)
                if coming > _AHEAD_BYTES:
                    return

    def fetched(self, beginning: Beginning) -> bool:
        """Wait for the media of a beginning; where one cannot be read, all its members fail."""
        self._send(beginning)
        try:
            for view in beginning.views:
                view.result()
        except SampleError as error:
            beginning.error = error
            self.failed += [(member.number, error) for member in beginning.members]
            if beginning.members:
                self._waiting.remove(beginning)
        return beginning.error is None

    def _send(self, beginning: Beginning) -> None:
        if beginning.head is not None and not beginning.views:
            beginning.views = [self._disk.submit(getattr, medium, "view") for medium in beginning.head.media]

    def _look_ahead(self, count: int) -> None:
        """Have at least so many prompts wait, if there are."""
        have = sum(len(beginning.members) for beginning in self._waiting)
        while have < count and self._next is not None:
            window = self._window()
            have += len(window)
            self._waiting += _beginnings(window)

    def _window(self) -> dict[int, tuple[Encoded, int]]:
        """Take prompts up to where a medium ends; return number -> prompt and growth."""
        window: dict[int, tuple[Encoded, int]] = {}
        last: list[str] = []
        while self._next is not None:
            number, prompt, growth = self._next
            if isinstance(prompt, SampleError):
                self.failed.append((number, prompt))
            else:
                shown = [medium.key for medium in prompt.media]
                if len(window) >= _SEEN and (not shown or shown != last or len(window) >= 8 * _SEEN):
                    break
                window[number], last = (prompt, growth), shown
            self._next = next(self._coming, None)
        return window


def _beginnings(window: dict[int, tuple[Encoded, int]]) -> list[Beginning]:
    """Sort prompts by what they share; those with the longest questions first, so that like come together."""
    groups = shared([replace(prompt, id=str(number)) for number, (prompt, _) in window.items()])
    groups.sort(key=lambda group: -max(len(branch.ids) for branch in group.branches))
    found = []
    for group in groups:
        if length := len(group.prefix):
            silent = np.full(length, IGNORE, np.int32)
            head = Branch(group.prefix, silent, group.branches[0].num_media)
            beginning = Beginning(Group(group.media, group.prefix[:0], (head,), group.sample_ids[:1]), length)
        else:
            beginning = Beginning(group, 0)
        for name, branch in zip(group.sample_ids, group.branches, strict=True):
            prompt, growth = window[int(name)]
            beginning.members.append(Member(beginning, int(name), prompt.id, branch.ids, growth))
        found.append(beginning)
    return found
