"""Consistency probes: changed questions of which it is known how the answer must follow.

A mirrored picture swaps left and right in the answer, another wording keeps it, shuffled options keep the words that
are chosen. Each probe gives the changed question with its true answer; `follow` says what any answer to the original,
right or wrong, must become, so that a model is held to what it said itself.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase

import numpy as np

from medmvl.core.schema import BoxRef, Image, Message, Part, Sample, Text, Volume
from medmvl.eval.answers import Kind, Parsed, letter
from medmvl.eval.controls import NotAsked
from medmvl.eval.metrics.boxes import acc_iou50
from medmvl.eval.metrics.text import normalise
from medmvl.eval.select import meta_values
from medmvl.eval.shots import question, with_question, worded
from medmvl.eval.sides import is_unclear, means_both, offers_both, sides, swapped
from medmvl.eval.task import Probe

REPHRASED = "question_rephrase"
"""Key of `meta` under which a data set keeps another wording of a sample's question."""

_VIEWS = ("plane", "view", "orientation")  # keys of `meta` that may say from where a picture shows the patient
_FROM_THE_SIDE = re.compile(r"\b(?:sagittal|lateral|LL|RL)\b", re.IGNORECASE)
# An option whose meaning lies in the places of others: "none of the above", "A and C".
_OF_PLACES = re.compile(r"\b(?:above|below|preceding|following)\b|\b[A-H]\s*(?:and|or|&|,|/)\s*[A-H]\b")
# How options are marked in questions; X is the letter.
_MARKS = ("(X)", "[X]", "X.", "X)", "X:")
# Where an answer shows the letter of its option, see `answers.letter`: "(B) right", "right (B)".
_LETTER_FIRST, _LETTER_LAST = re.compile(r"\(?([A-Za-z])(?=$|[).:,])"), re.compile(r"\(([A-Za-z])\)$")


@dataclass(frozen=True)
class Probed:
    """A changed question.

    Attributes:
        asked: the sample without its answer, in the changed form: media, words, boxes and choices. Answers to it are
            parsed with it.
        expected: the true answer, in parsed form.
        template: the wording that the question is to be put in, "{question}" standing for its words; "" where the probe
            leaves that to the task.
    """

    asked: Sample
    expected: Parsed
    template: str = ""


def mirrored(sample: Sample, kind: Kind, truth: Parsed) -> Probed | NotAsked:
    """Swap left and right in the picture or volume, and in words as far as needed for the question to fit it.

    It applies where the true answer names a side or is a box, or where the question names exactly one side. A question
    that offers both sides as alternatives ("left or right?") stays as it is; in any other one that names a side, sides
    are swapped, in the options too, and so they are in earlier turns. Boxes stay as they are, for they are told in the
    frame of the file as it lies on disk, see `processing.encoded.Media`.

    Args:
        sample: with or without its answer.
        kind: how answers are read.
        truth: the true answer in parsed form.
    """
    asked = sample.prompt()
    words, choices = _words(question(asked)), sample.meta.choices
    said = _said(kind, truth, choices)
    if reason := _no_mirror(asked, words, said):
        return NotAsked(reason)
    if kind != "box" and not sides(said) and len(sides(words)) != 1:
        return NotAsked("neither its answer nor its question tells one side")
    closed = _closed(choices)
    turned = bool(sides(words)) and not (closed and offers_both(words, choices))
    if turned or not closed:
        choices = tuple(map(swapped, choices))
    messages = [_swapped(message) for message in asked.messages]
    if not turned:
        messages[-1] = asked.messages[-1]
    shown = tuple(message.model_copy(update={"content": _in_a_mirror(message.content)}) for message in messages)
    changed = asked.model_copy(
        update={"messages": shown, "meta": asked.meta.model_copy(update={"choices": choices})},
    )
    return Probed(changed, follow("mirrored", kind, sample, changed, truth))


