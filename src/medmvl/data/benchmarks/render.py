"""Virtual patients and their pictures: where every pixel lies in the patient, and what is true about it.

A patient is a size and a smooth deformation of the atlas; a study is a pose on the scanner's table, a plane, and,
in half of the studies, a lesion. Pictures follow the radiological convention: on axial and coronal pictures the
patient's right is on the left-hand side; on sagittal ones anterior is on the left-hand side.
"""

from dataclasses import dataclass

import numpy as np

from medmvl.data.benchmarks.atlas import PARTS, REGIONS, Atlas

PLANES = ("axial", "coronal", "sagittal")
SIDES = ("left", "right")
FIELD_OF_VIEW = 208.0
"""Millimetres that a picture spans, whatever its pixels."""

_CENTRE = np.array([0.0, 17.5, 5.0])  # of the template's brain, LPS millimetres
_PLANE_AXES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}  # column, row, normal
_ROW_SIGN = {"axial": 1.0, "coronal": -1.0, "sagittal": -1.0}  # rows grow to posterior, inferior, inferior
_RADII = {"small": (6.5, 8.5), "large": (13.0, 17.0)}  # millimetres
TISSUE = 0.15  # signal above which there is tissue that a lesion can change
_EDGE = 1.0  # millimetres over which a lesion fades out
_MIN_PART = 0.006  # share of the picture that a part covers before it is worth a box


