"""A contact sheet: what is in a store, as one picture that a human can check in a minute."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from PIL import Image as PIL
from PIL import ImageDraw, ImageFont

from medmvl.core.atomic import atomic_file
from medmvl.core.schema import Box, BoxRef, Image, Sample, SampleError, Text, Volume
from medmvl.data.store import SampleStore
from medmvl.imaging.intensity import to_display
from medmvl.imaging.montage import montage
from medmvl.imaging.picture import Picture
from medmvl.imaging.read import read_image
from medmvl.imaging.volume import Volume as ReadVolume

_COLOURS = ("#e6194b", "#008fd5", "#3cb44b", "#f58231", "#911eb4", "#00a0a0", "#c08000", "#d4359b")
_INK, _ANSWER, _FAINT, _WRONG, _PAPER = "#202020", "#0b6e2e", "#707070", "#c00000", "#ffffff"
_TILE, _PICTURE, _MONTAGE, _MARGIN = 400, 320, 640, 16  # pixels
_LINE, _SIZE = 18, 14  # height of a text line, and of its letters
_MOST_SAMPLES = 12  # of one image

Line = tuple[str, str]  # colour, text


def contact_sheet(store: SampleStore, out: str | Path, n: int = 12, seed: int = 0, columns: int = 4) -> Path:
    """Draw images and volumes (as slices) of a store with their boxes, questions and answers.

    They are drawn at random, task by task, so that each task is seen before one is seen twice; the same
    arguments give the same sheet. The samples of an image are listed, twelve at most. A file that cannot be read
    and a line that is no valid sample are shown by their errors.

    Args:
        store: the split to look at.
        out: the PNG file to write.
        n: images (or text-only samples) to show.
        seed: of the choice.
        columns: tiles side by side.

    Returns:
        `out`.

    Raises:
        ValueError: `n` or `columns` below 1.
    """
    if n < 1 or columns < 1:
        raise ValueError(f"a contact sheet needs at least one image and one column, got n={n}, columns={columns}")
    tiles = [_tile(store, rows) for rows in choose(store, n, seed)]
    tile_rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    width = _MARGIN + min(columns, len(tiles)) * (_TILE + _MARGIN)
    header = _header(store, width - 2 * _MARGIN)
    heights = [max(tile.height for tile in row) for row in tile_rows]
    sheet = PIL.new("RGB", (width, header.height + 2 * _MARGIN + sum(heights) + _MARGIN * len(heights)), "#e8e8e8")
    sheet.paste(header, (_MARGIN, _MARGIN))
    top = header.height + 2 * _MARGIN
    for row, height in zip(tile_rows, heights, strict=True):
        for column, tile in enumerate(row):
            left = _MARGIN + column * (_TILE + _MARGIN)
            sheet.paste(_PAPER, (left, top, left + _TILE, top + height))
            sheet.paste(tile, (left, top))
        top += height + _MARGIN
    with atomic_file(out, "wb") as file:
        sheet.save(file, "PNG")
    return Path(out)


def choose(store: SampleStore, n: int, seed: int) -> list[list[int]]:
    """Return the rows of up to `n` images, tasks taken in turn, in a random order that `seed` decides."""
    rng = np.random.default_rng(seed)
    keys, tasks = store.media_keys, store.tasks
    queues = [iter(rng.permutation(np.flatnonzero(tasks == task))) for task in np.unique(tasks)]
    chosen: list[list[int]] = []
    seen: set[int] = set()
    open_queues = set(range(len(queues)))
    for number in cycle(range(len(queues))):
        if len(chosen) == n or not open_queues:
            return chosen
        row = next((row for row in queues[number] if keys[row] == 0 or int(keys[row]) not in seen), None)
        if row is None:
            open_queues.discard(number)
            continue
        seen.add(int(keys[row]))
        same = np.flatnonzero(keys == keys[row]) if keys[row] else np.array([row])
        chosen.append([int(index) for index in same[:_MOST_SAMPLES]])
    return chosen


def _tile(store: SampleStore, rows: Sequence[int]) -> PIL.Image:
    """Draw the media once, then every sample's text, or what is wrong with it."""
    samples: list[Sample] = []
    wrong: list[Line] = []
    for row in rows:
        try:
            samples.append(store[row])
        except SampleError as error:
            wrong.append((_WRONG, str(error)))
    if not samples:
        return _page(wrong, _TILE)
    boxes = list(dict.fromkeys(box for sample in samples for box in sample.meta.boxes))
    colours = {box: _COLOURS[number % len(_COLOURS)] for number, box in enumerate(boxes)}
    pictures = [_picture(media, number, colours) for number, media in enumerate(samples[0].media)]
    lines: list[Line] = [(_FAINT, f"{samples[0].split}  {samples[0].patient}")]
    for sample in samples:
        lines += _text(sample)
    return _stack([*pictures, _page([*lines, *wrong], _TILE)])


