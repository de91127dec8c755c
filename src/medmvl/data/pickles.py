"""Reads pickled lists, dicts, text and numbers without running anything: the few opcodes of plain data, one by one."""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from medmvl.data.rows import TableError

LARGEST = 256 * 2**20
"""Bytes of a file, and characters and values of what it says once every repetition is written out."""
_DEEPEST = 50
_CONSTANTS = {
    "NONE": None,
    "NEWTRUE": True,
    "NEWFALSE": False,
    "EMPTY_TUPLE": (),
}
_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_BYTE_TEXT = {"STRING", "BINSTRING", "SHORT_BINSTRING"}  # what Python 2 called str
_MARK = object()


def read_pickle(path: str | Path) -> Any:
    """Return the plain data of a pickle of protocol 0 to 5: lists, dicts, tuples, text, bytes, numbers, None.

    No function or class that the file names is ever looked up. Text of Python 2 is taken for UTF-8, else for Latin-1.

    Raises:
        TableError: no such file, damaged, larger than `LARGEST` when written out, nested too deep, or it asks for more
            than plain data.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > LARGEST:
            raise TableError(f"{path}: holds {size:,} bytes; a list of questions has at most {LARGEST:,}")
        content = path.read_bytes()
    except OSError as error:
        raise TableError(f"{path}: cannot be read: {error.strerror or error}") from error
    return _Plain(path).run(content)


class _Plain:
    """The stack and the memo of one pickle.

    A container is closed once it stands in another, and only open ones are filled: so nothing ever holds itself, and
    the size of everything that something holds is known.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.sizes: dict[int, tuple[int, int]] = {}  # id of a container -> (size written out, depth)
        self.closed: set[int] = set()
        self.kept: list[Any] = []  # every container, so that no id is given twice

    def run(self, content: bytes) -> Any:
        """Return what the pickle says."""
        position = 0
        try:
            for opcode, argument, at in pickletools.genops(io.BytesIO(content)):
                position = at or 0
                if opcode.name == "STOP":
                    return self._only()
                self._step(opcode.name, argument, position)
        except TableError:
            raise
        except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
            self._refuse(f"is damaged after byte {position} ({type(error).__name__}: {error}); get it again")
        self._refuse("ends too early; get it again")

    def _step(self, name: str, argument: Any, position: int) -> None:
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _BYTE_TEXT:
            self.stack.append(_text(argument))
        elif (act := _ACTS.get(name)) is not None:
            act(self, argument)
        else:
            self._refuse(
                f"asks for {name} at byte {position}, which can run code; only plain lists, dicts, text and numbers "
                "are read. Save it from the program that made it as JSON"
            )

    def _only(self) -> Any:
        if len(self.stack) != 1 or self.stack[0] is _MARK:
            self._refuse(f"ends with {len(self.stack)} values where one is due; get it again")
        return self.stack[0]

    def mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def skip(self, _: Any) -> None:
        """PROTO and FRAME say nothing about the data."""

    def remember(self, key: int | None) -> None:
        self.memo[len(self.memo) if key is None else key] = self.stack[-1]

    def recall(self, key: int) -> None:
        self.stack.append(self.memo[key])

    def drop(self, _: Any) -> None:
        self.stack.pop()

    def drop_marked(self, _: Any) -> None:
        self._marked()

    def new(self, container: Any, items: list[Any]) -> None:
        """Push a container that holds `items` already."""
        self.kept.append(container)
        self.sizes[id(container)] = (1, 1)
        self.stack.append(container)
        self._account(container, items)

    def append(self, items: list[Any]) -> None:
        target = self._open(list)
        self._account(target, items)
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self._open(dict)
        self._account(target, items)
        target.update(zip(items[::2], items[1::2], strict=True))

    def _marked(self) -> list[Any]:
        """Take and return what stands above the last mark."""
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ValueError("no mark")
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def _taken(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise ValueError("nothing to take")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def _open(self, kind: type) -> Any:
        target = self.stack[-1]
        if not isinstance(target, kind):
            raise ValueError(f"no {kind.__name__} to fill")
        if id(target) in self.closed:
            self._refuse(f"fills a {kind.__name__} that stands in another, or in itself; plain data does not")
        return target

    def _account(self, container: Any, items: list[Any]) -> None:
        """Close `items`, which come into `container`, and add up how large and how deep it is now."""
        size, depth = self.sizes[id(container)]
        for item in items:
            if item is _MARK or item is container:
                self._refuse(f"holds a {type(container).__name__} that contains itself; plain data does not")
            inner, below = self.sizes.get(id(item)) or (_size(item), 0)
            size, depth = size + inner, max(depth, below + 1)
            if id(item) in self.sizes:
                self.closed.add(id(item))
        if size > LARGEST or depth > _DEEPEST:
            what = f"larger than {LARGEST:,} characters" if size > LARGEST else f"nested deeper than {_DEEPEST} levels"
            self._refuse(f"is {what} when written out; no list of questions is")
        self.sizes[id(container)] = (size, depth)

    def _refuse(self, message: str) -> NoReturn:
        raise TableError(f"{self.path}: the pickle {message}")


def _size(value: Any) -> int:
    if isinstance(value, str | bytes):
        return 1 + len(value)
    return 1 + value.bit_length() // 8 if isinstance(value, int) else 1


def _text(argument: str | bytes) -> str:
    raw = argument.encode("latin-1") if isinstance(argument, str) else argument
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))


_ACTS: dict[str, Callable[[_Plain, Any], None]] = {
    "PROTO": _Plain.skip,
    "FRAME": _Plain.skip,
    "MARK": _Plain.mark,
    "POP": _Plain.drop,
    "POP_MARK": _Plain.drop_marked,
    "PUT": _Plain.remember,
    "BINPUT": _Plain.remember,
    "LONG_BINPUT": _Plain.remember,
    "MEMOIZE": _Plain.remember,
    "GET": _Plain.recall,
    "BINGET": _Plain.recall,
    "LONG_BINGET": _Plain.recall,
    "EMPTY_LIST": lambda self, _: self.new([], []),
    "EMPTY_DICT": lambda self, _: self.new({}, []),
    "LIST": lambda self, _: self.new(items := self._marked(), list(items)),
    "DICT": lambda self, _: self.new(_pairs(items := self._marked()), items),
    "TUPLE": lambda self, _: self.new(tuple(items := self._marked()), items),
    "TUPLE1": lambda self, _: self.new(tuple(items := self._taken(1)), items),
    "TUPLE2": lambda self, _: self.new(tuple(items := self._taken(2)), items),
    "TUPLE3": lambda self, _: self.new(tuple(items := self._taken(3)), items),
    "APPEND": lambda self, _: self.append(self._taken(1)),
    "APPENDS": lambda self, _: self.append(self._marked()),
    "SETITEM": lambda self, _: self.set_items(self._taken(2)),
    "SETITEMS": lambda self, _: self.set_items(self._marked()),
}
