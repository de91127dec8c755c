"""Raw answers, kept on disk as they come: an evaluation that was stopped asks only for those that are missing."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medmvl.core.atomic import atomic_file
from medmvl.core.log import get_logger

_LOG = get_logger(__name__)
_WHOLE = "answers.jsonl"

Entry = Mapping[str, Any]
"""{"key"} and one of "text", "likelihoods" or "error"."""


class AnswerLog:
    """Answers by the key of their question; every process appends to a file of its own and reads all.

    Errors are kept for the other processes of the same evaluation only: what could not be asked is tried again by the
    next one.

    Args:
        folder: where the files lie; None keeps answers in memory.
        rank: number of this process among those of the evaluation.
    """

    def __init__(self, folder: Path | None, rank: int = 0) -> None:
        self._folder = folder
        self._own = None if folder is None else folder / f"process{rank}.jsonl"
        self._entries: dict[str, Entry] = {}
        self._read: dict[Path, int] = {}
        self._file: Any = None

    def tidy(self) -> None:
        """Gather in one file what former evaluations left; for one process, before any other reads."""
        if self._folder is None or not self._folder.is_dir():
            return
        parts = sorted(self._folder.glob("process*.jsonl"))
        if not parts:
            return
        entries: dict[str, Entry] = {}
        for file in [self._folder / _WHOLE, *parts]:
            entries |= {entry["key"]: entry for entry in _entries(file) if "error" not in entry}
        with atomic_file(self._folder / _WHOLE) as whole:
            whole.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries.values())
        for file in parts:
            file.unlink()

    def refresh(self) -> None:
        """Read what is on disk and not yet known."""
        if self._folder is None:
            return
        for file in sorted(self._folder.glob("*.jsonl")):
            if file != self._own:
                self._read[file] = self._follow(file, self._read.get(file, 0))

    def _follow(self, file: Path, start: int) -> int:
        """Read the whole lines of a file from a byte onwards; return where the next one begins.

        Another process may be in the middle of a line, which is read when it is whole.
        """
        with file.open("rb") as lines:
            lines.seek(start)
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                start += len(line)
                if entry := _entry(line):
                    self._entries[entry["key"]] = entry
        return start

    def get(self, key: str) -> Entry | None:
        """Return what is known under a key."""
        return self._entries.get(key)

    def add(self, key: str, **said: Any) -> None:
        """Keep an answer (`text`), the options' `likelihoods`, or why there is none (`error`)."""
        entry = {"key": key, **said}
        self._entries[key] = entry
        if self._own is not None:
            if self._file is None:
                self._own.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._own.open("a", encoding="utf-8")
            self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            self._file.flush()  # a process that is killed loses nothing it has said

    def close(self) -> None:
        """Make sure that all of it is on disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None


def _entries(file: Path) -> Iterator[Entry]:
    """Yield the entries of a file; the torn last line of a killed process is no answer."""
    if not file.is_file():
        return
    broken = 0
    with file.open("rb") as lines:
        for line in lines:
            if entry := _entry(line):
                yield entry
            else:
                broken += 1
    if broken:
        _LOG.info("%s: %d lines are torn (a process was stopped while it wrote) and are asked again", file, broken)


def _entry(line: bytes) -> Entry | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("key"), str) else None
