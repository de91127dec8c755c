"""SLAKE: what its rows become, which split an image belongs to, and boxes from detection.json."""

import json

import pytest

import adapter_root
from medmvl.core.schema import BoxRef, SampleError, Text
from medmvl.data.adapters.base import LayoutError
from medmvl.data.adapters.slake import Slake
from medmvl.data.questions import pool

roots = adapter_root.builder("slake")


def _read(root, split, *tasks, **options):
    read = list(Slake(root, options).samples(split, tasks))
    return [one for one in read if not isinstance(one, SampleError)], [
        one for one in read if isinstance(one, SampleError)
    ]


@pytest.fixture
def root(tmp_path):
    return roots.write(tmp_path / "slake")


def test_a_row_becomes_a_question(root) -> None:
    samples, refused = _read(root, "train", "vqa")
    first, yes, lung = samples
    assert first.prompt().messages[0].content[-1] == Text(text="What modality is used to take this image?")
    assert first.media_key == (str(root / "imgs/xmlab1/source.jpg"),)
    assert (first.answer, first.meta.answer_type, first.meta.modality) == ("MRI", "open", "MRI")
    extra = first.meta.model_extra
    assert {key: extra[key] for key in ("qid", "location", "content_type", "base_type", "q_lang")} == {
        "qid": "0",
        "location": "Abdomen",
        "content_type": "Modality",
        "base_type": "vqa",
        "q_lang": "en",
    }
    assert (yes.answer, yes.meta.answer_type, yes.meta.choices) == ("Yes", "closed", ("Yes", "No"))
    # closed is what the data set calls so, not what is answered by yes or no
    assert (lung.answer, lung.meta.answer_type, lung.meta.choices) == ("Lung", "closed", ())
    places = {error.path: error.message for error in refused}
    assert "field 'question' is missing" in places["item 4 of train.json"]
    assert "'answer' is empty" in places["item 5 of train.json"]
    assert "leaves" in places["item 6 of train.json"]


def test_chinese_rows_stay_out_of_other_splits(root) -> None:
    samples, refused = _read(root, "train", "vqa", languages="both")
    assert [sample.meta.model_extra["q_lang"] for sample in samples] == ["en", "en", "en", "zh"]
    (leak,) = [error for error in refused if "left out" in error.message]
    assert "xmlab4 belongs to test" in leak.message and leak.path == "item 8 of train.json"
    ids = {sample.meta.model_extra["qid"]: sample.id for sample in samples}
    for language in ("en", "zh"):  # one question has one id, whatever is read beside it
        for sample in _read(root, "train", "vqa", languages=language)[0]:
            assert sample.id == ids[sample.meta.model_extra["qid"]]
    _, refused = _read(root, "val", "vqa", languages="zh")
    assert ["xmlab2 belongs to train" in error.message for error in refused] == [True]
    images = {
        split: {key for sample in _read(root, split, "vqa", "rec", languages="both")[0] for key in sample.media_key}
        for split in ("train", "val", "test")
    }
    assert not images["train"] & images["test"] and not images["val"] & images["test"]
    (closed,) = [sample for sample in _read(root, "test", "vqa", languages="zh")[0]]
    assert closed.answer == "CT"


def test_lists_of_folders_decide_where_they_are_there(tmp_path) -> None:
    root = roots.write(tmp_path / "slake", lists=True)
    (root / "train.txt").write_text("xmlab2\r\n")
    (root / "test.txt").write_bytes(b"\xef\xbb\xbfxmlab4\nxmlab1\n")
    samples, refused = _read(root, "train", "vqa", "rec")
    assert {key.split("/")[-2] for sample in samples for key in sample.media_key} == {"xmlab2"}
    assert sum("belongs to test" in error.message for error in refused) == 4


def test_the_copy_on_the_hub_calls_it_validation(root) -> None:
    before = _read(root, "val", "vqa", "rec", "reg")
    (root / "validate.json").rename(root / "validation.json")
    assert _read(root, "val", "vqa", "rec", "reg")[0] == before[0]


def test_boxes(root) -> None:
    samples, refused = _read(root, "test", "rec", "reg")
    rec, reg = samples[:2]
    assert rec.meta.boxes[0].coords == reg.meta.boxes[0].coords == (3, 4, 23, 14)
    assert rec.messages[1].content == (BoxRef(box=0),) and reg.answer == "Liver"
    assert rec.messages[0].content[-1] == Text(text="give me the location of Liver")
    assert reg.messages[0].content[1:] == (Text(text="what object is in this location "), BoxRef(box=0))
    # one name, two boxes: two samples
    assert [sample.meta.boxes[0].coords for sample in samples[2::2]] == [(0, 0, 64, 48), (40.5, 2, 50.5, 32)]
    assert len({sample.id for sample in samples}) == len(samples) == 6 and not refused
    assert [sample.media_key for sample in samples] == [samples[0].media_key] * 6
    _, refused = _read(root, "train", "rec")
    assert [(error.path, "width, height" in error.message) for error in refused] == [
        ("item 1 of imgs/xmlab2/detection.json", True)
    ]


def test_wordings_vary_in_training_only(root) -> None:
    boxes = [{f"Organ {number}": [1, 1, 5, 5]} for number in range(60)]
    (root / "imgs/xmlab1/detection.json").write_text(json.dumps(boxes))
    samples, _ = _read(root, "train", "rec")
    asked = {sample.messages[0].content[-1].text.replace(sample.meta.boxes[0].label, "{}") for sample in samples[:60]}
    assert asked == set(pool("uni_med_rec"))


@pytest.mark.parametrize("content", ["{", '[{"Liver": [1, 2, 3]}]', "[3]", '[{"a": [1,1,1,1], "b": [1,1,1,1]}]'])
def test_a_bad_detection_file_costs_its_image_only(root, content) -> None:
    (root / "imgs/xmlab1/detection.json").write_text(content)
    samples, refused = _read(root, "train", "rec")
    assert [sample.meta.boxes[0].label for sample in samples] == ["Heart"]
    assert "imgs/xmlab1/detection.json" in refused[0].path


def test_without_any_boxes_the_questions_are_taken_and_it_is_told(root, caplog) -> None:
    for path in root.glob("imgs/*/detection.json"):
        path.unlink()
    with caplog.at_level("WARNING"):
        assert _read(root, "train", "vqa", "rec", "reg")[0] == _read(root, "train", "vqa")[0] != []
    assert "slake: not there and left out of train: detection.json" in caplog.text
    with pytest.raises(LayoutError, match=r"imgs/\*/detection\.json is missing"):
        _read(root, "train", "rec")


def test_files_of_other_splits_that_are_missing_are_no_fault_of_the_rows(root) -> None:
    (root / "validate.json").unlink()
    with pytest.raises(LayoutError, match=r"validate\.json or validation\.json is missing"):
        _read(root, "train", "vqa")


def test_an_image_without_detection_file_is_told(root) -> None:
    (root / "imgs/xmlab3/detection.json").unlink()
    samples, refused = _read(root, "val", "vqa", "reg")
    assert len(samples) == 1 and "No such file" in refused[0].message
