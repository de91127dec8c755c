"""Annotation files of your own: canonical samples, or conversations as LLaVA and the reference write them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from medmvl.core.config import Strict
from medmvl.core.lookup import choices_text
from medmvl.core.schema import Sample, SampleError
from medmvl.data.adapters.base import Adapter, LayoutError
from medmvl.data.rows import BadRow, Row, json_rows, mentions
from medmvl.data.tally import Ids

SPLIT_NAMES = {
    **{name: "train" for name in ("train", "training")},
    **{name: "val" for name in ("val", "valid", "validate", "validation", "dev")},
    **{name: "test" for name in ("test", "testing")},
}
"""How files and columns name the splits -> the store's name."""

_MEDIA = ("image", "image3d")
_SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")


class AnnotationOptions(Strict):
    """Where media lie, and what rows that do not say it belong to."""

    media_root: str = Field(
        default="", description="folder that holds the media, seen from the annotations; default: where these lie"
    )
    split: Literal["", "train", "val", "test"] = Field(
        default="", description="split of rows that name none; default: by the file's name, else train"
    )


class Annotations(Adapter):
    """A JSON list or JSONL of samples, or a folder with one such file per split.

    Rows keep the id, split, source and task they name. In conversations every `<image>` and `<image3d>` takes the next
    of the paths; further keys go to `meta`. A row without an id is called after its place. An id that a split before
    has already gets the split before it ("val-7"), one that occurs again in its split a number behind it ("7-2").
    """

    name = "annotations"
    title = "Annotations in JSON or JSONL (canonical, LLaVA, MedM-VL)"
    version = "1.1"
    licence = "as its source"
    access = "yours; canonical samples are described in docs/samples.md"
    tasks: ClassVar[Mapping[str, str]] = {"chat": "whatever the rows ask; rows that name a task keep it"}
    splits: ClassVar[Mapping[str, str]] = {
        "train": "train",
        "val": "val, valid, validation or dev",
        "test": "test",
    }
    layout = """
train.json   [{"id": "1", "image": ["images/a.png"], "conversations": [{"from": "human", "value": "<image>..."}, ...]}]
val.jsonl    one such object per line; {"id": "1", "messages": [...]} is read as well
test.json
images/...   anywhere beside them
"""
    one_file = True
    Options = AnnotationOptions

    def samples(self, split: str, tasks: Collection[str]) -> Iterator[Sample | SampleError]:
        folder = media_root(self, self.options.media_root)
        before = list(self.splits)[: list(self.splits).index(split)]
        names = self._names[split] = _Names(split, [self._names[one] for one in before if one in self._names])
        for file, usual in files_by_split(self, _SUFFIXES, self.options.split):
            # Only rows themselves can place others into this split; most files name none, and are read once.
            if split == usual or mentions(file, '"split"'):
                rows = (row for row in json_rows(file) if _belongs(row, split, usual))
                yield from self.each(rows, lambda row: (names.given(self._sample(row, split, folder)),))

    @cached_property
    def _names(self) -> dict[str, _Names]:
        return {}

    def _sample(self, found: Row, split: str, folder: str) -> Sample:
        row = found.data
        if row.get("split") and split_of(row["split"]) is None:
            named = str(row["split"])
            raise ValueError(f"split {named!r} is unknown; {choices_text(named, SPLIT_NAMES, 'splits')}")
        task = str(row.get("task") or "chat")
        known = {"split": split, "task": task if "/" in task else f"{self.name}/{task}"}
        if row.get("id") is None:
            known["id"] = f"{split}/{found.place}"
        if "messages" in row:
            return _asked(Sample.from_dict({**row, **known, "source": row.get("source") or self.name}, folder))
        return conversation(row, folder, data_source=row.get("data_source") or self.name, **known)


