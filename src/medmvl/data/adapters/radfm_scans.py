"""Scans as RadFM prepared them from Radiopaedia's slices: several in one .npy, or one .nii.gz without true geometry."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from medmvl.core.schema import Image, Volume
from medmvl.data.adapters.base import Adapter, Media
from medmvl.imaging.picture import ImageError
from medmvl.imaging.read import read_volume
from medmvl.imaging.volume import check_voxels

if TYPE_CHECKING:
    import numpy as np

_ARRAYS, _VOLUMES, _PICTURES = (".npy",), (".nii", ".nii.gz"), (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")


class Scans:
    """Turns files of RadFM's lists into media, each file once.

    Its `.npy` are [scan, 3 equal channels, row, column, slice]; its `.nii.gz`, written from slices without geometry,
    have the slices on their last stored axis (unless there are more slices than rows), and claim an orientation that
    nobody measured. Both are written out as uint8 [slice, row, column] that claims none, single slices as pictures;
    values that are no bytes are spread from the file's least to its greatest, as RadFM does while it trains.
    """

    def __init__(self, reader: Adapter) -> None:
        self._reader = reader
        self._known: dict[str, tuple[Media, ...]] = {}

    def media(self, path: str) -> tuple[Media, ...]:
        """Return the pictures and volumes in one file; pictures stay where they are.

        Raises:
            ValueError: no such file, damaged, too large, of another form, or without contrast.
        """
        lower = path.lower()
        if lower.endswith(_PICTURES):
            return (Image(path=path),)
        if path not in self._known:
            if not lower.endswith((*_ARRAYS, *_VOLUMES)):
                raise ValueError(f"{path!r} is no file RadFM reads: {', '.join((*_PICTURES, *_ARRAYS, *_VOLUMES))}")
            scans = _of_array(path) if lower.endswith(_ARRAYS) else _of_nifti(path)
            self._known[path] = tuple(self._written(path, number, scan) for number, scan in enumerate(scans))
        return self._known[path]

    def _written(self, path: str, number: int, scan: np.ndarray) -> Media:
        import numpy as np
        from PIL import Image as Picture

        place = path.removeprefix(str(self._reader.root)).encode()
        name, buffer = f"scans/{hashlib.blake2b(place, digest_size=8).hexdigest()}-{number}", io.BytesIO()
        if len(scan) == 1:
            Picture.fromarray(scan[0]).save(buffer, "PNG")
            return Image(path=self._reader.unpack(f"{name}.png", buffer.getvalue()))
        np.save(buffer, scan)
        return Volume(path=self._reader.unpack(f"{name}.npy", buffer.getvalue()) + "#unit=0..255")


def _of_array(path: str) -> Iterator[np.ndarray]:
    """Yield the scans of a .npy, one in memory at a time."""
    import numpy as np

    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ImageError(path, f"cannot be read as .npy ({error})") from error
    if stored.ndim != 5 or stored.shape[1] not in (1, 3) or stored.dtype.kind not in "uif":
        raise ImageError(path, f"holds {stored.dtype} {list(stored.shape)}; [scan, 3, row, column, slice] is expected")
    check_voxels(path, stored.shape[2:])
    low = min(float(scan[0].min()) for scan in stored)
    high = max(float(scan[0].max()) for scan in stored)
    for scan in stored:
        yield _bytes(path, np.moveaxis(scan[0], -1, 0), low, high)


def _of_nifti(path: str) -> Iterator[np.ndarray]:
    """Yield the one scan of a .nii or .nii.gz."""
    import numpy as np

    values = read_volume(path).array
    if values.shape[0] <= values.shape[1] or values.shape[-1] == 3:  # three channels of a picture read as slices
        values = np.moveaxis(values, -1, 0)
    yield _bytes(path, values, float(values.min()), float(values.max()))


def _bytes(path: str, values: np.ndarray, low: float, high: float) -> np.ndarray:
    import numpy as np

    if not np.isfinite([low, high]).all() or low == high:
        raise ImageError(path, f"holds values from {low} to {high}: nothing is to be seen in it")
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    scaled = (values.astype(np.float32) - low) * (255 / (high - low))
    return np.ascontiguousarray(np.rint(scaled).astype(np.uint8))
