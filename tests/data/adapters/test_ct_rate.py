"""CT-RATE: true HU in every address, reports, labels, turns and marks of the VQA file, one patient in one split."""

import json
from pathlib import Path

import pytest

import adapter_root
from medmvl.core.schema import Sample, SampleError, Text, Volume
from medmvl.data.adapters.base import LayoutError
from medmvl.data.adapters.ct_rate import CtRate
from medmvl.data.questions import pool
from medmvl.imaging.read import read_volume

roots = adapter_root.builder("ct_rate")


@pytest.fixture
def root(tmp_path) -> Path:
    return roots.write(tmp_path / "ct_rate", "fixed")


def _read(root: Path, split: str, *tasks: str, **options) -> tuple[list[Sample], list[SampleError]]:
    read = list(CtRate(root, options).samples(split, tasks))
    samples = [one for one in read if isinstance(one, Sample)]
    return samples, [one for one in read if isinstance(one, SampleError)]


def _said(sample: Sample) -> list[str]:
    return [part.text for message in sample.messages for part in message.content if isinstance(part, Text)]


def test_reports(root) -> None:
    samples, refused = _read(root, "train", "report")
    first = samples[0]
    assert first.answer == "Findings: Lungs of train_1_a. Clear. Impression: Normal."
    assert _said(first)[0] in pool("ct_rate_report") and first.id == "report-train_1_a_1"
    assert (first.meta.patient, first.meta.study, first.meta.modality) == ("train_1", "train_1_a", "ct")
    assert first.media == (
        Volume(path=f"{root}/dataset/train_fixed/train_1/train_1_a/train_1_a_1.nii.gz#hu=already_hu"),
    )
    assert [sample.meta.study for sample in samples] == ["train_1_a", "train_1_a", "train_2_a"]
    told = [error.message for error in refused]
    assert "neither findings nor impression" in told[0] and "shows no chest" in told[1] and "leaves" in told[2]
    last = _read(root, "val", "report")[0][-1]
    assert last.answer == "Findings: Lungs of valid_2_a. Clear."  # "Not given." says nothing
    assert _said(last)[0] == pool("ct_rate_report")[0]


def test_hu_come_from_the_table_where_headers_lack_them(tmp_path) -> None:
    root = roots.write(tmp_path / "raw", "raw")
    samples, _ = _read(root, "train", "report")
    fragments = [sample.media_key[0].partition("#")[2] for sample in samples]
    assert fragments == ["slope=1&intercept=-1024", "slope=1&intercept=-8192", "slope=1&intercept=-1024"]
    both = roots.write(tmp_path / "both", "raw", "fixed")
    for place, options in ((root, {}), (both, {}), (both, {"hu_source": "table"}), (both, {"hu_source": "already_hu"})):
        for sample in _read(place, "train", "report", **options)[0]:
            values = read_volume(sample.media_key[0])
            assert values.unit == "HU" and (values.array.min(), values.array.max()) == (-1000, 40)


def test_the_source_of_hu_can_be_named(tmp_path) -> None:
    both = roots.write(tmp_path / "both", "raw", "fixed")

    def address(**options) -> str:
        return _read(both, "val", "report", **options)[0][0].media_key[0].removeprefix(f"{both}/dataset/")

    name = "valid_1/valid_1_a/valid_1_a_1.nii.gz"
    assert address() == address(hu_source="already_hu") == f"valid_fixed/{name}#hu=already_hu"
    assert address(hu_source="table") == f"valid/{name}#slope=1&intercept=-1024"
    fixed = roots.write(tmp_path / "fixed", "fixed")
    with pytest.raises(LayoutError, match="dataset/train or train is missing"):
        _read(fixed, "train", "report", hu_source="table")  # it would be applied twice
    raw = roots.write(tmp_path / "raw", "raw")
    assert _read(raw, "val", "report", hu_source="already_hu")[0][0].media_key[0].endswith("#hu=already_hu")


def test_a_volume_without_a_usable_row_of_the_table_is_refused(tmp_path) -> None:
    root = roots.write(tmp_path / "raw", "raw")
    path = root / "dataset/metadata/validation_metadata.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1].replace("-1024", "nan"), lines[3]]))
    samples, refused = _read(root, "val", "report")
    assert [sample.meta.study for sample in samples] == ["valid_2_a"]
    assert "validation_metadata.csv:2 gives no slope and intercept" in refused[0].message
    assert "has no row in the metadata table" in refused[1].message
    path.unlink()
    with pytest.raises(LayoutError, match="validation_metadata"):
        _read(root, "val", "report")


