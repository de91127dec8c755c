"""What headers hold is told by keyword, never by value."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dicom_files
from medmvl.imaging.identity import Identity, identity_of
from medmvl.imaging.picture import ImageError

CUT = b"\x02\0\x10\0UI\x14\x001.2.840.10008.1.2.1\0\x08\0\x05\0SQ\0\0\x10\0\0\0\x10\0\x10\0PN\xff\xff"
PIXELS = np.arange(64, dtype=np.uint16).reshape(8, 8)


def test_names_and_dates_apart(tmp_path: Path) -> None:
    made = dicom_files.dataset(PIXELS, StudyDate="20190314", BurnedInAnnotation="YES")
    made.private_block(0x0011, "SOMEONE", create=True).add_new(1, "LO", "SECRET")
    found = identity_of(dicom_files.save(tmp_path / "x.dcm", made))
    assert {"PatientName", "PatientID", "PatientBirthDate", "PrivateAttributes"} <= set(found.direct)
    assert {"StudyDate", "SOPInstanceUID"} == set(found.indirect)
    assert found.burned_in and "SECRET" not in repr(found)


@pytest.mark.parametrize("element", ["BurnedInAnnotation", "RecognizableVisualFeatures", "SpecimenLabelInImage"])
def test_pixels_are_told_that_deidentification_refuses(tmp_path: Path, element: str) -> None:
    dicom_files.save(tmp_path / "IM0", dicom_files.dataset(PIXELS, **{element: "NO"}))
    assert not identity_of(tmp_path).burned_in
    dicom_files.save(tmp_path / "IM1", dicom_files.dataset(PIXELS, **{element: "YES"}))
    assert element in identity_of(tmp_path).burned_in


def test_all_files_of_a_series(tmp_path: Path) -> None:
    first, second = dicom_files.dataset(PIXELS), dicom_files.dataset(PIXELS, PatientAddress="x")
    dicom_files.save(tmp_path / "IM0", first)
    dicom_files.save(tmp_path / "IM1", second)
    (tmp_path / "readme.txt").write_text("no DICOM")
    assert "PatientAddress" in identity_of(tmp_path).direct


def test_other_files_hold_nothing(tmp_path: Path) -> None:
    Image.fromarray(PIXELS.astype(np.uint8)).save(tmp_path / "x.png")
    assert identity_of(tmp_path / "x.png") == Identity()


def test_odd_elements_are_not_repeated(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, capfd: pytest.CaptureFixture[str]
) -> None:
    made = dicom_files.dataset(PIXELS)
    dicom_files.save(tmp_path / "x.dcm", made)
    content = (tmp_path / "x.dcm").read_bytes().replace(b"19600101", b"SECRET_1")
    (tmp_path / "x.dcm").write_bytes(content)
    assert "PatientBirthDate" in identity_of(tmp_path / "x.dcm").direct
    assert "SECRET" not in "".join(str(one.message) for one in recwarn) + "".join(capfd.readouterr())


def test_a_damaged_header(tmp_path: Path) -> None:
    (tmp_path / "x.dcm").write_bytes(b"\0" * 128 + b"DICM" + CUT)
    with pytest.raises(ImageError, match=r"x\.dcm"):
        identity_of(tmp_path / "x.dcm")
