"""SA-Med2D-20M: names, boxes from masks, the masks that are refused, a split by case, and no quadratic step."""

import json
import time
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import adapter_root
from medmvl.core.schema import BoxRef, Sample, SampleError, Text
from medmvl.data.adapters.base import LayoutError
from medmvl.data.adapters.sa_med2d import SaMed2d, by_class, image_name, mask_name, split_of
from medmvl.data.rows import TableError

roots = adapter_root.builder("sa_med2d")


@pytest.fixture
def root(tmp_path) -> Path:
    return roots.write(tmp_path / "SAMed2Dv1")


def _read(root: Path, split: str, *tasks: str, **options) -> tuple[list[Sample], list[SampleError]]:
    read = list(SaMed2d(root, options).samples(split, tasks))
    samples = [one for one in read if isinstance(one, Sample)]
    return samples, [one for one in read if isinstance(one, SampleError)]


def test_names() -> None:
    heart = image_name(f"images/{roots.HEART}.png")
    assert (heart.modality, heart.dataset, heart.original, heart.plane) == (
        "mr_00",
        "ACDC",
        "patient001_frame01",
        "x_0006",
    )
    assert heart.case == "ACDC/patient001"
    # names with "--" in them, and one that ends in letters of ".png"
    assert image_name(f"{roots.BODY}.png").original == "s0011--with--dashes"
    assert image_name("x_ray--A--scan.png--2d_none.png").original == "scan.png"
    assert image_name("x_ray--A--gnp--2d_png.png").plane == "2d_png"
    assert mask_name(f"masks/{roots.BODY}--0007_001.png") == (roots.BODY, "0007", "001")
    for wrong in ("a--b--2d_none.png", "a--b----2d_none.png", "scan.png"):
        with pytest.raises(ValueError, match="is not named"):
            image_name(wrong)
    for wrong in ("a--b--c--d--07_000.png", "a--b--c--d--0007.png", "0007_000.png"):
        with pytest.raises(ValueError, match="does not end in"):
            mask_name(wrong)


WORD = st.text(st.characters(codec="ascii", categories=("L", "N"), include_characters="_."), min_size=1)


@given(WORD, WORD, st.lists(WORD, min_size=1, max_size=4), WORD, st.integers(0, 9999), st.integers(0, 999))
def test_names_come_apart_as_they_were_put_together(modality, dataset, original, plane, number, instance) -> None:
    stem = "--".join([modality, dataset, *original, plane])
    name = image_name(f"images/{stem}.png")
    assert (name.modality, name.dataset, name.original, name.plane) == (modality, dataset, "--".join(original), plane)
    assert mask_name(f"masks/{stem}--{number:04}_{instance:03}.png") == (stem, f"{number:04}", f"{instance:03}")


def test_boxes(root) -> None:
    samples, _ = _read(root, "train", "rec", "reg", test_share=0.0)
    rec, reg = samples[:2]
    assert rec.meta.boxes[0].coords == reg.meta.boxes[0].coords == (4, 5, 14, 25)
    assert rec.messages[1].content == (BoxRef(box=0),) and reg.answer == "left heart ventricle"
    assert rec.media_key == (str(root / "images" / f"{roots.HEART}.png"),)
    assert (rec.meta.patient, rec.meta.modality) == ("ACDC/patient001", "mr_00")
    boxes = Counter((sample.meta.boxes[0].label, sample.meta.boxes[0].coords) for sample in samples)
    assert boxes == dict.fromkeys(
        [
            ("left heart ventricle", (4, 5, 14, 25)),
            ("right heart ventricle", (20, 5, 30, 25)),  # all masks numbered 000: by connected part
            ("right heart ventricle", (40, 30, 44, 40)),
            ("kidney left", (0, 0, 10, 10)),
            ("kidney left", (20, 0, 64, 48)),  # numbered: one box for each
            ("liver", (1, 2, 33, 34)),
        ],
        2,
    )


def test_paths_of_windows_give_the_same(root) -> None:
    before = _read(root, "train", "rec", "reg", test_share=0.0)[0]
    file = root / "SAMed2D_v1.json"
    listed = json.loads(file.read_text())
    turned = {name.replace("/", "\\"): [mask.replace("/", "\\") for mask in masks] for name, masks in listed.items()}
    file.write_text(json.dumps(turned))
    assert _read(root, "train", "rec", "reg", test_share=0.0)[0] == before


def test_instances_by_file_or_by_part(root) -> None:
    def boxes(**options) -> Counter:
        samples, _ = _read(root, "train", "rec", test_share=0.0, **options)
        return Counter(sample.meta.boxes[0].label for sample in samples)

    assert boxes(instances="file")["right heart ventricle"] == 1 and boxes(instances="component")["kidney left"] == 3
    assert boxes(smallest=1)["right heart ventricle"] == 3
    assert boxes(smallest=150) == {"left heart ventricle": 1, "right heart ventricle": 1, "kidney left": 1, "liver": 1}


