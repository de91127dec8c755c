"""From a picture or volume to the pixels an encoder expects, with the map that carries boxes along."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from medmvl.imaging.fit import WHITE, fit_volume
from medmvl.imaging.geometry import chain, scaling, translation
from medmvl.imaging.intensity import to_display
from medmvl.imaging.picture import Picture, check_pixels
from medmvl.imaging.spec import VisionSpec
from medmvl.imaging.volume import Volume

_BYTE = 255
_NEUTRAL = 128  # mid grey of 8 bit


@dataclass(frozen=True, eq=False)
class Prepared:
    """What an encoder is fed.

    Attributes:
        pixels: float32 [C, H, W] or [C, D, H, W], normalised.
        to_spec: float64 [2, 3] or [3, 4], continuous (x, y(, z)) of the file's frame -> of the prepared frame (see
            `geometry`).
    """

    pixels: np.ndarray
    to_spec: np.ndarray


def prepare(picture: Picture | Volume, spec: VisionSpec) -> Prepared:
    """Show, lay out, resample and normalise a picture as `spec` says; for volumes see `fit_volume`.

    Resampling of pictures is Pillow's on the 8-bit picture, as in the PIL image processors of transformers, so results
    equal theirs. Grey is repeated to three channels after resampling; colour becomes luminance (ITU-R 601) for a
    one-channel spec before.

    Raises:
        ValueError: a picture and a spec for volumes, or the other way round.
        ImageError: a picture so long and thin that `fit` would blow it up beyond the limit on pixels, or what
            `fit_volume` refuses.
    """
    if isinstance(picture, Volume):
        fitted = fit_volume(picture, spec)
        return Prepared(normalise(fitted.values, spec), fitted.to_spec)
    height, width = _plane(spec)
    image = Image.fromarray(to_display(picture))
    if spec.channels == 1 and image.mode != "L":
        image = image.convert("L")
    if spec.fit == "crop":
        image, to_spec = _crop(picture.path, image, spec, height, width)
    else:
        image, padded = _pad(picture.path, image, spec) if spec.fit == "pad" else (image, np.eye(3)[:2])
        image, scaled = _resize(image, height, width, spec)
        to_spec = chain(padded, scaled)
    return Prepared(_normalise(np.asarray(image), spec), to_spec)


def normalise(values: np.ndarray, spec: VisionSpec) -> np.ndarray:
    """Turn stored values of a fitted volume (see `Fitted`) into what the encoder takes.

    Args:
        values: [D, H, W], int16 or uint8 as `spec.levels` says.
        spec: the spec the volume was fitted to.

    Returns:
        float32 [C, D, H, W]; grey is repeated for three channels.

    Raises:
        ValueError: other values than the spec's levels or size ask for.
    """
    white = WHITE[spec.levels]
    dtype = np.uint8 if white == _BYTE else np.int16
    if values.dtype != dtype or values.shape != spec.size:
        raise ValueError(
            f"the spec's volumes are {np.dtype(dtype)} of size {spec.size} (levels {spec.levels!r}), got "
            f"{values.dtype} of size {values.shape}; fit the volume to this spec"
        )
    gain, offset = _affine(spec)
    return _scaled(np.broadcast_to(values, (spec.channels, *values.shape)), gain * np.float32(_BYTE / white), offset)


def blank(spec: VisionSpec) -> np.ndarray:
    """Return an even mid-grey picture (128 of 255), normalised: float32 [C, H, W], [C, D, H, W] for a volume spec."""
    gain, offset = _affine(spec)
    values = (_NEUTRAL * gain + offset).reshape(-1, *[1] * len(spec.size))
    return np.broadcast_to(values, (spec.channels, *spec.size)).copy()


def _plane(spec: VisionSpec) -> tuple[int, int]:
    if len(spec.size) != 2:
        raise ValueError(f"a picture cannot be prepared for the volume spec of size {spec.size}; use a 2D encoder")
    return spec.size[0], spec.size[1]


def _resize(image: Image.Image, height: int, width: int, spec: VisionSpec) -> tuple[Image.Image, np.ndarray]:
    affine = scaling(width / image.width, height / image.height)
    if image.size == (width, height):
        return image, affine
    return image.resize((width, height), Image.Resampling[spec.resample.upper()]), affine


def _crop(path: str, image: Image.Image, spec: VisionSpec, height: int, width: int) -> tuple[Image.Image, np.ndarray]:
    edge = spec.edge
    if isinstance(edge, int):
        short = min(image.size)
        # Rounded down, as torchvision and transformers do.
        target = int(edge * image.height / short), int(edge * image.width / short)
    else:
        target = edge or (image.height, image.width)
    check_pixels(path, *target)
    image, scaled = _resize(image, *target, spec)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    if (left, top) != (0, 0) or image.size != (width, height):
        image = image.crop((left, top, left + width, top + height))  # black outside the picture
    return image, chain(scaled, translation(-left, -top))


def _pad(path: str, image: Image.Image, spec: VisionSpec) -> tuple[Image.Image, np.ndarray]:
    side = max(image.size)
    check_pixels(path, side, side)
    left, top = (side - image.width) // 2, (side - image.height) // 2
    if image.width != image.height:
        # The colour that normalises to about zero, rounded down as in LLaVA.
        color = tuple(int(min(max(value / spec.rescale, 0), 255)) for value in spec.mean)
        grey = len(set(color)) == 1
        if image.mode == "L" and not grey:
            image = image.convert("RGB")
        canvas = Image.new(image.mode, (side, side), color[0] if image.mode == "L" else color)
        canvas.paste(image, (left, top))
        image = canvas
    return image, translation(left, top)


def _affine(spec: VisionSpec) -> tuple[np.ndarray, np.ndarray]:
    """Gain and offset per channel, float32 [C]: (x * rescale - mean) / std in one step."""
    mean, std = np.array(spec.mean), np.array(spec.std)
    return (spec.rescale / std).astype(np.float32), (-mean / std).astype(np.float32)


def _normalise(image: np.ndarray, spec: VisionSpec) -> np.ndarray:
    """uint8 [H, W] or [H, W, 3] -> float32 [C, H, W]."""
    gain, offset = _affine(spec)
    planes = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
    return _scaled(np.broadcast_to(planes, (spec.channels, *image.shape[:2])), gain, offset)


def _scaled(planes: np.ndarray, gain: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """[C, ...] of any integers -> float32 [C, ...], channel by channel times gain [C] plus offset [C]."""
    pixels = np.empty(planes.shape, np.float32)
    for plane, out, factor, term in zip(planes, pixels, gain, offset, strict=True):
        np.multiply(plane, factor, out=out)
        out += term
    return pixels
