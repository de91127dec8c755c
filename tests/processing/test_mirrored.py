"""Mirrored media: left and right swapped for every layout of a file, boxes told in the frame of the file itself."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PillowImage

import phantom
from chat_families import tokenizer_of
from medmvl.core.schema import Sample, SampleError
from medmvl.imaging.augment import Augmentation
from medmvl.imaging.cache import PreparedStore, entry_bytes
from medmvl.imaging.fit import fit_volume
from medmvl.imaging.geometry import invert, transform_box
from medmvl.imaging.mirror import mirrored_picture, mirrored_volume
from medmvl.imaging.picture import ImageError, Picture
from medmvl.imaging.read import read_volume
from medmvl.imaging.spec import VisionSpec
from medmvl.processing.encoded import Media
from medmvl.processing.processor import Processor, TowerInput

EXACT = VisionSpec(size=phantom.SIZE, channels=1, mean=(0.0,), std=(1.0,), resample="nearest")
SPECS = [
    VisionSpec(size=(20, 40)),
    VisionSpec(size=(24, 24), fit="pad", mean=(0.5, 0.4, 0.3)),
    VisionSpec(size=(16, 16), fit="crop"),
]


def medium(path: Path | str, spec: VisionSpec, mirrored: bool = True, **further: object) -> Media:
    return Media("t", str(path), 0, 1, str(path), "mine", spec, mirrored=mirrored, **further)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture 80 wide and 60 high, in colour."""
    path = tmp_path / "picture.png"
    values = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    PillowImage.fromarray(values).save(path)
    return path


@pytest.mark.parametrize("spec", SPECS, ids=["stretch", "pad", "crop"])
def test_a_mirrored_picture_is_what_the_turned_file_would_be(tmp_path: Path, picture: Path, spec: VisionSpec) -> None:
    turned = tmp_path / "turned.png"
    PillowImage.open(picture).transpose(PillowImage.Transpose.FLIP_LEFT_RIGHT).save(turned)
    one, other = medium(picture, spec).view, medium(turned, spec, mirrored=False).view
    np.testing.assert_array_equal(one.pixels, other.pixels)
    assert one.file_size == (60, 80)
    assert transform_box((5, 10, 25, 40), one.affine) == pytest.approx(
        transform_box((80 - 25, 10, 80 - 5, 40), other.affine)
    )


@pytest.mark.parametrize("wanted", ["SPL", "RAS", "ILP", "PRI"])
@pytest.mark.parametrize("stored", phantom.ORIENTATIONS[::7])
def test_a_mirrored_volume_has_the_patients_sides_swapped(tmp_path: Path, stored: str, wanted: str) -> None:
    path = phantom.write(tmp_path / "scan.nii.gz", stored)
    depth_first = dict(zip(wanted.translate(str.maketrans("IAR", "SPL")), range(3), strict=True))
    size = np.array(phantom.SIZE)[["SPL".index(letter) for letter in depth_first]]
    spec = EXACT.model_copy(update={"orientation": wanted, "size": tuple(size.tolist())})
    plain, mirrored = (medium(path, spec, mirrored).view for mirrored in (False, True))
    np.testing.assert_array_equal(mirrored.pixels, np.flip(plain.pixels, 1 + depth_first["L"]))

    # The marked block lies on the patient's left; in the mirror it is found on the right, and told where the file has
    # it.
    own = phantom.box(sitk.GetArrayFromImage(phantom.image(stored)))
    bright = np.argwhere(mirrored.pixels[0] == mirrored.pixels.max())
    seen = (*bright.min(0)[::-1].tolist(), *(bright.max(0)[::-1] + 1).tolist())
    assert transform_box(own, mirrored.affine) == pytest.approx(seen)
    assert transform_box(seen, invert(mirrored.affine)) == pytest.approx(own)
    assert transform_box(own, plain.affine) != pytest.approx(seen)


