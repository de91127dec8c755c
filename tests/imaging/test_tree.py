"""Trees of DICOM files: series by series, with pseudonyms in place of ids."""

import numpy as np
import SimpleITK as sitk

from dicom_files import dataset, multiframe, save, slices, write_series
from medmvl.imaging.pseudonym import pseudonym
from medmvl.imaging.read import read_image
from medmvl.imaging.tree import Scan, find_scans

KEY = b"k" * 32
SLICE = np.arange(20, dtype=np.uint16).reshape(4, 5)


def volume():
    return sitk.GetImageFromArray(np.arange(60, dtype=np.int16).reshape(3, 4, 5))


def test_what_a_tree_holds_can_be_read_where_it_says(tmp_path):
    write_series(tmp_path / "a/one", slices(volume(), SeriesNumber=2))
    for number in (12, 3):
        made = slices(volume(), SeriesNumber=number)
        for index, data in enumerate(made):
            save(tmp_path / f"a/IM{number}{index}", data)
    save(tmp_path / "b.dcm", multiframe(volume(), SeriesInstanceUID="1.2"))
    save(tmp_path / "c.dcm", dataset(SLICE, Modality="MG"))
    (tmp_path / "notes.txt").write_text("no DICOM")
    (tmp_path / "._c.dcm").write_bytes(b"of another system")
    found = list(find_scans(tmp_path, KEY))
    assert [(scan.address.removeprefix(f"{tmp_path}/"), scan.is_volume) for scan in found] == [
        ("b.dcm", True), ("c.dcm", False), ("a#series=3", True), ("a#series=12", True), ("a/one", True)
    ]  # fmt: skip
    assert all((read_image(scan.address).array.ndim == 3) == scan.is_volume for scan in found)


def test_ids_are_pseudonyms_and_the_patient_is_the_one_of_deidentified_files(tmp_path):
    save(tmp_path / "a.dcm", dataset(SLICE, StudyInstanceUID="1.2.3"))
    save(tmp_path / "b.dcm", dataset(SLICE, StudyInstanceUID="1.2.3", PatientID=""))
    named, nameless = find_scans(tmp_path / "a.dcm", KEY), find_scans(tmp_path / "b.dcm", KEY)
    (first,), (second,) = named, nameless
    assert first.patient == pseudonym(KEY, "12345678") == first.names["subject"]
    assert second.patient == pseudonym(KEY, "1.2.3") == second.names["study"] and "subject" not in second.names


def test_series_of_one_number_are_told_apart(tmp_path):
    for name in "ab":
        for index, data in enumerate(slices(volume(), SeriesNumber=1)):
            save(tmp_path / f"{name}{index}", data)
    found = list(find_scans(tmp_path, KEY))
    assert len({scan.address for scan in found}) == 2
    assert all(read_image(scan.address).array.shape == (3, 4, 5) for scan in found)


def test_what_cannot_be_told_stands_beside_what_can(tmp_path):
    (tmp_path / "empty.dcm").write_bytes(b"")
    path = save(tmp_path / "cut.dcm", dataset(SLICE))
    path.write_bytes(path.read_bytes()[:200])
    save(tmp_path / "good.dcm", dataset(SLICE))
    found = list(find_scans(tmp_path, KEY))
    assert [isinstance(one, Scan) for one in found] == [False, False, True]
    assert not any("12345678" in str(one) for one in found)
