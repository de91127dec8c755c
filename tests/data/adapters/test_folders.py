"""Trees of scans with reports: joined by their headers, which stay where they are."""

import json
import logging

import numpy as np
import pytest
import SimpleITK as sitk

from adapter_root import build
from data.adapters.roots_folders import study
from dicom_files import NAME, dataset, save, slices, write_series
from medmvl.core.schema import Image, Sample, SampleError, Volume
from medmvl.data.adapters.folders import Folders
from medmvl.data.rows import TableError
from medmvl.imaging.pseudonym import pseudonym
from medmvl.imaging.read import read_image

ASK = {"ask": "Describe it.", "answer": "report"}


def read(root, of="train", **options):
    return list(Folders(root, options).samples(of, ["report"]))


def table(root, *rows, name="reports.csv"):
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("\n".join(rows) + "\n")
    return root


def volume(depth=3):
    return sitk.GetImageFromArray(np.arange(depth * 20, dtype=np.int16).reshape(depth, 4, 5))


def test_studies_are_joined_with_their_reports(tmp_path):
    root = build("folders", tmp_path / "root")
    first = read(root.path, **root.options)[0]
    second = read(root.path, "test", **root.options)[0]
    assert first.media == (Volume(path=str(root.path / "scans/one")),) and first.answer == "No nodule."
    assert second.media == (
        Volume(path=f"{root.path}/scans/two#series=3"),
        Image(path=str(root.path / "scans/two/view.dcm")),
    )
    assert second.meta.modality == "CT, DX" and second.meta.patient == pseudonym(b"k" * 32, "SECRET-TWO")
    assert all(read_image(path).array.size for path in (*first.media_key, *second.media_key))


def test_nothing_that_names_a_patient_comes_through(tmp_path, caplog):
    root = build("folders", tmp_path / "root")
    with caplog.at_level(logging.DEBUG):
        found = [one for split in ("train", "val", "test") for one in read(root.path, split, **root.options)]
    assert len(found) == 6
    told = [json.dumps(one.to_dict()) if isinstance(one, Sample) else str(one) for one in found] + [caplog.text]
    for secret in ("SECRET", NAME, "12345678", "ACC-", "1.2.826", "19600101"):
        assert not any(secret in line for line in told), secret
    wrong = [one for one in found if isinstance(one, SampleError)]
    assert [(error.sample_id, error.path) for error in wrong] == [
        ("?", "reports.csv:4"),
        ("?", "scans/broken.dcm"),
        ("?", "reports.csv:5"),
        ("?", "reports.csv:6"),
    ]


@pytest.mark.parametrize(
    ("column", "value"), [("PatientID", "SECRET-ONE"), ("Accession Number", " ACC-ONE "), ("case", study("ONE"))]
)
def test_the_key_may_be_any_of_the_headers_ids(tmp_path, column, value):
    root = build("folders", tmp_path / "root").path
    table(root, f"{column},report", f"{value},Fine.")
    (sample, _) = read(root, **ASK, **({"key": "case", "by": "study"} if column == "case" else {}))
    assert sample.media_key == (str(root / "scans/one"),)


def test_keys_of_two_runs_agree_only_with_the_same_secret(tmp_path):
    root = build("folders", tmp_path / "root")
    patients = [read(root.path, **{**root.options, "key_file": str(tmp_path / name)})[0].patient for name in "aab"]
    assert patients[0] == patients[1] != patients[2]
    thrown = [read(root.path, **{**root.options, "key_file": ""})[0].patient for _ in range(2)]
    assert thrown[0] != thrown[1]


def test_series_of_several_patients_are_refused(tmp_path):
    made = slices(volume(), StudyInstanceUID=study("ONE"))
    made[1].PatientID = "SECRET-OTHER"
    write_series(tmp_path / "scans", made)
    table(tmp_path, "StudyInstanceUID,report", f"{study('ONE')},Fine.")
    first, second = read(tmp_path, **ASK)
    assert "no scan" in first.message and "names several patients" in second.message and second.path == "scans"
    made[1].SeriesInstanceUID = "1.2.3"
    write_series(tmp_path / "scans", made)
    (error,) = read(tmp_path, **ASK)
    assert "scans of several patients" in error.message


def test_localizers_and_other_modalities_are_left_out(tmp_path):
    ids = {"StudyInstanceUID": study("ONE")}
    write_series(tmp_path / "a", slices(volume(), **ids))
    write_series(tmp_path / "b", slices(volume(), **ids, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]))
    save(tmp_path / "c.dcm", dataset(np.ones((4, 5), np.uint16), Modality="DX", **ids))
    table(tmp_path, "StudyInstanceUID,report", f"{study('ONE')},Fine.")
    (every,) = read(tmp_path, **ASK)
    assert [path.rpartition("/")[2] for path in every.media_key] == ["c.dcm", "a"]
    (ct,) = read(tmp_path, **ASK, modality="CT")
    assert ct.media == (Volume(path=str(tmp_path / "a")),)


def test_bids_subjects_keep_their_names(tmp_path):
    for name in (
        "sub-01/ses-a/anat/sub-01_ses-a_T1w",
        "sub-01/ses-b/anat/sub-01_ses-b_T1w",
        "sub-01/ses-a/func/x_bold",
    ):
        path = tmp_path / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"made up")
    rows = [
        "participant_id\tsession_id\treport",
        "sub-01\tses-a\tFine.",
        "01\tb\tBetter.",
        "../x\t\tOut.",
        "02\t\tNone.",
    ]
    table(tmp_path, *rows, name="participants.tsv")
    first, second, out, none = read(tmp_path, **ASK, session="session_id")
    assert first.media == (Volume(path=str(tmp_path / "sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz")),)
    assert (first.patient, first.meta.study, first.meta.modality) == ("sub-01", "sub-01/ses-a", "T1w")
    assert second.meta.study == "sub-01/ses-b"
    assert "no label of BIDS" in out.message and "no scan" in none.message
    (all_sessions, *_) = read(tmp_path, **ASK)
    assert len(all_sessions.media) == 2
    (func, *_) = read(tmp_path, **ASK, files="*_bold.nii*")
    assert func.media_key[0].endswith("x_bold.nii.gz")


def test_paths_lead_to_files_folders_and_series(tmp_path):
    root = build("folders", tmp_path / "root").path
    (root / "brain.nii.gz").write_bytes(b"made up")
    keys = ["brain.nii.gz", "scans/one", "scans/two#series=3", "scans/two/view.dcm", "../outside", "nothing", "scans"]
    table(root, "path,report", *(f"{key},Fine." for key in keys))
    *found, outside, nothing, broken = read(root, **ASK)
    assert [[type(one) for one in sample.media] for sample in found] == [[Volume], [Volume], [Volume], [Image]]
    assert "leaves" in outside.message and "no such file" in nothing.message and "cannot be read" in broken.message


@pytest.mark.parametrize(
    ("header", "options", "told"),
    [
        ("case,report", ASK, "key: say which column tells the scans"),
        ("case,report", {**ASK, "key": "case"}, "by: say what 'case' holds"),
        ("PatientID,report", {"answer": "report"}, "question: say which column holds it"),
        ("PatientID,report", {"ask": "What?"}, "answer: say which column holds it"),
    ],
)
def test_options_that_are_missing_are_asked_for(tmp_path, header, options, told):
    table(tmp_path, header, "1,Fine.")
    with pytest.raises(TableError, match=told):
        read(tmp_path, **options)
