"""Lays slices where their headers place them, and refuses what makes no even, gapless volume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from medmvl.core.log import get_logger
from medmvl.imaging.dicom_file import group, numbers, placed, rescale, short_hash
from medmvl.imaging.hounsfield import Rescale
from medmvl.imaging.picture import ImageError

_log = get_logger(__name__)

ANGLE = 1e-3
"""Directions of all slices agree to 0.001 (0.06 degrees); rows and columns are at right angles to twice that."""
SPACING = 1e-3
"""Pixel spacings of all slices agree to one part in a thousand: half a pixel at the far end of 512."""
STEP = 0.1
"""Every slice lies within a tenth of the slice distance of its place on the even grid; positions are often rounded."""
SAME = 0.01
"""Two slices nearer to each other than a hundredth of a pixel lie at the same place."""
BESIDE = 0.5
"""A stack is straight if no slice lies more than half a pixel beside the first one, seen along the normal."""
STEEPEST = 45.0
"""Degrees: more is no tilted gantry (they reach 30) but slices that lie beside each other."""

SLICE_ELEMENTS = [
    "SOPClassUID", "Modality", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit",
    "FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
    "RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence", "Units",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
]  # fmt: skip
"""What is read of a slice's header; pydicom skips all other elements, names and dates among them."""


@dataclass(frozen=True, eq=False)
class Plane:
    """One slice as its header states it.

    Attributes:
        name: for messages: a file's name, or "frame 3".
        header, index: the file's header, and the frame in it.
        size: (rows, columns).
        position, orientation, spacing: None where the header does not state them.
        rescale: what the header says, None where it says nothing.
        alike: name -> value of what all slices of a volume share.
        tells: name -> value of what sets apart slices at one place: acquisition, echo, time.
        identity: equal for two copies of one image.
    """

    name: str
    header: Dataset
    index: int
    size: tuple[int, int]
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    rescale: Rescale | None
    alike: Mapping[str, str]
    tells: Mapping[str, str]
    identity: str


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices in the order of the file's own frame, and where its grid lies.

    Attributes:
        planes: sorted along the normal, the cross product of row and column direction.
        spacing: (z, y, x) in mm; z is measured between positions along the normal.
        origin: centre of the first pixel of the first slice.
        direction: unit vectors along x (a row), y (a column) and the normal, 9 numbers.
        drift: pixels (x, y) by which each slice lies beside the one before; (0, 0) for a straight stack.
    """

    planes: Sequence[Plane]
    spacing: tuple[float, float, float]
    origin: tuple[float, ...]
    direction: tuple[float, ...]
    drift: tuple[float, float]

    @property
    def size(self) -> tuple[int, int, int]:
        return len(self.planes), *self.planes[0].size


def plane(path: Path, name: str, header: Dataset, index: int, tells: Mapping[str, object], identity: str = "") -> Plane:
    """Read one slice's place and kind off its header; see `Plane`."""
    scaled = rescale(path, header, index)
    measures = group(header, index, "PixelMeasuresSequence")
    alike = {
        "modality": header.get("Modality"),
        "photometric interpretation": header.get("PhotometricInterpretation"),
        "samples per pixel": header.get("SamplesPerPixel", 1),
        "unit of the rescaled values": (scaled[2] or "unspecified") if scaled else "no rescale",
        "unit of counts": header.get("Units"),
        "frame of reference": short_hash(header.get("FrameOfReferenceUID")),
    }
    return Plane(
        name,
        header,
        index,
        (int(header.Rows), int(header.Columns)),
        placed(header, index, "PlanePositionSequence", "ImagePositionPatient", 3),
        placed(header, index, "PlaneOrientationSequence", "ImageOrientationPatient", 6),
        numbers(measures.get("PixelSpacing"), 2),
        Rescale(scaled[0], scaled[1]) if scaled else None,
        {key: "" if value is None else str(value) for key, value in alike.items()},
        {key: _text(value) for key, value in tells.items()},
        identity,
    )


