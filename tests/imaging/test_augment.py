"""Augmentation: decided by its seed, never mirrors unasked, boxes follow."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medmvl.core.config import load_yaml
from medmvl.imaging.augment import Augmentation, augment
from medmvl.imaging.geometry import transform_box
from medmvl.imaging.picture import Picture, Window

FULL = Augmentation(rotate=15, scale=0.15, shift=0.08, brightness=0.1, contrast=0.2, noise=0.03)
MOVES = Augmentation(rotate=15, scale=0.15, shift=0.08)
seeds = st.tuples(st.integers(0, 2**31), st.integers(0, 100), st.text(max_size=20))


def noise_picture(shape=(40, 52)):
    return Picture(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), spacing=(0.5, 0.4), modality="MR")


@settings(max_examples=30, deadline=None)
@given(seed=seeds)
def test_same_seed_same_picture_in_any_order(seed):
    picture = noise_picture()
    first, affine = augment(picture, FULL, seed)
    augment(picture, FULL, (7, 7, "another"))
    np.random.default_rng().random()
    second, again = augment(picture, FULL, seed)
    np.testing.assert_array_equal(first.array, second.array)
    np.testing.assert_array_equal(affine, again)


def test_other_seed_other_picture():
    picture = noise_picture()
    pictures = [augment(picture, FULL, seed)[0].array for seed in [(0, 0, "a"), (0, 1, "a"), (1, 0, "a"), (0, 0, "b")]]
    for index, one in enumerate(pictures):
        for other in pictures[:index]:
            assert (one != other).mean() > 0.5
    # Items are told apart: (1, "2") is not (12,) nor ("1", 2).
    affines = {augment(picture, MOVES, seed)[1].tobytes() for seed in [(1, "2"), (12,), ("1", 2), (1, 2)]}
    assert len(affines) == 4


def test_same_picture_in_another_process_with_another_hash_seed():
    code = (
        "import numpy as np; from medmvl.imaging.augment import *; from medmvl.imaging.picture import Picture;"
        "p = Picture((np.arange(2000) % 256).astype(np.uint8).reshape(40, 50));"
        "print(augment(p, Augmentation(rotate=9, scale=.1, noise=.05), (3, 'x'))[0].array.astype(int).sum())"
    )
    sums = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": str(seed)}, capture_output=True, text=True, check=True
        ).stdout
        for seed in (1, 2)
    }
    picture = Picture((np.arange(2000) % 256).astype(np.uint8).reshape(40, 50))
    here = augment(picture, Augmentation(rotate=9, scale=0.1, noise=0.05), (3, "x"))[0].array
    assert sums == {f"{here.astype(int).sum()}\n"}


@settings(max_examples=60, deadline=None)
@given(seed=seeds, data=st.data(), color=st.booleans(), mirror=st.booleans())
def test_a_box_follows_its_rectangle(seed, data, color, mirror):
    height, width = data.draw(st.integers(60, 120)), data.draw(st.integers(60, 120))
    x0, y0 = data.draw(st.integers(0, width - 20)), data.draw(st.integers(0, height - 20))
    x1, y1 = data.draw(st.integers(x0 + 14, width)), data.draw(st.integers(y0 + 14, height))
    array = np.zeros((height, width, 3) if color else (height, width), np.uint8)
    array[y0:y1, x0:x1] = 255
    policy = Augmentation(rotate=10, scale=0.15, shift=0.08, mirror=mirror)
    moved, affine = augment(Picture(array), policy, seed)
    mask = (moved.array if not color else moved.array[..., 0]) > 20
    box = transform_box((x0, y0, x1, y1), affine, moved.size)
    assert 0 <= box[0] <= box[2] <= width and 0 <= box[1] <= box[3] <= height
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows):
        found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        # Nothing of the rectangle lies outside its box; its far corners, thin as they are, come close to it if visible.
        assert (found - box >= -1.01)[:2].all() and (found - box <= 1.01)[2:].all()
        if box[0] > 0 and box[1] > 0 and box[2] < width and box[3] < height:
            assert np.abs(found - box).max() <= 5
    else:
        assert min(box[2] - box[0], box[3] - box[1]) < 3


@settings(max_examples=100, deadline=None)
@given(seed=seeds)
def test_left_stays_left(seed):
    array = np.zeros((64, 64), np.uint8)
    array[28:36, 6:14] = 255  # a mark on the picture's left
    moved, affine = augment(Picture(array), Augmentation(rotate=45, scale=0.2, shift=0.05, noise=0.02), seed)
    assert np.linalg.det(affine[:, :2]) > 0
    column = np.average(np.arange(64) + 0.5, weights=(moved.array > 128).sum(0))
    assert column < 32


def test_mirroring_only_when_asked():
    signs = [
        np.sign(np.linalg.det(augment(noise_picture(), Augmentation(mirror=True), (0, n))[1][:, :2])) for n in range(60)
    ]
    assert 15 < signs.count(-1) < 45
    moved, _ = augment(noise_picture(), Augmentation(mirror=True), (0, signs.index(-1)))
    np.testing.assert_array_equal(moved.array, noise_picture().array[:, ::-1])


def test_nothing_to_do_changes_nothing():
    picture = noise_picture()
    same, affine = augment(picture, Augmentation(), (0,))
    assert same.array is picture.array and same.spacing == picture.spacing
    np.testing.assert_array_equal(affine, np.eye(3)[:2])


def test_turning_one_amount_on_leaves_the_others():
    _, alone = augment(noise_picture(), Augmentation(rotate=10), (5,))
    _, both = augment(noise_picture(), Augmentation(rotate=10, noise=0.1, brightness=0.2), (5,))
    np.testing.assert_array_equal(alone, both)


def test_edges_are_filled_with_black_and_values_stay_in_range():
    white = Picture(np.full((50, 50), 255, np.uint8))
    moved, _ = augment(white, Augmentation(scale=0.3), (4,))
    corners = [augment(white, Augmentation(shift=0.3), (n,))[0].array[[0, 0, -1, -1], [0, -1, 0, -1]] for n in range(9)]
    assert all(corner.min() == 0 for corner in corners)
    assert moved.array.dtype == np.uint8


def test_brightness_contrast_and_noise_do_what_they_say():
    picture = noise_picture((200, 200))
    for seed in range(5):
        brighter, _ = augment(picture, Augmentation(brightness=0.2), (seed,))
        difference = brighter.array.astype(int) - picture.array
        inside = (brighter.array > 0) & (brighter.array < 255)
        assert np.ptp(difference[inside]) <= 1 and abs(difference[inside]).max() <= 52
        contrast, _ = augment(picture, Augmentation(contrast=0.5), (seed,))
        assert abs(contrast.array.mean() - picture.array.mean()) < 8
        assert 0.5 <= contrast.array.std() / picture.array.std() <= 1.5
        flat = Picture(np.full((200, 200), 128, np.uint8))
        noisy, _ = augment(flat, Augmentation(noise=0.1), (seed,))
        assert 0 < noisy.array.std() < 0.105 * 255 and abs(noisy.array.mean() - 128) < 1


def test_deep_pictures_become_what_is_shown():
    values = np.linspace(-1000, 1000, 400, dtype=np.float32).reshape(20, 20)
    place = {"spacing": (1.0, 2.0), "origin": (1.0, 2.0, 3.0), "direction": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)}
    picture = Picture(values, shown=Window.between(-100, 100), inverted=True, unit="HU", **place)
    moved, affine = augment(picture, Augmentation(scale=0.2), (1,))
    assert moved.array.dtype == np.uint8 and moved.shown is None and not moved.inverted
    np.testing.assert_allclose(moved.spacing, (1 / affine[1, 1], 2 / affine[0, 0]))
    assert moved.origin is None and moved.direction is None


def test_turns_that_would_swap_sides_are_refused():
    with pytest.raises(ValueError, match="45"):
        Augmentation(rotate=180)
    with pytest.raises(ValueError, match="flip"):
        Augmentation(flip=True)


def test_the_guide_names_every_key_with_its_default() -> None:
    text = (
        (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8").partition("## Augmentation")[2]
    )
    told = dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", text, re.MULTILINE))
    assert told == {name: json.dumps(one.default).removesuffix(".0") for name, one in Augmentation.model_fields.items()}
    example = re.search(r"augmentation: (\{.*\})", text)
    assert example is not None
    Augmentation.model_validate(load_yaml(example[1]))
