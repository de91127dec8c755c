"""Near-duplicate pictures between two groups: candidates by perceptual hash, confirmed by their pixels."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np

DISTANCE = 6
"""Bits of 64 in which two perceptual hashes may differ. Pictures that were halved or doubled and saved as JPEG of
quality 60 differ in 6 at most (1,200 brain slices of 64 pixels; 4 among 180 of 256 pixels)."""

ALIKE, ALIKE_TINY, TINY = 0.995, 0.985, 96
"""Correlation of the small pictures from which on two are called duplicates, and that for pictures with a side below
`TINY` pixels, which lose more when they are made smaller. Such copies keep 0.9998, and 0.9866; different patients of
the same MRI template reach 0.964, and 0.9835 among 720,000 pairs of tiny slices."""

_BLOCKS, _WIDTH = 8, 8  # the hash is cut into eight blocks; with up to six bits changed, two blocks stay whole
_AT_ONCE = 1 << 20  # pairs compared at once


def near_pairs(
    first: np.ndarray,
    second: np.ndarray,
    phash: np.ndarray,
    small: np.ndarray,
    size: np.ndarray,
    mirrored: np.ndarray | None = None,
) -> Iterator[tuple[int, int, float]]:
    """Yield (medium of `first`, medium of `second`, correlation) of pairs that look the same.

    Hashes with two equal blocks of eight bits fall into one bucket of one of 28 tables, which finds every pair within
    `DISTANCE`; only pairs in one bucket are compared. Turned and cropped copies are not found.

    Args:
        first, second: numbers of media.
        phash: uint64 by number; media with 0 are left out.
        small: uint8 [n, pixels] by number.
        size: [n, 3] by number: depth, height, width.
        mirrored: as `phash`, of the pictures with left and right exchanged: then the media of `second` are compared so.
    """
    flip = mirrored is not None
    first, second = (np.unique(group[phash[group] != 0]) for group in (first, second))
    hashes = phash[first], (phash if mirrored is None else mirrored)[second]
    for one, other in combinations(range(_BLOCKS), 2):
        keys = [_block(some, one) << np.uint64(_WIDTH) | _block(some, other) for some in hashes]
        for a, b in _in_one_bucket(*keys):
            left, right = first[a], second[b]
            changed = hashes[0][a] ^ hashes[1][b]
            close = (np.bitwise_count(changed) <= DISTANCE) & (left != right)
            left, right, changed = left[close], right[close], changed[close]
            for block in set(range(other)) - {one}:  # a pair belongs to its first table alone
                new = _block(changed, block) != 0
                left, right, changed = left[new], right[new], changed[new]
            yield from _alike(left, right, small, size, flip)


def _block(hashes: np.ndarray, number: int) -> np.ndarray:
    return hashes >> np.uint64(number * _WIDTH) & np.uint64((1 << _WIDTH) - 1)


def _in_one_bucket(first: np.ndarray, second: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield positions (in `first`, in `second`) of equal keys, about `_AT_ONCE` pairs at a time."""
    order = np.argsort(second, kind="stable")
    ordered = second[order]
    start, end = (np.searchsorted(ordered, first, side) for side in ("left", "right"))
    counts = end - start
    groups = np.searchsorted(np.cumsum(counts), np.arange(_AT_ONCE, counts.sum() + _AT_ONCE, _AT_ONCE))
    for low, high in zip([0, *groups], [*groups, len(first)], strict=True):
        some = counts[low:high]
        if some.sum():
            left = np.repeat(np.arange(low, high), some)
            offset = np.arange(len(left)) - np.repeat(np.cumsum(some) - some, some)
            yield left, order[np.repeat(start[low:high], some) + offset]


def _alike(
    left: np.ndarray, right: np.ndarray, small: np.ndarray, size: np.ndarray, flip: bool
) -> Iterator[tuple[int, int, float]]:
    side = int(np.sqrt(small.shape[1]))
    for start in range(0, len(left), 4096):
        some, others = left[start : start + 4096], right[start : start + 4096]
        theirs = small[others].reshape(-1, side, side)[:, :, :: -1 if flip else 1].reshape(-1, side * side)
        alike = np.einsum("ij,ij->i", _unit(small[some]), _unit(theirs))
        tiny = np.minimum(size[some][:, 1:].min(1), size[others][:, 1:].min(1)) < TINY
        for place in np.flatnonzero(alike >= np.where(tiny & (not flip), ALIKE_TINY, ALIKE)):
            yield int(some[place]), int(others[place]), float(alike[place])


def _unit(small: np.ndarray) -> np.ndarray:
    values = small.astype(np.float32)
    values -= values.mean(1, keepdims=True)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)
