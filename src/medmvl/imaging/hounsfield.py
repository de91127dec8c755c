"""Hounsfield units: where they come from, said once and applied once, and a doubt where the values look wrong."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from medmvl.imaging.header import warn_once
from medmvl.imaging.picture import ImageError

HU_SOURCES = ("header", "already_hu")
"""Sources that need no number: the header's rescaling gives HU; or the stored values are HU, whatever it says."""


@dataclass(frozen=True)
class Rescale:
    """HU, or whatever the values are, = slope * stored value + intercept."""

    slope: float = 1.0
    intercept: float = 0.0

    @property
    def is_identity(self) -> bool:
        return self.slope == 1 and self.intercept == 0

    def __str__(self) -> str:
        return f"slope {self.slope:g}, intercept {self.intercept:g}"


@dataclass(frozen=True, eq=False)
class CtRateTable:
    """CT-RATE's metadata table: the rescaling that the volumes' own headers do not state.

    In release 1 of the data set every header says slope 1 and intercept 0, while the true intercept is -1024 for most
    scanners and -8192 for others. Volumes of release 2 (`*_fixed`) hold HU already and must not meet this table.

    Attributes:
        path: the csv file.
        rows: volume name ("valid_1_a_1.nii.gz") -> its rescaling.
    """

    path: str
    rows: Mapping[str, Rescale] = field(repr=False)

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read the columns VolumeName, RescaleSlope and RescaleIntercept of a csv file.

        Raises:
            ImageError: no such file or columns, or a row without numbers.
        """
        try:
            with open(path, newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                missing = {"VolumeName", "RescaleSlope", "RescaleIntercept"} - set(reader.fieldnames or ())
                if missing:
                    raise ImageError(
                        path, f"lacks the column(s) {', '.join(sorted(missing))} of a CT-RATE metadata table"
                    )
                return cls(str(path), {row["VolumeName"]: _row(path, reader.line_num, row) for row in reader})
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ImageError(path, f"cannot be read as a CT-RATE metadata table ({error})") from error

    def rescale(self, file: Path) -> Rescale:
        """Return the rescaling of one volume, looked up by its file name.

        Raises:
            ImageError: the table has no row for it.
        """
        if file.name not in self.rows:
            raise ImageError(
                file, f"has no row in {self.path}; give the table that lists {file.name}, or say where its HU come from"
            )
        return self.rows[file.name]

    def __str__(self) -> str:
        return self.path


HuSource = str | Path | Rescale | CtRateTable
"""Where HU come from: one of `HU_SOURCES`, numbers, a CT-RATE metadata table or the path of one."""


def choose(file: Path, header: Rescale, hu: str | Rescale | CtRateTable | None) -> Rescale:
    """Return the rescaling to apply to the stored values, once.

    Args:
        file: named in errors, and looked up in a table.
        header: what the file's own header says.
        hu: what the caller says; None leaves it to the header.

    Raises:
        ImageError: the header rescales and the caller brings another rescaling: one of them would come twice.
    """
    if hu is None or hu == "header":
        return header
    if hu == "already_hu":
        return Rescale()
    told = hu.rescale(file) if isinstance(hu, CtRateTable) else hu
    if not isinstance(told, Rescale):
        raise TypeError(f"a source of Hounsfield units is one of {', '.join(HU_SOURCES)} or numbers, got {told!r}")
    if not header.is_identity and told != header:
        raise ImageError(
            file,
            f"its header rescales already ({header}), and {hu if isinstance(hu, CtRateTable) else 'the caller'} says "
            f"{told}; both would apply it twice: say hu=header to trust the header, or repair the header",
        )
    return told


def _row(path: str | Path, line: int, row: Mapping[str, str]) -> Rescale:
    try:
        slope, intercept = float(row["RescaleSlope"]), float(row["RescaleIntercept"])
    except (TypeError, ValueError):
        slope = math.nan
    if not math.isfinite(slope) or slope == 0 or not math.isfinite(intercept):
        given = f"{row['RescaleSlope']!r}, {row['RescaleIntercept']!r}"
        raise ImageError(path, f"line {line}: RescaleSlope and RescaleIntercept are numbers, got {given}")
    return Rescale(slope, intercept)


def check_range(values: np.ndarray, path: str | Path) -> None:
    """Warn, once per file, where values that are used as Hounsfield units do not look like them.

    In any CT of a body some air lies below -200 HU, and at least a few percent of the voxels are soft tissue, fat or
    water, from -250 to 250 HU. A forgotten intercept leaves nothing below, one applied twice nothing between.

    Args:
        values: [D, H, W]; an even sample of them is looked at.
        path: named in the warning.
    """
    step = max(1, round((values.size / 500_000) ** (1 / 3)))
    sample = values[::step, ::step, ::step]
    low, high = float(sample.min()), float(sample.max())
    soft = float(np.mean((sample >= -250) & (sample <= 250)))
    if high - low < 10:
        doubt = "they look scaled for display"
    elif low > -200:
        doubt = "nothing is as dark as air, as where the intercept was not applied"
    elif soft < 0.02:
        doubt = f"only {soft:.1%} are between -250 and 250, as where the intercept is wrong or was applied twice"
    else:
        return
    warn_once(
        path,
        "Hounsfield units",
        f"its values, from {low:g} to {high:g}, hardly are Hounsfield units: {doubt}. Say where they come from: "
        "hu=header, hu=already_hu, slope and intercept, or a metadata table",
    )
