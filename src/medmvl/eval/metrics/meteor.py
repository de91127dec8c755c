"""METEOR as NLTK computes it: words matched exactly, then by stem, then, where WordNet is at hand, by synonym."""

import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import pairwise
from typing import Any

import numpy as np

from medmvl.eval.metrics.metric import Answers, Family, Mean, MetricUnavailable
from medmvl.eval.metrics.ptb import words_ptb
from medmvl.eval.metrics.text import split

_ALPHA, _BETA, _GAMMA = 0.9, 3.0, 0.5

Stem = Callable[[str], str]
Synonyms = Callable[[str], frozenset[str]]


def meteor(given: Sequence[str], wanted: Sequence[str], stem: Stem, synonyms: Synonyms | None = None) -> float:
    """Return METEOR of lower-case words: NLTK's `single_meteor_score` with its defaults.

    The harmonic mean of precision and recall, recall weighed nine times, less up to half of it for matched words that
    do not follow one another on both sides.
    """
    matches = _aligned(given, wanted, stem, synonyms)
    if not matches:
        return 0.0
    precision, recall = len(matches) / len(given), len(matches) / len(wanted)
    mean = precision * recall / (_ALPHA * precision + (1 - _ALPHA) * recall)
    places = sorted(matches.items())
    breaks = sum((b[0] - a[0], b[1] - a[1]) != (1, 1) for a, b in pairwise(places))
    return (1 - _GAMMA * ((breaks + 1) / len(matches)) ** _BETA) * mean


def _aligned(given: Sequence[str], wanted: Sequence[str], stem: Stem, synonyms: Synonyms | None) -> dict[int, int]:
    """Return place in given -> place in wanted."""
    left, free = dict(enumerate(given)), dict(enumerate(wanted))
    matches = _take(left, free)
    if left and free:
        # From here on the stems stand for the words: NLTK looks up their synonyms.
        left, free = ({place: stem(word) for place, word in side.items()} for side in (left, free))
        matches |= _take(left, free)
    if left and free and synonyms is not None:
        matches |= _take(left, free, synonyms)
    return matches


def _take(left: dict[int, str], free: dict[int, str], synonyms: Synonyms | None = None) -> dict[int, int]:
    """Take out and return the matches: from the end, each word gets the last free one that equals it or a synonym."""
    places: dict[str, list[int]] = {}
    for place, word in free.items():
        places.setdefault(word, []).append(place)
    found = {}
    for place, word in reversed(left.items()):
        options = synonyms(word) | {word} if synonyms else {word}
        last = max((places[option][-1] for option in options if places.get(option)), default=None)
        if last is not None:
            places[free[last]].pop()
            found[place] = last
    for place, other in found.items():
        del left[place], free[other]
    return found


@cache
def _stemmer() -> Stem:
    from nltk.stem.porter import PorterStemmer

    return cache(PorterStemmer().stem)


def _wordnet() -> Synonyms:
    """Return word -> the single words that share a meaning with it.

    Raises:
        MetricUnavailable: the user has no WordNet; says how to get it.
    """
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it misses the dictionaries of other languages
        wordnet = WordNetCorpusReader(_wordnet_folder(), omw_reader=None)

    @cache
    def synonyms(word: str) -> frozenset[str]:
        names = (lemma.name() for meaning in wordnet.synsets(word) for lemma in meaning.lemmas())
        return frozenset(name for name in names if "_" not in name)

    return synonyms


def _wordnet_folder() -> Any:
    from nltk.data import find

    for place in ("corpora/wordnet", "corpora/wordnet.zip/wordnet/"):
        try:
            return find(place)
        except LookupError:
            continue
    raise MetricUnavailable(_missing("METEOR with synonyms needs WordNet", "wordnet", "meteor_stem"))


def _missing(needed: str, data: str, instead: str) -> str:
    return (
        f"{needed}, which NLTK does not find here; get it once with `python -m nltk.downloader {data}` "
        f"(if that folder is not one of its usual ones, name it in NLTK_DATA), or use {instead}"
    )


def _tokenise_nltk(text: str) -> list[str]:
    """Return NLTK's `word_tokenize` of a stripped text in lower case.

    Raises:
        MetricUnavailable: NLTK's sentence splitter has no data here; says how to get it.
    """
    from nltk.tokenize import word_tokenize

    try:
        return [word.lower() for word in word_tokenize(text.strip())]
    except LookupError:
        raise MetricUnavailable(
            _missing("meteor_hf needs a sentence splitter", "punkt_tab", "meteor_wordnet")
        ) from None


def _measure(answers: Answers, name: str, tokenise: Callable[[str], list[str]], wordnet: bool) -> dict[str, Mean]:
    synonyms = _wordnet() if wordnet else None
    pairs = zip(*split(answers, tokenise), strict=True)
    return {name: Mean(np.array([meteor(p, r, _stemmer(), synonyms) for p, r in pairs], dtype=np.float64))}


STEM = Family(partial(_measure, name="meteor_stem", tokenise=words_ptb, wordnet=False))
WORDNET = Family(partial(_measure, name="meteor_wordnet", tokenise=words_ptb, wordnet=True))
HF = Family(partial(_measure, name="meteor_hf", tokenise=_tokenise_nltk, wordnet=True))
