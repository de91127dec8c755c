"""Metrics on text."""

import re
from collections import Counter
from functools import cache
from typing import Any

_WORD = re.compile(r"[^\W_]+")


def normalise(text: str) -> str:
    """Return the text in lower case, runs of white space as one blank, without outer blanks and one final period."""
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


def accuracy_strict(prediction: str, reference: str) -> float:
    """1 if the whole answer is the reference after `normalise`, else 0: no credit for a reference contained in it."""
    return float(normalise(prediction) == normalise(reference))


def token_f1(prediction: str, reference: str) -> float:
    """F1 of the two bags of lower-case words, a word counted as often as both sides have it; 0 if either is empty.

    As in SQuAD (Rajpurkar et al. 2016), but articles stay. A word is a run of letters and digits.
    """
    given, wanted = (Counter(_WORD.findall(text.casefold())) for text in (prediction, reference))
    shared = sum((given & wanted).values())
    return 2 * shared / (given.total() + wanted.total()) if shared else 0.0


def rouge_l(prediction: str, reference: str) -> float:
    """F-measure of the longest common subsequence of words: package rouge-score, `rougeL`, no stemmer."""
    return float(_rouge().score(reference, prediction)["rougeL"].fmeasure)


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import DefaultTokenizer

    # The package's default tokenizer, named here because falling back to it logs, and that sets up the root logger.
    return RougeScorer(["rougeL"], tokenizer=DefaultTokenizer(use_stemmer=False))
