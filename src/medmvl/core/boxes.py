"""Boxes as text: one formatter and one parser for every place that shows a box to a language model."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from medmvl.core.lookup import choices_text

Coords = tuple[float, ...]
"""(x0, y0, x1, y1) or (x0, y0, z0, x1, y1, z1), absolute in the file's own frame, upper corner exclusive."""

Style = Literal["bracket", "unimed", "qwen", "m3d"]

_NUMBER = re.compile(r"\d{1,6}(?:\.\d{1,6})?")
_BRACKET = re.compile(r"\[([^\[\]]*)\]")
# Marks such as <box> are not asked for: where a tokenizer has them as control tokens, decoding leaves them out.
_WRITTEN = {
    "bracket": _BRACKET,
    "unimed": re.compile(r"\{((?:\s*<[^<>{}]*>)+)\s*\}"),
    "qwen": re.compile(r"\(([^()]*)\)\s*,\s*\(([^()]*)\)"),
    "m3d": _BRACKET,
}
_TINY = 1e-6  # steps; what is lost when a written number is turned into pixels and back


@dataclass(frozen=True, slots=True)
class BoxFormat:
    """How boxes are written, in pictures with four numbers and in volumes with six.

    Attributes:
        scale: numbers run from 0 to it, relative to the frame (x/W, y/H, z/D); None writes absolute coordinates.
        style: around the numbers. "bracket" is "[x0, y0, x1, y1]"; "unimed" (MiniGPT-v2, Uni-Med) is
            "{<x0><y0><x1><y1>}", numbers cut off, not rounded; "qwen" (Qwen-VL) is "<box>(x0,y0),(x1,y1)</box>"; "m3d"
            is "<bx_start>[z0, y0, x0, z1, y1, x1]<bx_end>", whose upper corner is the last index inside the box.
        decimals: digits behind the point.

    Raises:
        ValueError: no such style, or a scale or decimals that make no numbers.
    """

    scale: int | None = 100
    style: Style = "bracket"
    decimals: int = 0

    def __post_init__(self) -> None:
        if self.scale is not None and self.scale < 1:
            raise ValueError(f"box scale must be at least 1, got {self.scale}")
        if self.style not in get_args(Style):
            raise ValueError(f"unknown box style {self.style!r}; {choices_text(self.style, get_args(Style))}")
        if not 0 <= self.decimals <= 6:
            raise ValueError(f"boxes are written with 0 to 6 decimals, got {self.decimals}")

    def format_box(self, coords: Sequence[float], size: Sequence[float]) -> str:
        """Return the text of one box, clipped to the frame.

        Args:
            coords: 4 or 6 absolute coordinates, lower corner first.
            size: the frame's extent in the order of the coordinates, (W, H) or (W, H, D).
        """
        axes = _axes(size)
        if len(coords) != 2 * len(axes):
            raise ValueError(
                f"a box in a frame of size {tuple(size)} has {2 * len(axes)} coordinates, got {len(coords)}"
            )
        low, high = (
            [min(max(float(value), 0.0), extent) for value, extent in zip(corner, axes, strict=True)]
            for corner in (coords[: len(axes)], coords[len(axes) :])
        )
        if self.style == "m3d":
            high = [max(last - 1, first) for first, last in zip(low, high, strict=True)]
        corners = [
            [self._number(value, extent) for value, extent in zip(corner, axes, strict=True)] for corner in (low, high)
        ]
        return self._written(*corners)

    def parse_boxes(self, text: str, size: Sequence[float]) -> list[Coords]:
        """Return every well-formed box of `text` in the file's frame of extent `size` = (W, H) or (W, H, D).

        Another count of numbers, a number above the scale or corners in the wrong order is no box. What was written is
        found again within half a unit of the last digit; within one in style "unimed", whose published scores take the
        numbers, which were cut off, as they stand.
        """
        axes = _axes(size)
        found = []
        for words in self._candidates(text):
            if len(words) != 2 * len(axes) or not all(_NUMBER.fullmatch(word) for word in words):
                continue
            values = [float(word) for word in words]
            low, high = values[: len(axes)], values[len(axes) :]
            if self.style == "m3d":
                low, high = low[::-1], high[::-1]
            if any(first > last for first, last in zip(low, high, strict=True)):
                continue
            box = self._absolute(low, high, axes)
            if box is not None:
                found.append(box)
        return found

    def _number(self, value: float, extent: float) -> str:
        share = value if self.scale is None else value / extent * self.scale
        steps = share * 10**self.decimals
        whole = math.floor(steps + _TINY) if self.style == "unimed" else math.floor(steps + 0.5)
        return f"{whole / 10**self.decimals:.{self.decimals}f}"

    def _written(self, low: list[str], high: list[str]) -> str:
        if self.style == "unimed":
            return "{" + "".join(f"<{number}>" for number in low + high) + "}"
        if self.style == "qwen":
            return f"<box>({','.join(low)}),({','.join(high)})</box>"
        if self.style == "m3d":
            return f"<bx_start>[{', '.join(low[::-1] + high[::-1])}]<bx_end>"
        return f"[{', '.join(low + high)}]"

    def _candidates(self, text: str) -> Iterator[list[str]]:
        """Yield what stands between the marks of the style, split into what should be numbers."""
        for match in _WRITTEN[self.style].finditer(text):
            inside = ",".join(match.groups())
            if self.style == "unimed":
                inside = re.sub(r">\s*<", ",", inside).strip().removeprefix("<").removesuffix(">")
            yield [word.strip() for word in inside.split(",")]

    def _absolute(self, low: list[float], high: list[float], axes: tuple[float, ...]) -> Coords | None:
        """Return a box in the frame; None where a number is above what is ever written."""
        limits = axes if self.scale is None else (float(self.scale),) * len(axes)
        # Rounded coordinates may lie a step beyond a frame whose extent is no whole number.
        if any(value > math.ceil(limit) for value, limit in zip(low + high, limits * 2, strict=True)):
            return None
        units = [1.0 if self.scale is None else extent / self.scale for extent in axes]
        ends = [value * unit + (self.style == "m3d") for value, unit in zip(high, units, strict=True)]
        starts = [value * unit for value, unit in zip(low, units, strict=True)]
        return tuple(min(value, extent) for value, extent in zip(starts + ends, axes * 2, strict=True))


BOX_FORMATS = {
    "0-100": BoxFormat(100),
    "0-1000": BoxFormat(1000),
    "0-1": BoxFormat(1, decimals=3),
    "absolute": BoxFormat(None),
    "unimed": BoxFormat(100, "unimed"),
    "qwen": BoxFormat(1000, "qwen"),
    "m3d": BoxFormat(1, "m3d", decimals=3),
}
"""Names of formats, as recipes know them (`model.boxes`); those without a style's name are in brackets."""


def box_format_name(name: str) -> str:
    """Return a format's name as it is; raise ValueError for an unknown one."""
    if name not in BOX_FORMATS:
        raise ValueError(f"unknown box format {name!r}; {choices_text(name, BOX_FORMATS)}")
    return name


def _axes(size: Sequence[float]) -> tuple[float, ...]:
    if len(size) not in (2, 3) or min(size) <= 0:
        raise ValueError(f"a frame's size is (W, H) or (W, H, D), all positive; got {tuple(size)}")
    return tuple(float(extent) for extent in size)
