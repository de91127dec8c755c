"""What an adapter is: the official files of one data set in, samples out, one by one."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from pydantic import ValidationError

from medmvl.core.config import Strict
from medmvl.core.explain import mistakes
from medmvl.core.log import get_logger
from medmvl.core.schema import (
    Box,
    BoxRef,
    Image,
    Message,
    Meta,
    Part,
    Sample,
    SampleError,
    Text,
    Volume,
    split_fragment,
)
from medmvl.data.rows import BadRow, Row

Media = Image | Volume
Found = TypeVar("Found")
Finders = Mapping[str, Callable[[], Found]]
"""Part of a data set -> finds its files, or raises `LayoutError`."""

Words = str | Sequence[str | int]
"""What one side says: text, or texts and numbers of boxes in turn, such as ("What is in ", 0, "?")."""


class LayoutError(ValueError):
    """A root that does not look as the data set is published; says what was expected and what is there."""


class NoOptions(Strict):
    """An adapter that leaves nothing to choose."""


class Unpack(Protocol):
    """Writes media that the data set keeps inside other files (arrays, Parquet), where the store will find them."""

    def __call__(self, name: str, content: bytes) -> str:
        """Write `content` as the file `name` ("train/00017.png") of the store's media; return its absolute path."""


class Adapter(ABC):
    """Reads one data set in its official layout.

    It opens no pixels, except to unpack media that are kept inside other files or to find boxes in masks. Rows that
    cannot be used are yielded as their errors, in their place, so that one of them loses nothing else.

    Args:
        root: the folder that holds the data set as it is published; a file, where `one_file` says so.
        options: settings of this adapter, checked against `Options`.
        unpack: writes media that are kept inside other files.

    Attributes:
        name: as in `medmvl data convert NAME`, and the first part of every task ("slake" of "slake/vqa").
        title: one line for people.
        version: of the adapter; changes with anything that changes a sample.
        licence: of the data.
        access: where and how to get it; what must not be done with it.
        credentialed: its contents must not leave the machine.
        tasks: second part of a task's name -> one line about it.
        splits: the store's split (train, val, test) -> the name that the data set itself uses.
        layout: the tree of files that it expects, as people would draw it.
        one_file: the root may be a file; then `file` is that file, and `root` the folder it lies in.
        Options: its settings, each described.
        found: what `find` returned so far, in order: the official files that samples are made of.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    version: ClassVar[str]
    licence: ClassVar[str]
    access: ClassVar[str]
    credentialed: ClassVar[bool] = False
    tasks: ClassVar[Mapping[str, str]]
    splits: ClassVar[Mapping[str, str]]
    layout: ClassVar[str]
    one_file: ClassVar[bool] = False
    Options: ClassVar[type[Strict]] = NoOptions

    def __init__(
        self, root: str | Path, options: Mapping[str, Any] | None = None, unpack: Unpack | None = None
    ) -> None:
        given = Path(os.path.abspath(root))
        self.file = given if self.one_file and given.is_file() else None
        self.root = given if self.file is None else given.parent
        try:
            self.options: Any = self.Options.model_validate(dict(options or {}))
        except ValidationError as error:
            wrong = [f"option {mistake.dotted}: {mistake.message}" for mistake in mistakes(error, self.Options)]
            raise ValueError(f"{self.name}: {'; '.join(wrong)}") from None
        self._unpack = unpack
        self.found: dict[Path, None] = {} if self.file is None else {self.file: None}
        if not self.root.is_dir():
            raise LayoutError(f"{root}: there is no such folder. {self._expected()}")

    @abstractmethod
    def samples(self, split: str, tasks: Collection[str]) -> Iterator[Sample | SampleError]:
        """Yield the samples of one split (a key of `splits`) for some of `tasks`.

        Samples of one row of the data set follow each other, and rows keep their order; so a medium comes again where a
        data set names it in several files, one for each task.

        Raises:
            LayoutError: a file that the tasks need is not there.
            TableError: such a file cannot be read at all.
        """

    def find(self, *names: str) -> Path:
        """Return the first of these files or folders (relative to the root; other spellings of one thing) that exists.

        Raises:
            LayoutError: none does; says what is there instead, and whether an archive waits to be unpacked.
        """
        for name in names:
            if (path := self.root / name).exists():
                self.found[path] = None
                return path
        wanted = " or ".join(names)
        there = sorted(entry.name for entry in self.root.iterdir())
        listing = ", ".join(there[:12]) + (f" and {len(there) - 12} more" if len(there) > 12 else "")
        packed = [name for name in there if name.lower().endswith((".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".z01"))]
        hint = f" Archives wait to be unpacked: {', '.join(packed)}." if packed else ""
        raise LayoutError(
            f"{self.root}: {wanted} is missing; here are: {listing or 'no files'}.{hint} {self._expected()}"
        )

    def parts(
        self,
        split: str,
        tasks: Collection[str],
        finders: Callable[[str], Finders[Found]],
        needed: Collection[str] = (),
    ) -> dict[str, Found]:
        """Return what is there of a data set that is published in parts, for many have some of them only.

        Where all tasks are asked for, a part that is missing is left out, and that is told. Where some are named, what
        they are made of is needed.

        Args:
            split: a key of `splits`.
            tasks: those that are asked for.
            finders: split -> the parts that the tasks are made of there.
            needed: parts that an option names: they cannot be left out.

        Returns:
            part -> what its finder returned.

        Raises:
            LayoutError: a part that is needed is missing, or no part is there in any split.
        """
        there: dict[str, Found] = {}
        missing: dict[str, LayoutError] = {}
        for part, find in finders(split).items():
            try:
                there[part] = find()
            except LayoutError as error:
                if part in needed or set(tasks) < set(self.tasks):
                    raise
                missing[part] = error
        if missing and not there and not any(_is_any(finders(other)) for other in self.splits if other != split):
            raise next(iter(missing.values()))
        if missing:
            told = ", ".join(missing)
            get_logger(__name__).warning("%s: not there and left out of %s: %s", self.name, split, told)
        return there

    def path(self, relative: str, below: str | Path | None = None) -> str:
        """Return the absolute path of a file that an annotation names.

        Args:
            relative: as the annotation writes it; backslashes count as slashes.
            below: folder it is relative to, which may lie elsewhere; default the root.

        Raises:
            ValueError: it is empty, holds a zero byte, or leaves both.
        """
        if not relative.strip():
            raise ValueError("names no file")
        if "\0" in relative:
            raise ValueError("the path holds a zero byte, which no file's name does")
        folder = str(below or self.root)
        # What stands after "#" is split off as a reader will do it: "..#frame=0" is the folder above.
        file, fragment = split_fragment(relative.replace("\\", "/"))
        path = os.path.normpath(os.path.join(folder, file))
        if not any(path.startswith(top.rstrip(os.sep) + os.sep) for top in (str(self.root), folder)):
            raise ValueError(f"the path {relative!r} leaves {folder}")
        return f"{path}#{fragment}" if fragment else path

    def unpack(self, name: str, content: bytes) -> str:
        """Write a medium that is kept inside another file; return its path."""
        if self._unpack is None:
            raise ValueError(f"{self.name} keeps its media inside other files: say where to unpack them")
        return self._unpack(name, content)

    def each(
        self, rows: Iterable[Row | BadRow], make: Callable[[Row], Iterable[Sample | SampleError]]
    ) -> Iterator[Sample | SampleError]:
        """Yield what `make` makes of each row; a row it cannot use (ValueError) becomes an error with its place.

        Where a row holds several samples, `make` may yield the error of one of them itself, with the row's place.
        """
        for row in rows:
            if isinstance(row, BadRow):
                yield SampleError(row.message, "?", row.place)
                continue
            try:
                yield from make(row)
            except SampleError as error:
                yield SampleError(error.message, error.sample_id, row.place)
            except ValueError as error:
                yield SampleError(str(error), str(row.data.get("id", "?")), row.place)

    def sample(
        self,
        sample_id: str,
        split: str,
        task: str,
        question: Words,
        answer: Words | None = None,
        media: Sequence[Media] = (),
        boxes: Sequence[Box] = (),
        **meta: Any,
    ) -> Sample:
        """Return a sample of one question and one answer; media come first, then the question.

        Args:
            sample_id: unique in the store.
            split: a key of `splits`.
            task: a key of `tasks`.
            question, answer: what is said; numbers stand for boxes. None for no answer.
            media: pictures and volumes, in order.
            boxes: absolute in the file's own frame (see `Box`).
            meta: patient, study, modality, answer_type (open, closed, choice), choices, or anything else to keep.
        """
        messages = [Message(role="user", content=(*media, *_parts(question)))]
        if answer is not None:
            messages.append(Message(role="assistant", content=_parts(answer)))
        known = {key: value for key, value in meta.items() if value not in (None, "")}
        return Sample(
            id=sample_id,
            messages=tuple(messages),
            source=self.name,
            task=f"{self.name}/{task}",
            split=split,
            meta=Meta(boxes=tuple(boxes), **known),
        )

    def _expected(self) -> str:
        return f"{self.title} is expected like this:\n{self.layout.strip()}\n({self.access})"


def _is_any(finders: Finders[Any]) -> bool:
    for find in finders.values():
        try:
            find()
        except LayoutError:
            continue
        return True
    return False


def _parts(words: Words) -> tuple[Part, ...]:
    pieces = (words,) if isinstance(words, str) else words
    return tuple(BoxRef(box=piece) if isinstance(piece, int) else Text(text=piece) for piece in pieces)
