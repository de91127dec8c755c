"""M3D-Data: captions, both forms of a question, boxes in the array's own frame from masks of both forms."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import adapter_root
from medmvl.core.schema import BoxRef, Sample, SampleError, Text
from medmvl.data.adapters.base import LayoutError
from medmvl.data.adapters.m3d import M3d, extent, sparse_boxes
from medmvl.data.questions import pool
from medmvl.data.rows import TableError
from medmvl.imaging.read import read_volume

roots = adapter_root.builder("m3d")


@pytest.fixture
def root(tmp_path) -> Path:
    return roots.write(tmp_path / "m3d")


def _read(root: Path, split: str, *tasks: str, **options) -> tuple[list[Sample], list[SampleError]]:
    def unpack(name: str, content: bytes) -> str:
        path = root.parent / "media" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return str(path)

    read = list(M3d(root, options, unpack).samples(split, tasks))
    samples = [one for one in read if isinstance(one, Sample)]
    return samples, [one for one in read if isinstance(one, SampleError)]


def _asked(sample: Sample) -> str:
    return next(part.text for part in sample.messages[0].content if isinstance(part, Text))


def test_captions(root) -> None:
    first, second = _read(root, "train", "caption")[0]
    assert first.answer == "Case 0: a cyst in the liver." and second.answer.startswith("Case 1")
    assert _asked(first) in pool("m3d_caption") and len(set(pool("m3d_caption"))) == 41
    path = root / "M3D_Cap_npy/ct_quizze/000000/Axial_C__portal_venous_phase.npy"
    assert first.media_key == (f"{path}#unit=0..1",) and first.meta.patient == "ct_quizze/000000"
    volume = read_volume(first.media_key[0])
    assert volume.size == roots.SHAPE and not volume.oriented
    (val,) = _read(root, "val", "caption")[0]
    assert _asked(val) == "Can you provide a caption consists of findings for this medical image?"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("title: x\nstudy_findings: A cyst.\n Clear.\n", "A cyst. Clear."),
        ("title: x\nstudy_findings: \ndiscussion: A cyst.", "discussion: A cyst."),  # five letters say something
        ("title: x\nstudy_findings: -\n", "title: x study_findings: -"),
        ("title: x\ndiscussion: A cyst.", "A cyst."),
        ("A cyst.", "A cyst."),
    ],
)
def test_texts_as_published_or_prepared(root, text, answer) -> None:
    (root / "M3D_Cap_npy/ct_quizze/000002/text.txt").write_text(text)
    assert _read(root, "val", "caption")[0][0].answer == answer


@pytest.mark.parametrize(
    ("content", "told"), [(b"", "says nothing"), (b"\xff\xfe", "cannot be read"), (None, "No such")]
)
def test_a_bad_text_is_refused(root, content, told) -> None:
    path = root / "M3D_Cap_npy/ct_quizze/000002/text.txt"
    path.unlink() if content is None else path.write_bytes(content)
    samples, (error,) = _read(root, "val", "caption")
    assert not samples and told in error.message and error.path == "item 1 of 'validation' in M3D_Cap.json"


def test_test_sets_are_chosen(root) -> None:
    assert [sample.answer[:6] for sample in _read(root, "test", "caption")[0]] == ["Case 3", "Case 4"]
    assert len(_read(root, "test", "caption", caption_test="test1k")[0]) == 1
    assert [one.answer[:6] for one in _read(root, "test", "caption", caption_test="hard_test")[0]] == ["Case 4"]
    with pytest.raises(TableError, match=r"has no list 'test2k'.*test1k"):
        _read(root, "test", "caption", caption_test="test2k")
    assert len(_read(root, "test", "vqa_open", vqa_test="test5k")[0]) == 1


def test_questions(root) -> None:
    closed, opened = _read(root, "test", "vqa_closed", "vqa_open")[0][:2]
    assert _asked(closed) == "Which plane is shown? Choices: A. Axial B. Coronal C. Sagittal D. Oblique"
    assert closed.answer == "B. Coronal" and closed.meta.choices == ("Axial", "Coronal", "Sagittal", "Oblique")
    assert (_asked(opened), opened.answer) == ("Which plane is shown?", "Coronal")
    assert closed.media_key == opened.media_key and closed.meta.model_extra["question_type"] == "plane"
    (yes,), _ = _read(root, "train", "vqa_yn")
    assert (_asked(yes), yes.answer, yes.task) == ("Is there a cyst?", "Yes", "m3d/vqa_yn")
    assert (yes.meta.answer_type, yes.meta.choices) == ("closed", ("Yes", "No"))
    assert _read(root, "test", "vqa_yn") == ([], [])
    _, refused = _read(root, "train", "vqa_closed", "vqa_open")
    assert [(error.path, error.message.split(";")[0]) for error in refused] == [
        ("M3D_VQA_train.csv:3", "field 'Choice C' is empty"),
        ("M3D_VQA_train.csv:4", "field 'Answer' is empty"),
    ]


def test_boxes_are_in_the_arrays_own_frame(root) -> None:
    samples, refused = _read(root, "train", "rec", "reg")
    rec, reg, cyst, _ = samples
    assert rec.meta.boxes[0].coords == reg.meta.boxes[0].coords == (1, 2, 3, 8, 7, 5)
    assert rec.messages[1].content == (BoxRef(box=0),) and reg.answer == "kidney"
    assert cyst.meta.boxes[0].coords == (4, 0, 0, 12, 10, 1) and cyst.meta.boxes[0].label == "kidney cyst"
    assert rec.media_key == (f"{root}/M3D_Seg_npy/0004/1/image.npy#unit=0..1",) and rec.meta.patient == "0004/1"
    assert read_volume(rec.media_key[0]).original.size == roots.SHAPE
    assert [error.message for error in refused] == ["its mask is empty", "0004.json names no class 8"]
    asked = _read(root, "test", "rec", "reg")[0]
    assert _asked(asked[0]) == "Can you find the kidney in this image? Give coordinates."
    assert asked[1].messages[0].content[1:] == (
        Text(text="What target is present within the coordinates "), BoxRef(box=0), Text(text=" ?"),
    )  # fmt: skip
    assert _read(root, "val", "rec", "reg", "refseg") == ([], [])


def _published(folder: Path) -> np.ndarray:
    """Write a scan [1, X, Y, Z] of M3D-Seg as it is published, with sparse masks; return the masks."""
    base = folder / "M3D_Seg" / "0006"
    shape = (9, 7, 5)
    masks = np.zeros((3, *shape), np.int32)
    masks[0, 1:4, 2:3, 0:5] = 1
    masks[2, 8, 6, 4] = 1
    (base / "case_1").mkdir(parents=True)
    values = np.random.default_rng(1).normal(0, 1, (1, *shape)).astype(np.float32)
    values[0, 3, 2, 1] = 9
    np.save(base / "case_1" / "image.npy", values)
    roots.sparse(base / "case_1", masks)
    item = {"image": "0006/case_1/image.npy", "label": f"0006/case_1/mask_{masks.shape}.npz"}
    labels = {"0": "background", "1": "kidney", "2": "nothing", "3": "kidney tumor"}
    (base / "0006.json").write_text(json.dumps({"labels": labels, "train": [item], "test": []}))
    return masks


def test_sparse_masks_as_published(tmp_path) -> None:
    _published(tmp_path / "m3d")
    samples, refused = _read(tmp_path / "m3d", "train", "rec")
    assert not refused and [sample.meta.boxes[0].label for sample in samples] == ["kidney", "kidney tumor"]
    assert [sample.meta.boxes[0].coords for sample in samples] == [(1, 2, 0, 4, 3, 5), (8, 6, 4, 9, 7, 5)]
    volume = read_volume(samples[0].media_key[0])
    assert samples[0].media_key[0].endswith("media/m3d_seg/0006/case_1/image.npy#unit=0..255")
    assert volume.size == (5, 7, 9) and volume.array[1, 2, 3] == 255 == volume.array.max() and volume.array.min() == 0


def test_damaged_sparse_masks_are_refused(tmp_path) -> None:
    masks = _published(tmp_path / "m3d")
    path = tmp_path / "m3d/M3D_Seg/0006/case_1" / f"mask_{masks.shape}.npz"
    good = dict(np.load(path))
    wrong = {
        "a place lies outside": {"indices": good["indices"] + 300},
        "do not fit its places": {"indptr": good["indptr"][:-1]},
        "compressed sparse rows": {"format": np.array(b"coo")},
        "is empty": {"indptr": good["indptr"] * 0, "indices": good["indices"][:0]},
    }
    for told, change in wrong.items():
        np.savez(path, **(good | change))
        samples, (error,) = _read(tmp_path / "m3d", "train", "rec")
        assert not samples and told in error.message
    path.write_bytes(path.read_bytes()[:100])
    assert "damaged or cut off" in _read(tmp_path / "m3d", "train", "rec")[1][0].message
    volume = path.with_name("image.npy")
    np.save(volume, np.zeros((1, 9, 7, 6), np.float32))
    assert "of another size" in _read(tmp_path / "m3d", "train", "rec")[1][0].message


@given(arrays.arrays(bool, st.tuples(*[st.integers(1, 5)] * 3)))
def test_both_forms_of_a_mask_give_the_same_box(tmp_path_factory, mask) -> None:
    """[D, H, W] as prepared, and its axes the other way round, sparse, as published."""
    if not mask.any():
        with pytest.raises(ValueError, match="is empty"):
            extent(mask)
        return
    box = extent(mask)
    x0, y0, z0, x1, y1, z1 = box
    assert mask[z0:z1, y0:y1, x0:x1].sum() == mask.sum()
    assert all(mask[z0:z1, y0:y1, x0:x1].any(axis=axes)[[0, -1]].all() for axes in ((1, 2), (0, 2), (0, 1)))
    folder = tmp_path_factory.mktemp("sparse")
    published = mask.transpose(2, 1, 0)[None].astype(np.int32)
    roots.sparse(folder, published)
    assert sparse_boxes(str(folder / f"mask_{published.shape}.npz"), published.shape[1:]) == {0: box}


def test_masks_that_are_not_what_they_should_be(root) -> None:
    path = root / "M3D_Seg_npy/0004/2/masks/mask_0.npy"

    def told() -> str:
        return _read(root, "test", "rec")[1][0].message

    np.save(path, np.zeros((1, 6, 10, 13), bool))
    assert "its mask is [6, 10, 13], its volume [6, 10, 12]" in told()
    np.save(path, np.zeros((2, 6, 10, 12), bool))
    assert "[1, D, H, W] is expected" in told()
    np.save(path, np.array([[[{}]]]), allow_pickle=True)
    assert "cannot be read as .npy" in told()
    content = (root / "M3D_Seg_npy/0004/2/masks/mask_2.npy").read_bytes()
    path.write_bytes(content[:-50])
    assert "cannot be read as .npy" in told()
    path.write_bytes(content.replace(b"(1, 6, 10, 12)", b"(1,90000,9,12)"))
    assert "cannot be read as .npy" in told()
    assert len(_read(root, "test", "rec")[0]) == 1


def test_refseg(root) -> None:
    (lesion, stone), (none,) = _read(root, "train", "refseg")
    assert lesion.messages[1].content == (Text(text="Sure, it is "), BoxRef(box=0), Text(text="."))
    assert lesion.meta.boxes[0].coords == (2, 3, 1, 6, 9, 4)
    assert stone.messages[1].content == (BoxRef(box=0),) and stone.meta.boxes[0].coords == (0, 0, 5, 1, 1, 6)
    assert none.message == "its mask is empty" and none.path == "M3D_RefSeg.csv:4"
    (test,), _ = _read(root, "test", "refseg")
    assert (
        test.messages[1].content == (Text(text="Here "), BoxRef(box=0)) and test.meta.patient == "M3D_RefSeg_npy/s0001"
    )


def test_each_set_is_asked_for_only_where_a_task_needs_it(root) -> None:
    for name in ("M3D-VQA", "M3D_Seg_npy", "M3D_RefSeg_npy"):
        (root / name).rename(root.parent / name)
    assert len(_read(root, "train", "caption")[0]) == 2
    for task, name in (("vqa_closed", "M3D_VQA_train.csv"), ("reg", "M3D_Seg_npy"), ("refseg", "M3D_RefSeg.csv")):
        with pytest.raises(LayoutError, match=name):
            _read(root, "train", task)


@pytest.mark.parametrize(
    ("kept", "counts"),
    [
        ("M3D_Cap_npy", {"train": 2, "val": 1, "test": 2}),
        ("M3D-VQA", {"train": 4, "val": 2, "test": 4}),
        ("M3D_Seg_npy", {"train": 4, "test": 4}),
        ("M3D_RefSeg_npy", {"train": 2, "test": 1}),
    ],
)
def test_one_published_part_is_enough(root, kept, counts, caplog) -> None:
    for folder in [folder for folder in root.iterdir() if folder.name != kept]:
        folder.rename(root.parent / folder.name)
    with caplog.at_level("WARNING"):
        found = {split: _read(root, split, *M3d.tasks)[0] for split in M3d.splits}
    assert {split: len(samples) for split, samples in found.items() if samples} == counts
    told = [record.getMessage() for record in caplog.records]
    parts = ["M3D-Cap", "M3D-VQA", "M3D-VQA, yes or no", "M3D-Seg", "M3D-RefSeg"]
    missing = [part for part in parts if not part.startswith(kept.replace("_npy", "").replace("_", "-"))]
    assert len(told) == 3 and told[0] == f"m3d: not there and left out of train: {', '.join(missing)}"


def test_without_any_part_the_layout_is_told(root) -> None:
    for folder in list(root.iterdir()):
        folder.rename(root.parent / folder.name)
    for split in M3d.splits:
        with pytest.raises(LayoutError, match=r"M3D_Cap\.json.* is missing"):
            _read(root, split, *M3d.tasks)


def test_a_test_set_that_an_option_names_is_needed(root) -> None:
    (root / "M3D-VQA/M3D_VQA_test5k.csv").unlink()
    with pytest.raises(LayoutError, match="M3D_VQA_test5k"):
        _read(root, "test", *M3d.tasks, vqa_test="test5k")
    assert _read(root, "train", *M3d.tasks, vqa_test="test5k")[0]


def test_a_volume_that_is_missing_keeps_its_address_and_its_id(root) -> None:
    before = _read(root, "train", "caption", "vqa_open")[0]
    for path in (root / "M3D_Cap_npy").rglob("*.npy"):
        path.unlink()
    assert _read(root, "train", "caption", "vqa_open")[0] == before


@pytest.mark.parametrize("name", ["M3D_Cap", "M3D-Cap"])
def test_the_folder_of_a_set_may_be_called_otherwise_than_in_its_tables(root, name) -> None:
    (root / "M3D_Cap_npy").rename(root / name)
    samples, refused = _read(root, "val", "caption", "vqa_open")
    assert len(samples) == 2 and not refused
    assert {sample.media_key[0] for sample in samples} == {
        f"{root}/{name}/ct_quizze/000002/Axial_C__portal_venous_phase.npy#unit=0..1"
    }
