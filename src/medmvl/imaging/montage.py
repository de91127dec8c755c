"""A volume as one picture: slices from foot to head, and where a box crosses them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from medmvl.imaging.geometry import transform_box
from medmvl.imaging.intensity import apply_window, volume_window
from medmvl.imaging.picture import Window
from medmvl.imaging.spec import VisionSpec
from medmvl.imaging.volume import Volume

_PERCENTILES = (0.5, 99.5)  # shown from black to white where the unit does not say what to show
_INK = 200  # grey of the letters

Rectangle = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Montage:
    """Slices of a volume, side by side.

    Attributes:
        pixels: uint8 [H, W]. Slices lie across the canonical depth axis, the lowest first; in each the patient's right
            is on the left-hand side and anterior above, where the file says where its axes point.
        slices: the canonical depth indices shown, in order.
        columns: slices side by side.
        tile: (height, width) of one slice, in pixels.
        volume: what is shown.
    """

    pixels: np.ndarray
    slices: tuple[int, ...]
    columns: int
    tile: tuple[int, int]
    volume: Volume

    def rectangles(self, coords: Sequence[float]) -> list[Rectangle]:
        """Return where a box shows: (x0, y0, x1, y1) in pixels of the montage, for every shown slice that it crosses.

        Args:
            coords: (x0, y0, z0, x1, y1, z1) in the file's frame.

        Raises:
            ValueError: `coords` are no box in three axes.
        """
        x0, y0, z0, x1, y1, z1 = transform_box(coords, self.volume.original.to_canonical, self.volume.size)
        height, width = self.tile
        across, down = width / self.volume.size[2], height / self.volume.size[1]
        found = []
        for place, index in enumerate(self.slices):
            if z0 < index + 1 and z1 > index:
                top, left = (place // self.columns) * height, (place % self.columns) * width
                found.append((left + x0 * across, top + y0 * down, left + x1 * across, top + y1 * down))
        return found


def montage(
    volume: Volume, boxes: Sequence[Sequence[float]] = (), width: int = 384, columns: int = 3, rows: int = 3
) -> Montage:
    """Lay out slices of a volume, evenly spaced, the middle ones of `boxes` among them.

    HU are shown from -1000 to 1000, values scaled for display as they are, others between two percentiles. Slices keep
    the proportions that the spacing gives them.

    Args:
        volume: any volume.
        boxes: boxes (x0, y0, z0, x1, y1, z1) in the file's frame whose middle slices are wanted.
        width: pixels of the whole.
        columns, rows: slices side by side, and one below the other.

    Raises:
        ImageError: there is no finite value in it.
        ValueError: a box is none in three axes.
    """
    depth, height, length = volume.size
    _, row, column = volume.spacing or (1.0, 1.0, 1.0)
    tile_width = max(1, width // columns)
    # A slice many times as high as wide comes from a broken header; it is squeezed into the montage.
    tile_height = min(max(1, round(tile_width * (height * row) / (length * column))), 4 * tile_width)
    black, white = volume_window(volume, VisionSpec(size=(1, 1, 1), percentile_window=_shown(volume)))
    slices = _choose(volume, boxes, min(columns * rows, depth))
    sheet = Image.new("L", (columns * tile_width, math.ceil(len(slices) / columns) * tile_height))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=max(8, tile_width // 10))
    for place, index in enumerate(slices):
        plane = apply_window(np.ascontiguousarray(volume.array[index]), Window.between(black, white))
        tile = Image.fromarray(plane).resize((tile_width, tile_height), Image.Resampling.BILINEAR)
        left, top = (place % columns) * tile_width, (place // columns) * tile_height
        sheet.paste(tile, (left, top))
        draw.text((left + 2, top + 1), str(index + 1), _INK, font)
        if volume.oriented:
            draw.text((left + 2, top + tile_height // 2), "R", _INK, font, anchor="lm")
    return Montage(np.asarray(sheet), tuple(slices), columns, (tile_height, tile_width), volume)


def _shown(volume: Volume) -> tuple[float, float] | None:
    return None if volume.unit else _PERCENTILES


def _choose(volume: Volume, boxes: Sequence[Sequence[float]], count: int) -> list[int]:
    """Return `count` depth indices, evenly spaced but for those that give way to the middle of a box."""
    depth = volume.size[0]
    chosen = [int((place + 0.5) * depth / count) for place in range(count)]
    free = list(range(count))
    for coords in boxes:
        box = transform_box(coords, volume.original.to_canonical, volume.size)
        middle = min(int((box[2] + box[5]) / 2), depth - 1)
        if middle in chosen or not free:
            continue
        nearest = min(free, key=lambda place: abs(chosen[place] - middle))
        chosen[nearest] = middle
        free.remove(nearest)
    return sorted(chosen)
