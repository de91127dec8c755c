"""Reports judged by what they say, not by how they say it."""

import re
from collections.abc import Sequence

from medmvl.data.benchmarks.atlas import PARTS

_VOCABULARY = {
    "plane": ("axial", "coronal", "sagittal"),
    "contrast": ("t1", "t2", "flair"),
    "brightness": ("bright", "dark"),
    "size": ("small", "large"),
    "side": ("left", "right"),
    "region": PARTS,
}
_WORDS = {fact: re.compile(rf"\b({'|'.join(map(re.escape, words))})\b") for fact, words in _VOCABULARY.items()}
_OF_PICTURES = ("plane", "lesion", "brightness", "size", "side", "region")
_OF_VOLUMES = ("contrast", *_OF_PICTURES[1:])
_ABSENT = re.compile(r"\b(no|without) (visible )?lesion|\bnormal\b")


def facts(report: str) -> dict[str, frozenset[str]]:
    """Return what a Brain-Atlas report states: fact -> its words found in the text; what is not stated is left out."""
    text = " ".join(report.casefold().split())
    found = {fact: frozenset(pattern.findall(text)) for fact, pattern in _WORDS.items()}
    if _ABSENT.search(text):
        found["lesion"] = frozenset({"absent"})
    elif "lesion" in text:
        found["lesion"] = frozenset({"present"})
    return {fact: words for fact, words in found.items() if words}


def brain_atlas_facts(prediction: str, reference: str) -> float:
    """Share of facts on which two reports about a picture agree, among all that either of them states.

    Facts are plane, lesion (present or absent), brightness, size, side and region. A fact that only one report
    states is a disagreement, so neither silence nor invention pays; "left and right" does not agree with "left".
    """
    return _agreement(prediction, reference, _OF_PICTURES)


def brain_atlas_3d_facts(prediction: str, reference: str) -> float:
    """As `brain_atlas_facts` for reports about a volume: facts are contrast (in place of plane) and the others."""
    return _agreement(prediction, reference, _OF_VOLUMES)


def _agreement(prediction: str, reference: str, counted: Sequence[str]) -> float:
    given, wanted = facts(prediction), facts(reference)
    stated = [fact for fact in counted if fact in given or fact in wanted]
    return sum(given.get(fact) == wanted.get(fact) for fact in stated) / len(stated) if stated else 0.0
