"""Volumes of virtual patients: a scanner's grid, laid on disk in any orientation, and what is true about it.

Patients, poses and lesions are those of the pictures (see `render`). A volume adds what scanners vary: the contrast,
the plane of acquisition with thick slices across it, a slight tilt, spacing, field of view, and the order in which the
file stores its axes.
"""

from dataclasses import dataclass
from itertools import permutations, product

import numpy as np

from medmvl.data.benchmarks.atlas import PARTS, Atlas
from medmvl.data.benchmarks.render import (
    TISSUE,
    Case,
    Patient,
    draw_case,
    lesion_level,
    lesion_shape,
    rotation_matrix,
    sample_template,
    turn,
)

CONTRASTS = ("T1", "T2", "FLAIR")
ORIENTATIONS = tuple((order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3))
"""All 48 ways to store a volume: the patient axis (x, y, z of LPS) that each file axis runs along, and its sense."""

_SIGNAL = (0.0, 0.1, 0.3, 0.7, 0.95, 1.2)  # of the T1 template: air, border, fluid, grey and white matter
_SEEN_AS = {"T2": (0.0, 0.3, 0.95, 0.72, 0.5, 0.5), "FLAIR": (0.0, 0.1, 0.15, 0.9, 0.7, 0.7)}
_FIELD = np.array([178.0, 212.0, 178.0])  # millimetres that hold any head of `make_patient` in most poses
_AIR = 0.02  # signal of the template up to which a voxel is stored as 0, as brain extraction leaves it
_MOST_TILT = 6.0  # degrees
_LESION_REACH = 1.3  # of its radius, which a lesion's waves and stretch never pass
RAGGED = 0.002
"""Share of a part's voxels up to which a plane of them does not widen its box: threads and specks of the atlas."""
_MIN_PART = 0.0005  # share of the volume that a part covers before it is worth a box

Box3D = tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class Grid:
    """Where a file's voxels lie in the scanner; x is the axis that the file stores fastest.

    Attributes:
        size: voxels along x, y, z.
        spacing: millimetres along x, y, z.
        origin: centre of the first voxel, LPS millimetres.
        direction: float64 [3, 3]; its columns are the unit vectors along x, y, z in LPS.
    """

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: np.ndarray


@dataclass(frozen=True)
class VolumeStudy:
    """One volume and the truth about it.

    Attributes:
        values: int16 [z, y, x] in the file's order.
        grid: where they lie.
        contrast, present ("yes"/"no"), bright ("bright"/"dark"), size, side, structure: the answers; "none" without
            lesion.
        column, row, slice: eighths of the volume ("0".."7") in which the lesion's centre lies, growing to the patient's
            left, to posterior and to superior, or "none".
        lesion: bool [z, y, x], voxels of the lesion.
        parts: uint8 [z, y, x], codes of PARTS.
        lesion_head: the lesion's centre in the head, LPS millimetres, or None.
        boxes: part name (or "lesion") -> (x0, y0, z0, x1, y1, z1) in voxels of the file, upper corner exclusive.
    """

    values: np.ndarray
    grid: Grid
    contrast: str
    present: str
    bright: str
    size: str
    side: str
    structure: str
    column: str
    row: str
    slice: str
    lesion: np.ndarray
    parts: np.ndarray
    lesion_head: np.ndarray | None
    boxes: dict[str, Box3D]

    @property
    def attributes(self) -> dict[str, str]:
        """The answers by name, as they stand in `meta.attributes`."""
        names = ("contrast", "present", "bright", "size", "side", "structure", "column", "row", "slice")
        return {name: getattr(self, name) for name in names}


def make_volume(
    atlas: Atlas, patient: Patient, orientation: tuple[tuple[int, ...], tuple[int, ...]], rng: np.random.Generator
) -> VolumeStudy:
    """Draw and render one volume.

    Args:
        atlas: from `load_atlas`.
        patient: whose head it is.
        orientation: one of ORIENTATIONS.
        rng: the study's own generator.
    """
    case = draw_case(atlas, patient, rng)
    grid = _grid(orientation, rng)
    contrast = str(rng.choice(CONTRASTS))
    steps, start = _to_head(grid, case)
    points = patient.grid_to_atlas(start, steps, grid.size)
    shape = grid.size[::-1]
    tissue = sample_template(atlas, points).reshape(shape)
    signal = tissue if contrast == "T1" else np.interp(tissue, _SIGNAL, _SEEN_AS[contrast]).astype(np.float32)
    lesion = np.zeros(shape, bool)
    fade, where = _lesion(grid, case, rng)
    level = lesion_level(case.bright, rng)
    parts = _parts(atlas, points).reshape(shape)
    boxes = _part_boxes(parts)
    if case.present:
        fade = fade * (tissue[where] > TISSUE)
        signal[where] = signal[where] * (1 - fade) + level * fade
        lesion[where] = fade > 0.5
        boxes["lesion"] = box_of(lesion)
    return VolumeStudy(
        values=_expose(signal, tissue > _AIR, rng),
        grid=grid,
        contrast=contrast,
        **case.answers,
        **_eighths(boxes.get("lesion"), grid, orientation),
        lesion=lesion,
        parts=parts,
        lesion_head=case.centre if case.present else None,
        boxes=boxes,
    )