def paraphrased(sample: Sample, kind: Kind, truth: Parsed, templates: Sequence[str]) -> list[Probed] | NotAsked:
    """Ask in other words: once in each template, and once as the data set itself puts it (`REPHRASED`).

    Args:
        sample: with or without its answer.
        kind: how answers are read.
        truth: the true answer in parsed form; it stays.
        templates: other wordings, "{question}" standing for the question's words.

    Raises:
        ValueError: a template has no place for the question.
    """
    asked = sample.prompt()
    for template in templates:
        worded(asked, template)
    found = [Probed(asked, truth, template) for template in templates]
    content = question(asked).content
    without_boxes = not any(isinstance(part, BoxRef) for part in content)
    for words in meta_values(sample, REPHRASED)[:1]:
        if without_boxes and normalise(words) != normalise(_words(question(asked))):
            media = [part for part in content if isinstance(part, Image | Volume)]
            found.append(Probed(with_question(asked, [*media, Text(text=words)]), truth))
    return found or NotAsked("no other wording of it is known")


def options_shuffled(sample: Sample, kind: Kind, truth: Parsed, seed: int = 0) -> Probed | NotAsked:
    """Give the options in another order, in which each one has another letter.

    Args:
        sample: with or without its answer; its question lists `meta.choices` behind letters: "(A) this (B) that",
            "A. this B. that", in lower case too.
        kind: how answers are read.
        truth: the true answer in parsed form.
        seed: of the order, together with the sample's id.
    """
    asked, choices = sample.prompt(), sample.meta.choices
    if reason := _no_shuffle(kind, truth, choices):
        return NotAsked(reason)
    parts = list(question(asked).content)
    listings = (_listed(part.text, choices) if isinstance(part, Text) else [] for part in parts)
    place, spans = next(((place, spans) for place, spans in enumerate(listings) if spans), (0, []))
    if not spans:
        return NotAsked("its question does not list its options behind letters")
    order = _moved(len(choices), f"{seed}/{sample.id}")
    shuffled = tuple(choices[number] for number in order)
    text = parts[place].text
    written = [text[start:end] for start, end in spans]
    for (start, end), number in reversed(list(zip(spans, order, strict=True))):
        text = text[:start] + written[number] + text[end:]
    parts[place] = Text(text=text)
    changed = with_question(asked, parts)
    changed = changed.model_copy(update={"meta": changed.meta.model_copy(update={"choices": shuffled})})
    return Probed(changed, follow("options_shuffled", kind, sample, changed, truth))


def follow(probe: Probe, kind: Kind, sample: Sample, asked: Sample, answer: Parsed) -> Parsed:
    """Return what says about the changed question the same as `answer` says about the original.

    Args:
        probe: the change.
        kind: how answers are read.
        sample: the original.
        asked: the changed sample, `Probed.asked`.
        answer: any answer to the original, in parsed form.
    """
    if not isinstance(answer, str) or kind == "box":
        return answer
    turn: Callable[[str], str] = swapped if probe == "mirrored" else str
    letters = _letters(sample.meta.choices, asked.meta.choices, turn)
    if kind == "letter":
        return letters.get(answer, answer)
    return turn(_relettered(answer, sample.meta.choices, letters))


def is_consistent(
    probe: Probe, kind: Kind, sample: Sample, asked: Sample, first: Parsed | None, second: Parsed | None
) -> bool:
    """Whether an answer to the changed question is what the model's own answer to the original must become.

    Texts are compared as `accuracy_strict` compares them, or by the option that both stand for; boxes agree from an IoU
    of 0.5 on. Where either answer could not be read there is nothing consistent.

    Args:
        probe, kind, sample, asked: as for `follow`.
        first: the answer to the original, in parsed form.
        second: the answer to the changed question, parsed with `asked`.
    """
    if first is None or second is None:
        return False
    wanted = follow(probe, kind, sample, asked, first)
    if not isinstance(wanted, str) and not isinstance(second, str):
        return acc_iou50(second, wanted) == 1
    if not isinstance(wanted, str) or not isinstance(second, str):
        return False
    if kind == "text" and asked.meta.choices:
        chosen = [letter(text, asked.meta.choices) for text in (wanted, second)]
        if None not in chosen:
            return chosen[0] == chosen[1]
    return normalise(wanted) == normalise(second)


def _no_mirror(asked: Sample, words: str, said: str) -> str:
    """Return why the mirrored question would have no clear answer; "" if it has one."""
    if not asked.media:
        return "it shows no picture or volume"
    views = [view for key in _VIEWS for view in meta_values(asked, key)]
    if any(isinstance(part, Image) for part in asked.media) and any(map(_FROM_THE_SIDE.search, views)):
        return "its picture shows the patient from the side, where a mirror swaps front and back"
    texts = [part.text for message in asked.messages for part in message.content if isinstance(part, Text)]
    if any(map(is_unclear, [*texts, *asked.meta.choices, said])):
        return "it may speak of sides in a way that cannot be swapped with certainty"
    return "its answer means both sides" if means_both(said) else ""


