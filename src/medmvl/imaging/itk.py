"""Reads volumes through SimpleITK."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from medmvl.imaging.address import Address
from medmvl.imaging.orient import from_file
from medmvl.imaging.picture import ImageError
from medmvl.imaging.volume import Volume


def read_itk(file: Path, address: Address) -> Volume:
    """Read a volume in the first format of SimpleITK that knows the file."""
    try:
        image = sitk.ReadImage(str(file))
    except RuntimeError as error:
        raise ImageError(file, f"cannot be read ({error})") from error
    if image.GetDimension() != 3:
        raise ImageError(file, f"has {image.GetDimension()} axes; a volume has 3")
    direction = np.reshape(image.GetDirection(), (3, 3)).T.ravel()
    unit = "HU" if address.hu is not None else address.unit or ""
    return from_file(
        sitk.GetArrayFromImage(image), image.GetSpacing()[::-1], image.GetOrigin(), direction, address.given, unit=unit
    )
