"""What an audit can find: the table of kinds, and a ledger that counts findings and keeps a few examples of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from medmvl.core.lookup import choices_text
from medmvl.data.audit.identifiers import masked

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Kind:
    """One kind of finding.

    Attributes:
        severity: "error" makes a result wrong or tells who a patient is, "warning" probably, "note" is worth knowing.
        title: what was found, in a few words.
        todo: what to do about it.
    """

    severity: Severity
    title: str
    todo: str


_SPLIT = "Keep every patient in one split: convert again with the official split, or split by patient."

KINDS: dict[str, Kind] = {
    "missing": Kind(
        "error",
        "Media files that are not there",
        "Copy the files to where the samples name them, or name their folder with --root.",
    ),
    "corrupt": Kind(
        "error", "Media that cannot be read", "Get the files again; training refuses samples that show them."
    ),
    "broken_split": Kind("error", "Splits that cannot be read", "Convert the data again, or copy it again."),
    "broken_row": Kind(
        "error", "Rows that are no valid samples", "Repair them where they come from; training refuses them."
    ),
    "leak_patient": Kind("error", "Patients in more than one split", _SPLIT),
    "leak_study": Kind("error", "Studies in more than one split", _SPLIT),
    "leak_file": Kind("error", "The same image in more than one split", _SPLIT),
    "leak_near": Kind(
        "error", "Near-duplicate images in more than one split", "Look at the pairs; drop one side of each true pair."
    ),
    "leak_text": Kind(
        "error", "The same text-only question in more than one split", "Drop the question from the training split."
    ),
    "split_manifest": Kind(
        "error",
        "Splits that are not what their manifest says",
        "Convert the data again; or find out who changed the file.",
    ),
    "split_field": Kind(
        "error",
        "Samples that name another split than the one they lie in",
        "Move them, or correct their field `split`.",
    ),
    "split_official": Kind(
        "error", "Samples whose own names say another split", "Compare with the official split; were two files swapped?"
    ),
    "split_size": Kind("warning", "Held-out splits larger than the training split", "Were two splits swapped?"),
    "identifier_text": Kind(
        "error",
        "Possible identifiers in texts",
        "Look at the samples, and remove names, dates and numbers before anyone else gets them.",
    ),
    "identifier_dicom": Kind(
        "error", "Identifying attributes in DICOM headers", "De-identify the files: medmvl data deid SRC OUT."
    ),
    "identifier_date": Kind(
        "warning",
        "Dates, times and UIDs in DICOM headers",
        "If they are the original ones: medmvl data deid SRC OUT. Sets that are published with shifted dates are fine.",
    ),
    "identifier_metadata": Kind(
        "error",
        "Possible identifiers beside the values of picture and volume files",
        "Write the files again without these fields (EXIF, comments, texts, descriptions).",
    ),
    "identifier_burned_in": Kind(
        "error", "DICOM files whose pixels show who the patient is", "Blank the words, or leave the files out."
    ),
    "box_outside": Kind(
        "error",
        "Boxes that reach out of their picture or volume",
        "Boxes are absolute, x first, in the file's own pixels or voxels: correct where they come from. Training "
        "refuses such samples.",
    ),
    "mirrored": Kind(
        "error",
        "Left and right in texts, while training mirrors the pictures",
        "Set mirror: false in the stage's augmentation.",
    ),
    "too_long": Kind(
        "error",
        "Samples longer than max_tokens",
        "Raise run.max_tokens, or shorten their texts; training refuses or cuts them.",
    ),
    "uncounted": Kind(
        "error", "Samples that the recipe's model cannot take", "Repair them, or name only tasks that fit the model."
    ),
    "empty_answer": Kind(
        "error", "Samples without an answer", "Leave them out: there is nothing to learn or to score."
    ),
    "empty_question": Kind("warning", "Samples without a question", "Ask something, or check the conversion."),
    "conflict": Kind(
        "warning",
        "The same question about the same media, answered differently",
        "Find out which answer holds; keep one.",
    ),
    "duplicate": Kind(
        "warning", "Samples that repeat another one of their split", "Drop the repetitions: they count several times."
    ),
    "blank": Kind("warning", "Pictures and volumes of one value", "Look at where they come from, or leave them out."),
    "balance_majority": Kind(
        "warning",
        "Tasks with nearly always the same answer",
        "Score with balanced measures, or draw the answers evenly.",
    ),
    "balance_missing": Kind(
        "warning",
        "Answers that one split knows and another does not",
        "Split again by answer, or leave such questions out.",
    ),
}
"""Kind -> severity, title and what to do. The part before "_" is the kind's group."""


Names = Literal["none", "ids", "all"]
"""What of the data a report shows: nothing; ids and paths, identifiers masked; or quoted texts and rare answers too."""


def blocking(marks: Iterable[str]) -> frozenset[str]:
    """Return the kinds that marks mean: kinds, groups ("leak"), severities ("error"), "all".

    Raises:
        ValueError: an unknown mark; says the nearest and all known ones.
    """
    known: dict[str, set[str]] = {"all": set(KINDS)}
    for name, kind in KINDS.items():
        for mark in (name, name.partition("_")[0], kind.severity):
            known.setdefault(mark, set()).add(name)
    chosen: set[str] = set()
    for mark in (part.strip() for text in marks for part in text.split(",") if part.strip()):
        if mark not in known:
            raise ValueError(f"--block {mark!r}: no such kind of finding; {choices_text(mark, known)}")
        chosen |= known[mark]
    return frozenset(chosen)