@dataclass(frozen=True)
class Patient:
    """An anatomy: atlas point = u + warp(u) + centre, where u is the point in the head, scaled.

    Attributes:
        scale: atlas millimetres per patient millimetre (x, y, z).
        amplitude, frequency, phase: of the waves that deform it; [waves, 3], [waves, 3], [waves, 3].
    """

    scale: np.ndarray
    amplitude: np.ndarray
    frequency: np.ndarray
    phase: np.ndarray

    def to_atlas(self, head: np.ndarray) -> np.ndarray:
        """Map points [n, 3] of the head (millimetres, LPS, its centre at 0) to the atlas, in the points' precision."""
        scaled = head * self.scale.astype(head.dtype)
        return scaled + self._warp(scaled) + _CENTRE.astype(head.dtype)

    def grid_to_atlas(self, start: np.ndarray, steps: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
        """Map the points of a regular grid to the atlas, much faster than `to_atlas` would.

        Args:
            start: the head's point of voxel (0, 0, 0).
            steps: [3, 3], one row each for a step along the grid's x, y and z.
            size: voxels along x, y and z.

        Returns:
            float32 [n, 3], z slowest, x fastest; columns are contiguous.
        """
        begin, moves = start * self.scale, steps * self.scale
        nx, ny, nz = (np.arange(length) for length in size)
        # A wave's phase is a sum over the grid's axes, so its sine is a sum of products of one factor per axis; so is
        # the undeformed place. Together: a [3 nz, 9] by [9, ny nx] product.
        wave = [
            np.exp(1j * np.outer(turn(self.frequency, move[:, None]), n))
            for move, n in zip(moves, (nx, ny, nz), strict=True)
        ]
        lead = np.exp(1j * (turn(self.frequency, begin[:, None]) + self.phase)) * self.amplitude  # [waves, axes]
        along = lead.T[:, None] * wave[2].T  # [axes, nz, waves]
        plane = (wave[1][:, :, None] * wave[0][:, None]).reshape(len(lead), -1)  # [waves, ny nx]
        ones = np.ones((len(ny), len(nx)))
        straight = np.stack([ones * nx, ones * ny[:, None], ones]).reshape(3, -1)
        places = np.empty((3, len(nz), 3))
        places[:, :, 0], places[:, :, 1] = moves[0][:, None], moves[1][:, None]
        places[:, :, 2] = (begin + _CENTRE)[:, None] + moves[2][:, None] * nz
        left = np.concatenate([along.real, along.imag, places], 2).reshape(3 * len(nz), -1)
        right = np.concatenate([plane.imag, plane.real, straight])
        return turn(left.astype(np.float32), right.astype(np.float32)).reshape(3, -1).T

    def from_atlas(self, points: np.ndarray) -> np.ndarray:
        """Map atlas points [n, 3] to the head; the inverse of `to_atlas` within a thousandth of a millimetre."""
        target = points - _CENTRE
        scaled = target
        for _ in range(20):  # the warp is gentle, so each round shrinks the error
            scaled = target - self._warp(scaled)
        return scaled / self.scale

    def _warp(self, scaled: np.ndarray) -> np.ndarray:
        amplitude, frequency, phase = (
            values.astype(scaled.dtype) for values in (self.amplitude, self.frequency, self.phase)
        )
        angle = turn(scaled, frequency.T)
        return (amplitude * np.sin(angle[:, :, None] + phase)).sum(1)


@dataclass(frozen=True)
class Study:
    """One picture and the truth about it.

    Attributes:
        pixels: uint8 [size, size].
        plane, present ("yes"/"no"), bright ("bright"/"dark"), size, side, structure: the answers; "none" where the
            picture does not tell (no lesion; the side on a sagittal picture).
        column, row: eighths of the picture ("0".."7") in which the lesion's centre lies, or "none".
        lesion: bool [size, size], pixels of the lesion; all False without one.
        lesion_head: the lesion's centre in the head, LPS millimetres (x > 0 is the patient's left), or None.
        boxes: part name (or "lesion") -> (x0, y0, x1, y1) in pixels, upper corner exclusive.
        affine: float64 [3, 3], (column, row, 1) of a pixel's centre -> scanner millimetres (LPS).
    """

    pixels: np.ndarray
    plane: str
    present: str
    bright: str
    size: str
    side: str
    structure: str
    column: str
    row: str
    lesion: np.ndarray
    lesion_head: np.ndarray | None
    boxes: dict[str, tuple[float, float, float, float]]
    affine: np.ndarray

    @property
    def attributes(self) -> dict[str, str]:
        """The answers by name, as they stand in `meta.attributes`."""
        names = ("plane", "present", "bright", "size", "side", "structure", "column", "row")
        return {name: getattr(self, name) for name in names}


def make_patient(rng: np.random.Generator) -> Patient:
    """Draw an anatomy: up to 8 % larger or smaller, 4 % more along one axis, deformed by up to some 5 mm."""
    waves = 3
    direction = rng.normal(size=(waves, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    return Patient(
        scale=rng.uniform(0.92, 1.08) * rng.uniform(0.96, 1.04, 3),
        amplitude=rng.uniform(-2.0, 2.0, (waves, 3)),
        frequency=direction * (2 * np.pi / rng.uniform(90.0, 160.0, (waves, 1))),
        phase=rng.uniform(0, 2 * np.pi, (waves, 3)),
    )


@dataclass(frozen=True)
class Case:
    """What a study is about, before anything is rendered.

    Attributes:
        rotation, shift: the head's pose: scanner point = rotation.T @ head point + shift (LPS millimetres).
        structure, side, extent, radius, centre: of the lesion that is there or might be; `centre` lies in the head.
        present, bright: whether there is one, and how it looks.
    """

    rotation: np.ndarray
    shift: np.ndarray
    structure: str
    side: str
    extent: str
    radius: float
    centre: np.ndarray
    present: bool
    bright: bool

    @property
    def answers(self) -> dict[str, str]:
        """The answers about the lesion: present, bright, size, side, structure; "none" without one."""
        told = {
            "bright": "bright" if self.bright else "dark",
            "size": self.extent,
            "side": self.side,
            "structure": self.structure,
        }
        if not self.present:
            return {"present": "no", **dict.fromkeys(told, "none")}
        return {"present": "yes", **told}


def draw_case(atlas: Atlas, patient: Patient, rng: np.random.Generator) -> Case:
    """Draw pose and lesion. Its place is drawn whether or not there is one, so that no layout betrays it."""
    rotation = rotation_matrix(np.radians(rng.uniform(-1, 1, 3) * (12.0, 10.0, 10.0)))
    shift = rng.uniform(-6.0, 6.0, 3)
    structure, side, extent = (str(rng.choice(names)) for names in (REGIONS, SIDES, tuple(_RADII)))
    radius = rng.uniform(*_RADII[extent])
    seeds = atlas.seeds[structure, side]
    clear = seeds[np.abs(seeds[:, 0]) > max(10.0, 0.85 * radius)]  # a large lesion must not reach over the midline
    centre = patient.from_atlas(clear[rng.integers(len(clear))][None])[0]
    present, bright = bool(rng.random() < 0.5), bool(rng.random() < 0.5)
    return Case(rotation, shift, structure, side, extent, radius, centre, present, bright)


def make_study(atlas: Atlas, patient: Patient, plane: str, size: int, rng: np.random.Generator) -> Study:
    """Draw and render one study.

    The place of the slice is drawn as if there were a lesion, so that it tells nothing about whether there is one.

    Args:
        atlas: from `load_atlas`.
        patient: whose head it is.
        plane: one of PLANES.
        size: pixels along each side.
        rng: the study's own generator.
    """
    case = draw_case(atlas, patient, rng)
    rotation, shift, centre = case.rotation, case.shift, case.centre
    affine = _affine(plane, size, (rotation.T @ centre + shift) + rng.uniform(-1.5, 1.5))
    head = _head_points(size, affine, rotation, shift)
    points = patient.to_atlas(head)
    # Two layers of the slab, a half of its thickness apart, straight along its normal.
    normal = (rotation[:, _PLANE_AXES[plane][2]] * rng.uniform(1.0, 4.0) / 4).astype(np.float32)
    deeper = normal * patient.scale.astype(np.float32)
    layers = np.concatenate([points - deeper, points + deeper])
    tissue = sample_template(atlas, layers).reshape(2, size, size)
    layers = np.concatenate([head - normal, head + normal])
    fade = lesion_shape(layers, centre, case.radius, rng).reshape(2, size, size) * (tissue > TISSUE)
    level = lesion_level(case.bright, rng)
    if case.present:
        tissue = tissue * (1 - fade) + level * fade
    lesion = (fade.mean(0) > 0.5) & case.present
    boxes = _part_boxes(atlas, points, size)
    if case.present:
        boxes["lesion"] = _box(lesion)
    column, row = _eighths(boxes["lesion"], size) if case.present else ("none", "none")
    answers = case.answers
    if plane == "sagittal":
        answers["side"] = "none"
    return Study(
        pixels=_expose(tissue.mean(0), rng),
        plane=plane,
        **answers,
        column=column,
        row=row,
        lesion=lesion,
        lesion_head=centre if case.present else None,
        boxes=boxes,
        affine=affine,
    )


def rotation_matrix(angles: np.ndarray) -> np.ndarray:
    """Return the rotation [3, 3] about x, then y, then z by `angles` in radians."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def _affine(plane: str, size: int, through: np.ndarray) -> np.ndarray:
    """Return (column, row, 1) -> scanner millimetres of the plane that runs through a point."""
    column, row, normal = _PLANE_AXES[plane]
    pitch = FIELD_OF_VIEW / size
    affine = np.zeros((3, 3))
    affine[column, 0] = pitch
    affine[row, 1] = pitch * _ROW_SIGN[plane]
    affine[column, 2] = -pitch * (size - 1) / 2
    affine[row, 2] = -pitch * (size - 1) / 2 * _ROW_SIGN[plane]
    affine[normal, 2] = through[normal]
    return affine


def _head_points(size: int, affine: np.ndarray, rotation: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Return the points [size * size, 3] of the head that the pixels show, row by row; float32."""
    rows, columns = np.mgrid[:size, :size]
    pixels = np.stack([columns.ravel(), rows.ravel(), np.ones(size * size)], axis=1)
    return turn(turn(pixels, affine.T) - shift, rotation.T).astype(np.float32)


def turn(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return points [n, 3] @ matrix [3, k], without the threads that a BLAS would start in every worker."""
    return np.einsum("ij,jk->ik", points, matrix)


def sample_template(atlas: Atlas, points: np.ndarray) -> np.ndarray:
    """Return the template at atlas points [n, 3] by trilinear interpolation, 0 outside; float32 [n]."""
    array = atlas.template
    depth, height, width = array.shape
    place = (points - atlas.template_origin.astype(np.float32)) / atlas.template_spacing.astype(np.float32)
    place = np.clip(place, 0, np.array([width, height, depth], np.float32) - 1.001)  # the border is empty
    low = place.astype(np.int32)
    fx, fy, fz = (place - low).T
    start = (low[:, 2] * height + low[:, 1]) * width + low[:, 0]
    flat = array.ravel()
    value = np.zeros(len(points), np.float32)
    for dz, wz in ((0, 1 - fz), (height * width, fz)):
        for dy, wy in ((0, 1 - fy), (width, fy)):
            corner = start + (dz + dy)
            value += wz * wy * (flat[corner] * (1 - fx) + flat[corner + 1] * fx)
    return value


def lesion_shape(head: np.ndarray, centre: np.ndarray, radius: float, rng: np.random.Generator) -> np.ndarray:
    """Return how much of each point [n, 3] is lesion, 0..1: an ellipsoid with a soft, slightly wavy edge."""
    axes = rotation_matrix(rng.uniform(0, 2 * np.pi, 3))
    stretch = rng.uniform(0.85, 1.15, 3)
    waves, phase = rng.normal(0, 1.5, 3), rng.uniform(0, 2 * np.pi)
    shape = axes.T / (stretch / stretch.prod() ** (1 / 3))
    local = turn(head - centre.astype(np.float32), shape.astype(np.float32))
    reach = np.sqrt((local**2).sum(1))
    unit = turn(local, waves.astype(np.float32)[:, None])[:, 0] / np.maximum(reach, 1e-6)
    edge = radius * (1 + 0.06 * np.sin(3 * unit + phase))
    return np.clip(0.5 + (edge - reach) / (2 * _EDGE), 0, 1)


def lesion_level(bright: bool, rng: np.random.Generator) -> float:
    """Return the signal inside a lesion, white matter being 1: above or below that of all tissue."""
    return rng.uniform(1.3, 1.45) if bright else rng.uniform(0.08, 0.2)


def _expose(tissue: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return uint8 pixels with a drawn brightness, contrast, coil shading and (Rician) noise."""
    size = len(tissue)
    white, gamma, noise = rng.uniform(135, 170), rng.uniform(0.9, 1.2), rng.uniform(2.0, 7.0)
    slope = rng.uniform(-0.08, 0.08, 2)
    ramp = np.linspace(-1, 1, size)
    shading = 1 + slope[0] * ramp[:, None] + slope[1] * ramp[None]
    real, imaginary = rng.normal(0, noise, (2, size, size))
    signal = white * shading * np.maximum(tissue, 0) ** gamma
    return np.clip(np.hypot(signal + real, imaginary) + 0.5, 0, 255).astype(np.uint8)


def _part_boxes(atlas: Atlas, points: np.ndarray, size: int) -> dict[str, tuple[float, float, float, float]]:
    """Return the box of every part that covers enough of the slice; points [size * size, 3] lie in the atlas."""
    depth, height, width = atlas.parts.shape
    origin, spacing = atlas.parts_origin.astype(np.float32), atlas.parts_spacing.astype(np.float32)
    index = np.rint((points - origin) / spacing).astype(np.int32)
    inside = ((index >= 0) & (index < (width, height, depth))).all(1)
    codes = np.zeros(len(points), np.uint8)
    codes[inside] = atlas.parts[index[inside, 2], index[inside, 1], index[inside, 0]]
    counts = np.bincount(codes, minlength=len(PARTS) + 1)
    grid = codes.reshape(size, size)
    return {
        part: _box(grid == code, ragged=max(1, size // 32))
        for code, part in enumerate(PARTS, start=1)
        if counts[code] > _MIN_PART * size * size
    }


def _box(mask: np.ndarray, ragged: int = 1) -> tuple[float, float, float, float]:
    """Return the box of a mask's rows and columns that hold at least `ragged` of its pixels."""
    per_column, per_row = mask.sum(0), mask.sum(1)
    columns = np.flatnonzero(per_column >= min(ragged, per_column.max()))
    rows = np.flatnonzero(per_row >= min(ragged, per_row.max()))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _eighths(box: tuple[float, float, float, float], size: int) -> tuple[str, str]:
    x0, y0, x1, y1 = box
    return str(int(4 * (x0 + x1) / size)), str(int(4 * (y0 + y1) / size))