def test_what_is_refused_says_why(root) -> None:
    _, refused = _read(root, "train", "rec", test_share=0.0)
    told = {error.sample_id.rpartition("--")[2]: error.message for error in refused}
    assert "union of the others" in told["0003_000"]
    assert "covers 0 pixels, fewer than 16" in told["0013_000"] and "covers 100%" in told["0013_001"]
    assert "its mask is 24 x 32, the image 48 x 64" in told["0013_002"]
    assert "ACDC" not in told["0099_000"] and "no class '0099'" in told["0099_000"]
    assert "published inverted" in told["0001_000"] or "belongs to another image" in told["0001_000"]
    reasons = " ".join(error.message for error in refused)
    assert "published inverted" in reasons and "belongs to another image" in reasons and "does not end in" in reasons
    assert "is not named" in reasons and "leaves" in reasons
    places = {error.path for error in refused}
    assert f"SAMed2D_v1.json, 'images/{roots.BODY}.png'" in places


def test_a_missing_or_broken_file_costs_itself_only(root) -> None:
    (root / "masks" / f"{roots.HEART}--0001_000.png").unlink()
    (root / "masks" / f"{roots.OTHER}--0013_000.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (root / "images" / f"{roots.BODY}.png").unlink()
    samples, refused = _read(root, "train", "rec", test_share=0.0)
    assert [sample.meta.boxes[0].label for sample in samples] == ["right heart ventricle"] * 2
    assert sum("cannot be read" in error.message for error in refused) == 1


def test_a_class_that_two_names_share_is_told_with_both(root) -> None:
    (root / "SAMed2D_v1_class_mapping_id.json").write_text('{"ACDC": {"a_b": "0001", "c": "0001", "d": "0002"}}')
    samples, refused = _read(root, "train", "reg", test_share=0.0)
    assert samples[0].answer == "a b or c"
    assert any("no data set 'Totalsegmentator_dataset'" in error.message for error in refused)
    (root / "SAMed2D_v1_class_mapping_id.json").write_text('{"ACDC": 3}')
    with pytest.raises(TableError, match="is no object of names and ids"):
        _read(root, "train", "reg")
    (root / "SAMed2D_v1_class_mapping_id.json").unlink()
    with pytest.raises(LayoutError, match="class_mapping_id"):
        _read(root, "train", "reg")


def test_cases_stay_together_whatever_their_slices_and_modalities() -> None:
    splits = {}
    for patient in range(400):
        names = [
            image_name(f"images/mr_{kind}--BraTS--case{patient:04}_frame{frame:02}--{plane}_{frame:04}.png")
            for kind in ("t1", "t2")
            for frame in range(3)
            for plane in "xyz"
        ]
        found = {split_of(name, 0.3) for name in names}
        assert len(found) == 1
        splits[patient] = found.pop()
        # a larger share keeps what was drawn before
        assert splits[patient] == "train" or split_of(names[0], 0.5) == "test"
    assert 0.22 < Counter(splits.values())["test"] / 400 < 0.38


def test_every_image_is_in_one_split(root) -> None:
    for share in (0.0, 0.5, 1.0):
        images = [
            {key for sample in _read(root, split, "rec", test_share=share)[0] for key in sample.media_key}
            for split in ("train", "test")
        ]
        assert not images[0] & images[1] and len(images[0] | images[1]) == 3
        assert len(_read(root, "train", "rec", test_share=share)[1]) >= 2  # rows without a case are told here
    assert _read(root, "train", "rec", test_share=1.0)[0] == []


def test_the_folder_above_works_too(root) -> None:
    assert _read(root.parent, "train", "rec", test_share=0.0)[0] == _read(root, "train", "rec", test_share=0.0)[0]


def test_uni_meds_prepared_folders(tmp_path) -> None:
    root = roots.write_prepared(tmp_path / "prepared")
    samples, refused = _read(root, "test", "rec", "reg")
    assert [sample.meta.boxes[0].coords for sample in samples] == [(3, 4, 23, 14)] * 4
    rec, reg = samples[:2]
    assert (
        rec.messages[0].content[-1] == Text(text="give me the location of liver tumor") and reg.answer == "liver tumor"
    )
    assert {PurePosixPath(sample.media_key[0]).stem for sample in samples} == {roots.BODY, "0001"}
    assert samples[-1].meta.patient == "Totalsegmentator_dataset/s0011--with--dashes" and rec.meta.patient == ""
    assert [error.path for error in refused] == [
        "item 2 of regions_small_test/ct/0001.json",
        f"item 2 of regions_small_test/ct/{roots.BODY}.json",
    ]
    (root / "regions_small_test/ct/0001.json").write_text("{")
    samples, refused = _read(root, "test", "rec")
    assert len(samples) == 1 and refused[0].path == "regions_small_test/ct/0001.json"


def test_two_hundred_thousand_masks_are_named_in_seconds() -> None:
    """One image that has them all: a comparison of each with each would take hours."""
    stem = "ct_00--set--case--x_0001"
    masks = [f"masks/{stem}--{number % 2000:04}_{number // 2000:03}.png" for number in np.arange(200_000)]
    start = time.perf_counter()
    named, wrong = by_class(stem, masks)
    assert time.perf_counter() - start < 20
    assert len(named) == 2000 and sum(map(len, named.values())) == 200_000 and not wrong
