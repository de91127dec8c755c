"""Boxes as text: one formatter and one parser for every place that shows a box to a language model."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

Coords = tuple[float, ...]
"""(x0, y0, x1, y1) or (x0, y0, z0, x1, y1, z1), absolute in the file's own frame, upper corner exclusive."""

_BRACKET = re.compile(r"\[([^\[\]]*)\]")
_NUMBER = re.compile(r"\d{1,6}(?:\.\d{1,6})?")


@dataclass(frozen=True, slots=True)
class BoxFormat:
    """Box text "[x0, y0, x1, y1]" with whole numbers 0..scale, relative to the frame (x/W, y/H, z/D)."""

    scale: int = 100

    def __post_init__(self) -> None:
        if self.scale < 1:
            raise ValueError(f"box scale must be at least 1, got {self.scale}")

    def format_box(self, coords: Sequence[float], size: Sequence[float]) -> str:
        """Return the text of one box.

        Args:
            coords: 4 or 6 absolute coordinates, lower corner first.
            size: the frame's extent in the order of the coordinates, (W, H) or (W, H, D).
        """
        axes = _axes(size)
        if len(coords) != 2 * len(axes):
            raise ValueError(
                f"a box in a frame of size {tuple(size)} has {2 * len(axes)} coordinates, got {len(coords)}"
            )
        values = []
        for index, coordinate in enumerate(coords):
            share = min(max(coordinate / axes[index % len(axes)], 0.0), 1.0)
            values.append(math.floor(share * self.scale + 0.5))
        return "[" + ", ".join(map(str, values)) + "]"

    def parse_boxes(self, text: str, size: Sequence[float]) -> list[Coords]:
        """Return every well-formed box of `text` in the file's frame of extent `size` = (W, H) or (W, H, D).

        A bracket with another count of numbers, a number above `scale` or corners in the wrong order is no box.
        """
        axes = _axes(size)
        found = []
        for bracket in _BRACKET.finditer(text):
            words = [word.strip() for word in bracket.group(1).split(",")]
            if len(words) != 2 * len(axes) or not all(_NUMBER.fullmatch(word) for word in words):
                continue
            values = [float(word) for word in words]
            low, high = values[: len(axes)], values[len(axes) :]
            if max(values) > self.scale or any(a > b for a, b in zip(low, high, strict=True)):
                continue
            found.append(tuple(value * axes[i % len(axes)] / self.scale for i, value in enumerate(values)))
        return found


def _axes(size: Sequence[float]) -> tuple[float, ...]:
    if len(size) not in (2, 3) or min(size) <= 0:
        raise ValueError(f"a frame's size is (W, H) or (W, H, D), all positive; got {tuple(size)}")
    return tuple(float(extent) for extent in size)