def test_the_whole_road_swaps_sides_after_cropping_and_resampling(tmp_path: Path) -> None:
    path = phantom.write(tmp_path / "scan.nii.gz", "IAR")
    mirror = phantom.write(tmp_path / "mirror.nii.gz", "IAR", phantom.values()[..., ::-1].copy())
    spec = VisionSpec(size=(4, 6, 8), crop_foreground=0.2, resample="bilinear")
    one, other = medium(path, spec).view, medium(mirror, spec, mirrored=False).view
    np.testing.assert_allclose(one.pixels, other.pixels, atol=2 / 255)


@pytest.mark.parametrize("order", [(False, True, False), (True, False, True)])
def test_the_cache_of_prepared_volumes_serves_both_views(tmp_path: Path, order: tuple[bool, ...]) -> None:
    path, store = phantom.write(tmp_path / "scan.nii.gz", "LPS"), PreparedStore(tmp_path / "prepared")
    for mirrored in order:
        kept, read = medium(path, EXACT, mirrored, store=store).view, medium(path, EXACT, mirrored).view
        np.testing.assert_array_equal(kept.pixels, read.pixels)
        np.testing.assert_array_equal(kept.affine, read.affine)
    stored = sum(file.stat().st_size for file in (tmp_path / "prepared").glob("*.bin"))
    assert entry_bytes(EXACT) <= stored < 2 * entry_bytes(EXACT), "one entry serves both"


def test_a_volume_that_does_not_say_where_left_is_has_no_mirror(tmp_path: Path) -> None:
    path, store = tmp_path / "scan.npy", PreparedStore(tmp_path / "prepared")
    np.save(path, phantom.values())
    address = f"{path}#unit=HU"
    assert medium(address, EXACT, mirrored=False, store=store).view.pixels.max() > 0
    for kept in (None, store):
        with pytest.raises(SampleError, match=r"left and right are unknown.*#orientation=SPL") as caught:
            _ = medium(address, EXACT, store=kept).view
        assert (caught.value.path, str(caught.value).count(address)) == (address, 1)
    told = medium(f"{address}&orientation=SPL", EXACT, store=store).view
    np.testing.assert_array_equal(
        told.pixels, medium(address, EXACT, mirrored=False, store=store).view.pixels[..., ::-1]
    )


def test_a_picture_that_shows_the_patient_from_the_side_has_no_mirror() -> None:
    array = np.zeros((4, 6), np.uint8)
    for row, seen in (((0, 1, 0), "front to back"), ((0.1, 0, -1), "head to foot")):
        with pytest.raises(ImageError, match=f"x.dcm: its rows run from {seen}"):
            mirrored_picture(Picture(array, direction=(*row, 0, 0, -1), path="x.dcm"))
    turned, affine = mirrored_picture(Picture(array, direction=(-0.9, 0.1, 0, 0, 0, -1), origin=(0, 0, 0)))
    assert (turned.direction, turned.origin) == (None, None)
    assert transform_box((0, 0, 1, 4), affine) == (5, 0, 6, 4)


@given(st.integers(1, 9), st.integers(1, 9), st.booleans(), st.randoms(use_true_random=False))
def test_mirroring_a_picture_twice_changes_nothing(height: int, width: int, colour: bool, random: object) -> None:
    shape = (height, width, 3) if colour else (height, width)
    array = np.random.default_rng(random.randrange(2**32)).integers(0, 255, shape, np.uint8)
    once, there = mirrored_picture(Picture(array))
    twice, back = mirrored_picture(once)
    np.testing.assert_array_equal(twice.array, array)
    np.testing.assert_array_equal(once.array[:, 0], array[:, -1])
    box = (0.5, 0.0, float(width), float(height))
    assert transform_box(transform_box(box, there), back) == pytest.approx(box)


@pytest.mark.parametrize("orientation", phantom.ORIENTATIONS[::5])
def test_mirroring_a_volume_twice_changes_nothing(tmp_path: Path, orientation: str) -> None:
    spec = EXACT.model_copy(update={"orientation": orientation, "size": (5, 7, 9)})
    fitted = fit_volume(read_volume(phantom.write(tmp_path / "scan.nii.gz")), spec)
    once = mirrored_volume(fitted, orientation, "scan")
    twice = mirrored_volume(once, orientation, "scan")
    np.testing.assert_array_equal(twice.values, fitted.values)
    np.testing.assert_allclose(twice.to_spec, fitted.to_spec, atol=1e-12)
    assert not np.array_equal(once.values, fitted.values)