def stack(path: Path, planes: Sequence[Plane]) -> Stack:
    """Order slices along their common normal and measure their grid.

    Raises:
        ImageError: a slice does not say where it lies; sizes, spacings, orientations or kinds of values are mixed; two
            slices lie at one place; one is missing; distances are uneven; or slices lie beside each other.
    """
    _check_placed(path, planes)
    _check_alike(path, planes)
    rows, columns = np.reshape(planes[0].orientation, (2, 3))
    rows = rows / np.linalg.norm(rows)
    columns = columns - rows * (columns @ rows)
    columns /= np.linalg.norm(columns)
    normal = np.cross(rows, columns)
    planes = sorted(planes, key=lambda one: float(np.dot(one.position, normal)))
    places = np.array([one.position for one in planes])
    along = places @ normal
    pixel = np.array(planes[0].spacing)  # (row, column) spacing: along y and x
    _check_distances(path, planes, along, SAME * float(pixel.min()))
    step = float(along[-1] - along[0]) / (len(planes) - 1)
    beside = (places - places[0]) @ np.stack([rows, columns]).T / pixel[::-1]  # in pixels, x and y
    drift = _drift(path, planes, beside, pixel, step)
    direction = (*rows.tolist(), *columns.tolist(), *normal.tolist())
    return Stack(planes, (step, *pixel.tolist()), tuple(places[0].tolist()), direction, drift)


def _check_placed(path: Path, planes: Sequence[Plane]) -> None:
    """Refuse slices that do not say where they lie: no other order of them can be trusted."""
    for what, element in (
        ("position", "ImagePositionPatient"),
        ("orientation", "ImageOrientationPatient"),
        ("spacing", "PixelSpacing"),
    ):
        lacking = [one for one in planes if not _stated(getattr(one, what))]
        if lacking:
            raise ImageError(
                path,
                f"{len(lacking)} of {len(planes)} slices state no usable {element} ({_names(lacking)}), so the volume "
                "cannot be laid out; repair their headers, or read the slices as pictures",
            )
    for one in planes:
        rows, columns = np.reshape(one.orientation, (2, 3))
        lengths = np.linalg.norm(rows), np.linalg.norm(columns)
        if not (min(lengths) > 0.99 and max(lengths) < 1.01) or abs(rows @ columns) > ANGLE * 2:
            raise ImageError(
                path,
                f"ImageOrientationPatient of {one.name} is {_text(one.orientation)}, which are not two unit vectors at "
                "right angles; repair its header",
            )
        if min(one.spacing or (0.0,)) <= 0:
            raise ImageError(path, f"PixelSpacing of {one.name} is {_text(one.spacing)}; repair its header")


def _stated(values: tuple[float, ...] | None) -> bool:
    return values is not None and bool(np.isfinite(values).all())


def _check_alike(path: Path, planes: Sequence[Plane]) -> None:
    """Refuse slices that cannot belong to one volume, and say which differ from the others."""
    _refuse_mixed(path, planes, "size (rows x columns)", ["{} x {}".format(*one.size) for one in planes])
    spacings = np.array([one.spacing for one in planes])
    _refuse_mixed(path, planes, "pixel spacing", _nearest(spacings, spacings.max() * SPACING))
    _refuse_mixed(path, planes, "orientation", _nearest(np.array([one.orientation for one in planes]), ANGLE))
    for what in planes[0].alike:
        _refuse_mixed(path, planes, what, [one.alike[what] or "not stated" for one in planes])
    if planes[0].alike["samples per pixel"] != "1":
        raise ImageError(path, "its slices are in colour; only volumes of one value per voxel are read")
    if planes[0].header.get("ModalityLUTSequence"):
        raise ImageError(path, "its slices carry a lookup table instead of slope and intercept; convert them first")


def _nearest(values: np.ndarray, tolerance: float) -> list[str]:
    """Return one text for each vector; those that agree with an earlier one get its text."""
    seen: list[np.ndarray] = []
    texts = []
    for value in values:
        found = next((other for other in seen if np.abs(other - value).max() <= tolerance), None)
        if found is None:
            seen.append(found := value)
        texts.append(_text(found.tolist()))
    return texts


def _refuse_mixed(path: Path, planes: Sequence[Plane], what: str, values: Sequence[str]) -> None:
    groups: dict[str, list[Plane]] = {}
    for value, one in zip(values, planes, strict=True):
        groups.setdefault(value, []).append(one)
    if len(groups) > 1:
        parts = sorted(groups.items(), key=lambda pair: -len(pair[1]))
        said = "; ".join(f"{text}: {len(members)} ({_names(members)})" for text, members in parts[:4])
        more = f"; and {len(parts) - 4} more" if len(parts) > 4 else ""
        raise ImageError(
            path, f"its {len(planes)} slices differ in {what}: {said}{more}; keep those of one volume in a folder"
        )


