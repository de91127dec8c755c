"""Left and right swapped, as in a mirror, with the map that carries boxes along."""

from __future__ import annotations

import dataclasses

import numpy as np

from medmvl.imaging.fit import Fitted
from medmvl.imaging.geometry import chain, scaling, translation
from medmvl.imaging.picture import ImageError, Picture


def mirrored_picture(picture: Picture) -> tuple[Picture, np.ndarray]:
    """Reverse the columns of a picture.

    A picture that states no place in the patient is taken to have left and right along its rows; whether it shows them
    at all is for the caller to know.

    Returns:
        The picture (no place in the patient any more) and the affine float64 [2, 3] from the given picture's frame to
        the mirrored one's. Boxes follow by `geometry.transform_box`.

    Raises:
        ImageError: by its own geometry the picture's rows do not run between left and right.
    """
    if picture.direction is not None:
        along = np.abs(picture.direction[:3])
        if along.argmax() != 0:
            seen = "from front to back" if along.argmax() == 1 else "from head to foot"
            raise ImageError(picture.path, f"its rows run {seen}: a mirror would not swap left and right in it")
    changed = dataclasses.replace(picture, array=picture.array[:, ::-1], origin=None, direction=None)
    return changed, _flip(2, 0, picture.size[1])


def mirrored_volume(fitted: Fitted, orientation: str, path: str) -> Fitted:
    """Turn a fitted volume round along the patient's left-right axis.

    It is mirrored after it was fitted, so that what the cache of prepared volumes holds serves both views.

    Args:
        fitted: the volume on its spec's grid; it is left as it is.
        orientation: of the spec (see `VisionSpec.orientation`).
        path: the volume's address, for the message.

    Returns:
        The mirrored volume; its `to_spec` still begins in the frame of the file.

    Raises:
        ImageError: the file does not say which way is left.
    """
    if not fitted.oriented:
        raise ImageError(
            path,
            "does not say where its axes point, so left and right are unknown and cannot be swapped; if you know where "
            "slice, row and column indices grow to, say so: '#orientation=SPL' after the path",
        )
    axis = next(number for number, letter in enumerate(orientation) if letter in "LR")
    flip = _flip(3, 2 - axis, fitted.values.shape[axis])
    return dataclasses.replace(fitted, values=np.flip(fitted.values, axis), to_spec=chain(fitted.to_spec, flip))


def _flip(axes: int, which: int, length: int) -> np.ndarray:
    """Return the affine [n, n+1] that turns coordinate number `which` (x is 0) round between 0 and `length`."""
    own = [number == which for number in range(axes)]
    turned = scaling(*(-1.0 if it else 1.0 for it in own))
    return chain(turned, translation(*(float(length) if it else 0.0 for it in own)))