@pytest.mark.parametrize("kind", ["picture", "volume"])
def test_mirrored_media_vary_and_turn_grey_as_others_do(tmp_path: Path, picture: Path, kind: str) -> None:
    path, spec = (picture, SPECS[0]) if kind == "picture" else (phantom.write(tmp_path / "scan.nii.gz"), EXACT)
    one = medium(path, spec, augmentation=Augmentation(rotate=10, shift=0.1), seed=(1,))
    inside = (10, 10, 30, 30) if kind == "picture" else phantom.BOX
    plain = medium(path, spec)
    moved = transform_box(transform_box(inside, invert(plain.view.affine)), one.view.affine)
    assert moved != pytest.approx(inside) and not np.array_equal(one.view.pixels, plain.view.pixels)
    grey = replace(plain, blank=True).view
    assert np.ptp(grey.pixels[0]) == 0
    np.testing.assert_array_equal(grey.affine, plain.view.affine)


def asking(path: Path, kind: str, box: tuple[float, ...], mirrored: bool, blank: bool = False) -> Sample:
    content = [{"type": kind, "path": str(path), "mirrored": mirrored, "blank": blank}, {"type": "box", "box": 0}]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": [{"type": "box", "box": 0}]}]
    return Sample.from_dict({"id": "mine", "messages": turns, "meta": {"boxes": [{"coords": box}]}})


@pytest.mark.parametrize("kind", ["image", "volume"])
def test_boxes_are_written_as_the_mirror_shows_them_and_read_back_into_the_file(
    tmp_path: Path, picture: Path, kind: str
) -> None:
    towers = {
        "image": TowerInput("<image>", "image", 3, SPECS[0]),
        "volume": TowerInput("<image3d>", "volume", 5, EXACT),
    }
    subject = Processor(tokenizer_of("chatml"), None, towers)
    path = picture if kind == "image" else phantom.write(tmp_path / "scan.nii.gz", "RAS")
    box = (8.0, 15.0, 24.0, 30.0) if kind == "image" else phantom.box(sitk.GetArrayFromImage(phantom.image("RAS")))
    texts = {}
    for mirrored in (False, True):
        sample = asking(path, kind, box, mirrored)
        texts[mirrored] = subject.decode(subject.prompt(sample).branches[0].ids)
        written = texts[mirrored][texts[mirrored].index("[") : texts[mirrored].index("]") + 1]
        (read,) = subject.boxes_from_text(written, sample)
        assert read == pytest.approx(box, abs=0.51 * max(subject.prompt(sample).media[0].view.file_size) / 100)
    expected = {
        "image": ("[10, 25, 30, 50]", "[70, 25, 90, 50]"),
        "volume": ("[63, 10, 50, 100, 30, 83]", "[0, 10, 50, 38, 30, 83]"),
    }[kind]
    assert expected[0] in texts[False] and expected[1] in texts[True]


def test_media_at_hand_are_kept_apart_by_what_was_done_to_them(picture: Path) -> None:
    subject = Processor(tokenizer_of("chatml"), None, {"image": TowerInput("<image>", "image", 3, SPECS[0])})
    pool: dict[str, Media] = {}
    shown = {
        (mirrored, blank): subject.prompt(asking(picture, "image", (1, 2, 30, 40), mirrored, blank), pool).media[0]
        for mirrored in (False, True)
        for blank in (False, True)
    }
    assert len(pool) == len({one.key for one in shown.values()}) == 4
    np.testing.assert_array_equal(shown[True, True].view.pixels, shown[False, True].view.pixels)
    assert not np.array_equal(shown[True, False].view.pixels, shown[False, False].view.pixels)
    again = subject.prompt(asking(picture, "image", (1, 2, 30, 40), True), pool).media[0]
    assert again is shown[True, False]
