"""Which words do answer and reference share? Precision, recall and F1 of bags and sets of words."""

import numpy as np

from medmvl.eval.metrics.metric import Answers, Family, Floats, Mean
from medmvl.eval.metrics.ngrams import Counts, count
from medmvl.eval.metrics.text import normalise_vqa, split, words


def _plain(answers: Answers) -> dict[str, Mean]:
    """As in SQuAD (Rajpurkar et al. 2016), but articles stay: a word counts as often as both sides have it."""
    (table,) = count(*split(answers, words), orders=1)
    shared, given, wanted = table.shared(), table.sums(table.given), table.sums(table.wanted)
    return {
        "token_precision": Mean(ratio(shared, given)),
        "token_recall": Mean(ratio(shared, wanted)),
        "token_f1": Mean(ratio(2 * shared, given + wanted)),
    }


def _vqa(answers: Answers) -> dict[str, Mean]:
    """Scores of Uni-Med and MultiMedEval: words of the normalised texts."""
    (table,) = count(*split(answers, lambda text: normalise_vqa(text).split()), orders=1)
    common = (table.given > 0) & (table.wanted > 0)
    both, given, wanted = (table.sums(rows) for rows in (common, table.given > 0, table.wanted > 0))
    precision, recall = ratio(both, given), ratio(both, wanted)
    return {
        "token_f1_unimed": Mean(repeated(table)["f1"]),
        "token_recall_multimedeval": Mean(recall),
        "token_f1_multimedeval": Mean(2 * precision * recall / (precision + recall + 1e-8)),
    }


def _llavamed(answers: Answers) -> dict[str, Mean]:
    """Scores of LLaVA-Med, which normalises twice."""
    (table,) = count(*split(answers, lambda text: normalise_vqa(normalise_vqa(text.lower())).split()), orders=1)
    common = (table.given > 0) & (table.wanted > 0)
    return {
        **{f"token_{name}_llavamed": Mean(values) for name, values in repeated(table).items()},
        "token_exact_llavamed": Mean(ratio(table.sums(common), table.sums(table.given))),
    }


def repeated(table: Counts) -> dict[str, Floats]:
    """Return precision, recall and F1 where a word that the reference has counts as often as the answer repeats it.

    So repeating a right word pays: "left left left left right" has a precision of 0.8 and a recall of 1 for "left".
    """
    hit = table.sums(table.given * (table.wanted > 0))
    precision = ratio(hit, table.sums(table.given))
    recall = ratio(hit, hit + table.sums(table.wanted * (table.given == 0)))
    return {"precision": precision, "recall": recall, "f1": ratio(2 * precision * recall, precision + recall)}


def ratio(part: Floats, whole: Floats) -> Floats:
    """Return part / whole, 0 where the whole is 0."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


PLAIN = Family(_plain)
VQA = Family(_vqa)
LLAVAMED = Family(_llavamed)
