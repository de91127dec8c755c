"""How often n-grams occur on both sides of many pairs: counted in bulk, for every metric that lives on counts."""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from medmvl.eval.metrics.metric import Floats

Integers = NDArray[np.int64]
_LARGEST = 2**63


@dataclass(frozen=True)
class Counts:
    """The n-grams of one order; m rows, one for each n-gram that occurs in a pair.

    Attributes:
        pairs: how many pairs there are; some may have no row.
        pair: the pair of a row, int64 [m], ascending.
        gram: a number for the n-gram, int64 [m]; the same n-gram has the same number in all pairs.
        given: how often the pair's prediction has it, int64 [m].
        wanted: how often the pair's reference has it, int64 [m]; one of the two is at least 1.
    """

    pairs: int
    pair: Integers
    gram: Integers
    given: Integers
    wanted: Integers

    def sums(self, rows: NDArray[np.generic]) -> Floats:
        """Return the sum of a number per row over the rows of each pair, float64 [pairs]."""
        # Of no rows at all it makes integers.
        return np.bincount(self.pair, weights=rows, minlength=self.pairs).astype(np.float64, copy=False)

    def shared(self) -> Floats:
        """Return the number of n-grams both sides have, repeats counted as often as both have them, [pairs]."""
        return self.sums(np.minimum(self.given, self.wanted))


def count(given: Sequence[Sequence[Hashable]], wanted: Sequence[Sequence[Hashable]], orders: int) -> Iterator[Counts]:
    """Yield the counts of n-grams of order 1, 2, ... `orders` in pairs of predictions and references.

    Args:
        given: the tokens of each prediction; a text counts as a sequence of characters.
        wanted: those of each reference, as many as predictions.
        orders: the highest order.
    """
    pairs = len(wanted)
    token, owner, left, size = _numbered([*given, *wanted])
    place, gram, span = np.arange(len(token)), token, size
    for order in range(1, orders + 1):
        if order > 1:
            if span * size * 2 * pairs >= _LARGEST:
                gram, span = _ranked(gram)
            inside = left[place] >= order
            place = place[inside]
            gram = gram[inside] * size + token[place + order - 1]
            span *= size
        if span * 2 * pairs >= _LARGEST:
            gram, span = _ranked(gram)
        yield _merged(pairs, owner[place], gram, span)


def _numbered(texts: Sequence[Sequence[Hashable]]) -> tuple[Integers, Integers, Integers, int]:
    """Return, of all tokens end to end: number, text, tokens left in the text (with itself); and how many differ."""
    numbers: defaultdict[Hashable, int] = defaultdict()
    numbers.default_factory = numbers.__len__
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    token = np.fromiter(map(numbers.__getitem__, chain.from_iterable(texts)), np.int64, int(lengths.sum()))
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(token))
    return token, np.repeat(np.arange(len(texts)), lengths), left, max(1, len(numbers))


def _ranked(gram: Integers) -> tuple[Integers, int]:
    """Return the same n-grams with the smallest possible numbers, and one more than the largest of these."""
    different, number = np.unique(gram, return_inverse=True)
    return number, max(1, len(different))


def _merged(pairs: int, owner: Integers, gram: Integers, span: int) -> Counts:
    """Sort pair, n-gram and side as one number each; equal ones then lie side by side."""
    side = owner >= pairs
    key = ((owner - side * pairs) * span + gram) * 2 + side
    key.sort()
    whole = key >> 1
    first = np.flatnonzero(np.diff(whole, prepend=-1))
    wanted = np.add.reduceat(key & 1, first) if len(first) else first
    pair, number = np.divmod(whole[first], span)
    return Counts(pairs, pair, number, np.diff(first, append=len(key)) - wanted, wanted)