def _said(kind: Kind, truth: Parsed, choices: Sequence[str]) -> str:
    """Return the words that a true answer stands for: of its option, its own, or none for a box."""
    if not isinstance(truth, str) or kind == "box":
        return ""
    own = truth if kind == "letter" else letter(truth, choices)
    texts = dict(zip(ascii_uppercase, choices, strict=False))
    return texts.get(own or "", "" if kind == "letter" else truth)


def _words(message: Message) -> str:
    return "".join(part.text for part in message.content if isinstance(part, Text))


def _closed(choices: Sequence[str]) -> bool:
    """Whether swapping sides turns the options into each other; no options do."""
    own = sorted(map(normalise, choices))
    return len(set(own)) == len(own) and own == sorted(normalise(swapped(choice)) for choice in choices)


def _swapped(message: Message) -> Message:
    content = (Text(text=swapped(part.text)) if isinstance(part, Text) else part for part in message.content)
    return message.model_copy(update={"content": tuple(content)})


def _in_a_mirror(parts: Sequence[Part]) -> tuple[Part, ...]:
    return tuple(
        part.model_copy(update={"mirrored": not part.mirrored}) if isinstance(part, Image | Volume) else part
        for part in parts
    )


def _letters(before: Sequence[str], after: Sequence[str], turn: Callable[[str], str]) -> Mapping[str, str]:
    """Return letter of each option -> letter of what it becomes, as far as that is among the options."""
    words = [normalise(choice) for choice in after]
    letters = {}
    for number, name in enumerate(ascii_uppercase[: len(before)]):
        wanted = normalise(turn(before[number]))
        if wanted in words:
            letters[name] = name if words[number] == wanted else ascii_uppercase[words.index(wanted)]
    return letters


def _relettered(text: str, choices: Sequence[str], letters: Mapping[str, str]) -> str:
    """Return an answer with the letter of its option replaced, if it shows one; words alone have none."""
    shown = letter(text, choices) if choices and normalise(text) not in map(normalise, choices) else None
    mark = _LETTER_FIRST.match(text) or _LETTER_LAST.search(text)
    if mark is None or shown not in letters:
        return text
    new = letters[shown] if mark[1].isupper() else letters[shown].lower()
    return text[: mark.start(1)] + new + text[mark.end(1) :]


def _no_shuffle(kind: Kind, truth: Parsed, choices: Sequence[str]) -> str:
    """Return why options cannot change places; "" if they can."""
    if not 2 <= len(choices) <= len(ascii_uppercase):
        return "it has no options to change places"
    if len(set(map(normalise, choices))) < len(choices):
        return "two of its options have the same words"
    if any(map(_OF_PLACES.search, choices)):
        return "an option tells of others by their places"
    if not isinstance(truth, str) or kind == "box" or letter(truth, choices) is None:
        return "its answer is none of its options"
    return ""


def _listed(text: str, choices: Sequence[str]) -> list[tuple[int, int]]:
    """Return where the options stand in a question, each behind its letter, all in order; [] if they do not.

    Of several such listings it is the last.
    """
    words = [r"\s+".join(map(re.escape, choice.split())) for choice in choices]
    for letters in (ascii_uppercase, ascii_uppercase.lower()):
        for mark in _MARKS:
            marked = (re.escape(mark).replace("X", name) for name in letters)
            items = (
                rf"(?<![A-Za-z0-9]){sign}\s*((?i:{option}))(?![A-Za-z0-9])"
                for sign, option in zip(marked, words, strict=False)
            )
            found = list(re.finditer(r"[^A-Za-z0-9]*?(?:\b(?:or|and)\b)?[^A-Za-z0-9]*?".join(items), text))
            if found:
                return [found[-1].span(number + 1) for number in range(len(choices))]
    return []


def _moved(count: int, key: str) -> list[int]:
    """Return an order of 0..count-1 in which nothing keeps its place, decided by a key (Sattolo's algorithm)."""
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big"))
    order = list(range(count))
    for last in range(count - 1, 0, -1):
        other = int(rng.integers(last))
        order[last], order[other] = order[other], order[last]
    return order
