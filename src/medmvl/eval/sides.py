"""Left and right in words: which sides a text names, and the same text about a mirrored patient."""

import re
from collections.abc import Sequence

_OTHER = {"left": "right", "right": "left", "左": "右", "右": "左"}
# Whole words, also within "left-sided", "kidney_left" and "leftward", in the three ways in which they are written.
_SIDE = re.compile(
    r"(?<![A-Za-z0-9])(?:left|right|Left|Right|LEFT|RIGHT)(?=(?:wards?|most|WARDS?|MOST)?(?![A-Za-z0-9]))|[左右]"
)
_BOTH = re.compile(r"\b(?:bilateral(?:ly)?|both|(?:either|each) side)\b|[双雙两兩]", re.IGNORECASE)
_UNCLEAR = re.compile(
    # Abbreviations, which are not swapped: "RUL", "R", "(L)", "LV"; vertebrae ("L4", "L 4") are none.
    r"(?<![A-Za-z0-9])(?:[RL](?:UL|ML|LL|UQ|LQ|UE|LE|VH?|A)|[RL](?![A-Za-z0-9'-]|\.?\s*\d))(?![A-Za-z0-9])"
    # What is no side: "all right", "is that right?", "the right answer", "left behind".
    r"|(?i:\ball right\b|,\s*right\s*\?|\b(?:that|this|it) right\b"
    r"|\bright (?:away|now|after|angles?|answers?|options?|choices?|diagnos[ei]s|statements?|order)\b"
    r"|\bleft (?:behind|untreated|out|over|alone|in place|in situ|untouched)\b)"
)
# "left or right", "the left lung or the right lung", "left/right", "left, right": both sides of one thing.
_ALTERNATIVE = r"(?P<noun>(?:[ -][A-Za-z]+){{0,3}}?|[\u4e00-\u9fff]{{0,3}}?)\s*(?:,\s*or\b|\bor\b|[/,、]|还是|或者?)\s*"
_ALTERNATIVES = [
    re.compile(rf"\b{one}{_ALTERNATIVE.format()}(?:(?:on|in|to|at|of|the|a)\s+)*{other}\b(?P=noun)", re.IGNORECASE)
    for one, other in (("left", "right"), ("right", "left"))
] + [re.compile(rf"{one}{_ALTERNATIVE.format()}{other}(?P=noun)") for one, other in (("左", "右"), ("右", "左"))]


def sides(text: str) -> set[str]:
    """Return which of "left" and "right" a text names."""
    return {{"左": "left", "右": "right"}.get(found, found.lower()) for found in _SIDE.findall(text)}


def swapped(text: str) -> str:
    """Return the text with left and right in each other's place; doing it twice gives the text back."""
    return _SIDE.sub(lambda found: _in_case(_OTHER[found[0].lower()], found[0]), text)


def is_unclear(text: str) -> bool:
    """Whether a text may speak of sides in a way that `swapped` does not understand, or means no side by "right"."""
    return _UNCLEAR.search(text) is not None


def means_both(text: str) -> bool:
    """Whether a text speaks of both sides: "left and right", "bilateral", "both"."""
    return len(sides(text)) == 2 or _BOTH.search(text) is not None


def offers_both(question: str, choices: Sequence[str] = ()) -> bool:
    """Whether a question names sides only as alternatives, so that it asks the same about a mirrored patient.

    "Is it left or right?" does, and so does a listing of options that has each option's counterpart among them; "Is the
    left lung larger than the right one?" does not.

    Args:
        question: its words, a listing of the options included.
        choices: the options, all of which have their counterparts among them.
    """
    rest = question
    for choice in sorted(filter(sides, choices), key=len, reverse=True):
        for last in list(re.finditer(re.escape(choice), rest, re.IGNORECASE))[-1:]:
            rest = f"{rest[: last.start()]};{rest[last.end() :]}"
    for alternative in _ALTERNATIVES:
        rest = alternative.sub(";", rest)
    return not sides(rest)


def _in_case(word: str, like: str) -> str:
    if like.isupper():
        return word.upper()
    return word.capitalize() if like[0].isupper() else word
