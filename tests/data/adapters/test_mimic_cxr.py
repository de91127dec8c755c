"""MIMIC-CXR: the official sections, labels and their doubts, both forms of the data, views and studies."""

import json
from pathlib import Path

import pytest

import adapter_root
from medmvl.core.schema import Sample, SampleError, Text
from medmvl.data.adapters.base import LayoutError
from medmvl.data.adapters.mimic_cxr import MimicCxr, sections
from medmvl.data.questions import pool
from medmvl.data.rows import TableError

roots = adapter_root.builder("mimic_cxr")


@pytest.fixture
def root(tmp_path) -> Path:
    return roots.write(tmp_path / "mimic")


def _read(root: Path, split: str, *tasks: str, **options) -> tuple[list[Sample], list[SampleError]]:
    read = list(MimicCxr(root, options).samples(split, tasks))
    samples = [one for one in read if isinstance(one, Sample)]
    return samples, [one for one in read if isinstance(one, SampleError)]


def test_an_image_and_its_report(root) -> None:
    first, second, other = _read(root, "train", "report")[0]
    assert first.answer == "Lungs of 50000001 are clear. Heart size is normal."
    assert first.messages[0].content[-1].text in pool("mimic_cxr_report")
    assert first.media_key == (str(root / "files/p10/p10000001/s50000001" / f"{roots.dicom_id('a1')}.jpg"),)
    assert (first.meta.patient, first.meta.study, first.meta.model_extra["view"]) == ("10000001", "50000001", "LATERAL")
    assert second.answer == first.answer and other.meta.study == "50000002"
    (val,) = _read(root, "val", "report")[0]
    assert val.messages[0].content[-1] == Text(text="Describe the given chest x-ray image in detail.")
    assert MimicCxr.credentialed


def test_what_is_wrong_is_told_once_and_costs_nothing_else(root) -> None:
    _, refused = _read(root, "train", "report")
    places = {error.path: error.message for error in refused}
    table = "mimic-cxr-2.0.0-split.csv.gz"
    assert "'subject_id' is empty" in places[f"{table}:5"] and "leaves" in places[f"{table}:6"]
    assert "no findings; it has preamble, indication, last_paragraph" in places[f"{table}:7"]
    assert _read(root, "test", "report")[1] == []
    (root / "mimic-cxr-reports/files" / f"{roots.place('11000005', '50000006')}.txt").unlink()
    (error,) = _read(root, "test", "report")[1]
    assert "has no report" in error.message


@pytest.mark.parametrize(
    ("section", "answer"),
    [
        ("impression", "No acute disease."),
        (
            "findings_impression",
            "Findings: Lungs of 50000004 are clear. Heart size is normal. Impression: No acute disease.",
        ),
        ("any", "Lungs of 50000004 are clear. Heart size is normal."),
    ],
)
def test_the_section_is_chosen(root, section, answer) -> None:
    assert [sample.answer for sample in _read(root, "val", "report", section=section)[0]] == [answer]


def test_any_falls_back_to_the_last_paragraph(root) -> None:
    samples, _ = _read(root, "train", "report", section="any")
    assert samples[-1].answer == "Lungs are clear. Heart is normal."


def test_studies_that_the_official_scripts_cut_by_hand_are_refused(root) -> None:
    split = root / "mimic-cxr-2.0.0-split.csv.gz"
    split.unlink()
    rows = [[roots.dicom_id("z"), "50913680", "11851243", "test"]]
    roots.table(root / "mimic-cxr-2.0.0-split.csv", ["dicom_id", "study_id", "subject_id", "split"], rows)
    path = root / "mimic-cxr-reports/files/p11/p11851243/s50913680.txt"
    path.parent.mkdir(parents=True)
    path.write_text(roots.REPORT)
    samples, (error,) = _read(root, "test", "report")
    assert not samples and "cuts this report by hand" in error.message


