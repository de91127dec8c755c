"""BLEU: the mean of sentence scores, Hugging Face's, and that of a whole corpus."""

from collections.abc import Sequence

import numpy as np

from medmvl.eval.metrics.metric import Answers, Family, Floats, Mean, Sums
from medmvl.eval.metrics.ngrams import count
from medmvl.eval.metrics.overlap import ratio
from medmvl.eval.metrics.ptb import words_ptb
from medmvl.eval.metrics.text import clean_ctchat, normalise_vqa, split, words_13a

_SMALL, _TINY = 1e-9, 1e-15  # pycocoevalcap's, in place of smoothing


def match(given: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]], orders: int) -> Floats:
    """Return what BLEU is made of, float64 [n, 2 + 2 * orders].

    Length of the prediction and of the reference, then for each order: n-grams of the prediction that the reference
    has (as often as it has them), and n-grams of the prediction.
    """
    tables = list(count(given, wanted, orders))
    lengths = [tables[0].sums(tables[0].given), tables[0].sums(tables[0].wanted)]
    grams = [column for table in tables for column in (table.shared(), table.sums(table.given))]
    return np.stack([*lengths, *grams], axis=1)


def corpus(statistics: Floats, order: int) -> Sums:
    """Return BLEU of up to an order over all samples together, from the rows of `match`."""
    rows = np.ascontiguousarray(statistics[:, : 2 + 2 * order])
    return Sums(rows, _pycocoevalcap, _pycocoevalcap(rows))


def _pycocoevalcap(sums: Floats) -> Floats:
    given, wanted = sums[:, 0] + _TINY, sums[:, 1] + _SMALL
    precisions = (sums[:, 2::2] + _TINY) / (sums[:, 3::2] + _SMALL)
    return precisions.prod(axis=1) ** (1 / precisions.shape[1]) * np.exp(np.minimum(0, 1 - wanted / given))


def _corpus(answers: Answers) -> dict[str, Sums]:
    """pycocoevalcap's `Bleu(4)` after the Penn Treebank tokenizer."""
    statistics = match(*split(answers, words_ptb), orders=4)
    return {f"bleu{order}_corpus": corpus(statistics, order) for order in range(1, 5)}


def _ctchat(answers: Answers) -> dict[str, Sums]:
    """pycocoevalcap's BLEU-1 on texts that no tokenizer has seen, as CT-CHAT's script calls it."""
    given, wanted = clean_ctchat(answers)
    return {"bleu1_ctchat": corpus(match([p.split() for p in given], [r.split() for r in wanted], orders=1), 1)}


def _sentence(answers: Answers) -> dict[str, Mean]:
    """NLTK's `sentence_bleu` without smoothing on the words of normalised texts.

    With one-hot weights (LLaVA-Med, PathVQA's baseline) it is the precision of one order alone.
    """
    statistics = match(*split(answers, lambda text: normalise_vqa(text).split()), orders=4)
    given, wanted = statistics[:, 0], statistics[:, 1]
    precisions = ratio(statistics[:, 2::2], statistics[:, 3::2])
    penalty = _brevity(given, wanted)
    cumulative = {f"bleu{n}_sentence": precisions[:, :n].prod(axis=1) ** (1 / n) for n in range(1, 5)}
    single = {f"bleu{n}_onehot": precisions[:, n - 1] for n in range(2, 4)}
    return {name: Mean(values * penalty) for name, values in {**cumulative, **single}.items()}


def _hf(answers: Answers) -> dict[str, Mean]:
    """Hugging Face's `bleu` with max_order=1 of each sample alone, on stripped texts; 0 if either side is empty."""
    statistics = match(*split(answers, lambda text: words_13a(text.strip())), orders=1)
    given, wanted, shared = statistics[:, 0], statistics[:, 1], statistics[:, 2]
    return {"bleu1_hf": Mean(ratio(shared, given) * _brevity(given, wanted))}


def _brevity(given: Floats, wanted: Floats) -> Floats:
    return np.exp(np.minimum(0, 1 - wanted / np.maximum(given, 1)))


CORPUS = Family(_corpus)
CTCHAT = Family(_ctchat)
SENTENCE = Family(_sentence)
HF = Family(_hf)
