"""Samples as models that are not ours take them: pictures as a screen shows them, volumes as slices, boxes as text."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TypeVar

import numpy as np
import PIL.Image

from medmvl.core.boxes import BoxFormat, Coords
from medmvl.core.schema import BoxRef, Image, Message, Sample, SampleError, Text, Volume
from medmvl.eval.controls import body_frame
from medmvl.imaging.fit import fit_volume
from medmvl.imaging.geometry import beyond, chain, invert, scaling, transform_box, translation
from medmvl.imaging.intensity import to_display
from medmvl.imaging.mirror import mirrored_picture, mirrored_volume
from medmvl.imaging.read import read_picture, read_volume
from medmvl.imaging.spec import VisionSpec
from medmvl.imaging.volume import Volume as ReadVolume

Value = TypeVar("Value")

BOXES = "0-1000"
"""How engines that are not ours write boxes unless told otherwise: what most published grounding models use."""

SLICES = 8
"""Slices that stand for a volume unless told otherwise."""

_BLANK = (448, 448)  # of every blank picture, so that nothing of the file is left, not even its shape
_GREY = (128, 128, 128)
_AT_HAND = 16  # files that are kept decoded: questions about one file come side by side
_PERCENTILES = (0.5, 99.5)  # shown from black to white where the unit does not say what to show
_SQUEEZED = 4  # a slice more than so many times as high as wide comes from a broken header


@dataclass(frozen=True, eq=False)
class Shown:
    """A picture as models see it, RGB; questions about one file share it."""

    picture: PIL.Image.Image

    @cached_property
    def data_url(self) -> str:
        """The picture as a PNG in a data URL."""
        buffer = io.BytesIO()
        self.picture.save(buffer, "PNG")
        return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@dataclass(frozen=True)
class Turn:
    """What one side says.

    Attributes:
        role: "system", "user" or "assistant".
        content: texts and pictures in reading order, texts without outer white space, none of them empty.
    """

    role: str
    content: tuple[str | Shown, ...]

    @property
    def pictures(self) -> list[PIL.Image.Image]:
        """The pictures alone."""
        return [piece.picture for piece in self.content if isinstance(piece, Shown)]

    @property
    def text(self) -> str:
        """The texts alone, a line break between them."""
        return "\n".join(piece for piece in self.content if isinstance(piece, str))


class Pictures:
    """Turns samples into texts and pictures.

    A picture is shown as on a screen (`imaging.intensity.to_display`), in its own size. A volume becomes slices across
    the patient's long axis, evenly spaced, the lowest first; in each the patient's right is on the left-hand side and
    anterior above, where the file says so; HU are shown from -1000 to 1000, other values between two percentiles. A
    blank medium is an even grey, 448 x 448, whatever the file's shape.

    Args:
        slices: how many stand for a volume; one with fewer slices shows all of them.
        boxes: how boxes are written into questions.
    """

    def __init__(self, slices: int, boxes: BoxFormat) -> None:
        self.slices, self._boxes = check_slices(slices), boxes
        self._shown = lru_cache(maxsize=_AT_HAND)(self._read)

    def turns(self, sample: Sample) -> list[Turn]:
        """Return the turns of a sample; turns that say nothing are left out.

        Raises:
            SampleError: a file cannot be read or mirrored, or a box lies outside of its file.
        """
        turns = [Turn(message.role, tuple(self._said(message, sample))) for message in sample.messages]
        return [turn for turn in turns if turn.content]

    def _said(self, message: Message, sample: Sample) -> list[str | Shown]:
        """Return a message's content."""
        said: list[str | Shown] = [""]
        for part in message.content:
            if isinstance(part, Image | Volume):
                said += [*_of(sample, part.path, lambda part=part: self._shown(part)), ""]
            elif isinstance(part, BoxRef):
                said[-1] += self._box(sample, part.box)  # type: ignore[operator]  # the last one is a text
            elif isinstance(part, Text):
                said[-1] += part.text  # type: ignore[operator]
        stripped = [piece.strip() if isinstance(piece, str) else piece for piece in said]
        return [piece for piece in stripped if piece != ""]

    def _box(self, sample: Sample, index: int) -> str:
        box = sample.meta.boxes[index]
        medium = sample.media[box.media]
        view = _of(sample, medium.path, lambda: _view(medium))
        if outside := beyond(box.coords, view.file_size[::-1]):
            frame = " x ".join(f"{extent:g}" for extent in view.file_size)
            where = "lies outside of" if outside == "outside" else "reaches out of"
            raise SampleError(f"box {index} {box.coords} {where} its file, which has {frame}", sample.id, medium.path)
        size = tuple(round(extent) for extent in view.extent[::-1])
        return self._boxes.format_box(transform_box(box.coords, view.affine, size), view.extent)

    def _read(self, part: Image | Volume) -> list[Shown]:
        if part.blank:
            count = self.slices if isinstance(part, Volume) else 1
            return [Shown(PIL.Image.new("RGB", _BLANK, _GREY))] * count
        if isinstance(part, Image):
            picture = read_picture(part.path)
            if part.mirrored:
                picture, _ = mirrored_picture(picture)
            return [_rgb(to_display(picture))]
        fitted = fit_volume(volume := read_volume(part.path), spec := _slice_spec(volume, self.slices))
        if part.mirrored:
            fitted = mirrored_volume(fitted, spec.orientation, part.path)
        return [_rgb(plane) for plane in fitted.values]


