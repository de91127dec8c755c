"""One pass over the samples of all splits, in parallel: what is wrong with each, and a few numbers to compare it by."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from medmvl.core.schema import BoxRef, Message, Sample, Text, split_fragment
from medmvl.data.audit.findings import Example, reason
from medmvl.data.audit.identifiers import identifiers, masked
from medmvl.data.store import SampleStore
from medmvl.imaging.workers import work_all

SIDES, DISTINCT, BROKEN, BOXED = 1, 2, 4, 8
"""Flags of a row: its texts name left or right; its patient's id can hardly be another data set's by chance; it cannot
be read; its answer holds boxes."""

USAGE = np.dtype([("media", "u8"), ("origin", "i2"), ("row", "i4"), ("position", "i2")])
"""A medium by the hash of its address, and where it is shown: number of the split, row, which of the sample's media."""

BOXES = np.dtype([("media", "u8"), ("row", "i4"), ("position", "i2"), ("axes", "i2"), ("coords", "f4", (6,))])
"""A box: its medium by the hash of the address, row, which of the sample's media, 2 or 3 axes, coordinates."""

HIDDEN = "*"
"""First letter of an answer, kept masked, that holds an identifier; normalised answers never start with it."""

CLASSES = 64
"""Tasks with more different answers are no classification."""

