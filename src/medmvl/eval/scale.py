"""How the values of a metric are written and drawn: shares of 1 in percent, errors and everything else as they are."""

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from medmvl.core.lookup import LookupNameError
from medmvl.eval.metrics.table import METRICS, is_unbounded, lower_is_better

_STEPS = (1, 2, 5, 10)  # an axis ends at one of these times a power of ten
_NOTHING = 1e-9  # differences that are none


@dataclass(frozen=True)
class Scale:
    """The axis of one metric.

    Attributes:
        low, high: its ends.
        percent: whether values are shares of 1, written as percent.
        falls: whether lower is better.
    """

    low: float = 0.0
    high: float = 1.0
    percent: bool = True
    falls: bool = False

    def text(self, value: float) -> str:
        """Return a value as tables write it: "87.3" for the share 0.873, else digits that suit the axis."""
        if self.percent:
            return f"{100 * value:.1f}"
        extent = max(abs(self.low), abs(self.high))
        return f"{value:.{3 if extent <= 1 else 2 if extent <= 10 else 1}f}"

    def place(self, value: float) -> float:
        """Return where a value lies, from 0 at the low end to 1 at the high one; beyond them it stays at the end."""
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)

    @property
    def ends(self) -> tuple[str, str]:
        """The texts of both ends."""
        if self.percent:
            return "0", "100 %"
        return f"{self.low:g}", f"{self.high:g}"

    @property
    def mark(self) -> str:
        """What stands behind the metric's name: an arrow where lower is better."""
        return " ↓" if self.falls else ""

    def better(self, first: float, second: float) -> bool:
        """Tell whether the first of two values is better."""
        return first < second if self.falls else first > second


def scale_of(name: str, intervals: Iterable[Mapping[str, float]]) -> Scale:
    """Return the axis that suits a metric and its values.

    Args:
        name: of the metric; where nothing is known of it, values from 0 to 1 are taken as shares.
        intervals: every {"value", "low", "high"} to be shown on the axis.
    """
    values = [value for interval in intervals for value in interval.values() if math.isfinite(value)]
    low, high = min([0.0, *values]), max([0.0, *values])
    falls = _told(lower_is_better, name)
    if low >= -_NOTHING and high <= 1 + _NOTHING:
        return Scale(percent=not falls and not _told(is_unbounded, name), falls=falls)
    return Scale(0.0 - _end(-low), _end(high), percent=False, falls=falls)


def _told(ask: Callable[[str], bool], name: str) -> bool:
    """Ask about a metric; of one that is not at hand, such as a function of another package, nothing is known.

    Names come from files of scores, and a file must not make this process import anything: a dotted path is followed
    only into modules that are loaded already, as those of the metrics just measured are.
    """
    if name not in METRICS and name.partition(":")[0] not in sys.modules:
        return False
    try:
        return ask(name)
    except (LookupNameError, ImportError):
        return False


def _end(value: float) -> float:
    """Return the next of 1, 2, 5, 10, 20, ... (and 0.5, 0.2, ...) from a value upwards; 0 of nothing."""
    if value <= _NOTHING:
        return 0.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in _STEPS if step * power >= value * (1 - 1e-9))
