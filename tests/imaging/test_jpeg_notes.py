"""Comments inside compressed pixels are found; what coders write about the pixels themselves is none."""

import io

import numpy as np
import pytest
from PIL import Image

from medmvl.imaging.jpeg_notes import notes_in

PIXELS = Image.fromarray((np.arange(1024) % 251).astype(np.uint8).reshape(32, 32))


def packed(form: str, image: Image.Image = PIXELS, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def test_comments_and_segments_of_applications() -> None:
    exif = Image.Exif()
    exif[0x010E] = "SECRET"
    (comment,) = notes_in(packed("JPEG", comment=b"SECRET"))
    assert comment == b"SECRET"
    assert any(b"SECRET" in note for note in notes_in(packed("JPEG", exif=exif)))
    assert len(list(notes_in(memoryview(packed("JPEG", exif=exif, comment=b"SECRET"))))) == 2


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_technical_segments_are_none(mode: str) -> None:
    assert list(notes_in(packed("JPEG", PIXELS.convert(mode), progressive=True))) == []


def test_comments_of_jpeg_2000() -> None:
    plain = packed("JPEG2000", no_jp2=True)
    assert list(notes_in(plain)) == []
    place = plain.index(b"\xff\x90")  # the first tile
    note = b"\xff\x64" + (8 + 4).to_bytes(2, "big") + b"\0\1" + b"JANE DOE"
    assert list(notes_in(plain[:place] + note + plain[place:])) == [b"JANE DOE"]


@pytest.mark.parametrize("end", range(0, 60, 7))
def test_damaged_streams_end(end: int) -> None:
    whole = packed("JPEG", comment=b"SECRET")
    assert len(list(notes_in(whole[:end]))) <= 1
    assert list(notes_in(b"RLE data")) == list(notes_in(b"")) == []