@pytest.mark.parametrize(
    ("report", "found"),
    [
        ("Nothing opens a section here.", {"full report": "Nothing opens a section here."}),
        ("x\n \n y\n \n z", {"full report": "x", "last_paragraph": "y z"}),
        ("t\n CHEST, TWO VIEWS:  Clear.\n", {"preamble": "t", "findings": "Clear."}),
        ("t\n FINDNGS:  Clear.\n IMPRESSON:  Fine.\n", {"preamble": "t", "findings": "Clear.", "impression": "Fine."}),
        ("t\n CONCLUSION:  Fine.\n", {"preamble": "t", "impression": "Fine."}),
        ("t\n FINDINGS AND IMPRESSION:  Fine.\n", {"preamble": "t", "impression": "Fine."}),
        # the last one counts, if it says anything
        ("t\n FINDINGS:  a\n FINDINGS:  b\n FINDINGS: \n\n", {"preamble": "t", "findings": "b"}),
        # no heading: not after one blank, in small letters, or on the line of another
        ("t\nFINDINGS:  a\n", {"full report": "t FINDINGS: a"}),
        ("t\n Findings:  a\n", {"full report": "t Findings: a"}),
        ("t\n FINDINGS: IMPRESSION:  a\n", {"preamble": "t", "findings": "IMPRESSION: a"}),
        ("t\n PORTABLE CHEST:\n\n INDICATION:  why\n \n body", {
            "preamble": "t", "indication": "why", "last_paragraph": "body"}),
        ("t\r\n FINDINGS:  a\r\n b\r\n", {"preamble": "t", "findings": "a b"}),
    ],
)  # fmt: skip
def test_sections(report, found) -> None:
    assert sections(report) == found


def test_findings_from_labels(root) -> None:
    samples, _ = _read(root, "train", "classification")
    assert [sample.answer for sample in samples] == [
        "no finding",
        "no finding",
        "cardiomegaly, support devices",
        "no finding",
    ]
    assert samples[2].meta.attributes == {
        "cardiomegaly": "yes", "edema": "uncertain", "pneumothorax": "no", "support devices": "yes",
    }  # fmt: skip
    samples, (one, _) = _read(root, "test", "classification")
    assert [sample.answer for sample in samples] == ["atelectasis, pleural effusion"]
    assert "mimic-cxr-2.0.0-chexpert.csv.gz:6 are 1, 0, -1 or empty" in one.message
    question = samples[0].messages[0].content[-1].text
    assert question.startswith("Which of these findings does this chest X-ray show, if any: atelectasis, cardiomegaly,")
    assert "no finding" not in question and question.endswith("pneumothorax, or support devices?")


def test_doubts_count_as_they_are_told_to(root) -> None:
    samples, _ = _read(root, "train", "classification", uncertain="positive")
    assert [sample.answer for sample in samples[2:]] == ["cardiomegaly, edema, support devices", "pneumonia"]
    samples, refused = _read(root, "train", "classification", uncertain="refuse")
    assert len(samples) == 2 and sum("uncertain" in error.message for error in refused) == 2
    samples, refused = _read(root, "train", "classification", labels="negbio", uncertain="positive")
    assert [sample.answer for sample in samples] == ["pneumonia"]
    assert sum("has no row in the table of labels (negbio)" in error.message for error in refused) == 3


def test_labels_that_a_radiologist_gave(root) -> None:
    header = ["study_id", *(label.replace("Lung Opacity", "Airspace Opacity") for label in roots.LABELS)]
    rows = [["50000005", *roots.labels(Lung_Opacity="1.0", Edema="0.0", Pneumonia="-1.0")]]
    roots.table(root / "mimic-cxr-2.1.0-test-set-labeled.csv", header, rows)
    samples, refused = _read(root, "test", "classification", labels="radiologist")
    assert [sample.answer for sample in samples] == ["lung opacity"] * 2 and not refused
    assert samples[0].meta.attributes == {"edema": "no", "lung opacity": "yes", "pneumonia": "uncertain"}
    _, refused = _read(root, "train", "classification", labels="radiologist")
    assert all("table of labels" not in error.message for error in refused)


def test_views_and_studies(root) -> None:
    def images(**options) -> list[list[str]]:
        return [[Path(key).stem[6:8] for key in one.media_key] for one in _read(root, "test", "report", **options)[0]]

    assert images() == [["e1"], ["e2"], ["f1"]]
    assert images(views="frontal") == [["e1"], ["f1"]] and images(views="lateral") == [["e2"]]
    assert images(images="study") == [["e1", "e2"], ["f1"]]
    (study, *_), _ = _read(root, "train", "report", images="study")
    assert [Path(key).stem[6:8] for key in study.media_key] == ["a2", "a1"] and study.id == "s50000001-report"
    assert study.meta.model_extra["view"] == "PA, LATERAL"
    refused = _read(root, "train", "report", images="study")[1]
    assert sum("leaves" in error.message for error in refused) == 1 and len(refused) == 3
    assert [Path(one.media_key[0]).stem[6:8] for one in _read(root, "train", "report", views="frontal")[0]] == [
        "a2",
        "b1",
    ]
    (root / "mimic-cxr-2.0.0-metadata.csv.gz").unlink()
    assert images() == [["e1"], ["e2"], ["f1"]]
    with pytest.raises(LayoutError, match=r"mimic-cxr-2\.0\.0-metadata"):
        images(views="frontal")


