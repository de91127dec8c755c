"""How a flat row of tokens is laid out: which tokens may attend to which, and where positions restart."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens [start, end) attend causally to themselves and, all of them, to [prefix_start, prefix_end).

    An empty prefix makes the segment isolated: plain causal attention over itself. All counts are tokens.
    """

    start: int
    end: int
    prefix_start: int = 0
    prefix_end: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"segment [{self.start}, {self.end}) is empty or negative")
        if self.prefix_start == self.prefix_end:
            return
        if not 0 <= self.prefix_start < self.prefix_end <= self.start:
            raise ValueError(
                f"prefix [{self.prefix_start}, {self.prefix_end}) must lie before segment [{self.start}, {self.end})"
            )

    @property
    def length(self) -> int:
        """Own tokens, the prefix not counted."""
        return self.end - self.start

    @property
    def prefix_length(self) -> int:
        """Tokens of the shared prefix; 0 for an isolated segment."""
        return self.prefix_end - self.prefix_start


@dataclass(frozen=True, slots=True)
class Layout:
    """The segments of one flat row, covering [0, length) in order.

    A group is one isolated segment (the prefix) followed by the branches whose prefix is exactly that segment.
    """

    segments: tuple[Segment, ...]

    def __post_init__(self) -> None:
        cursor = 0
        isolated: set[tuple[int, int]] = set()
        for index, segment in enumerate(self.segments):
            if segment.start != cursor:
                raise ValueError(f"segment {index} starts at {segment.start}, expected {cursor}: no gaps, no overlap")
            cursor = segment.end
            if not segment.prefix_length:
                isolated.add((segment.start, segment.end))
            elif (segment.prefix_start, segment.prefix_end) not in isolated:
                raise ValueError(
                    f"segment {index}: its prefix [{segment.prefix_start}, {segment.prefix_end}) "
                    "is no isolated segment of this row"
                )

    @property
    def length(self) -> int:
        """Tokens in the row."""
        return self.segments[-1].end if self.segments else 0

    def positions(self) -> Iterator[int]:
        """Position id of every token: isolated segments restart at 0, branches at their prefix's length."""
        for segment in self.segments:
            yield from range(segment.prefix_length, segment.prefix_length + segment.length)
