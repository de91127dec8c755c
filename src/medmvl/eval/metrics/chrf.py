"""chrF: F-measure of character n-grams, as sacrebleu's."""

from collections.abc import Sequence

import numpy as np

from medmvl.eval.metrics.metric import Answers, Family, Floats, Mean, Statistics, Sums
from medmvl.eval.metrics.ngrams import count
from medmvl.eval.metrics.overlap import ratio

_ORDERS = 6
_BETA2 = 2**2
_AT_ONCE = 2_000  # pairs whose characters are counted together: bounds the memory


def _chrf(answers: Answers) -> dict[str, Statistics]:
    """sacrebleu's `CHRF()` (nc:6 nw:0 space:no case:mixed eff:yes) as a share: over all samples together, and alone."""
    given, wanted = (["".join(text.split()) for text in side] for side in answers.texts())
    starts = range(0, len(wanted), _AT_ONCE)
    parts = [_matches(given[start : start + _AT_ONCE], wanted[start : start + _AT_ONCE]) for start in starts]
    rows = np.concatenate(parts) if parts else np.zeros((0, 3 * _ORDERS))
    alone = _f_measure(rows)
    return {"chrf_corpus": Sums(rows, _f_measure, alone), "chrf_sentence": Mean(alone)}


def _matches(given: Sequence[str], wanted: Sequence[str]) -> Floats:
    """Return for each order: n-grams of the prediction, of the reference, and of both, float64 [n, 3 * orders]."""
    columns = []
    for table in count(given, wanted, _ORDERS):
        needs = table.sums(table.wanted)
        columns += [table.sums(table.given) * (needs > 0), needs, table.shared()]
    return np.stack(columns, axis=1)


def _f_measure(sums: Floats) -> Floats:
    """Mean precision and recall over the orders that both sides are long enough for, then their F-measure."""
    given, wanted, both = sums[:, 0::3], sums[:, 1::3], sums[:, 2::3]
    counted = ((given > 0) & (wanted > 0)).sum(axis=1).astype(np.float64)
    precision = ratio(ratio(both, given).sum(axis=1), counted)
    recall = ratio(ratio(both, wanted).sum(axis=1), counted)
    return ratio((1 + _BETA2) * precision * recall, _BETA2 * precision + recall)


CHRF = Family(_chrf)
