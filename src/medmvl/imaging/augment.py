"""Random changes for training that keep left left, decided by a seed alone, with boxes riding along."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from medmvl.imaging.geometry import chain, invert, rotation, scaling, translation
from medmvl.imaging.intensity import to_display
from medmvl.imaging.picture import Picture

_BYTE = 255


class Augmentation(BaseModel):
    """How far a picture may be changed; every amount is drawn evenly from its range, 0 turns it off.

    Attributes:
        rotate: up to so many degrees either way; at most 45, for half a turn would swap the sides.
        scale: size times 1 - scale to 1 + scale.
        shift: up to this share of width and height either way.
        brightness: grey values plus or minus up to this share of white.
        contrast: distance from the picture's mean times 1 - contrast to 1 + contrast.
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
    display = _values(display, policy.brightness * brighter, 1 + policy.contrast * stronger, sigma, generator)
    spacing = None if picture.spacing is None else (picture.spacing[0] / factor, picture.spacing[1] / factor)
    changed = {"array": display, "spacing": spacing, "origin": None, "direction": None}
    return dataclasses.replace(picture, **changed, shown=None, inverted=False), affine


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


def _values(
    display: np.ndarray, brightness: float, contrast: float, sigma: float, generator: np.random.Generator
) -> np.ndarray:
    """Contrast around the mean, then brightness, then noise (the same on all channels, as from one sensor)."""
    if brightness == 0 and contrast == 1 and sigma == 0:
        return display
    offset = brightness * _BYTE + (1 - contrast) * float(display.mean())
    if sigma == 0:
        table = np.clip(np.arange(256) * contrast + offset + 0.5, 0, _BYTE).astype(np.uint8)
        return table[display]
    values = np.multiply(display, np.float32(contrast), dtype=np.float32)
    noise = generator.standard_normal(display.shape[:2], dtype=np.float32)
    noise *= np.float32(sigma * _BYTE)
    noise += np.float32(offset + 0.5)
    values += noise if display.ndim == 2 else noise[..., None]
    np.clip(values, 0, _BYTE, out=values)
    return values.astype(np.uint8)