def box_of(mask: np.ndarray, ragged: float = 0.0) -> Box3D:
    """Return the box (x0, y0, z0, x1, y1, z1) around a mask [z, y, x] that is not empty, upper corner exclusive.

    Planes at its ends that hold no more than a share `ragged` of its voxels are left out.
    """
    least = ragged * np.count_nonzero(mask)
    counts = [np.count_nonzero(mask, axis=tuple({0, 1, 2} - {axis})) for axis in (2, 1, 0)]
    spans = [np.flatnonzero(count > least) for count in counts]
    x, y, z = [(float(span[0]), float(span[-1] + 1)) for span in spans]
    return x[0], y[0], z[0], x[1], y[1], z[1]


def _grid(orientation: tuple[tuple[int, ...], tuple[int, ...]], rng: np.random.Generator) -> Grid:
    """Draw plane of acquisition, spacing, field of view and tilt, and lay the axes out as `orientation` says."""
    order, signs = orientation
    normal = int(rng.integers(3))  # the patient axis across the slices
    steps = np.full(3, rng.uniform(2.4, 4.0))
    steps[normal] = rng.uniform(max(3.0, steps[normal]), 8.0)
    lengths = np.rint((_FIELD + rng.uniform(0.0, 24.0, 3)) / steps).astype(int)
    # Half of the scans are straight.
    tilt = rotation_matrix(np.radians(rng.uniform(-1, 1, 3) * _MOST_TILT * (rng.random() < 0.5)))
    direction = tilt[:, order] * signs
    spacing, size = steps[list(order)], lengths[list(order)]
    centre = rng.uniform(-4.0, 4.0, 3)
    origin = centre - (direction * (spacing * (size - 1) / 2)).sum(1)
    return Grid(tuple(size.tolist()), tuple(spacing.tolist()), tuple(origin.tolist()), direction)


def _to_head(grid: Grid, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Return steps [3, 3], one row per file axis, and start [3]: the head's point of voxel i is i @ steps + start."""
    steps = turn((grid.direction * grid.spacing).T, case.rotation.T)
    return steps, turn((np.array(grid.origin) - case.shift)[None], case.rotation.T)[0]


def _lesion(grid: Grid, case: Case, rng: np.random.Generator) -> tuple[np.ndarray, tuple[slice, ...]]:
    """Return how much of each voxel around the lesion is lesion, float32 [z, y, x], and which voxels these are."""
    steps, start = _to_head(grid, case)
    middle = turn((case.centre - start)[None], np.linalg.inv(steps))[0]
    reach = _LESION_REACH * case.radius / np.array(grid.spacing)
    low = np.clip(np.floor(middle - reach), 0, grid.size).astype(int)
    high = np.clip(np.ceil(middle + reach) + 1, 0, grid.size).astype(int)
    x, y, z = (np.arange(a, b)[:, None] * step for a, b, step in zip(low, high, steps, strict=True))
    head = ((z[:, None, None] + start) + y[:, None] + x).astype(np.float32)
    fade = lesion_shape(head.reshape(-1, 3), case.centre, case.radius, rng).reshape(head.shape[:3])
    return fade, tuple(slice(a, b) for a, b in zip(low[::-1], high[::-1], strict=True))


def _parts(atlas: Atlas, points: np.ndarray) -> np.ndarray:
    """Return the codes of PARTS at atlas points [n, 3]; uint8 [n]."""
    depth, height, width = atlas.parts.shape
    origin, spacing = atlas.parts_origin.astype(np.float32), atlas.parts_spacing.astype(np.float32)
    index = np.rint((points - origin) / spacing).astype(np.int32)
    inside = ((index >= 0) & (index < (width, height, depth))).all(1)
    codes = np.zeros(len(points), np.uint8)
    codes[inside] = atlas.parts[index[inside, 2], index[inside, 1], index[inside, 0]]
    return codes


def _part_boxes(parts: np.ndarray) -> dict[str, Box3D]:
    counts = np.bincount(parts.ravel(), minlength=len(PARTS) + 1)
    return {
        part: box_of(parts == code, RAGGED)
        for code, part in enumerate(PARTS, start=1)
        if counts[code] > _MIN_PART * parts.size
    }


def _eighths(box: Box3D | None, grid: Grid, orientation: tuple[tuple[int, ...], tuple[int, ...]]) -> dict[str, str]:
    """Return the eighths of the volume in which the box's centre lies, along the patient's axes."""
    names = ("column", "row", "slice")
    if box is None:
        return dict.fromkeys(names, "none")
    found = {}
    for axis, (patient_axis, sign) in enumerate(zip(*orientation, strict=True)):
        share = (box[axis] + box[axis + 3]) / 2 / grid.size[axis]
        found[names[patient_axis]] = str(min(7, int(8 * (share if sign > 0 else 1 - share))))
    return found


def _expose(signal: np.ndarray, head: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return int16 values with a drawn scale, contrast, coil shading and (Rician) noise; 0 outside the head."""
    white, gamma, noise = rng.uniform(100.0, 400.0), rng.uniform(0.9, 1.2), rng.uniform(0.015, 0.045)
    slopes = rng.uniform(-0.08, 0.08, 3)
    ramps = [1 + slope * np.linspace(-1, 1, length) for slope, length in zip(slopes, signal.shape, strict=True)]
    shading = ramps[0][:, None, None] * ramps[1][:, None] * ramps[2]
    inside = (np.maximum(signal, 0) ** gamma * shading.astype(np.float32))[head]
    real, imaginary = rng.standard_normal((2, len(inside)), np.float32) * np.float32(noise)
    values = np.zeros(signal.shape, np.int16)
    values[head] = white * np.hypot(inside + real, imaginary) + 0.5
    return values
