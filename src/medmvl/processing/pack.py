"""Rows of tokens: samples about the same media share them, rows of different media lie end to end."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from heapq import heapreplace

import numpy as np

from medmvl.core.layout import Layout, Segment
from medmvl.core.schema import SampleError
from medmvl.processing.encoded import IGNORE, Branch, Encoded, Media


@dataclass(frozen=True, eq=False, slots=True)
class Group:
    """Branches behind one common prefix.

    Attributes:
        media: what the prefix shows, in the order of its placeholders; with an empty prefix, what the branch shows.
        prefix: int32 [P] ids, none of them learned; empty for a branch on its own.
        branches: what follows the prefix, at least one token each.
        sample_ids: the sample of each branch; one sample may own several.
    """

    media: tuple[Media, ...]
    prefix: np.ndarray
    branches: tuple[Branch, ...]
    sample_ids: tuple[str, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens this group takes in a row."""
        return len(self.prefix) + sum(len(branch.ids) for branch in self.branches)


@dataclass(frozen=True, eq=False, slots=True)
class Row:
    """Groups that lie end to end in one flat row, isolated from each other."""

    groups: tuple[Group, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens in the row."""
        return sum(group.num_tokens for group in self.groups)

    @property
    def sample_ids(self) -> tuple[str, ...]:
        """The samples in this row, each once, in the order of their first branches."""
        return tuple(dict.fromkeys(sample_id for group in self.groups for sample_id in group.sample_ids))

    @property
    def layout(self) -> Layout:
        """Prefix and branches of every group, as segments."""
        segments, cursor = [], 0
        for group in self.groups:
            prefix_start, prefix_end = cursor, cursor + len(group.prefix)
            if prefix_end > prefix_start:
                segments.append(Segment(prefix_start, prefix_end))
                cursor = prefix_end
            for branch in group.branches:
                end = cursor + len(branch.ids)
                # An empty prefix is (0, 0): the branch is isolated.
                prefix = (prefix_start, prefix_end) if prefix_end > prefix_start else (0, 0)
                segments.append(Segment(cursor, end, *prefix))
                cursor = end
        return Layout(tuple(segments))


def shared(encoded: Iterable[Encoded]) -> list[Group]:
    """Group samples so that what they have in common is computed once.

    Branches that are equal, media and the questions their towers read included, up to the end of their last medium form
    one group. Its prefix is the longest they have in common that ends before the first learned token of each, and
    leaves each at least one token.
    A branch that shares nothing is a group of its own, without prefix. The order of first appearance is kept.
    """
    gathered: dict[tuple[object, ...], list[tuple[Encoded, Branch]]] = {}
    for sample in encoded:
        for branch in sample.branches:
            media = sample.media[: branch.num_media]
            head = branch.ids[: _media_end(branch, media)].tobytes()
            # A tower that reads the question gives other tokens for another question.
            shown = [(medium.key, medium.question) for medium in media]
            gathered.setdefault((*shown, head), []).append((sample, branch))
    return [group for members in gathered.values() for group in _with_prefix(members)]


def alone(encoded: Iterable[Encoded]) -> list[Group]:
    """Return one group per branch, nothing shared."""
    return [_single(sample, branch) for sample in encoded for branch in sample.branches]


def arrange(
    encoded: Sequence[Encoded], max_tokens: int, limit: int | None = None, room: int = 0, multiple: int = 1
) -> tuple[list[Row], list[Row]]:
    """Lay samples out as rows.

    Args:
        encoded: the samples.
        max_tokens: longest row, apart from samples that stay alone.
        limit: longest sample that may share a row with others; None for any, 0 for none.
        room: tokens by which every sample may grow.
        multiple: see `pack`.

    Returns:
        Packed rows, and rows with one sample each: those that, grown, pass the limit.

    Raises:
        SampleError: a sample with its prefix is longer than a row.
    """
    fits = [one for one in encoded if limit is None or one.num_tokens + room <= limit]
    lonely = [one for one in encoded if limit is not None and one.num_tokens + room > limit]
    return pack(shared(fits), max_tokens, multiple), [Row((group,)) for group in alone(lonely)]


def pack(groups: Sequence[Group], max_tokens: int, multiple: int = 1) -> list[Row]:
    """Fill rows of at most `max_tokens`, deterministically: as few as will do, and those of even length.

    Groups within a row, and rows by their first group, keep the order given. A group longer than a row is split, its
    prefix repeated.

    Args:
        groups: what to lay out.
        max_tokens: longest row.
        multiple: make a multiple of so many rows (one for each device at a time), as far as there are groups.

    Raises:
        SampleError: a single branch with its prefix is longer than a row.
    """
    pieces = [piece for group in groups for piece in _split(group, max_tokens)]
    sizes = [piece.num_tokens for piece in pieces]
    rows = _few(sizes, max_tokens)
    rows = _even(sizes, max_tokens, min(-(-len(rows) // multiple) * multiple, len(pieces))) or rows
    return [Row(tuple(pieces[i] for i in row)) for row in sorted(sorted(row) for row in rows)]


def _few(sizes: Sequence[int], most: int) -> list[list[int]]:
    """Fill rows of at most `most`: the largest first, each into the row that it leaves least room in."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free, row), sorted
    for index in _largest_first(sizes):
        place = bisect_left(room, (sizes[index], 0))
        free, row = room.pop(place) if place < len(room) else (most, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(index)
        insort(room, (free - sizes[index], row))
    return rows


def _even(sizes: Sequence[int], most: int, count: int) -> list[list[int]]:
    """Fill `count` rows: the largest first, each into the shortest row; return none if that passes `most`."""
    rows: list[list[int]] = [[] for _ in range(count)]
    filled = [(0, row) for row in range(count)]
    for index in _largest_first(sizes):
        length, row = filled[0]
        if length + sizes[index] > most:
            return []
        rows[row].append(index)
        heapreplace(filled, (length + sizes[index], row))
    return rows


def _largest_first(sizes: Sequence[int]) -> list[int]:
    return sorted(range(len(sizes)), key=lambda index: -sizes[index])


def _media_end(branch: Branch, media: tuple[Media, ...]) -> int:
    """Return the index behind the last placeholder; 0 without media."""
    if not media:
        return 0
    return int(np.flatnonzero(np.isin(branch.ids, [medium.token for medium in media]))[-1]) + 1


def _single(sample: Encoded, branch: Branch) -> Group:
    return Group(sample.media[: branch.num_media], branch.ids[:0], (branch,), (sample.id,))


def _with_prefix(members: list[tuple[Encoded, Branch]]) -> list[Group]:
    first_sample, first = members[0]
    length = min(_limit(branch) for _, branch in members)
    for _, branch in members[1:]:
        differs = np.flatnonzero(branch.ids[:length] != first.ids[:length])
        length = int(differs[0]) if len(differs) else length
    media = first_sample.media[: first.num_media]
    # A medium behind the first answer, in a later turn, lies in no prefix: those branches stay apart.
    if len(members) == 1 or length < max(1, _media_end(first, media)):
        return [_single(sample, branch) for sample, branch in members]
    branches = tuple(replace(b, ids=b.ids[length:], labels=b.labels[length:]) for _, b in members)
    return [Group(media, first.ids[:length], branches, tuple(sample.id for sample, _ in members))]


def _limit(branch: Branch) -> int:
    """Return the longest prefix this branch allows."""
    learned = np.flatnonzero(branch.labels != IGNORE)
    return int(learned[0]) if len(learned) else len(branch.ids) - 1


def _split(group: Group, max_tokens: int) -> list[Group]:
    if group.num_tokens <= max_tokens:
        return [group]
    parts: list[list[int]] = []
    free = 0
    for index, branch in enumerate(group.branches):
        size = len(branch.ids)
        if len(group.prefix) + size > max_tokens:
            raise SampleError(
                f"{len(group.prefix) + size} tokens are more than a row of {max_tokens} holds; use longer rows",
                group.sample_ids[index],
            )
        if not parts or size > free:
            parts.append([])
            free = max_tokens - len(group.prefix)
        parts[-1].append(index)
        free -= size
    return [
        replace(
            group,
            branches=tuple(group.branches[i] for i in part),
            sample_ids=tuple(group.sample_ids[i] for i in part),
        )
        for part in parts
    ]