def _check_distances(path: Path, planes: Sequence[Plane], along: np.ndarray, same: float) -> None:
    """Refuse two slices at one place, missing slices and uneven distances."""
    gaps = np.diff(along)
    if (gaps < same).any():
        _refuse_duplicates(path, planes, along, gaps < same)
    step = (along[-1] - along[0]) / (len(along) - 1)
    if np.abs(along - along[0] - step * np.arange(len(along))).max() <= STEP * step:
        return
    usual = float(np.sort(gaps)[(len(gaps) - 1) // 2])
    counts = gaps / usual
    wide = counts > 1.5
    missing = np.rint(counts) - 1
    if wide.any() and np.abs(counts - missing - 1).max() <= 0.25:
        holes = [
            f"{int(missing[i])} between {along[i]:.2f} mm ({planes[i].name}) and {along[i + 1]:.2f} mm "
            f"({planes[i + 1].name})"
            for i in np.flatnonzero(wide)
        ]
        raise ImageError(
            path,
            f"{int(missing.sum())} of {len(planes) + int(missing.sum())} slices are missing: {_few(holes)}; slices are "
            f"{usual:.3f} mm apart along the normal; get the lost files again",
        )
    distances, times = np.unique(np.round(gaps, 2), return_counts=True)
    said = [
        f"{gap:.2f} mm ({count} times)"
        for gap, count in sorted(zip(distances, times, strict=True), key=lambda p: -p[1])
    ]
    worst = int(np.abs(gaps - usual).argmax())
    raise ImageError(
        path,
        f"its slices are not evenly spaced: {_few(said)}; for instance {gaps[worst]:.2f} mm between "
        f"{planes[worst].name} and {planes[worst + 1].name} (at {along[worst]:.2f} and {along[worst + 1]:.2f} mm); "
        "separate the parts, or resample them to one grid first",
    )


def _refuse_duplicates(path: Path, planes: Sequence[Plane], along: np.ndarray, joined: np.ndarray) -> None:
    clusters = np.split(np.arange(len(planes)), np.flatnonzero(~joined) + 1)
    shared = [[planes[i] for i in cluster] for cluster in clusters if len(cluster) > 1]
    first = shared[0]
    place = f"{along[joined.argmax()]:.2f} mm: {_names(first)}"
    several = {
        what: sorted({one.tells.get(what, "none") for one in planes})
        for what in sorted({what for one in planes for what in one.tells})
        if any(len({one.tells.get(what) for one in members}) > 1 for members in shared)
    }
    if several:
        why = "they differ in " + ", ".join(f"{what} ({_few(values)})" for what, values in several.items())
        todo = "these are several volumes: put each into a folder of its own"
    elif first[0].identity and len({one.identity for one in first}) == 1:
        why, todo = "they are copies of one image", "remove the copies"
    else:
        why, todo = "nothing in their headers tells them apart", "keep one slice for each place"
    raise ImageError(
        path, f"several slices lie at {len(shared)} of {len(clusters)} positions (at {place}); {why}; {todo}"
    )


def _drift(
    path: Path, planes: Sequence[Plane], beside: np.ndarray, pixel: np.ndarray, step: float
) -> tuple[float, float]:
    """Return by how many pixels (x, y) each slice lies beside the one before: the tilt of a gantry.

    Raises:
        ImageError: single slices lie beside the others, or the tilt is too steep to be one.
    """
    counts = np.arange(len(beside))[:, None]
    if np.abs(beside).max() <= BESIDE:
        return 0.0, 0.0
    centred = counts - counts.mean()
    drift = (centred * beside).sum(0) / (centred**2).sum()
    off = np.abs(beside - beside.mean(0) - centred * drift).max(1)
    if off.max() > BESIDE:
        worst = int(off.argmax())
        raise ImageError(
            path,
            f"its slices do not lie above each other: {planes[worst].name} is {off[worst]:.1f} pixels beside the line "
            "through the others; separate the parts",
        )
    degrees = float(np.degrees(np.arctan2(np.linalg.norm(drift * pixel[::-1]), step)))
    if degrees > STEEPEST:
        raise ImageError(
            path,
            f"its slices lie beside each other more than above: {degrees:.0f} degrees from their normal; the positions "
            "or orientations in their headers are wrong; repair them",
        )
    _log.info("%s: the gantry was tilted by %.1f degrees; resampled to a straight grid", path, degrees)
    return float(drift[0]), float(drift[1])


def _names(planes: Sequence[Plane]) -> str:
    return _few([one.name for one in planes])


def _few(texts: Sequence[str], most: int = 3) -> str:
    more = len(texts) - most
    return ", ".join(texts[:most]) + (f" and {more} more" if more > 0 else "")


def _text(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "\\".join(_text(one) for one in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
