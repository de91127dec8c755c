"""What stands around a question: the task's own words, and answered examples before it."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from medmvl.core.schema import Box, BoxRef, Image, Message, Part, Sample, SampleError, Text, Volume

QUESTION = "{question}"
"""Stands for the question's own words in a template."""


def worded(sample: Sample, template: str) -> Sample:
    """Return the sample with its last question put in other words.

    Pictures and volumes before the question stay before all words; what stands among its words (boxes, further media)
    keeps its place there. White space around the question goes.

    Args:
        sample: with or without its answer.
        template: what the question becomes, such as "{question} Answer with one word."

    Raises:
        ValueError: the template has no place for the question, or several.
        SampleError: nobody asks anything.
    """
    if template.count(QUESTION) != 1:
        raise ValueError(f"a prompt holds {QUESTION!r} once, where the question's own words go; got {template!r}")
    if template == QUESTION:
        return sample
    before, _, after = template.partition(QUESTION)
    content = question(sample).content
    first = next((i for i, part in enumerate(content) if not isinstance(part, Image | Volume)), len(content))
    asked = _joined((Text(text=before), *_stripped(content[first:]), Text(text=after)))
    return with_question(sample, (*content[:first], *asked))


def question(sample: Sample) -> Message:
    """Return the last message of a user.

    Raises:
        SampleError: nobody asks anything.
    """
    return sample.messages[_place(sample)]


def with_question(sample: Sample, content: Sequence[Part]) -> Sample:
    """Return the sample with another last question."""
    messages = list(sample.messages)
    place = _place(sample)
    messages[place] = messages[place].model_copy(update={"content": tuple(content)})
    return sample.model_copy(update={"messages": tuple(messages)})


def with_shots(
    samples: Sequence[Sample],
    training: Sequence[Sample],
    shots: int,
    seed: int = 0,
    template: str = QUESTION,
    originals: Sequence[Sample] | None = None,
) -> list[Sample]:
    """Return samples with answered examples before their questions, media and boxes included.

    An example is of the same task, and shares neither patient nor study nor file with the question. Which ones a task
    gets, and in which order, a seed decides, so that all its prompts begin alike; only a question that shares something
    with one of them gets the next one in its place. Examples of many patients go before many examples of one.

    The examples' media and boxes come first, so the question's own ones are the last (`box_medium`). A system message
    of the sample stays at the beginning, those of examples are left out.

    Args:
        samples: to be asked, in the task's words.
        training: samples to take examples from, in their own words; those without an answer are no examples.
        shots: examples before each question.
        seed: of the choice.
        template: the task's words, for the questions of the examples.
        originals: one per sample: whose patient, study and files no example may share; needed where `samples` were
            changed by a control, so that only the picture in question changes. None: the samples themselves.

    Raises:
        ValueError: there are fewer examples than asked for, or the template has no place for the question.
    """
    if not shots:
        return list(samples)
    pools: dict[str, list[_Example]] = {}
    openings: dict[tuple[str, ...], _Opening] = {}
    found = []
    for sample, original in zip(samples, samples if originals is None else originals, strict=True):
        if original.task not in pools:
            pools[original.task] = _pool(training, original.task, seed)
        chosen = _choose(pools[original.task], original, shots)
        key = (original.task, *(example.sample.id for example in chosen))
        if key not in openings:
            openings[key] = _Opening.of([worded(example.sample, template) for example in chosen])
        found.append(openings[key].before(sample))
    return found


def box_medium(sample: Sample, prompt: Sample | None = None) -> int:
    """Return which medium of a prompt the true answer's box lies on, counted in reading order; 0 without a box.

    Args:
        sample: with its true answer.
        prompt: the same question behind examples; None: the sample itself.
    """
    before = 0 if prompt is None else len(prompt.media) - len(sample.media)
    refs = [part for part in sample.messages[-1].content if isinstance(part, BoxRef)]
    return before + (sample.meta.boxes[refs[0].box].media if refs else 0)


@dataclass(frozen=True, eq=False)
class _Example:
    """A training sample, and all by which it could be known: patient, study, files."""

    sample: Sample
    traits: frozenset[tuple[str, str]]


