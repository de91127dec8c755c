"""Addresses: a path, and after a "#" what the file alone does not say (which frame, which series, which unit)."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmvl.core.lookup import choices_text
from medmvl.core.schema import split_fragment
from medmvl.imaging.hounsfield import HU_SOURCES, CtRateTable, HuSource, Rescale
from medmvl.imaging.picture import ImageError

UNITS = ("HU", "0..255", "0..1")
"""What the values of an array can mean; files with a header say more themselves."""

KEYS = {
    "frame": "number of a picture in a file of several, or of a volume in a 4D file; from 0",
    "series": "SeriesInstanceUID, or number, of a DICOM series in a folder of several",
    "unit": f"what the values are: {', '.join(UNITS)}",
    "hu": f"where Hounsfield units come from: {', '.join(HU_SOURCES)}",
    "slope": "HU = slope * stored value + intercept",
    "intercept": "see slope",
    "orientation": "where slice, row and column indices grow to, as 'SPL', for a file that does not say it",
    "array": "name of an array in a .npz file",
}
"""What a fragment "#key=value&key=value" can say."""


@dataclass(frozen=True)
class Address:
    """Where a picture or volume is, and what its reader has to be told.

    Attributes:
        file: the file or folder.
        given: the path as it was given, fragment included.
        frame, series, unit, orientation, array: see `KEYS`; None where nothing is said.
        hu: where HU come from ("header", "already_hu", a `Rescale` or a `CtRateTable`), or None: nothing is said.
    """

    file: Path
    given: str
    frame: int | None = None
    series: str | None = None
    unit: str | None = None
    hu: str | Rescale | CtRateTable | None = None
    orientation: str | None = None
    array: str | None = None


def split_address(
    path: str | Path,
    frame: int | None = None,
    *,
    series: str | int | None = None,
    unit: str | None = None,
    hu: HuSource | None = None,
) -> Address:
    """Return what "file#frame=3" or "scan.nii.gz#slope=1&intercept=-8192" names, together with the arguments.

    Raises:
        ImageError: an unknown key, a value that makes no sense, or a path and an argument that contradict each other.
    """
    given = os.fspath(path)
    file, fragment = split_fragment(given)
    told = _pairs(given, fragment)
    if told and not told.keys() & KEYS.keys() and os.path.exists(given):
        file, told = given, {}  # a file whose own name looks like an address
    arguments = {"frame": frame, "series": series, "unit": unit}
    for key, value in arguments.items():
        if value is None:
            continue
        if told.setdefault(key, str(value)) != str(value):
            raise ImageError(
                path, f"the path asks for {key} {told[key]} and the argument for {key} {value}; name one of them"
            )
    for key in told:
        if key not in KEYS:
            raise ImageError(path, f"unknown key {key!r} after '#'; {choices_text(key, KEYS, 'keys')}")
    source = _hu_source(given, told, hu)
    wanted = told.get("unit")
    if wanted is not None and wanted not in UNITS:
        raise ImageError(path, f"unit {wanted!r} is unknown; {choices_text(wanted, UNITS, 'units')}")
    if source is not None and wanted not in (None, "HU"):
        raise ImageError(path, f"unit {wanted} contradicts a source of Hounsfield units; leave one of them out")
    index = told.get("frame")
    if index is not None and not re.fullmatch(r"\d{1,9}", index):
        raise ImageError(path, f"frame {index!r} is no number; frames are counted from 0")
    return Address(
        file=Path(file),
        given=given,
        frame=None if index is None else int(index),
        series=told.get("series"),
        unit=wanted,
        hu=source,
        orientation=told.get("orientation"),
        array=told.get("array"),
    )


def _pairs(given: str, fragment: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for item in filter(None, fragment.split("&")):
        key, _, value = item.partition("=")
        if not value or key in pairs:
            raise ImageError(given, f"{key!r} after '#' is given {'twice' if key in pairs else 'without a value'}")
        pairs[key] = value
    return pairs


def _hu_source(given: str, told: Mapping[str, str], hu: Any) -> str | Rescale | CtRateTable | None:
    """Return the one source of HU that path and argument name."""
    sources: list[Any] = [told["hu"]] if "hu" in told else []
    if {"slope", "intercept"} & told.keys():
        if not {"slope", "intercept"} <= told.keys():
            raise ImageError(given, "slope and intercept go together: HU = slope * stored value + intercept")
        sources.append(Rescale(_number(given, told, "slope"), _number(given, told, "intercept")))
    if hu is not None:
        sources.append(hu)
    if len(sources) > 1 and any(source != sources[0] for source in sources):
        raise ImageError(given, f"names several sources of Hounsfield units ({', '.join(map(str, sources))}); name one")
    if not sources:
        return None
    source = sources[0]
    if isinstance(source, Rescale | CtRateTable) or source in HU_SOURCES:
        return source
    if "hu" not in told and str(source).lower().endswith(".csv"):
        return CtRateTable.read(source)
    raise ImageError(
        given,
        f"source of Hounsfield units {str(source)!r} is unknown; known are {', '.join(HU_SOURCES)}, "
        "slope and intercept, and, as argument of read_image, a CT-RATE metadata table (.csv)",
    )


def _number(given: str, told: Mapping[str, str], key: str) -> float:
    try:
        value = float(told[key])
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or (key == "slope" and value == 0):
        raise ImageError(given, f"{key} {told[key]!r} is no {'number other than 0' if key == 'slope' else 'number'}")
    return value