_SAID = (
    "not valid JSON", "the process that read it died", "leaves the given folders", "no such file", "does not exist",
    "is empty (0 bytes)", "damaged or cut off", "cut off", "damaged",
    "may not be read", "is no regular file", "is no volume", "is 4D",
    "holds a volume where a picture is wanted", "does not say where its axes point", "sheared", "repair the header",
    "several series", "out of memory", "reaches out of its file", "lies outside of its file",
    "lies outside of what the encoder sees", "takes no", "required key is missing", "unknown key",
    "the id occurs twice", "an assistant answers in text and boxes", "half of a character",
)  # fmt: skip
_REASONS = {words: words for words in _SAID} | {
    "a line holds one JSON object": "no JSON object",
    "no picture that Pillow can read": "no picture, or a damaged one",
    "its suffix": "no picture or volume by suffix and first bytes",
    "which is missing": "a part of it is missing",
    "protect from": "larger than is believed of it",
    "none was chosen": "several frames or volumes, and none was chosen",
    "Hounsfield": "its Hounsfield units are not known",
    "meta.boxes": "its boxes do not fit its media",
    "a box ": "a box is none",
    "conversations": "its conversations do not fit its media",
    "max_tokens": "above max_tokens",
}
"""Words of this package's messages that say what is wrong -> how that is told without anything of the data."""


def reason(message: str) -> str:
    """Return what is wrong in words that hold nothing of the data: paths, keys and values can name a patient."""
    return next((told for words, told in _REASONS.items() if words in message), "cannot be read or used")


@dataclass(frozen=True)
class Example:
    """One sample that a finding is about.

    Attributes:
        store, split: of the sample.
        row: its line in the split's file, from 1 (in Parquet shards: its row); 0 where a finding is about a split.
        media: which of its media, from 1; 0 for none.
        place: where in the sample; a turn, a field.
        detail: what is there, in words of the audit, identifiers masked.
        id, path: the sample's id, and the medium's path inside the store.
        text: what is said, identifiers masked.
        other: the sample it is accused together with.
        address: of the medium that the page shows, "" for none; it stays out of audit.json.
    """

    store: str = ""
    split: str = ""
    row: int = 0
    media: int = 0
    id: str = ""
    place: str = ""
    path: str = ""
    detail: str = ""
    text: str = ""
    other: Example | None = None
    address: str = field(default="", compare=False)

    @property
    def title(self) -> str:
        """Where the sample is, in words."""
        row = f", row {self.row:,}" if self.row else ""
        return f"{self.store}/{self.split}{row}" + (f", medium {self.media}" if self.media else "")

    def shown(self, names: Names) -> Example:
        """Return the example with as much as may be shown."""
        if names == "all":
            return self
        other = self.other.shown(names) if self.other else None
        kept = (masked(self.id), masked(self.path)) if names == "ids" else ("", "")
        return replace(self, id=kept[0], path=kept[1], text="", other=other)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object, without empty fields."""
        names = ("store", "split", "row", "media", "id", "place", "path", "detail", "text")
        data: dict[str, Any] = {name: value for name in names if (value := getattr(self, name))}
        return data | {"other": self.other.to_dict()} if self.other else data


@dataclass(frozen=True)
class Finding:
    """All findings of one kind.

    Attributes:
        kind: a key of `KINDS`.
        count: how many of what the message says.
        message: what was found, in words, with numbers.
        examples: some of them.
        blocking: whether the user marked the kind.
    """

    kind: str
    count: int
    message: str
    examples: tuple[Example, ...]
    blocking: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object."""
        kind = KINDS[self.kind]
        return {
            "kind": self.kind,
            "severity": kind.severity,
            "blocking": self.blocking,
            "title": kind.title,
            "message": self.message,
            "count": self.count,
            "todo": kind.todo,
            "examples": [example.to_dict() for example in self.examples],
        }


class Ledger:
    """Counts findings by kind, and keeps the first messages and a few examples of each.

    Args:
        most: examples kept of a kind.
        blocking: kinds that the user marked.
        names: how much of what may name a patient is kept.

    Attributes:
        names: whether all of it is.
    """

    def __init__(self, most: int, blocking: frozenset[str] = frozenset(), names: Names = "ids") -> None:
        self.most, self.names, self._shown, self._blocking = most, names == "all", names, blocking
        self._counts: dict[str, int] = {}
        self._messages: dict[str, list[str]] = {}
        self._examples: dict[str, list[Example]] = {}

    def add(self, kind: str, count: int, message: str, examples: Iterable[Example] = ()) -> None:
        """Note that something of a kind was found `count` times; nothing happens for 0."""
        if count:
            self._counts[kind] = self._counts.get(kind, 0) + count
            self._messages.setdefault(kind, []).append(message)
            self._examples.setdefault(kind, []).extend(one.shown(self._shown) for one in examples)

    def findings(self) -> list[Finding]:
        """Return one finding per kind that was met, in the order of severity and of `KINDS`."""
        kinds = sorted(self._counts, key=lambda name: (SEVERITIES.index(KINDS[name].severity), list(KINDS).index(name)))
        return [
            Finding(
                kind,
                self._counts[kind],
                _joined(self._messages[kind]),
                tuple(_in_turn(self._examples[kind])[: self.most]),
                kind in self._blocking,
            )
            for kind in kinds
        ]


def _joined(messages: list[str], most: int = 6) -> str:
    more = f"; and {len(messages) - most} more of the kind" if len(messages) > most else ""
    return "; ".join(messages[:most]) + more


def _in_turn(examples: list[Example]) -> list[Example]:
    """Return examples so that every split (or pair of splits) comes once before one comes twice."""
    rank: dict[tuple[str, ...], int] = {}
    places = []
    for example in examples:
        other = example.other or Example()
        where = (example.store, example.split, other.store, other.split)
        rank[where] = rank.get(where, -1) + 1
        places.append(rank[where])
    return [examples[i] for i in sorted(range(len(examples)), key=lambda i: places[i])]
