"""Reads pictures through Pillow (PNG, JPEG, TIFF, ...) and numpy's own format."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import PIL.Image
from PIL import Image, ImageOps, UnidentifiedImageError

from medmvl.imaging.picture import TOO_LARGE, ImageError, Picture, check_pixels, choose_frame

# Only formats that hold pixels: Pillow also knows some that start other programs (EPS) or fetch pieces by name.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "JPEG2000", "PPM")
_EXIF_ORIENTATION = 0x0112
_TIFF_PHOTOMETRIC, _TIFF_SAMPLE_FORMAT = 262, 339


def read_raster(path: Path, frame: int | None) -> Picture:
    """Read one picture with Pillow.

    The EXIF orientation is applied, so the frame of the picture is the upright one. Transparent places are laid over
    black. Palettes become colour; 16-bit grey stays uint16, 32-bit and float grey become float32; 16-bit colour is
    read by Pillow as 8-bit.

    Raises:
        ImageError: no such picture format, broken, cut off, too large, or a frame is missing.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            # The second picture of an MPO is a phone's preview or other eye, not a frame of the same series.
            num_frames = 1 if image.format in ("MPO", "JPEG") else getattr(image, "n_frames", 1)
            image.seek(choose_frame(path, num_frames, frame))
            check_pixels(path, image.height, image.width)
            return _to_picture(path, image)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(
            path, f"is no picture that Pillow can read ({', '.join(FORMATS)}); it may be damaged or misnamed"
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(path, f"its pixels {TOO_LARGE}") from error
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, struct.error) as error:
        # Pillow's decoders answer damaged files with any of these.
        raise ImageError(path, f"is damaged or cut off ({error}); get the file again") from error


def _to_picture(path: Path, image: PIL.Image.Image) -> Picture:
    original = image.height, image.width
    tags = getattr(image, "tag_v2", {})
    orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    if orientation in range(2, 9):
        image = ImageOps.exif_transpose(image)
    deep = image.mode.startswith("I") or image.mode == "F"
    array = _deep_values(image, tags) if deep else _byte_values(image, tags)
    return Picture(
        array,
        path=str(path),
        original=original,
        # Pillow turns white-is-zero TIFF upright for 8-bit values only.
        inverted=deep and tags.get(_TIFF_PHOTOMETRIC) == 0,
    )


def _deep_values(image: PIL.Image.Image, tags: Mapping[int, Any]) -> np.ndarray:
    values = np.asarray(image)
    if values.dtype.kind == "u":
        return values.astype(np.uint16, copy=False)
    if values.dtype == np.int32 and _sample_format(tags) == 1:
        values = values.view(np.uint32)
    return values.astype(np.float32)


def _byte_values(image: PIL.Image.Image, tags: Mapping[int, Any]) -> np.ndarray:
    if image.mode in ("LA", "RGBA", "PA", "La", "RGBa") or "transparency" in image.info:
        grey = image.mode in ("L", "LA", "La")
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image).convert("L" if grey else "RGB")
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "RGB"):
        image = image.convert("RGB")
    values = np.asarray(image)
    if image.mode == "L" and _sample_format(tags) == 2:
        return values.view(np.int8).astype(np.float32)
    return values


def _sample_format(tags: Mapping[int, Any]) -> int | None:
    """TIFF's 1 (unsigned), 2 (signed) or 3 (float); None where the file does not say."""
    found = tags.get(_TIFF_SAMPLE_FORMAT)
    return found[0] if isinstance(found, tuple) else found


def _as_volume(path: Path) -> str:
    return f"; a volume [D, H, W] is read if its unit is named, as by '{path}#unit=HU' (HU, 0..255 or 0..1)"


def read_npy(path: Path, frame: int | None) -> Picture:
    """Read a picture from a .npy file, never unpickling.

    [H, W], [H, W, 1] and colour [H, W, 3] are one picture; any other three-dimensional array is frames [N, H, W].
    bool becomes 0 and 255; uint8 and uint16 stay; other integers and floats become float32, with unknown unit.

    Raises:
        ImageError: pickled objects, other shapes or types, cut off, too large, or a frame is missing.
    """
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, TokenError) as error:
        raise ImageError(path, f"cannot be read as .npy ({error}); save it with numpy.save, without objects") from error
    if not isinstance(stored, np.ndarray) or stored.ndim not in (2, 3) or stored.dtype.kind not in "buif":
        given = f"{stored.dtype} {list(stored.shape)}" if isinstance(stored, np.ndarray) else "an archive"
        raise ImageError(
            path, f"holds {given}; a picture is a number array [H, W], [H, W, 3] or frames [N, H, W]{_as_volume(path)}"
        )
    flat = stored.ndim == 2 or stored.shape[-1] in (1, 3)
    count = 1 if flat else stored.shape[0]
    if count > 1 and frame is None:
        raise ImageError(
            path,
            f"holds {count} frames and none was chosen, as by '{path}#frame=0' (0 to {count - 1}){_as_volume(path)}",
        )
    index = choose_frame(path, count, frame)
    stored = stored if flat else stored[index]
    check_pixels(path, stored.shape[0], stored.shape[1])
    if stored.ndim == 3 and stored.shape[-1] == 1:
        stored = stored[..., 0]
    if stored.dtype.kind == "b":
        array = np.where(stored, np.uint8(255), np.uint8(0))
    else:
        kept = stored.dtype.newbyteorder("=") if stored.dtype.kind == "u" and stored.itemsize <= 2 else np.float32
        array = np.array(stored, dtype=kept, order="C", subok=False)
    return Picture(array, path=str(path), original=(array.shape[0], array.shape[1]))