_CHUNK = 1024  # samples that a process looks at in one go
_CLOSED = ("closed", "choice", "multiple_choice", "classification", "yes/no", "yes_no", "binary")
_LONGEST_CLASS = 80  # characters of an answer that may be one of several classes
_MOST_NAMES = 10_000  # different modalities, types and so on that statistics tell apart
_ROLES = {"train": "train", "valid": "val", "val": "val", "dev": "val", "test": "test"}
_LATERAL = re.compile(
    r"\b(?:left|right|link(?:s|e[rnms]?)|recht(?:s|e[rnms]?)|gauche|droite?s?|izquierd[oa]s?|derech[oa]s?|"
    r"sinistr[oaie]|destr[oaie])\b|[左右]",
    re.IGNORECASE,
)
_WORD = re.compile(r"[一-鿿぀-ヿ]|[^\s一-鿿぀-ヿ]+")
_NO_WORD = re.compile(r"[^\w%+<>=/.-]+|(?<!\d)[.-]|[.-](?!\d)")
_OFFICIAL = re.compile(r"(?:^|[/\\])(train|test|valid|val|dev)(?:ing|ation)?(?:[/\\]|[_-]?\d)", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class Origin:
    """One split of one store.

    Attributes:
        store: its samples, of all tasks.
        folder: of the store; `store.folder` may be that of a mended copy.
        name: the store's, as reports call it.
        split: the split's name.
        called: the split's name, as reports call it.
        roots: further folders that media may lie in.
        recorded: the manifest's entry of the split; empty where there is none.
    """

    store: SampleStore
    folder: Path
    name: str
    split: str
    called: str
    roots: tuple[str | Path, ...] = ()
    recorded: dict[str, Any] = field(default_factory=dict)

    @property
    def role(self) -> str:
        """What the split is for: "train", "val" or "test" by how its name starts, else its name."""
        return role_of(self.split)

    @cached_property
    def first(self) -> np.ndarray:
        """Bool per row: the first one that shows its media."""
        keys = self.store.media_keys
        mask = np.zeros(len(keys), bool)
        mask[np.unique(keys, return_index=True)[1]] = True
        return mask & (keys != 0)

    def example(self, row: int, **about: object) -> Example:
        """Return the example of a row."""
        try:
            sample_id = self.store[row].id
        except (ValueError, OSError) as error:
            sample_id = getattr(error, "sample_id", "?")
        return Example(self.name, self.called, self.store.line(row), id=sample_id, **about)  # type: ignore[arg-type]

    def inside(self, path: str) -> str:
        """Return a path as seen from the store's folder, when it lies below."""
        for folder in (str(self.folder), str(self.store.folder)):
            if path.startswith(folder + os.sep):
                return path[len(folder) + 1 :]
        return path


def role_of(split: str) -> str:
    """Return "train", "val" or "test" for a split's name, else the name itself."""
    return next((role for start, role in _ROLES.items() if split.lower().startswith(start)), split)


@dataclass(frozen=True)
class Mistake:
    """What is wrong with one sample: kind of finding; place, detail and text as of `Example`; what to count by name."""

    kind: str
    place: str = ""
    detail: str = ""
    text: str = ""
    about: tuple[str, ...] = ()


@dataclass
class Facts:
    """What is known of the rows of one origin; 0 stands for nothing everywhere.

    Attributes:
        patient, study: uint64 hashes.
        ask, answer: uint64 hashes of media and question, and of the answer, both normalised.
        words: uint32, of all texts.
        flags: uint8, see `SIDES`.
        usage: entries of `USAGE`, the media of the first rows that show them; an array per chunk.
        boxes: entries of `BOXES`, an array per chunk.
        counts: what statistics tell, (aspect, name) -> samples.
        answers: (task, answer) -> samples of closed questions; tasks with too many answers have `None` in them.
        declared: which of these answers are choices that their samples offer.
        wrong: kind of finding -> samples.
        examples: kind -> (row, place, detail, text that may name someone) of the first ones.
        about: kind -> Counter of what the details say, for messages.
    """

    patient: np.ndarray
    study: np.ndarray
    ask: np.ndarray
    answer: np.ndarray
    words: np.ndarray
    flags: np.ndarray
    usage: list[np.ndarray] = field(default_factory=list)
    boxes: list[np.ndarray] = field(default_factory=list)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    answers: Counter[tuple[str, str | None]] = field(default_factory=Counter)
    declared: set[tuple[str, str]] = field(default_factory=set)
    wrong: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[tuple[int, str, str, str]]] = field(default_factory=dict)
    about: dict[str, Counter[str]] = field(default_factory=dict)

    @classmethod
    def empty(cls, rows: int) -> Facts:
        """Return facts of so many rows: 37 bytes each."""
        hashes = [np.zeros(rows, np.uint64) for _ in range(4)]
        return cls(*hashes, words=np.zeros(rows, np.uint32), flags=np.zeros(rows, np.uint8))

    def note(self, row: int, mistake: Mistake, most: int) -> None:
        """Count a finding in a row, and keep it among the first ones."""
        self.wrong[mistake.kind] += 1
        self.about.setdefault(mistake.kind, Counter()).update(mistake.about)
        kept = self.examples.setdefault(mistake.kind, [])
        if len(kept) < most:
            kept.append((row, mistake.place, mistake.detail, mistake.text))

    def take(self, start: int, part: Facts, most: int) -> None:
        """Take over what is known of rows from `start` on."""
        for name in ("patient", "study", "ask", "answer", "words", "flags"):
            getattr(self, name)[start : start + len(part.ask)] = getattr(part, name)
        self.usage += part.usage
        self.boxes += part.boxes
        for mine, theirs in ((self.counts, part.counts), (self.answers, part.answers), (self.wrong, part.wrong)):
            mine.update(theirs)  # type: ignore[arg-type]
        if len(self.counts) > _MOST_NAMES:
            self.counts = Counter(dict(self.counts.most_common(_MOST_NAMES)))
        for kind, about in part.about.items():
            self.about.setdefault(kind, Counter()).update(about)
        for kind, examples in part.examples.items():
            self.examples[kind] = sorted([*self.examples.get(kind, []), *examples])[:most]
        _forget_open(self.answers)
        self.declared = (self.declared | part.declared) & self.answers.keys()


Chunk = tuple[int, int, int]  # origin, first row, end


def look(
    origins: Sequence[Origin], most: int, workers: int | None, advance: Callable[[int], None] = lambda count: None
) -> list[Facts]:
    """Read every sample once.

    Args:
        origins: the splits.
        most: examples kept of each kind of finding, per split.
        workers: processes; default: one per usable core.
        advance: is told how many rows are done.

    Returns:
        The facts of every origin. A row that cannot be read is a finding.
    """
    facts = [Facts.empty(len(origin.store)) for origin in origins]
    for origin in origins:
        _ = origin.first  # before the processes start, which share its memory
    chunks = (
        (number, start, min(start + _CHUNK, len(origin.store)))
        for number, origin in enumerate(origins)
        for start in range(0, len(origin.store), _CHUNK)
    )

    def begin() -> Callable[[Chunk], tuple[Chunk, Facts]]:
        return lambda chunk: (chunk, _look(origins, chunk, most))

    for (number, start, end), part in work_all(begin, chunks, _died, workers):
        facts[number].take(start, part, most)
        advance(end - start)
    for number, (origin, known) in enumerate(zip(origins, facts, strict=True)):
        known.usage.append(np.array(list(_behind_broken(origin, number, known)), USAGE))
    return facts


