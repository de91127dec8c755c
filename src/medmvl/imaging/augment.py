"""Random changes for training that keep left left, decided by a seed alone, with boxes riding along."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from medmvl.imaging.geometry import chain, identity, invert, rotation, scaling, translation
from medmvl.imaging.intensity import to_display
from medmvl.imaging.picture import Picture
from medmvl.imaging.volume import CANONICAL

_WHITE = {np.dtype(np.uint8): 255, np.dtype(np.int16): 32767}


class Augmentation(BaseModel):
    """How far a picture or volume may be changed; every amount is drawn evenly from its range, 0 turns it off.

    Attributes:
        rotate: up to so many degrees either way, volumes about each of their three axes; at most 45, for half a turn
            would swap the sides.
        scale: size times 1 - scale to 1 + scale.
        shift: up to this share of width and height (and depth) either way.
        brightness: grey values plus or minus up to this share of white.
        contrast: distance from the mean times 1 - contrast to 1 + contrast.
        noise: Gaussian noise with a standard deviation of up to this share of white.
        mirror: True swaps left and right half of the time. Off by default: reports name sides, and organs have one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rotate: float = Field(default=0.0, ge=0, le=45)
    scale: float = Field(default=0.0, ge=0, lt=1)
    shift: float = Field(default=0.0, ge=0, lt=1)
    brightness: float = Field(default=0.0, ge=0, le=1)
    contrast: float = Field(default=0.0, ge=0, lt=1)
    noise: float = Field(default=0.0, ge=0, le=1)
    mirror: bool = False


def augment(picture: Picture, policy: Augmentation, seed: Sequence[int | str]) -> tuple[Picture, np.ndarray]:
    """Change a picture as `policy` allows.

    The result depends on the picture, the policy and the seed only: not on the process, the worker, the order of
    calls or Python's hash seed. Amounts are drawn in a fixed order whether or not they are used, so turning one on
    leaves the others as they were.

    Args:
        picture: any picture; it is brought to 8 bit first (see `intensity.to_display`).
        policy: ranges of the changes.
        seed: identifies the draw, for example (seed, epoch, sample id).

    Returns:
        The changed picture (uint8, same size, black where nothing was; spacing divided by the scale, no place
        in the patient any more) and the affine
        float64 [2, 3] from the given picture's frame to the changed one's. Boxes follow by
        `geometry.transform_box(coords, affine, picture.size)`.
    """
    generator = generator_of(seed)
    draws = generator.uniform(-1.0, 1.0, 7)
    turn, grow, right, down, brighter, stronger, side = draws.tolist()
    display = to_display(picture)
    height, width = picture.size
    factor = 1 + policy.scale * grow
    mirrored = policy.mirror and side < 0
    affine = chain(
        translation(-width / 2, -height / 2),
        scaling(-factor if mirrored else factor, factor),
        rotation(policy.rotate * turn),
        translation(width * (0.5 + policy.shift * right), height * (0.5 + policy.shift * down)),
    )
    moved = policy.rotate or policy.scale or policy.shift or mirrored
    if moved:
        display = _warp(display, affine)
    else:
        affine = np.eye(3)[:2]
    sigma = policy.noise * generator.uniform()
    brighter, stronger = policy.brightness * brighter, 1 + policy.contrast * stronger
    grains = (height, width, *[1] * (display.ndim - 2))
    display = _values(display, brighter, stronger, sigma, generator, grains)
    spacing = None if picture.spacing is None else (picture.spacing[0] / factor, picture.spacing[1] / factor)
    changed = {"array": display, "spacing": spacing, "origin": None, "direction": None}
    return dataclasses.replace(picture, **changed, shown=None, inverted=False), affine


