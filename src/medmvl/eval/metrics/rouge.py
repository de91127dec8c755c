"""ROUGE-1, -2 and -L as package rouge-score, as COCO's captions, and as package `rouge` compute them."""

from collections.abc import Hashable, Sequence

import numpy as np

from medmvl.eval.metrics.metric import Answers, Family, Floats, Mean
from medmvl.eval.metrics.ngrams import count
from medmvl.eval.metrics.overlap import ratio
from medmvl.eval.metrics.ptb import words_ptb
from medmvl.eval.metrics.text import clean_ctchat, split, words_rouge

_BETA2 = 1.2**2  # recall counts more in COCO's
_EPSILON = 1e-8  # of package rouge, which divides by precision + recall + this


def lcs(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Return the length of the longest common subsequence."""
    states = _states(a, b)
    return len(b) - states[-1].bit_count() if states else 0


def _states(rows: Sequence[Hashable], columns: Sequence[Hashable]) -> list[int]:
    """Return the table of longest common subsequences as one number per row (Hyyrö 2004).

    Bit j of row i is 0 where the subsequence of rows[:i + 1] grows by one from columns[:j] to columns[:j + 1].
    """
    where: dict[Hashable, int] = {}
    for place, word in enumerate(columns):
        where[word] = where.get(word, 0) | 1 << place
    full = state = (1 << len(columns)) - 1
    states = []
    for word in rows:
        seen = state & where.get(word, 0)
        state = (state + seen | state - seen) & full
        states.append(state)
    return states


def _common(a: Sequence[str], b: Sequence[str]) -> set[str]:
    """Return the words of that longest common subsequence which package `rouge` finds."""
    states, found = _states(a, b), set()
    i, j = len(a), len(b)
    while i and j:
        if a[i - 1] == b[j - 1]:
            found.add(a[i - 1])
            i, j = i - 1, j - 1
        elif states[i - 1] >> (j - 1) & 1:
            j -= 1
        else:
            i -= 1
    return found


def _rouge_score(answers: Answers) -> dict[str, Mean]:
    """Package rouge-score without stemmer: F1 of n-grams, and of the longest common subsequence."""
    given, wanted = split(answers, words_rouge)
    scores = {}
    for order, table in enumerate(count(given, wanted, orders=2), start=1):
        scores[f"rouge{order}"] = Mean(ratio(2 * table.shared(), table.sums(table.given) + table.sums(table.wanted)))
    common, lengths = _lengths(given, wanted)
    scores["rouge_l"] = Mean(ratio(2 * common, lengths.sum(axis=1)))
    return scores


def _lengths(given: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]]) -> tuple[Floats, Floats]:
    """Return the length of each longest common subsequence [n], and those of predictions and references [n, 2]."""
    pairs = list(zip(given, wanted, strict=True))
    lengths = np.array([(len(p), len(r)) for p, r in pairs], dtype=np.float64).reshape(-1, 2)
    return np.array([lcs(p, r) for p, r in pairs], dtype=np.float64), lengths


def _coco(answers: Answers) -> dict[str, Mean]:
    """pycocoevalcap's `Rouge` after the Penn Treebank tokenizer."""
    # What splits an empty text at blanks finds one empty word.
    return {"rouge_l_coco": Mean(_weighted(*split(answers, lambda text: words_ptb(text) or [""])))}


def _ctchat(answers: Answers) -> dict[str, Mean]:
    """pycocoevalcap's `Rouge` on texts that no tokenizer has seen, as CT-CHAT's script calls it."""
    given, wanted = clean_ctchat(answers)
    return {"rouge_l_ctchat": Mean(_weighted([p.split(" ") for p in given], [r.split(" ") for r in wanted]))}


def _weighted(given: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]]) -> Floats:
    common, lengths = _lengths(given, wanted)
    precision, recall = common / lengths[:, 0], common / lengths[:, 1]
    return ratio((1 + _BETA2) * precision * recall, recall + _BETA2 * precision)


def _package(answers: Answers) -> dict[str, Mean]:
    """Package `rouge` with its defaults; 0 where it refuses an empty text."""
    predictions, references = answers.texts()
    return {f"{name}_pkg": Mean(values) for name, values in package(predictions, references).items()}


def package(predictions: Sequence[str], references: Sequence[str]) -> dict[str, Floats]:
    """Return the F-measures of package `rouge`, float64 [n] each: "rouge1", "rouge2" and "rouge_l".

    Words and n-grams are sets, so repeats count once. ROUGE-L is that of summaries: the union of the longest common
    subsequences of all sentences, where each period ends a sentence, also that of "3.5".
    """
    given, wanted = ([_sentences(text) for text in texts] for texts in (predictions, references))
    flat = [[[word for sentence in text for word in sentence] for text in side] for side in (given, wanted)]
    scores = {}
    for order, table in enumerate(count(*flat, orders=2), start=1):
        both, has, needs = (table.sums(rows > 0) for rows in (table.given * table.wanted, table.given, table.wanted))
        scores[f"rouge{order}"] = _set_f(both, has, needs)
    unions = [len(set().union(*(_common(r, p) for r in w for p in g))) for g, w in zip(given, wanted, strict=True)]
    sizes = [np.array([len(set(text)) for text in side], dtype=np.float64) for side in flat]
    scores["rouge_l"] = _set_f(np.array(unions, dtype=np.float64), *sizes)
    return scores


def _sentences(text: str) -> list[list[str]]:
    return [part.split() or [""] for part in text.split(".") if part]


def _set_f(both: Floats, given: Floats, wanted: Floats) -> Floats:
    precision, recall = ratio(both, given), ratio(both, wanted)
    return 2 * precision * recall / (precision + recall + _EPSILON)


ROUGE_SCORE = Family(_rouge_score)
COCO = Family(_coco)
CTCHAT = Family(_ctchat)
PACKAGE = Family(_package)