def test_the_dicom_tree(tmp_path) -> None:
    root = roots.write(tmp_path / "mimic", ".dcm", reports="files")
    samples, _ = _read(root, "test", "report")
    assert [Path(sample.media_key[0]).is_file() for sample in samples] == [True] * 3
    assert samples[0].media_key[0].endswith(".dcm") and samples[0].answer.startswith("Lungs of 50000005")


def test_reports_may_lie_elsewhere(tmp_path) -> None:
    root = roots.write(tmp_path / "jpg", reports=str(tmp_path / "reports"))
    with pytest.raises(LayoutError, match="mimic-cxr-reports/files is missing"):
        _read(root, "val", "report")
    assert len(_read(root, "val", "report", reports=str(tmp_path / "reports"))[0]) == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no reports such as"):
        _read(root, "val", "report", reports=str(tmp_path / "empty"))
    assert len(_read(root, "val", "classification")[0]) == 1


def test_a_missing_or_cut_table_is_no_fault_of_the_rows(root) -> None:
    path = root / "mimic-cxr-2.0.0-chexpert.csv.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(TableError, match="damaged or cut off"):
        _read(root, "val", "classification")
    path.unlink()
    with pytest.raises(LayoutError, match=r"chexpert\.csv\.gz or"):
        _read(root, "val", "classification")
    with pytest.raises(LayoutError, match=r"chexpert\.csv\.gz or"):
        _read(root, "val", "report", "classification", labels="chexpert")


def _all(root: Path, split: str) -> list[Sample]:
    return _read(root, split, "report", "classification")[0]


def test_what_is_not_there_is_left_out_and_told(tmp_path, caplog) -> None:
    root = roots.write_r2gen(tmp_path / "r2gen")
    with caplog.at_level("WARNING"):
        samples = _all(root, "train")
    assert samples == _read(root, "train", "report")[0] and len(samples) == 2
    assert [record.getMessage() for record in caplog.records] == [
        "mimic_cxr: not there and left out of train: classification"
    ]
    jpg = roots.write(tmp_path / "jpg", reports=str(tmp_path / "reports"))
    samples = _all(jpg, "train")
    assert samples == _read(jpg, "train", "classification")[0] and len(samples) == 4
    (jpg / "mimic-cxr-2.0.0-chexpert.csv.gz").unlink()
    with pytest.raises(LayoutError, match="mimic-cxr-reports/files is missing"):
        _all(jpg, "train")


def test_unknown_splits_are_told_with_the_training_rows(root) -> None:
    split = root / "mimic-cxr-2.0.0-split.csv.gz"
    split.unlink()
    rows = [[roots.dicom_id("a1"), "50000001", "10000001", "trian"], ["x", "y"]]
    roots.table(root / "mimic-cxr-2.0.0-split.csv", ["dicom_id", "study_id", "subject_id", "split"], rows)
    assert [error.message for error in _read(root, "train", "report")[1]] == [
        "its split 'trian' is unknown",
        "has 2 cells, but the header names 4 columns",
    ]
    assert _read(root, "test", "report") == ([], [])


def test_r2gen(tmp_path) -> None:
    root = roots.write_r2gen(tmp_path / "r2gen")
    samples, refused = _read(root, "train", "report")
    assert [sample.answer for sample in samples] == ["Lungs of 50000002 are clear.", "Lungs of 50000003 are clear."]
    assert samples[0].meta.patient == "10000001" and samples[0].id == f"{roots.dicom_id('b1')}-report"
    assert [(error.path, error.message.split(";")[0]) for error in refused][1] == (
        "item 2 of 'train' in annotation.json",
        "field 'report' is missing",
    )
    assert "leaves" in refused[0].message
    assert len(_read(root, "val", "report")[0]) == 1 and len(_read(root, "test", "report")[0]) == 3
    data = json.loads((root / "annotation.json").read_text())
    data["test"] = [{**data["test"][0], "image_path": []}, {**data["test"][1], "subject_id": "1"}]
    (root / "annotation.json").write_text(json.dumps(data))
    assert [error.message for error in _read(root, "test", "report")[1]] == [
        "image_path is a list of paths, got []",
        "subject_id has 8 digits, not so the one here",
    ]


def test_both_forms_beside_each_other(tmp_path) -> None:
    root = roots.write(roots.write_r2gen(tmp_path / "both"))
    assert _read(root, "val", "report")[0][0].answer.endswith("Heart size is normal.")
    assert _read(root, "val", "report", form="r2gen")[0][0].answer == "Lungs of 50000004 are clear."