def augment_volume(
    values: np.ndarray,
    policy: Augmentation,
    seed: Sequence[int | str],
    spacing: Sequence[float] | None = None,
    orientation: str = CANONICAL,
) -> tuple[np.ndarray, np.ndarray]:
    """Change a fitted volume as `policy` allows, with the promises of `augment`; resampled once, linearly.

    Rotations are rigid in millimetres, however flat the voxels are: first about the x axis, then y, then z.

    Args:
        values: [D, H, W], int16 or uint8 as `fit.Fitted` holds them; left as they are.
        policy: ranges of the changes.
        seed: identifies the draw, for example (seed, epoch, sample id).
        spacing: (depth, row, column) spacing of the voxels, `Fitted.spacing`; None: the volume is taken for a cube.
        orientation: of the axes (see `VisionSpec.orientation`); tells which one a mirror would swap left and right on.

    Returns:
        The changed values (same size and type, black where nothing was; the given array itself if nothing changed)
        and the affine float64 [3, 4] from the given frame to the changed one's.

    Raises:
        ValueError: values of another type.
    """
    if values.dtype not in _WHITE:
        raise ValueError(f"a fitted volume is int16 or uint8, got {values.dtype}; fit it to its spec first")
    generator = generator_of(seed)
    draws = generator.uniform(-1.0, 1.0, 10)
    turns, shifts, (grow, brighter, stronger, side) = draws[:3], draws[3:6], draws[6:].tolist()
    factor = 1 + policy.scale * grow
    mirrored = policy.mirror and side < 0
    size = np.array(values.shape[::-1], dtype=float)
    steps = 1 / size if spacing is None else np.array(spacing[::-1], dtype=float)
    signs = np.array([-1.0 if mirrored and letter in "LR" else 1.0 for letter in orientation[::-1]])
    affine = chain(
        translation(*-size / 2),
        scaling(*steps * factor * signs),
        _rotation3(policy.rotate * turns),
        scaling(*1 / steps),
        translation(*size * (0.5 + policy.shift * shifts)),
    )
    if policy.rotate or policy.scale or policy.shift or mirrored:
        values = _warp_volume(values, affine)
    else:
        affine = identity(3)
    sigma = policy.noise * generator.uniform()
    brighter, stronger = policy.brightness * brighter, 1 + policy.contrast * stronger
    return _values(values, brighter, stronger, sigma, generator, values.shape), affine


def generator_of(seed: Sequence[int | str]) -> np.random.Generator:
    """Return a random generator that depends on the items of `seed` only, the same on every machine."""
    text = json.dumps([*seed], ensure_ascii=True)
    digest = hashlib.sha256(text.encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def _warp(display: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Pull every pixel of the result from where it was; Pillow counts in pixel edges, as we do."""
    image = Image.fromarray(display)
    back = tuple(invert(affine).ravel().tolist())
    return np.asarray(image.transform(image.size, Image.Transform.AFFINE, back, Image.Resampling.BILINEAR, fillcolor=0))


def _rotation3(degrees: np.ndarray) -> np.ndarray:
    """Return the affine [3, 4] that turns around the origin: about x, then y, then z, by three angles."""
    result = identity(3)
    for axis, (cosine, sine) in enumerate(zip(np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees)), strict=True)):
        one, two = (axis + 1) % 3, (axis + 2) % 3
        turn = identity(3)
        turn[one, one] = turn[two, two] = cosine
        turn[one, two], turn[two, one] = -sine, sine
        result = chain(result, turn)
    return result


def _warp_volume(values: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Pull every voxel of the result from where it was; in float32, for SimpleITK cuts fractions of integers off."""
    import SimpleITK as sitk

    back = invert(affine)
    # SimpleITK counts from the centre of the first voxel, we from its corner.
    matrix, offset = back[:, :3], back[:, 3] + (back[:, :3].sum(1) - 1) / 2
    image = sitk.GetImageFromArray(values.astype(np.float32))
    pull = sitk.ResampleImageFilter()
    pull.SetReferenceImage(image)
    pull.SetInterpolator(sitk.sitkLinear)
    pull.SetNumberOfThreads(1)  # loaders run side by side, one per core
    pull.SetTransform(sitk.AffineTransform(matrix.ravel().tolist(), offset.tolist()))
    result = pull.Execute(image)  # kept as long as the view of its memory
    return (sitk.GetArrayViewFromImage(result) + np.float32(0.5)).astype(values.dtype)


def _values(
    values: np.ndarray,
    brightness: float,
    contrast: float,
    sigma: float,
    generator: np.random.Generator,
    grains: tuple[int, ...],
) -> np.ndarray:
    """Contrast around the mean, then brightness, then noise of shape `grains` (one for all channels of a sensor)."""
    if brightness == 0 and contrast == 1 and sigma == 0:
        return values
    white = _WHITE[values.dtype]
    offset = brightness * white + (1 - contrast) * float(values.mean())
    if sigma == 0:
        table = np.clip(np.arange(white + 1) * contrast + offset + 0.5, 0, white).astype(values.dtype)
        return table[values]
    changed = np.multiply(values, np.float32(contrast), dtype=np.float32)
    noise = generator.standard_normal(grains, dtype=np.float32)
    noise *= np.float32(sigma * white)
    noise += np.float32(offset + 0.5)
    changed += noise
    np.clip(changed, 0, white, out=changed)
    return changed.astype(values.dtype)
