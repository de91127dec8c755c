"""What models that are not ours get to see of a sample, and how their boxes find back into the file."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PillowImage

import phantom
from medmvl.core.boxes import BOX_FORMATS
from medmvl.core.schema import Sample, SampleError
from medmvl.eval.engines.pictures import Pictures, Turn, read_boxes, read_file_boxes
from medmvl.imaging.geometry import transform_box
from medmvl.imaging.read import read_volume

FINE = BOX_FORMATS["0-1000"]


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    PillowImage.fromarray(np.random.default_rng(0).integers(0, 256, (40, 80, 3), np.uint8)).save(path)
    return path


@pytest.fixture(scope="module", params=["SPL", "LIA", "PRS"])
def volume(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phantom.write(tmp_path_factory.mktemp(request.param) / "scan.nii.gz", request.param)


def asked(*content: object, boxes: object = (), **flags: bool) -> Sample:
    """A question; paths are pictures, or volumes if their name says so; numbers are boxes."""
    parts = [
        {"type": "volume" if part.name.endswith(".nii.gz") else "image", "path": str(part), **flags}
        if isinstance(part, Path)
        else {"type": "box", "box": part}
        if isinstance(part, int)
        else {"type": "text", "text": part}
        for part in content
    ]
    meta = {"boxes": [{"coords": coords} for coords in boxes]}
    return Sample.from_dict({"id": "mine", "messages": [{"role": "user", "content": parts}], "meta": meta})


def shown(sample: Sample, slices: int = 8) -> list[np.ndarray]:
    return [np.asarray(one) for turn in Pictures(slices, FINE).turns(sample) for one in turn.pictures]


def test_a_picture_is_shown_in_its_own_size(picture: Path, tmp_path: Path) -> None:
    (seen,) = shown(asked(picture, "What is it?"))
    np.testing.assert_array_equal(seen, np.asarray(PillowImage.open(picture)))
    deep = tmp_path / "deep.png"
    PillowImage.fromarray(np.linspace(0, 4000, 60).reshape(6, 10).astype(np.uint16)).save(deep)
    (seen,) = shown(asked(deep, "What is it?"))
    assert seen.shape == (6, 10, 3) and seen.min() == 0 and seen.max() == 255
    np.testing.assert_array_equal(*shown(asked(picture, picture, "Compare.")))


def test_texts_and_pictures_keep_their_order_and_lose_white_space(picture: Path) -> None:
    (turn,) = Pictures(8, FINE).turns(asked("  Before", " and ", picture, "\nafter ", picture, "  ", "?\n"))
    assert [piece if isinstance(piece, str) else "P" for piece in turn.content] == [
        "Before and",
        "P",
        "after",
        "P",
        "?",
    ]
    assert turn.text == "Before and\nafter\n?"
    conversation = [("system", "Be short."), ("user", "A?"), ("assistant", "B."), ("user", " ")]
    messages = [{"role": role, "content": text} for role, text in conversation]
    turns = Pictures(8, FINE).turns(Sample.from_dict({"id": "0", "messages": messages}))
    assert turns == [Turn(role, (text,)) for role, text in conversation[:3]]


def test_a_data_url_is_the_picture_itself(picture: Path) -> None:
    (turn,) = Pictures(8, FINE).turns(asked(picture, "What is it?"))
    head, content = turn.content[0].data_url.split(",")
    assert head == "data:image/png;base64"
    again = PillowImage.open(io.BytesIO(base64.b64decode(content)))
    np.testing.assert_array_equal(np.asarray(again), np.asarray(PillowImage.open(picture)))


def test_a_blank_medium_keeps_nothing_of_its_file(picture: Path, volume: Path) -> None:
    (seen,) = shown(asked(picture, "What is it?", blank=True))
    assert seen.shape == (448, 448, 3) and (seen == 128).all()
    grey = shown(asked(volume, "What is it?", blank=True), slices=3)
    assert len(grey) == 3 and all((one == 128).all() for one in grey)


def test_a_volume_becomes_slices_from_foot_to_head(volume: Path) -> None:
    """Whatever the file's layout, slices are those of the canonical orientation, as high as the spacing says."""
    whole = shown(asked(volume, "What is it?"))
    depth, height, width = phantom.SIZE
    assert len(whole) == depth
    high = round(height * phantom.SPACING[1] / phantom.SPACING[2])
    assert {one.shape for one in whole} == {(high, width, 3)}
    x0, _, z0, x1, _, z1 = (int(edge) for edge in phantom.BOX)
    brightest = [int(np.unravel_index(one[..., 0].argmax(), one.shape[:2])[1]) for one in whole[z0:z1]]
    assert all(x0 <= column < x1 for column in brightest)
    assert whole[0].mean() < whole[1].mean() < whole[-1].mean()  # values grow towards the head
    some = shown(asked(volume, "What is it?"), slices=3)
    for one, index in zip(some, (1, 3, 5), strict=True):
        np.testing.assert_array_equal(one, whole[index])
    for one, other in zip(shown(asked(volume, "What is it?", mirrored=True)), whole, strict=True):
        np.testing.assert_array_equal(one, other[:, ::-1])