def test_labels(root) -> None:
    samples, refused = _read(root, "val", "labels")
    assert [sample.answer for sample in samples] == [
        "no abnormality",
        "arterial wall calcification",
        "cardiomegaly",
    ]
    assert len(samples[0].meta.attributes) == 18 and samples[2].meta.attributes["cardiomegaly"] == "yes"
    assert "medical material, arterial wall calcification," in _said(samples[0])[0]
    assert _said(samples[0])[0].endswith("bronchiectasis, or interlobular septal thickening?") and not refused
    _, refused = _read(root, "train", "labels")
    assert "'Coronary artery wall calcification' is empty" in refused[0].message
    path = root / "dataset/multi_abnormality_labels/valid_predicted_labels.csv"
    path.write_text(path.read_text().replace("valid_2_a_1.nii.gz,0", "valid_2_a_1.nii.gz,2"))
    assert "got 'medical material': '2'" in _read(root, "val", "labels")[1][0].message


@pytest.mark.parametrize("gone", ["radiology_text_reports", "multi_abnormality_labels", "vqa"])
def test_what_was_not_downloaded_is_left_out_and_told(root, gone, caplog) -> None:
    before = len(_read(root, "val", *CtRate.tasks)[0])
    (root / "dataset" / gone).rename(root.parent / gone)
    with caplog.at_level("WARNING"):
        samples, _ = _read(root, "val", *CtRate.tasks)
    assert 0 < len(samples) < before and f"left out of val: {gone}" in caplog.text
    with pytest.raises(LayoutError, match=rf"{gone}/.* is missing"):
        _read(root, "val", {"vqa": "short", "multi_abnormality_labels": "labels"}.get(gone, "report"))


def test_one_split_without_volumes_is_told_and_none_at_all_is_an_error(root, caplog) -> None:
    (root / "dataset/train_fixed").rename(root.parent / "train_fixed")
    with caplog.at_level("WARNING"):
        assert _read(root, "train", *CtRate.tasks) == ([], [])
    assert "ct_rate: not there and left out of train: volumes" in caplog.text
    assert _read(root, "val", *CtRate.tasks)[0]
    (root / "dataset/valid_fixed").rename(root.parent / "valid_fixed")
    with pytest.raises(LayoutError, match=r"dataset/train_fixed or .* is missing"):
        _read(root, "train", *CtRate.tasks)


def test_questions_about_other_reconstructions_are_counted(root, caplog) -> None:
    path = root / "dataset/vqa/valid_vqa.json"
    items = json.loads(path.read_text())
    named = [one for one in items if one.get("image")]
    for one in named:
        one["image"] = one["image"].replace("_1.nii.gz", "_2.nii.gz")
    path.write_text(json.dumps(items))
    with caplog.at_level("WARNING"):
        assert _read(root, "val", "short", "choice", reconstructions="one") == ([], [])
    wanted = [one for one in named if one["id"].startswith(("short", "multiple"))]
    assert f"{path}: {len(wanted)} items are about reconstructions" in caplog.text
    assert len(caplog.records) == 1


def test_conversations_stay_whole_in_training(root) -> None:
    samples, _ = _read(root, "train", "long", "short", "choice")
    long, short, choice = samples
    assert _said(long) == [
        "What do the lungs show?",
        "A nodule in the left upper lobe.",
        "Is it new?",
        "That cannot be told.",
        "And the heart?",
        "Normal.",
    ]
    assert [message.role for message in long.messages] == ["user", "assistant"] * 3 and len(long.media) == 1
    assert _said(short) == ["Where is it?", "Left lung"]  # the mark was misspelt
    assert choice.meta.answer_type == "choice" and choice.meta.choices == ()
    assert [sample.id for sample in samples] == [
        "train_long_answer_0", "train_short_answer_0", "train_multiple_choice_0",
    ]  # fmt: skip


def test_conversations_are_cut_for_evaluation(root) -> None:
    samples, _ = _read(root, "val", "long", "short", "choice")
    assert [sample.id for sample in samples] == [
        "valid_long_answer_0_0", "valid_long_answer_0_1", "valid_long_answer_0_2", "valid_short_answer_0",
        "valid_multiple_choice_0_0", "valid_multiple_choice_0_1",
    ]  # fmt: skip
    assert all(len(sample.media) == 1 and len(sample.messages) == 2 for sample in samples)
    assert _said(samples[1]) == ["Is it new?", "That cannot be told."]
    assert samples[4].meta.choices == ("Normal aeration", "A few nodules", "Effusion", "Emphysema")
    assert samples[4].answer == "(b) A few nodules" and samples[5].meta.choices == ("Left", "Right")
    assert len(_read(root, "val", "long", turns="multi")[0]) == 1
    assert len(_read(root, "train", "long", turns="single")[0]) == 3


