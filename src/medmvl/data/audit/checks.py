"""The checks that compare splits: leaks, repeated and contradicting samples, odd splits, balance, lengths, sides."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice, permutations
from pathlib import Path

import numpy as np

from medmvl.core.schema import Sample, SampleError, Text
from medmvl.data.audit.duplicates import near_pairs
from medmvl.data.audit.findings import Example, Ledger, reason
from medmvl.data.audit.identifiers import identifiers, masked
from medmvl.data.audit.media import GOOD, Media
from medmvl.data.audit.samples import BOXED, BOXES, DISTINCT, HIDDEN, SIDES, Facts, Origin
from medmvl.data.store import SampleStore
from medmvl.data.tokens import REFUSED, token_counts
from medmvl.imaging.geometry import beyond

MAJORITY, ENOUGH = 0.95, 20
"""Share of the most frequent answer that is told, among at least so many samples."""

COMMON, RARE = 5, "(rare)"
"""Answers and names that so many samples have are classes, and shown; what stands for the others, which may name
someone."""

EXPECTED = 6
"""An answer is missed in a split that should have so many of them, going by what two splits have together."""

_QUOTED = 120  # characters of a text that a page shows

Pair = tuple[int, int]


@dataclass(frozen=True)
class Tokens:
    """How a recipe counts tokens.

    Attributes:
        limit: longest sample allowed.
        count: returns a sample's tokens, however many; raises SampleError for one that the model cannot take.
        fingerprint: of everything a count depends on beside the sample; counts are kept under it.
    """

    limit: int
    count: Callable[[Sample], int]
    fingerprint: str


@dataclass(frozen=True)
class Use:
    """What a recipe does with samples of a store.

    Attributes:
        folder, split: which samples.
        tasks: only these; None for all.
        stage: the recipe's stage.
        mirror: training mirrors left and right there.
        tokens: None where they cannot be counted.
    """

    folder: Path
    split: str
    tasks: tuple[str, ...] | None
    stage: str
    mirror: bool = False
    tokens: Tokens | None = None

    def rows(self, origin: Origin) -> np.ndarray:
        """Return the rows of an origin that are meant, none where it is another one."""
        if (origin.folder, origin.split) != (self.folder.absolute(), self.split):
            return np.zeros(0, np.int64)
        wanted = [code for code, name in _task_codes(origin).items() if self.tasks is None or name in self.tasks]
        return np.flatnonzero(np.isin(origin.store.tasks, wanted))


def check_rows(ledger: Ledger, origins: Sequence[Origin], facts: Sequence[Facts]) -> None:
    """Tell what was wrong with single samples."""
    for origin, known in zip(origins, facts, strict=True):
        for kind, count in known.wrong.items():
            examples = [
                origin.example(row, place=place, detail=detail, text=text)
                for row, place, detail, text in known.examples[kind]
            ]
            about = ", ".join(f"{n:,} {name}" for name, n in known.about[kind].most_common(6))
            told = f" ({about})" if about else ""
            ledger.add(kind, count, f"{_many(count, 'sample')} of {_name(origin)}{told}", examples)


def check_media(ledger: Ledger, origins: Sequence[Origin], media: Media) -> None:
    """Tell which media are missing, broken or blank, and what their headers and other fields hold."""
    first = media.usage.first()

    def example(number: int, detail: str = "", text: str = "") -> Example:
        return _shown(origins, media, first[number], detail, text)

    for kind in ("missing", "corrupt"):
        state = {"missing": 2, "corrupt": 3}[kind]
        wrong = [(n, why) for n, why in sorted(media.wrong.items()) if media.state[n] == state]
        examples = [example(n, reason(why), masked(why)) for n, why in wrong]
        count = media.counts[kind]
        ledger.add(kind, count, f"{_many(count, 'file')} of {len(media.usage):,}", examples)
    count = media.counts["blank"]
    ledger.add("blank", count, f"{_many(count, 'picture')} or volumes", map(example, sorted(media.blank)))
    held = sorted(media.identity.items())
    for kind, name in (("identifier_dicom", "direct"), ("identifier_date", "indirect")):
        examples = [example(n, ", ".join(getattr(one, name)[:8])) for n, one in held if getattr(one, name)]
        words = {keyword for _, one in held for keyword in getattr(one, name)}
        top = [(word, n) for word, n in media.keywords.most_common() if word in words][:6]
        count = media.counts[name]
        told = ", ".join(f"{word} in {n:,}" for word, n in top)
        ledger.add(kind, count, f"{_many(count, 'file')} or series: {told}", examples)
    count = media.counts["notes"]
    told = ", ".join(f"{name} in {n:,}" for name, n in media.fields.most_common(6))
    noted = [example(n, "; ".join(names[:8])) for n, names in sorted(media.notes.items())]
    ledger.add("identifier_metadata", count, f"{_many(count, 'file')}: {told}", noted)
    burned = [example(n, one.burned_in) for n, one in held if one.burned_in]
    count = media.counts["burned_in"]
    ledger.add("identifier_burned_in", count, f"{_many(count, 'file')} or series", burned)


def check_boxes(ledger: Ledger, origins: Sequence[Origin], facts: Sequence[Facts], media: Media) -> None:
    """Hold every box against the size of its picture or volume, as training does."""
    for origin, known in zip(origins, facts, strict=True):
        boxes = np.concatenate([np.zeros(0, BOXES), *known.boxes])
        boxes = boxes[np.lexsort((boxes["position"], boxes["row"]))]
        numbers = media.usage.numbers(boxes["media"])
        there = (numbers >= 0) & (media.state[numbers] == GOOD)
        boxes, frames = boxes[there], media.frame[numbers[there]]
        outside = [_outside(box, frame) for box, frame in zip(boxes, frames.tolist(), strict=True)]
        places = [place for place, told in enumerate(outside) if told]
        examples = [
            origin.example(int(boxes[place]["row"]), media=int(boxes[place]["position"]) + 1, detail=outside[place])
            for place in places[: ledger.most]
        ]
        rows = len(np.unique(boxes["row"][places]))
        told = f"{_many(len(places), 'box')} of {_many(rows, 'sample')} of {_name(origin)}"
        ledger.add("box_outside", len(places), told, examples)


def _outside(box: np.void, frame: Sequence[int]) -> str:
    """Return how a box leaves its frame (depth, height, width), "" for one that keeps inside."""
    axes = int(box["axes"])
    coords, size = box["coords"][: 2 * axes].tolist(), frame[-axes:]
    past = beyond(coords, size)
    if not past:
        return ""
    where = {"partly": "reaches out", "outside": "lies outside"}[past]
    corners = ", ".join(f"{number:g}" for number in coords)
    return f"({corners}) {where} of {' x '.join(map(str, size[::-1]))} {'pixels' if axes == 2 else 'voxels'}"


def check_leaks(ledger: Ledger, origins: Sequence[Origin], facts: Sequence[Facts], media: Media) -> None:
    """Compare all splits of different use, inside a store and between stores."""
    for i, j in combinations(range(len(origins)), 2):
        if origins[i].role == origins[j].role:
            continue
        _shared_people(ledger, origins, facts, (i, j))
        _shared_texts(ledger, origins, facts, (i, j))
        _shared_media(ledger, origins, media, (i, j))


def _shared_people(ledger: Ledger, origins: Sequence[Origin], facts: Sequence[Facts], pair: Pair) -> None:
    i, j = pair
    patients = np.zeros(0, np.uint64)
    for kind, noun in (("leak_patient", "patient"), ("leak_study", "study")):
        keys = [getattr(facts[number], noun) for number in pair]
        if not _same_people(origins, facts, pair):
            # Two data sets may both have a patient "12"; of a number like p10000032 there is but one.
            keys = [np.where(facts[n].flags & DISTINCT, key, 0) for n, key in zip(pair, keys, strict=True)]
        shared, left, right = np.intersect1d(*keys, return_indices=True)
        known = (shared == 0) | np.isin(facts[i].patient[left], patients)  # a study of such a patient is no news
        left, right = left[~known], right[~known]
        patients = shared[shared != 0] if noun == "patient" else patients
        examples = [
            origins[i].example(a, place=f"meta.{noun}", other=origins[j].example(b))
            for a, b in islice(zip(left.tolist(), right.tolist(), strict=True), ledger.most)
        ]
        ledger.add(
            kind, len(left), f"{_many(len(left), noun)} of {_name(origins[i])} also in {_name(origins[j])}", examples
        )


def _same_people(origins: Sequence[Origin], facts: Sequence[Facts], pair: Pair) -> bool:
    """Whether equal patient ids of two splits mean the same person: in one store, or two of the same data set."""
    if origins[pair[0]].folder == origins[pair[1]].folder:
        return True
    sources = [{name for (aspect, name) in facts[n].counts if aspect == "source"} - {"(none)"} for n in pair]
    return bool(sources[0] & sources[1])


def _shared_texts(ledger: Ledger, origins: Sequence[Origin], facts: Sequence[Facts], pair: Pair) -> None:
    """Questions about no media, with their answers."""
    i, j = pair
    keys = [
        np.where(origins[n].store.media_keys == 0, _combined(facts[n].ask, facts[n].answer), 0).astype(np.uint64)
        for n in pair
    ]
    shared, left, right = np.intersect1d(*keys, return_indices=True)
    left, right = left[shared != 0], right[shared != 0]
    examples = [
        origins[i].example(a, text=_question(origins[i], a), other=origins[j].example(b))
        for a, b in islice(zip(left.tolist(), right.tolist(), strict=True), ledger.most)
    ]
    told = f"{_many(len(left), 'question')} of {_name(origins[i])} also in {_name(origins[j])}"
    ledger.add("leak_text", len(left), told, examples)


def _combined(ask: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """Return one uint64 for question and answer, 0 where there is no question."""
    return np.where(ask == 0, np.uint64(0), ask * np.uint64(0x9E3779B97F4A7C15) ^ answer)


def _shared_media(ledger: Ledger, origins: Sequence[Origin], media: Media, pair: Pair) -> None:
    """The same pixels, the same file, or pixels that look the same."""
    one, other = (media.usage.of_origin(number) for number in pair)
    numbers = [entries["media"].astype(np.int64) for entries in (one, other)]
    matches: dict[int, int] = {}
    for hashes in (media.pixels, media.file):
        shared, left, right = np.intersect1d(*(hashes[some] for some in numbers), return_indices=True)
        for key, a, b in zip(shared.tolist(), left.tolist(), right.tolist(), strict=True):
            if key:
                matches.setdefault(a, b)
    told = f"{_many(len(matches), 'image')} of {_name(origins[pair[0]])} also in {_name(origins[pair[1]])}"
    pairs = islice(sorted(matches.items()), ledger.most)
    ledger.add("leak_file", len(matches), told, [_both(origins, media, one[a], other[b], "") for a, b in pairs])
    _near_media(ledger, origins, media, pair, (one, other))


def _near_media(
    ledger: Ledger, origins: Sequence[Origin], media: Media, pair: Pair, entries: tuple[np.ndarray, np.ndarray]
) -> None:
    first, second = (_one_each(media, some["media"].astype(np.int64)) for some in entries)
    news = [
        some[~np.isin(media.pixels[some], media.pixels[others])] for some, others in ((first, second), (second, first))
    ]
    alike = {(a, b): (r, "") for a, b, r in near_pairs(*news, media.phash, media.small, media.size)}
    flipped = near_pairs(*news, media.phash, media.small, media.size, media.mirrored)
    alike = {(a, b): (r, "mirrored, ") for a, b, r in flipped} | alike
    found = [(r, how, a, b) for (a, b), (r, how) in alike.items()]
    places = [{int(number): place for place, number in enumerate(some["media"])} for some in entries if found]
    examples = [
        _both(origins, media, entries[0][places[0][a]], entries[1][places[1][b]], f"{how}correlation {r:.4f}")
        for r, how, a, b in sorted(found, reverse=True)[: ledger.most]
    ]
    told = f"{_many(len(found), 'pair')} between {_name(origins[pair[0]])} and {_name(origins[pair[1]])}"
    ledger.add("leak_near", len(found), told, examples)


def _one_each(media: Media, numbers: np.ndarray) -> np.ndarray:
    """Return one medium for each content that could be read."""
    good = numbers[media.pixels[numbers] != 0]
    return good[np.unique(media.pixels[good], return_index=True)[1]]


def _both(origins: Sequence[Origin], media: Media, one: np.void, other: np.void, detail: str) -> Example:
    first, second = _shown(origins, media, one, detail), _shown(origins, media, other, "")
    return replace(first, other=second)


def _shown(origins: Sequence[Origin], media: Media, entry: np.void, detail: str, text: str = "") -> Example:
    """Return the example of a medium; its picture is not shown where words are burned into it."""
    origin, row = origins[entry["origin"]], int(entry["row"])
    place = int(entry["position"])
    path = origin.store[row].media_key[place]
    address = "" if int(entry["media"]) in media.burned_in else path
    return origin.example(row, media=place + 1, path=origin.inside(path), detail=detail, text=text, address=address)


def check_repeats(ledger: Ledger, origins: Sequence[Origin], facts: Sequence[Facts]) -> None:
    """Find equal questions about the same media: with other answers, or with the same ones in the same split."""
    stores: dict[Path, list[int]] = defaultdict(list)
    for number, origin in enumerate(origins):
        stores[origin.folder].append(number)
    for members in stores.values():
        ask, answer = (np.concatenate([getattr(facts[n], key) for n in members]) for key in ("ask", "answer"))
        sizes = [len(facts[n].ask) for n in members]
        whose = np.repeat(np.array(members, np.int16), sizes)
        starts = dict(zip(members, np.cumsum([0, *sizes[:-1]]), strict=True))
        order = np.lexsort((whose, answer, ask))
        same = (ask[order][1:] == ask[order][:-1]) & (ask[order][1:] != 0)
        equal = answer[order][1:] == answer[order][:-1]
        answered = (answer[order][1:] != 0) & (answer[order][:-1] != 0)
        boxed = np.concatenate([facts[n].flags & BOXED > 0 for n in members])[order]
        # One name may have several boxes in a picture, each asked for by the same question.
        answered &= ~(boxed[1:] & boxed[:-1])
        beside = whose[order][1:] == whose[order][:-1]
        for kind, found in (("conflict", same & ~equal & answered), ("duplicate", same & equal & beside)):
            _tell_repeats(ledger, origins, kind, order, np.flatnonzero(found), ask, whose, starts)


def _tell_repeats(
    ledger: Ledger,
    origins: Sequence[Origin],
    kind: str,
    order: np.ndarray,
    found: np.ndarray,
    ask: np.ndarray,
    whose: np.ndarray,
    starts: Mapping[int, int],
) -> None:
    """Tell pairs of neighbours in `order`; contradictions count once a question, repetitions once a sample."""
    if not len(found):
        return
    if kind == "conflict":
        found = found[np.unique(ask[order[found]], return_index=True)[1]]
    examples = []
    for place in found[: ledger.most].tolist():
        one, other = (
            (origins[whose[at]], int(at - starts[int(whose[at])])) for at in sorted(order[place : place + 2].tolist())
        )
        said = f"{_question(*one)} | {_answer(*one)} | {_answer(*other)}" if kind == "conflict" else _question(*one)
        examples.append(one[0].example(one[1], text=said, other=other[0].example(other[1])))
    name = origins[whose[order[found[0]]]].name
    noun = "question" if kind == "conflict" else "sample"
    ledger.add(kind, len(found), f"{_many(len(found), noun)} of {name}", examples)


def check_splits(ledger: Ledger, origins: Sequence[Origin]) -> None:
    """Compare splits with their manifest, and their sizes with each other."""
    for origin in origins:
        for told in _unlike_manifest(origin):
            ledger.add(
                "split_manifest", 1, f"{_name(origin)}: {told}", [Example(origin.name, origin.called, detail=told)]
            )
    for folder in dict.fromkeys(origin.folder for origin in origins):
        sizes = {origin: len(origin.store) for origin in origins if origin.folder == folder}
        training = sum(size for origin, size in sizes.items() if origin.role == "train")
        for origin, size in sizes.items():
            if training and origin.role in ("val", "test") and size > training:
                told = f"{_name(origin)} has {size:,} samples, the training split {training:,}"
                ledger.add("split_size", 1, told, [Example(origin.name, origin.called, detail=told)])


def _unlike_manifest(origin: Origin) -> Iterator[str]:
    recorded, store = origin.recorded, origin.store
    if not recorded:
        return
    if recorded.get("sha256", store.hash) != store.hash:
        yield "its samples have another hash than its manifest"
    if recorded.get("samples", len(store)) != len(store):
        yield f"the manifest counts {recorded['samples']:,} samples, there are {len(store):,}"
    codes = _task_codes(origin)
    tasks = {codes[code]: int(n) for code, n in zip(*np.unique(store.tasks, return_counts=True), strict=True)}
    if recorded.get("tasks", tasks) != tasks:
        yield "the manifest counts other samples per task"


def _task_codes(origin: Origin) -> dict[int, str]:
    """Return what the codes in `store.tasks` mean; names come in the order of codes."""
    return dict(zip(np.unique(origin.store.tasks).tolist(), origin.store.task_names, strict=True))


def check_balance(ledger: Ledger, origins: Sequence[Origin], facts: Sequence[Facts]) -> None:
    """Find tasks with nearly one answer, and answers that a split lacks though another has many."""
    classes = [class_counts(known) for known in facts]
    for origin, known, tasks in zip(origins, facts, classes, strict=True):
        for task, answers in tasks.items():
            (top, most), total = answers.most_common(1)[0], sum(answers.values())
            if total >= ENOUGH and most / total >= MAJORITY:
                names = _spoken(ledger, known, task, [top], answers)
                _tell_class(
                    ledger, "balance_majority", 1, origin, task, f"{names} answers {most / total:.0%} of {total:,}"
                )
    for i, j in permutations(range(len(origins)), 2):
        if origins[i].folder == origins[j].folder:
            for task in sorted(classes[i].keys() & classes[j].keys()):
                gone = _missed(classes[i][task], classes[j][task])
                names = _spoken(ledger, facts[i], task, gone, classes[i][task])
                said = f"{names} in {_name(origins[i])}, never here"
                _tell_class(ledger, "balance_missing", len(gone), origins[j], task, said)


def _tell_class(ledger: Ledger, kind: str, count: int, origin: Origin, task: str, said: str) -> None:
    name = (task or "(none)") if ledger.names or not identifiers(task) else RARE
    told = f"{_name(origin)}, task {name}: {said}"
    ledger.add(kind, count, told, [Example(origin.name, origin.called, place=name, detail=told)])


def _spoken(ledger: Ledger, facts: Facts, task: str, answers: Sequence[str], counts: Counter[str]) -> str:
    """Return answers of a task for a message: those that may be shown, the first six of them."""
    told = dict.fromkeys(
        repr(answer) if ledger.names or may_be_told(facts, task, answer, counts[answer]) else RARE for answer in answers
    )
    return ", ".join([*told][:6]) + (", ..." if len(told) > 6 else "")


def may_be_told(facts: Facts, task: str, answer: str, count: int) -> bool:
    """Whether an answer is a class, not words about someone: frequent or a declared choice, without identifiers."""
    if answer.startswith(HIDDEN):
        return False
    return not answer or count >= COMMON or (task, answer) in facts.declared


def class_counts(facts: Facts) -> dict[str, Counter[str]]:
    """Return task -> answer -> samples, of tasks with few enough answers to be classes."""
    tasks: dict[str, Counter[str]] = defaultdict(Counter)
    for (task, answer), count in facts.answers.items():
        if answer is not None and (task, None) not in facts.answers:
            tasks[task][answer] = count
    return dict(tasks)


def _missed(known: Counter[str], other: Counter[str]) -> list[str]:
    """Return answers of one split that the other lacks, though chance would give it several."""
    size = sum(other.values())
    scale = size / (size + sum(known.values()))
    return sorted(answer for answer, n in known.items() if answer not in other and n * scale >= EXPECTED)


def check_uses(
    ledger: Ledger,
    origins: Sequence[Origin],
    facts: Sequence[Facts],
    uses: Sequence[Use],
    advance: Callable[[int], None],
) -> dict[tuple[str, int], np.ndarray]:
    """Hold samples against what a recipe does with them.

    Returns:
        (stage, limit) -> lengths in tokens, of all samples that could be counted.
    """
    lengths: dict[tuple[str, int], list[np.ndarray]] = defaultdict(list)
    for use in uses:
        for origin, known in zip(origins, facts, strict=True):
            rows = use.rows(origin)
            if use.mirror:
                sided = (known.flags[rows] & SIDES > 0) & (origin.store.media_keys[rows] > 0)
                _tell_sides(ledger, origin, use, rows[sided])
            if use.tokens is not None and len(rows):
                usable = np.zeros(len(known.answer), bool)
                usable[rows] = known.answer[rows] != 0  # the others are told already
                lengths[use.stage, use.tokens.limit].append(_lengths(ledger, origin, use, use.tokens, usable, advance))
    return {key: np.concatenate(parts) for key, parts in lengths.items()}


def _tell_sides(ledger: Ledger, origin: Origin, use: Use, rows: np.ndarray) -> None:
    told = f"stage {use.stage} mirrors {_many(len(rows), 'sample')} of {_name(origin)} that name a side"
    examples = [origin.example(row, text=_question(origin, row)) for row in rows[: ledger.most].tolist()]
    ledger.add("mirrored", len(rows), told, examples)


def _lengths(
    ledger: Ledger, origin: Origin, use: Use, tokens: Tokens, usable: np.ndarray, advance: Callable[[int], None]
) -> np.ndarray:
    """Return int32 tokens of the usable rows that could be counted; tell the others, and those above the limit."""

    def count(sample: Sample) -> int:
        advance(1)
        return tokens.count(sample)

    store = origin.store
    if use.tasks is not None:  # the others need not be counted
        tasks = [task for task in use.tasks if task in store.task_names]
        store = SampleStore(store.folder, store.split, tasks, origin.roots)
    counts = np.full(len(usable), REFUSED, np.int32)
    counts[store.places] = token_counts(store, tokens.fingerprint, count)
    long = np.flatnonzero(usable & (counts > tokens.limit))
    longest = long[np.argsort(-counts[long], kind="stable")][: ledger.most].tolist()
    limit = f"max_tokens {tokens.limit:,} in stage {use.stage}"
    examples = [origin.example(row, detail=f"{counts[row]:,} tokens, {limit}") for row in longest]
    ledger.add("too_long", len(long), f"{_many(len(long), 'sample')} of {_name(origin)} above {limit}", examples)
    refused = np.flatnonzero(usable & (counts == REFUSED))
    whys = ((row, _refusal(tokens, origin, row)) for row in refused[: ledger.most].tolist())
    wrong = [origin.example(row, detail=reason(why), text=masked(why)) for row, why in whys]
    told = f"{_many(len(refused), 'sample')} of {_name(origin)} in stage {use.stage}"
    ledger.add("uncounted", len(refused), told, wrong)
    return counts[usable & (counts != REFUSED)]


def _refusal(tokens: Tokens, origin: Origin, row: int) -> str:
    """Return why a sample cannot be counted."""
    try:
        tokens.count(origin.store[row])
    except SampleError as error:
        return error.message
    return ""


def _question(origin: Origin, row: int) -> str:
    sample = origin.store[row]
    asked = [message for message in sample.messages if message.role == "user"]
    return _quoted(" ".join(part.text for one in asked for part in one.content if isinstance(part, Text)))


def _answer(origin: Origin, row: int) -> str:
    sample = origin.store[row]
    return _quoted(sample.answer) or ", ".join(str(box.coords) for box in sample.meta.boxes)


def _quoted(text: str) -> str:
    """Return the start of a text, identifiers masked."""
    text = " ".join(masked(text).split())
    return text if len(text) <= _QUOTED else f"{text[:_QUOTED].rstrip()} ..."


def _name(origin: Origin) -> str:
    return f"{origin.name}/{origin.called}"


def _many(count: int, noun: str) -> str:
    plural = {"study": "studies", "box": "boxes"}.get(noun, f"{noun}s")
    return f"{count:,} {noun if count == 1 else plural}"