def test_ct_is_windowed_and_mri_takes_percentiles(tmp_path: Path) -> None:
    array = np.zeros((4, 8, 8), np.float32)
    array[:, :4] = 500
    array[0, 0, 0] = 1e6
    np.save(tmp_path / "ct.npy", array)
    part = {"type": "volume", "path": f"{tmp_path / 'ct.npy'}#unit=HU"}
    ct = Sample.from_dict({"id": "0", "messages": [{"role": "user", "content": [part]}]})
    assert shown(ct)[1][0, 0, 0] == round(255 * 1500 / 2000) and shown(ct)[1][-1, 0, 0] == round(255 / 2 + 0.1)
    mri = phantom.write(tmp_path / "mri.nii.gz", array=np.where(array > 1e5, 500, array).astype(np.int16))
    assert shown(asked(mri))[1].max() > 200


@pytest.mark.parametrize("mirrored", [False, True])
def test_boxes_of_a_question_are_told_where_the_model_sees_them(picture: Path, volume: Path, mirrored: bool) -> None:
    (turn,) = Pictures(8, FINE).turns(asked(picture, "Name ", 0, boxes=[(8, 10, 24, 20)], mirrored=mirrored))
    seen = "[700, 250, 900, 500]" if mirrored else "[100, 250, 300, 500]"
    assert turn.content[1] == f"Name {seen}"
    stored = transform_box(phantom.BOX, np.linalg.inv(_square(read_volume(volume).original.to_canonical))[:-1])
    (turn,) = Pictures(8, BOX_FORMATS["absolute"]).turns(asked(volume, 0, boxes=[stored], mirrored=mirrored))
    x0, y0, z0, x1, y1, z1 = phantom.BOX
    if mirrored:
        x0, x1 = phantom.SIZE[2] - x1, phantom.SIZE[2] - x0
    assert turn.content[-1] == f"[{x0:g}, {y0:g}, {z0:g}, {x1:g}, {y1:g}, {z1:g}]"


def _square(affine: np.ndarray) -> np.ndarray:
    return np.vstack([affine, [0, 0, 0, 1]])


@given(
    x=st.tuples(st.integers(0, 79), st.integers(1, 80)).map(sorted),
    y=st.tuples(st.integers(0, 39), st.integers(1, 40)).map(sorted),
    mirrored=st.booleans(),
)
def test_boxes_find_back_into_the_file(picture: Path, x: list[int], y: list[int], mirrored: bool) -> None:
    box = (x[0], y[0], x[1], y[1])
    sample = asked(picture, 0, boxes=[box], mirrored=mirrored)
    (turn,) = Pictures(8, FINE).turns(sample)
    assert read_boxes(turn.text, sample, FINE) == [pytest.approx(box, abs=0.05)]


def test_boxes_in_volumes_find_back_into_the_file(volume: Path) -> None:
    stored = transform_box(phantom.BOX, np.linalg.inv(_square(read_volume(volume).original.to_canonical))[:-1])
    for mirrored in (False, True):
        sample = asked(volume, 0, boxes=[stored], mirrored=mirrored)
        (turn,) = Pictures(8, FINE).turns(sample)
        assert read_boxes(turn.text, sample, FINE) == [pytest.approx(stored, abs=0.01)]
    size = read_volume(volume).original.size[::-1]
    sample = asked(volume, 0, boxes=[stored])
    assert read_file_boxes(FINE.format_box(stored, size), sample, FINE) == [pytest.approx(stored, abs=0.01)]


def test_what_cannot_be_shown_names_sample_and_file(picture: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone.png"
    with pytest.raises(SampleError, match=r"'mine'.*gone.png"):
        shown(asked(gone, "?"))
    with pytest.raises(SampleError, match="lies outside of its file, which has 80 x 40"):
        shown(asked(picture, 0, boxes=[(200, 10, 240, 20)]))
    with pytest.raises(SampleError, match="reaches out of its file"):
        shown(asked(picture, 0, boxes=[(20, 10, 240, 20)]))
    with pytest.raises(SampleError, match="it shows none"):
        read_boxes("[1, 2, 3, 4]", asked("?"), FINE)
    flat = tmp_path / "flat.npy"
    np.save(flat, np.arange(256, dtype=np.int16).reshape(4, 8, 8))
    part = {"type": "volume", "path": f"{flat}#unit=HU", "mirrored": True}
    with pytest.raises(SampleError, match="left and right are unknown"):
        shown(Sample.from_dict({"id": "mine", "messages": [{"role": "user", "content": [part]}]}))
    for slices in (0, -1, 2.5):
        with pytest.raises(ValueError, match="slices"):
            Pictures(slices, FINE)