def test_reports_from_the_vqa_file(root) -> None:
    (sample,), _ = _read(root, "val", "report", reports="vqa")
    assert _said(sample) == ["Produce the report for this CT image.", "Findings: A nodule. Impression: Nodule."]
    assert (sample.id, sample.task) == ("valid_report_generation_0", "ct_rate/report")


def test_questions_without_a_volume(root) -> None:
    (sample,), _ = _read(root, "val", "text")
    assert sample.media == () and _said(sample) == ["What is emphysema?", "Destroyed air spaces."]


def test_one_reconstruction_of_each_scan(root) -> None:
    samples, _ = _read(root, "train", "report", "labels", "long", reconstructions="one")
    assert [sample.id for sample in samples] == [
        "report-train_1_a_1", "report-train_2_a_1", "labels-train_1_a_1", "labels-train_2_b_2", "train_long_answer_0",
    ]  # fmt: skip
    path = root / "dataset/metadata/no_chest_train.txt"
    path.write_text("train_1_a_1\n")  # names without suffix work too; another reconstruction stands in
    samples, _ = _read(root, "train", "report", reconstructions="one")
    assert samples[0].id == "report-train_1_a_2"


def test_lists_of_what_shows_no_chest_name_volumes_scans_or_paths(root) -> None:
    path = root / "dataset/metadata/no_chest_train.txt"
    path.write_text("train_1_a\ntrain_fixed/train_2/train_2_a/train_2_a_1.nii.gz\n")
    for reconstructions in ("all", "one"):
        samples, refused = _read(root, "train", "labels", reconstructions=reconstructions)
        assert "shows no chest" in refused[0].message
        assert {sample.meta.study for sample in samples} <= {"train_2_b", "train_3_a"} and samples


def test_patients_of_the_other_split_are_refused(root) -> None:
    path = root / "dataset/radiology_text_reports/validation_reports.csv"
    path.write_text(path.read_text().replace("valid_2_a_1", "train_2_a_1"))
    samples, (error,) = _read(root, "val", "report")
    assert len(samples) == 2 and "'train_2_a_1.nii.gz' is no volume of this split" in error.message


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"conversations": []}, "not turns of human and gpt"),
        ({"conversations": roots.turn("<image>\nWhat?", "This.")[:1]}, "not turns of human and gpt"),
        ({"conversations": roots.turn("<image>\nWhat?", "This.")[::-1]}, "not turns of human and gpt"),
        ({"conversations": roots.turn("<image>\nWhat?", " ")}, "turn 1 of its conversations says nothing"),
        ({"conversations": roots.turn("<image> <image>\nWhat?", "This.")}, "turn 0 of its conversations shows"),
        ({"conversations": "What?"}, "not turns of human and gpt"),
        ({"image": None}, "names no image"),
        ({"image": "valid_1_a_1.npy"}, "is no volume of this split"),
        ({"id": ""}, "'id' is empty"),
        ({"id": "42", "conversations": [{"from": "human", "value": "<image>"}]}, "its question has no type"),
    ],
)
def test_a_bad_item_is_refused_alone(root, change, told) -> None:
    path = root / "dataset/vqa/valid_vqa.json"
    data = roots.questions("valid")
    data.insert(0, roots.item("long_answer_7", "valid_1_a_1", roots.turn("<image>\nWhat?", "This.")) | change)
    path.write_text(json.dumps(data))
    samples, (error,) = _read(root, "val", "long")
    assert len(samples) == 3 and told in error.message and error.path == "item 1 of valid_vqa.json"


@pytest.mark.parametrize(
    ("kind", "task"),
    [("description", "long"), ("free_response", "long"), ("multiple_choice", "choice"), ("location", "short")],
)
def test_an_unknown_id_goes_by_its_type(root, kind, task) -> None:
    path = root / "dataset/vqa/valid_vqa.json"
    path.write_text(
        json.dumps([roots.item("q7", "valid_1_a_1", roots.turn("<image>\nWhat?<provided>", "This.", kind))])
    )
    (sample,), _ = _read(root, "val", "long", "short", "choice")
    assert sample.task == f"ct_rate/{task}" and _said(sample)[0] == "What?"


def test_the_folder_dataset_may_be_the_root(root) -> None:
    inner = root / "dataset"
    assert _read(inner, "val", "report", "labels", "long")[0] == _read(root, "val", "report", "labels", "long")[0]
