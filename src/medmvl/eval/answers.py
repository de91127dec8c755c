"""From what a model said to what is scored: text as it is, the letter of an option, or a box."""

import re
from collections.abc import Callable, Sequence
from string import ascii_uppercase
from typing import Literal

from medmvl.core.boxes import Coords
from medmvl.core.schema import BoxRef, Sample, SampleError
from medmvl.eval.metrics.text import normalise

Kind = Literal["text", "letter", "box"]
Parsed = str | Coords
ReadBoxes = Callable[[str, Sample], Sequence[Coords]]
"""(answer text, sample) -> boxes in the file's frame, read as the processor of the model under test writes them."""

# A letter counts when it stands alone at the start ("B", "(b)", "B. left", "B: left"); "A lesion ..." is no answer "A".
_LETTER = re.compile(r"\(?([A-Za-z])(?:$|[).:,])")
# At the end it counts behind the words of its own option ("left (B)").
_WORDS_LETTER = re.compile(r"(.+?)\s*\(([A-Za-z])\)", re.DOTALL)


def parse(kind: Kind, text: str, sample: Sample, read_boxes: ReadBoxes) -> Parsed | None:
    """Return what the answer says, or None if it says nothing of that kind.

    Args:
        kind: "text": the answer without outer white space; "letter": the letter of an option, in upper case; an
            answer that repeats one option's text stands for its letter; "box": the first box, in the file's frame.
        text: the raw answer.
        sample: whose question it was; `meta.choices` holds the options' texts.
        read_boxes: reads boxes out of text.
    """
    text = text.strip()
    if kind == "text":
        return text or None
    if kind == "letter":
        return letter(text, sample.meta.choices)
    found = read_boxes(text, sample)
    return tuple(found[0]) if found else None


def letter(text: str, choices: Sequence[str] = ()) -> str | None:
    """Return the option's letter in upper case, or None; with `choices` only their letters count.

    "B", "(b)", "B. right", the words of option B alone, and these words with their own letter, "right (B)", all mean B.
    """
    known = ascii_uppercase[: len(choices)] if choices else ascii_uppercase
    text = text.strip()
    words = normalise(text)
    same = _saying(words, choices)
    if len(same) == 1 and len(words) > 1:  # before the letter: "E. coli" may well be option A
        return same[0]
    if match := _LETTER.match(text):
        return found if (found := match[1].upper()) in known else None
    if both := _WORDS_LETTER.fullmatch(text):
        return found if (found := both[2].upper()) in _saying(normalise(both[1]), choices) else None
    return None


def _saying(words: str, choices: Sequence[str]) -> list[str]:
    """Return the letters of the options that consist of these words."""
    return [letter for letter, choice in zip(ascii_uppercase, choices, strict=False) if normalise(choice) == words]


def reference(kind: Kind, sample: Sample) -> Parsed:
    """Return the true answer of a sample in the form that `parse` returns.

    Raises:
        SampleError: the sample's last assistant message holds no answer of that kind.
    """
    if kind == "box":
        refs = [part for part in sample.messages[-1].content if isinstance(part, BoxRef)]
        if sample.messages[-1].role == "assistant" and refs:
            return sample.meta.boxes[refs[0].box].coords
    else:
        text = sample.answer.strip()
        found = letter(text, sample.meta.choices) if kind == "letter" else text
        if found:
            return found
    raise SampleError(f"the last assistant message holds no true answer of kind {kind!r} to score against", sample.id)


def option_answers(kind: Kind, sample: Sample, closed: Sequence[str]) -> dict[str, str]:
    """Return the options of a sample that are to be ranked: parsed form -> the text a model would answer with.

    Args:
        kind: "letter": each option is written as the sample's true answer is, with its own letter and words; "text":
            each as it is listed, so that no spelling tells the true one; that one goes by the true answer's form.
        sample: with its true answer, and with choices if `closed` is empty.
        closed: the options' texts; empty takes the sample's choices.

    Returns:
        The options, the true answer among them; {} where the sample has no choices, or the true answer is none of them.
    """
    true, choices = sample.answer.strip(), sample.meta.choices
    if kind == "letter":
        own = letter(true, choices)
        if own is None or not choices:
            return {}
        words = choices[ascii_uppercase.index(own)]
        return {
            name: _in_the_manner_of(true, own, words, name, choice)
            for name, choice in zip(ascii_uppercase, choices, strict=False)
        }
    options = {normalise(option): option for option in (closed or choices)}
    if normalise(true) not in options:
        return {}
    return {true if key == normalise(true) else option: option for key, option in options.items()}


def _in_the_manner_of(true: str, own: str, words: str, name: str, choice: str) -> str:
    """Return another option written as the true answer is: "(b) right" -> "(a) left"."""
    found = re.match(rf"(\(?)({own}|{own.lower()})(\b.*)", true, re.DOTALL)
    if found is None or normalise(true) == normalise(words):
        return choice
    mark = name if found[2].isupper() else name.lower()
    return found[1] + mark + found[3].replace(words, choice)
