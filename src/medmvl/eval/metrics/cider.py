"""CIDEr: n-grams weighed by how rare they are in the references."""

from collections.abc import Sequence

import numpy as np

from medmvl.eval.metrics.metric import Answers, Family, Floats, Mean
from medmvl.eval.metrics.ngrams import Counts, count
from medmvl.eval.metrics.overlap import ratio
from medmvl.eval.metrics.ptb import words_ptb
from medmvl.eval.metrics.text import clean_ctchat, split

_SIGMA = 6.0


def cider(given: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]]) -> Floats:
    """Return CIDEr of each pair (0 to 10), float64 [n], as pycocoevalcap's `Cider`: the form known as CIDEr-D.

    The mean over n = 1..4 of the cosine of tf-idf vectors, the prediction's clipped to the reference's, times a
    Gaussian of the difference in length, which the original counts in bigrams; times 10. An n-gram's weight is the
    logarithm of all references over those that have it, so one pair alone scores 0.
    """
    cosines, gap = np.zeros(len(wanted)), np.zeros(len(wanted))
    for order, table in enumerate(count(given, wanted, orders=4), start=1):
        cosines += _cosine(table)
        if order == 2:
            gap = table.sums(table.given - table.wanted)
    return 10 * cosines / 4 * np.exp(-(gap**2) / (2 * _SIGMA**2))


def _cosine(table: Counts) -> Floats:
    _, gram = np.unique(table.gram, return_inverse=True)
    documents = np.bincount(gram, weights=table.wanted > 0)[gram]
    rarity = np.log(max(1, table.pairs)) - np.log(np.maximum(1, documents))
    given, wanted = table.given * rarity, table.wanted * rarity
    product = np.sqrt(table.sums(given**2)) * np.sqrt(table.sums(wanted**2))
    return ratio(table.sums(np.minimum(given, wanted) * wanted), product)


def _coco(answers: Answers) -> dict[str, Mean]:
    return {"cider": Mean(cider(*split(answers, words_ptb)))}


def _ctchat(answers: Answers) -> dict[str, Mean]:
    given, wanted = clean_ctchat(answers)
    return {"cider_ctchat": Mean(cider([p.split() for p in given], [r.split() for r in wanted]))}


COCO = Family(_coco, unbounded=frozenset({"cider"}))
CTCHAT = Family(_ctchat, unbounded=frozenset({"cider_ctchat"}))