def _text(sample: Sample) -> list[Line]:
    lines = [(_FAINT, f"{sample.id}  [{sample.task}]" if sample.task else sample.id)]
    for message in sample.messages:
        mark, colour = ("A: ", _ANSWER) if message.role == "assistant" else ("Q: ", _INK)
        words = []
        for part in message.content:
            if isinstance(part, Text):
                words.append(part.text)
            elif isinstance(part, BoxRef):
                words.append("[" + ", ".join(f"{value:g}" for value in sample.meta.boxes[part.box].coords) + "]")
        lines.append((colour, mark + " ".join(" ".join(words).split())))
    return lines


def _picture(media: Image | Volume, number: int, colours: dict[Box, str]) -> PIL.Image:
    """Draw one medium with its boxes, a volume as slices, or say why not."""
    own = {box: colour for box, colour in colours.items() if box.media == number}
    try:
        read = read_image(media.path)
        if isinstance(read, ReadVolume):
            laid = montage(read, [box.coords for box in own], width=_TILE)
            pixels, frames = laid.pixels, {box: laid.rectangles(box.coords) for box in own if len(box.coords) == 6}
        else:
            pixels, frames = to_display(read), {box: [box.coords] for box in own if len(box.coords) == 4}
    except (ValueError, OSError) as error:
        return _page([(_WRONG, str(error))], _TILE)
    height, width = pixels.shape[:2]
    scale = min(_TILE / width, (_PICTURE if isinstance(read, Picture) else _MONTAGE) / height)
    shown = PIL.new("RGB", (_TILE, max(1, round(height * scale))), "#000000")
    left = (_TILE - round(width * scale)) // 2
    size = (max(1, round(width * scale)), shown.height)
    shown.paste(
        PIL.fromarray(np.ascontiguousarray(pixels)).convert("RGB").resize(size, PIL.Resampling.BICUBIC), (left, 0)
    )
    draw = ImageDraw.Draw(shown)
    font = ImageFont.load_default(size=_SIZE - 2)
    for box, rectangles in frames.items():
        for place, (x0, y0, x1, y1) in enumerate(np.array(rectangles) * scale):
            draw.rectangle((left + x0, y0, max(left + x0, left + x1 - 1), max(y0, y1 - 1)), outline=own[box], width=2)
            if box.label and not place:  # on the first slice that it crosses
                corner = (left + x0, max(2, y0 - _SIZE - 3))
                draw.text(corner, box.label, "#ffffff", font, stroke_width=2, stroke_fill=own[box])
    return shown


def _header(store: SampleStore, width: int) -> PIL.Image:
    manifest = store.manifest
    name = manifest.get("name", store.folder.name)
    what = f"{name} {manifest.get('version', '')}  split {store.split}: {len(store):,} samples"
    lines = [(_INK, f"{what}, sha256 {store.hash[:12]}")]
    lines += [(_FAINT, manifest[key]) for key in ("description", "licence") if manifest.get(key)]
    return _page(lines, width)


def _page(lines: Sequence[Line], width: int) -> PIL.Image:
    """Write lines on white paper, wrapped at its width."""
    font = ImageFont.load_default(size=_SIZE)
    wrapped = [(colour, piece) for colour, text in lines for piece in _wrap(text, font, width - 16)]
    page = PIL.new("RGB", (width, _LINE * len(wrapped) + 12), _PAPER)
    draw = ImageDraw.Draw(page)
    for number, (colour, text) in enumerate(wrapped):
        draw.text((8, 6 + number * _LINE), text, colour, font)
    return page


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Break text at spaces, and inside words that are longer than a line."""
    lines, line = [], ""
    for word in text.split(" "):
        joined = f"{line} {word}" if line else word
        if font.getlength(joined) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        while font.getlength(word) > width:
            sizes = range(1, min(len(word), width))
            cut = max(1, bisect_right(sizes, width, key=lambda size, word=word: font.getlength(word[:size])))
            lines.append(word[:cut])
            word = word[cut:]
        line = word
    return [*lines, line]


def _stack(pictures: Sequence[PIL.Image]) -> PIL.Image:
    stacked = PIL.new("RGB", (_TILE, sum(picture.height for picture in pictures)), _PAPER)
    top = 0
    for picture in pictures:
        stacked.paste(picture, (0, top))
        top += picture.height
    return stacked
