"""Contact sheets: readable, deterministic, and open about files that cannot be read."""

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image, ImageFont

import phantom
from medmvl.core.schema import Box, Message, Meta, Sample
from medmvl.data.inspect import _wrap, choose, contact_sheet
from medmvl.data.store import SampleStore, write_samples


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "toy"
    (folder / "images").mkdir(parents=True)
    samples = []
    for number in range(12):
        path = folder / f"images/{number // 3}.png"
        Image.fromarray(np.full((40, 60), 20 * number, np.uint8)).save(path)
        content = ({"type": "image", "path": str(path)}, {"type": "text", "text": "Where? " * 20})
        samples.append(
            Sample(
                id=str(number),
                messages=(
                    Message(role="user", content=content),
                    Message(role="assistant", content=({"type": "box", "box": 0},)),
                ),
                task=f"toy/{'abc'[number % 3]}",
                meta=Meta(boxes=(Box(coords=(10, 5, 30, 25), label="lesion"),)),
            )
        )
    samples.append(Sample(id="words", messages=(Message(role="user", content="x" * 300),), task="toy/text"))
    write_samples(folder, samples, name="toy", version="1", licence="CC0", description="A toy.")
    return SampleStore(folder)


def test_the_same_arguments_give_the_same_sheet(store, tmp_path):
    first = contact_sheet(store, tmp_path / "a.png", n=5).read_bytes()
    assert first == contact_sheet(store, tmp_path / "b.png", n=5).read_bytes()
    assert first != contact_sheet(store, tmp_path / "c.png", n=5, seed=1).read_bytes()


def test_every_task_is_seen_and_no_image_twice(store):
    chosen = choose(store, 100, seed=0)
    assert sorted(row for rows in chosen for row in rows) == list(range(13))
    assert [12] in chosen and {len(rows) for rows in chosen} == {1, 3}


def test_boxes_are_drawn_in_the_pictures_own_frame(store, tmp_path):
    with Image.open(contact_sheet(store, tmp_path / "a.png", n=1)) as sheet:
        pixels = np.asarray(sheet)
    red = (pixels == (0xE6, 0x19, 0x4B)).all(2)
    top, bottom = np.flatnonzero(red.sum(1) > 60)[[0, -1]]
    left, right = np.flatnonzero(red.sum(0) > 60)[[0, -1]]
    scale = 400 / 60
    assert abs((right - left + 1) - 20 * scale) <= 2 and abs((bottom - top + 1) - 20 * scale) <= 2
    assert abs(left - (16 + 10 * scale)) <= 2


def test_a_volume_is_shown_as_slices_with_its_boxes(tmp_path):
    (tmp_path / "toy").mkdir()
    path = phantom.write(tmp_path / "toy" / "scan.nii.gz", "RAI")
    box = phantom.box(sitk.GetArrayFromImage(phantom.image("RAI")))
    content = ({"type": "volume", "path": str(path)}, {"type": "text", "text": "Where?"})
    samples = [
        Sample(
            id="1",
            messages=(Message(role="user", content=content), Message(role="assistant", content="there")),
            meta=Meta(boxes=(Box(coords=box, label="block"),)),
        )
    ]
    write_samples(tmp_path / "toy", samples, name="toy", version="1", licence="CC0")
    with Image.open(contact_sheet(SampleStore(tmp_path / "toy"), tmp_path / "a.png")) as sheet:
        pixels = np.asarray(sheet)
    red = (pixels == (0xE6, 0x19, 0x4B)).all(2)
    assert red.sum() > 200  # outlines on the two slices that it crosses
    assert len(np.unique(pixels[~red].sum(1))) > 50  # and grey values around
    path.write_bytes(path.read_bytes()[:100])
    with Image.open(contact_sheet(SampleStore(tmp_path / "toy"), tmp_path / "b.png")) as sheet:
        assert (np.asarray(sheet) == (0xC0, 0, 0)).all(2).any()


def test_a_missing_picture_is_shown_by_its_error(store, tmp_path):
    for file in (store.folder / "images").iterdir():
        file.unlink()
    with Image.open(contact_sheet(store, tmp_path / "a.png", n=4)) as sheet:
        assert (np.asarray(sheet) == (0xC0, 0, 0)).all(2).any()


def test_nothing_to_show_is_refused(store, tmp_path):
    with pytest.raises(ValueError, match="n=0"):
        contact_sheet(store, tmp_path / "a.png", n=0)


def test_a_long_text_without_blanks_is_broken_and_stays_whole():
    font = ImageFont.load_default(size=14)
    text = "这是一份没有空格的报告" * 500
    lines = _wrap(text, font, 300)
    assert "".join(lines) == text and max(map(font.getlength, lines)) <= 300 and len(lines) > 20