def read_boxes(text: str, sample: Sample, written: BoxFormat) -> list[Coords]:
    """Return the boxes of an answer about what `Pictures` showed, in the frame of the sample's first file.

    Numbers run along the columns and rows of the picture as it was shown, and along its slices from foot to head.

    Raises:
        SampleError: the sample shows nothing, or its file cannot be read.
    """
    medium = _first(sample)
    view = _of(sample, medium.path, lambda: _view(medium))
    back, size = invert(view.affine), tuple(round(extent) for extent in view.file_size[::-1])
    return [transform_box(box, back, size) for box in written.parse_boxes(text, view.extent)]


def read_file_boxes(text: str, sample: Sample, written: BoxFormat) -> list[Coords]:
    """Return the boxes of an answer whose numbers run along the axes of the sample's first file as it is stored.

    Raises:
        SampleError: the sample shows nothing, or its file cannot be read.
    """
    medium = _first(sample)
    return written.parse_boxes(text, _of(sample, medium.path, lambda: _view(medium)).file_size)


def check_slices(slices: int) -> int:
    """Return a number of slices; raise ValueError for one that is none."""
    if not isinstance(slices, int) or slices < 1:
        raise ValueError(f"slices is how many pictures stand for a volume, at least 1; got {slices!r}")
    return slices


@dataclass(frozen=True, eq=False)
class _View:
    """How a file's frame lies in what is shown of it.

    Attributes:
        affine: float64 [n, n + 1], file's frame -> shown.
        extent: of what is shown, (W, H) or (W, H, D).
        file_size: of the file's frame, in the same order.
    """

    affine: np.ndarray
    extent: tuple[float, ...]
    file_size: tuple[float, ...]


def _view(part: Image | Volume) -> _View:
    frame = body_frame(part.path)
    axes = len(frame.to_shares)
    # A share is a voxel's place divided by the length of its axis.
    extent = tuple(round(1 / length) for length in np.abs(frame.to_shares[:, :axes]).max(axis=1))
    file_size = frame.box((0.0,) * axes + (1.0,) * axes)[axes:]
    shown = chain(frame.to_shares, scaling(*extent))
    if part.mirrored:
        turned = scaling(-1.0, *[1.0] * (axes - 1))
        shown = chain(shown, turned, translation(extent[0], *[0.0] * (axes - 1)))
    return _View(shown, extent, tuple(float(round(length)) for length in file_size))


def _slice_spec(volume: ReadVolume, slices: int) -> VisionSpec:
    """Return what makes slices of a volume, pixels as wide as they are and as high as the spacing says."""
    depth, height, width = volume.size
    _, row, column = volume.spacing or (1.0, 1.0, 1.0)
    high = min(max(1, round(height * row / column)), _SQUEEZED * max(height, width))
    window = None if volume.unit else _PERCENTILES
    size = (min(slices, depth), high, width)
    return VisionSpec(size=size, depth="sample", levels="uint8", percentile_window=window)


def _first(sample: Sample) -> Image | Volume:
    if not sample.media:
        raise SampleError("a box lies in a picture or volume, and it shows none", sample.id)
    return sample.media[0]


def _of(sample: Sample, path: str, read: Callable[[], Value]) -> Value:
    """Return what `read` does; its errors name the sample and the file."""
    try:
        return read()
    except (ValueError, OSError) as error:
        raise SampleError(str(error).removeprefix(f"{path}: "), sample.id, path) from error


def _rgb(values: np.ndarray) -> Shown:
    return Shown(PIL.Image.fromarray(np.ascontiguousarray(values)).convert("RGB"))