@dataclass(frozen=True, eq=False)
class _Opening:
    """What stands before a question: examples as turns, their boxes, and how many media they show."""

    messages: tuple[Message, ...]
    boxes: tuple[Box, ...]
    media: int

    @classmethod
    def of(cls, examples: Iterable[Sample]) -> "_Opening":
        opening = cls((), (), 0)
        for example in examples:
            turns = [message for message in example.messages if message.role != "system"]
            shifted = opening.before(example.model_copy(update={"messages": tuple(turns)}))
            opening = cls(shifted.messages, shifted.meta.boxes, opening.media + len(example.media))
        return opening

    def before(self, sample: Sample) -> Sample:
        """Return the sample behind this opening, its boxes and their media renumbered."""
        head = next((i for i, message in enumerate(sample.messages) if message.role != "system"), len(sample.messages))
        own = [
            message.model_copy(update={"content": tuple(map(self._shifted, message.content))})
            for message in sample.messages[head:]
        ]
        boxes = [box.model_copy(update={"media": box.media + self.media}) for box in sample.meta.boxes]
        return sample.model_copy(
            update={
                "messages": (*sample.messages[:head], *self.messages, *own),
                "meta": sample.meta.model_copy(update={"boxes": (*self.boxes, *boxes)}),
            }
        )

    def _shifted(self, part: Part) -> Part:
        return BoxRef(box=part.box + len(self.boxes)) if isinstance(part, BoxRef) else part


def _pool(training: Sequence[Sample], task: str, seed: int) -> list[_Example]:
    """Return the answered samples of a task in a random order, the first of every patient before all second ones."""

    def draw(sample: Sample) -> bytes:
        return hashlib.sha256(f"{seed}/{sample.id}".encode()).digest()

    ordered = sorted((sample for sample in training if sample.task == task and _answered(sample)), key=draw)
    count: Counter[str] = Counter()
    ranked: dict[int, list[_Example]] = defaultdict(list)
    for sample in ordered:
        ranked[count[sample.patient]].append(_Example(sample, _traits(sample)))
        count[sample.patient] += 1
    return [example for rank in sorted(ranked) for example in ranked[rank]]


def _choose(pool: Sequence[_Example], sample: Sample, shots: int) -> list[_Example]:
    traits = _traits(sample)
    chosen = []
    for example in pool:
        if traits.isdisjoint(example.traits):
            chosen.append(example)
            if len(chosen) == shots:
                return chosen
    raise ValueError(
        f"sample {sample.id!r} wants {shots} answered examples of {sample.task!r} about other patients before it, and "
        f"there are {len(chosen)} ({len(pool)} about any patient); ask for fewer shots, or give more training samples"
    )


def _traits(sample: Sample) -> frozenset[tuple[str, str]]:
    study = [("study", sample.meta.study)] if sample.meta.study else []
    return frozenset([("patient", sample.patient), *study, *(("file", path) for path in sample.media_key)])


def _answered(sample: Sample) -> bool:
    """Whether a sample can be an example: a user asks, the last answer says something, no medium is lost with a system
    message.
    """
    last = sample.messages[-1]
    said = any(isinstance(part, BoxRef) or (isinstance(part, Text) and part.text.strip()) for part in last.content)
    asked = [message for message in sample.messages if message.role == "user"]
    shown = sum(isinstance(part, Image | Volume) for message in asked for part in message.content)
    return last.role == "assistant" and said and bool(asked) and shown == len(sample.media)


def _place(sample: Sample) -> int:
    for place in reversed(range(len(sample.messages))):
        if sample.messages[place].role == "user":
            return place
    raise SampleError("no user asks anything", sample.id)


def _stripped(parts: Sequence[Part]) -> list[Part]:
    """Return parts without white space at their outer ends."""
    kept = list(parts)
    if kept and isinstance(kept[0], Text):
        kept[0] = Text(text=kept[0].text.lstrip())
    if kept and isinstance(kept[-1], Text):
        kept[-1] = Text(text=kept[-1].text.rstrip())
    return kept


def _joined(parts: Iterable[Part]) -> list[Part]:
    """Return parts with neighbouring texts as one, empty ones left out."""
    joined: list[Part] = []
    for part in parts:
        if isinstance(part, Text) and joined and isinstance(joined[-1], Text):
            joined[-1] = Text(text=joined[-1].text + part.text)
        elif not isinstance(part, Text) or part.text:
            joined.append(part)
    return joined