class _Names:
    """Gives samples ids that no other sample has.

    Args:
        split: of the samples.
        before: names of the splits before.
    """

    def __init__(self, split: str, before: Sequence[_Names]) -> None:
        self._split, self._before = split, before
        self._given, self._repeated = Ids(), Counter[str]()

    def given(self, sample: Sample) -> Sample:
        """Return the sample under its own id, or one like it."""
        name = sample.id
        if any(name in names._given for names in self._before):
            name = f"{self._split}-{name}"
        if self._given.add(name):
            return sample if name == sample.id else sample.model_copy(update={"id": name})
        number = max(self._repeated[name], 1) + 1
        while not self._given.add(f"{name}-{number}"):
            number += 1
        self._repeated[name] = number
        return sample.model_copy(update={"id": f"{name}-{number}"})


def conversation(row: Mapping[str, Any], folder: str, **known: Any) -> Sample:
    """Return the sample of a row with `conversations`; some files of LLaVA-Med spell it `conversatons`.

    Args:
        row: an annotation of LLaVA or the reference.
        folder: its paths are relative to it, and cannot leave it.
        known: fields that the row does not say, or says otherwise.

    Raises:
        SampleError: says everything that is wrong with it.
    """
    data = {**row, **known}
    for key in _MEDIA:
        if key in data:
            data[key] = _paths(data[key])
    if "conversatons" in data:
        data.setdefault("conversations", data.pop("conversatons"))
    return _asked(Sample.from_dict(data, folder))


def _asked(sample: Sample) -> Sample:
    """Return a sample in which somebody speaks before the assistant does.

    Raises:
        SampleError: the assistant speaks first: nothing was asked.
    """
    first = next((message for message in sample.messages if message.role != "system"), None)
    if first is not None and first.role == "assistant":
        raise SampleError(
            "the assistant speaks first; a question, or a picture to speak about, comes before", sample.id
        )
    return sample


def _paths(given: Any) -> Any:
    """Return paths as a list, with slashes; "" of rows without a picture is none. What is no path stays as it is."""
    listed = [given] if isinstance(given, str) else given
    if not isinstance(listed, list):
        return given
    return [path.replace("\\", "/") if isinstance(path, str) else path for path in listed if path != ""]


def files_by_split(adapter: Adapter, suffixes: Sequence[str], split: str) -> list[tuple[Path, str]]:
    """Return the adapter's file, or those of its folder named after splits, each with the split of its rows.

    Args:
        adapter: with its root.
        suffixes: that the files can have.
        split: of all rows, whatever the files are called; "" leaves it to these.

    Raises:
        LayoutError: the folder holds none, or two of one split.
    """
    if adapter.file is not None:
        return [(adapter.file, split or _split_of_file(adapter.file) or "train")]
    names = [f"{name}{suffix}" for name in SPLIT_NAMES for suffix in suffixes]
    files = [adapter.find(path.name) for path in sorted(adapter.root.iterdir()) if path.name.lower() in names]
    if not files:
        adapter.find(*(f"{name}{suffix}" for name in adapter.splits for suffix in suffixes[:2]))
    splits = [_split_of_file(path) for path in files]
    twice = [path.name for path in files if splits.count(_split_of_file(path)) > 1]
    if twice:
        raise LayoutError(f"{adapter.root}: {', '.join(twice)} are of one split; keep one, or convert file by file")
    return [(path, split or str(named)) for path, named in zip(files, splits, strict=True)]


def _belongs(row: Row | BadRow, split: str, usual: str) -> bool:
    """Whether a row is for this split; what names no known one goes, to be refused, with those that name none."""
    named = row.data.get("split") if isinstance(row, Row) else None
    return ((split_of(named) if named else None) or usual) == split


def split_of(name: object) -> str | None:
    return SPLIT_NAMES.get(str(name).strip().lower())


def _split_of_file(path: Path) -> str | None:
    return split_of(path.name.partition(".")[0])


def media_root(adapter: Adapter, folder: str) -> str:
    """Return the folder that media lie in: absolute, or seen from the adapter's root.

    Raises:
        LayoutError: there is no such folder.
    """
    path = os.path.normpath(adapter.root / folder)
    if not os.path.isdir(path):
        raise LayoutError(f"media_root={folder}: there is no folder {path}; name it from where the annotations lie")
    return path