def _died(chunk: Chunk, how: str) -> tuple[Chunk, Facts]:
    """Return facts that say that none of these rows could be read."""
    _, start, end = chunk
    facts = Facts.empty(end - start)
    facts.flags[:] = BROKEN
    facts.note(start, Mistake("broken_row", f"rows {start + 1} to {end}", how), 1)
    facts.wrong["broken_row"] = end - start
    return chunk, facts


def _behind_broken(origin: Origin, number: int, facts: Facts) -> Iterator[tuple[int, int, int, int]]:
    """Yield the usage of media whose first row cannot be read, by the next one that can."""
    broken = facts.flags == BROKEN
    keys = origin.store.media_keys
    rows = np.flatnonzero(np.isin(keys, keys[broken & origin.first]) & ~broken & (keys != 0))
    for row in rows[np.unique(keys[rows], return_index=True)[1]].tolist():
        yield from _usage(origin.store[row], number, row)


def _usage(sample: Sample, number: int, row: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield an entry of `USAGE` for every medium of a sample."""
    yield from ((_hash(path), number, row, position) for position, path in enumerate(sample.media_key))


def _look(origins: Sequence[Origin], chunk: Chunk, most: int) -> Facts:
    number, start, end = chunk
    origin, facts = origins[number], Facts.empty(end - start)
    shown: list[tuple[int, int, int, int]] = []
    boxes: list[tuple[Any, ...]] = []
    for place, row in enumerate(range(start, end)):
        try:
            sample = origin.store[row]
        except (ValueError, OSError) as error:  # of the sample, its line or its shard
            facts.flags[place] = BROKEN
            told = getattr(error, "message", str(error)).replace(str(origin.store.folder), str(origin.folder))
            facts.note(row, Mistake("broken_row", detail=reason(told), text=masked(told)), most)
            continue
        _compare(facts, place, sample)
        _count(facts, sample)
        boxes += _placed(sample, row)
        for mistake in _mistakes(origin, sample):
            facts.note(row, mistake, most)
        if origin.first[row]:
            shown += _usage(sample, number, row)
    facts.usage.append(np.array(shown, USAGE))
    facts.boxes.append(np.array(boxes, BOXES))
    return facts


def _placed(sample: Sample, row: int) -> Iterator[tuple[int, int, int, int, tuple[float, ...]]]:
    """Yield an entry of `BOXES` for every box of a sample."""
    for box in sample.meta.boxes:
        axes, media = len(box.coords) // 2, _hash(sample.media_key[box.media])
        yield media, row, box.media, axes, (*box.coords, *(0.0,) * (6 - 2 * axes))


def _compare(facts: Facts, place: int, sample: Sample) -> None:
    """Fill in the numbers by which a sample is compared with others."""
    meta, (question, answer) = sample.meta, _turns(sample)
    facts.patient[place] = _hash(meta.patient)
    facts.study[place] = _hash(meta.study)
    asked = [normalised(text) for text in map(_words, question)] + _boxes(sample, question)
    if any(asked):
        facts.ask[place] = _hash("\0".join([*sample.media_key, *asked, *meta.choices]))
    facts.answer[place] = _hash("\0".join([normalised(_words(answer)), *_boxes(sample, [answer])]) if answer else "")
    texts = [_words(message) for message in sample.messages]
    facts.words[place] = sum(len(_WORD.findall(text)) for text in texts)
    facts.flags[place] = (
        SIDES * any(map(_LATERAL.search, texts))
        + DISTINCT * (len(meta.patient) >= 8 and sum(map(str.isdigit, meta.patient)) >= 5)
        + BOXED * bool(answer and _boxes(sample, [answer]))
    )


def _count(facts: Facts, sample: Sample) -> None:
    """Count a sample for statistics, and its answer among the task's."""
    meta = sample.meta
    kinds = sorted({part.type for part in sample.media}) or ["text alone"]
    aspects = (
        ("source", sample.source),
        ("task", sample.task),
        ("modality", meta.modality),
        ("answer_type", meta.answer_type),
        ("shows", " and ".join(kinds)),
    )
    facts.counts.update((aspect, name or "(none)") for aspect, name in aspects)
    closed = meta.choices or meta.answer_type.lower() in _CLOSED
    if closed and len(sample.answer) <= _LONGEST_CLASS and (sample.task, None) not in facts.answers:
        answer = normalised(sample.answer)
        if identifiers(sample.answer):
            answer = HIDDEN + normalised(masked(sample.answer))
        elif answer in map(normalised, meta.choices):
            facts.declared.add((sample.task, answer))
        facts.answers[sample.task, answer] += 1


def _mistakes(origin: Origin, sample: Sample) -> Iterator[Mistake]:
    """Yield what is wrong with one sample."""
    question, answer = _turns(sample)
    if answer is None or not (_words(answer).strip() or _boxes(sample, [answer])):
        yield Mistake("empty_answer")
    if not any(_words(turn).strip() or _boxes(sample, [turn]) for turn in question if turn.role == "user"):
        yield Mistake("empty_question")
    if sample.split != origin.split:
        yield Mistake("split_field", "field split", "says another split", f"says {sample.split!r}")
    official = _official(origin, sample)
    if official is not None:
        yield Mistake("split_official", *official)
    found = [(turn, one) for turn, said in enumerate(sample.messages) for one in identifiers(_words(said))]
    if found:
        turn, one = found[0]
        kinds = tuple(dict.fromkeys(other.kind for _, other in found))
        place, detail = f"messages[{turn}], character {one.start}", f"{one.masked} ({', '.join(kinds)})"
        yield Mistake("identifier_text", place, detail, about=kinds)


def _official(origin: Origin, sample: Sample) -> tuple[str, str, str] | None:
    """Return the name that puts a sample of the training split among held-out ones, or the other way round.

    It comes as place, detail and text: which name, what it says, and the name itself.

    Validation data that was cut from official training data is fine, and so is an official validation set as test.
    """
    paths = (("path of a medium", origin.inside(split_fragment(path)[0])) for path in sample.media_key)
    for place, name in (("id", sample.id), *paths):
        said = {role_of(word) for word in _OFFICIAL.findall(name)} if not os.path.isabs(name) else set()
        if len(said) == 1 and {*said, origin.role} in ({"train", "test"}, {"train", "val"}):
            if "train" in said and origin.role == "val":
                continue
            return place, f"says {next(iter(said))}", name
    return None


def _turns(sample: Sample) -> tuple[Sequence[Message], Message | None]:
    """Return all that is said before the last answer, and that answer."""
    last = sample.messages[-1]
    return (sample.messages[:-1], last) if last.role == "assistant" else (sample.messages, None)


def _words(message: Message) -> str:
    return "".join(part.text for part in message.content if isinstance(part, Text))


def _boxes(sample: Sample, messages: Sequence[Message]) -> list[str]:
    references = [part.box for message in messages for part in message.content if isinstance(part, BoxRef)]
    return [str(sample.meta.boxes[number].coords) for number in references]


def normalised(text: str) -> str:
    """Return a text in lower case, without punctuation beside words and with single spaces."""
    return " ".join(_NO_WORD.sub(" ", text.lower()).split())


def _hash(text: str) -> int:
    """Return 8 bytes that stand for a text, never 0; 0 for ""."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) or 1 if text else 0


def _forget_open(answers: Counter[tuple[str, str | None]]) -> None:
    """Drop the answers of tasks that have too many different ones to be classes."""
    sizes = Counter(task for task, _ in answers)
    for task in [task for task, size in sizes.items() if size > CLASSES or (task, None) in answers]:
        for key in [key for key in answers if key[0] == task]:
            del answers[key]
        answers[task, None] = 0
