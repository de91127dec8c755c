"""JSON of any length, value by value: a window slides over the file, and only what is in it is in memory."""

from __future__ import annotations

import codecs
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

LONGEST = 32 * 2**20
"""Characters of one value of a list or object: an annotation has some thousands."""

_CHUNK, _LARGEST_CHUNK = 2**20, 4 * 2**20  # bytes
_SOLID = re.compile(r"[^ \t\r\n]")
_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*+(?P<closed>"?)|[\[\]{}]', re.DOTALL)
_BARE = re.compile(r"[^\s,\]}]*")
_TOKEN = len("-Infinity")
_DEEPEST = 10_000


class JsonError(ValueError):
    """A file that is no JSON, is damaged or is cut off; names the file and the line."""


@dataclass(frozen=True, slots=True)
class Unusable:
    """Stands for one value that cannot be used, among others that can."""

    message: str


class Decoder:
    """Decodes single values; NaN counts as null, whatever else JSON does not know makes a value unusable."""

    def __init__(self) -> None:
        self._constants: list[str] = []
        # Line breaks within strings are against the standard, but leave no doubt; numbers JSON lacks are collected.
        self._decoder = json.JSONDecoder(
            strict=False, parse_constant=self._constants.append, object_pairs_hook=_no_key_twice
        )

    def decode(self, text: str, start: int) -> tuple[Any, int]:
        """Return the value that begins at `start` and where it ends.

        Raises:
            json.JSONDecodeError: the text ends before the value does, or is no JSON.
        """
        self._constants.clear()
        try:
            value, end = self._decoder.raw_decode(text, start)
        except json.JSONDecodeError:
            raise
        except (ValueError, RecursionError) as error:  # a key twice; numbers of thousands of digits; nested too deep
            deep = isinstance(error, RecursionError)
            return Unusable("is nested too deep" if deep else str(error)), _end(text, start)
        if any(constant != "NaN" for constant in self._constants):
            return Unusable(f"holds {self._constants[0]}, which is no number of JSON"), end
        return value, end


class Window:
    """Reads the values of a JSON file in order.

    Args:
        path: for messages.
        file: its bytes, UTF-8 with or without a byte-order mark.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._bytes = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._decoder = Decoder()
        self._text, self._at, self._line = "", 0, 1
        self._ended = self._doubtful = False

    def next(self) -> str:
        """Return the character that the next value begins with, "" at the end of the file."""
        while (found := _SOLID.search(self._text, self._at)) is None:
            self._at = len(self._text)
            if not self._more():
                return ""
        self._at = found.start()
        return found[0]

    def value(self) -> Any:
        """Return the next value, or `Unusable` where it is no text or no JSON that anybody could use."""
        if not self.next():
            raise self._wrong("the file ends where a value is expected")
        while True:
            try:
                value, end = self._decoder.decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if not self._is_cut(error) or self._ended:
                    raise self._wrong(f"no JSON: {error.msg}", error.pos) from None
            else:
                if end < len(self._text) or self._ended:  # else a number may go on
                    break
            self._more()
        start, self._at = self._at, end
        return checked(value, self._text[start:end]) if self._doubtful else value

    def items(self) -> Iterator[Any]:
        """Yield the values of the list that begins here."""
        self._take("[")
        if self.next() == "]":
            self._take("]")
            return
        while True:
            yield self.value()
            if self._take(",]") == "]":
                return

    def members(self) -> Iterator[Any]:
        """Yield the keys of the object that begins here; before the next one is asked for, its value must be read.

        A key that is no text is `Unusable`; its value stands there all the same.
        """
        self._take("{")
        if self.next() == "}":
            self._take("}")
            return
        while True:
            if self.next() != '"':
                raise self._wrong("a key in quotes is expected")
            key = self.value()
            self._take(":")
            yield key
            if self._take(",}") == "}":
                return

    def skip(self) -> None:
        """Pass over the next value, however long it is."""
        first = self.next()
        if first == "[":
            for _ in self.items():
                pass
        elif first == "{":
            for _ in self.members():
                self.skip()
        else:
            self.value()

    def end(self) -> None:
        """Check that the file ends here.

        Raises:
            JsonError: it goes on.
        """
        if self.next():
            raise self._wrong("the file goes on after its end")

    def _take(self, allowed: str) -> str:
        found = self.next()
        if not found or found not in allowed:
            state = f"{found!r} stands" if found else "the file ends"
            raise self._wrong(f"{state} where {' or '.join(map(repr, allowed))} is expected")
        self._at += 1
        return found

    def _is_cut(self, error: json.JSONDecodeError) -> bool:
        """Whether a value only seems wrong because the window ends in it."""
        return error.msg.startswith("Unterminated string") or error.pos > len(self._text) - _TOKEN

    def _more(self) -> bool:
        """Drop what is read and read on, more for a value that did not fit; return False at the end."""
        rest = self._text[self._at :]
        if len(rest) > LONGEST:
            raise self._wrong(f"one value is longer than {LONGEST:,} characters")
        self._line += self._text.count("\n", 0, self._at)
        try:
            chunk = self._file.read(max(_CHUNK, min(len(rest), _LARGEST_CHUNK)))
        except (OSError, EOFError, zlib.error) as error:
            raise self._wrong(f"the file is damaged or cut off ({error})") from error
        self._ended = not chunk
        self._text, self._at = rest + self._bytes.decode(chunk, self._ended), 0
        self._doubtful = is_doubtful(self._text)
        return not self._ended

    def _wrong(self, message: str, at: int | None = None) -> JsonError:
        line = self._line + self._text.count("\n", 0, self._at if at is None else at)
        hint = "; it looks cut off, get it again" if self._ended else ""
        return JsonError(f"{self._path}, line {line}: {message}{hint}")


def is_doubtful(text: str) -> bool:
    """Whether some value in this text may hold what is no character; a quick look, for `checked` takes time."""
    return "\\ud" in text or "\\uD" in text or not is_text(text)


def checked(value: Any, raw: str) -> Any:
    """Return the value of the JSON text `raw`, or `Unusable` where one of its strings is not made of characters."""
    if not is_text(raw):
        return Unusable("is no valid UTF-8; save the file as UTF-8")
    if ("\\ud" in raw or "\\uD" in raw) and not is_text(json.dumps(value, ensure_ascii=False, default=str)):
        return Unusable("holds half of a character (a lone surrogate); repair the text's encoding")
    return value


def is_text(text: str) -> bool:
    """Whether a text is made of characters alone, without halves of pairs and bytes that were none."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"names the key {twice!r} twice")
    return found


def _end(text: str, start: int) -> int:
    """Return where the value that begins at `start` ends, by its brackets alone.

    Raises:
        json.JSONDecodeError: the text ends before, or nobody could mean this.
    """
    if text[start] not in "[{":
        return _BARE.match(text, start).end()  # type: ignore[union-attr]  # it matches anything
    depth = 0
    for found in _BRACKET.finditer(text, start):
        depth += (found[0] in "[{") - (found[0] in "]}")
        if depth > _DEEPEST:
            raise json.JSONDecodeError("nested too deep", text, found.start())
        if found["closed"] == "":
            break
        if depth == 0:
            return found.end()
    raise json.JSONDecodeError("the text ends within a value", text, len(text))
