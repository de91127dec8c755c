"""Every place beside the values where a file can name a patient is read, and told in words of its format."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import dicom_files
from medmvl.imaging.remarks import Remark, remarks_of

PIXELS = Image.fromarray((np.arange(1024) % 251).astype(np.uint8).reshape(32, 32))
SAID = "Jane Secret"


def fields(path: Path) -> dict[str, tuple[bool, bool]]:
    """Return field -> (it holds the text, it is personal)."""
    return {one.field: (SAID in one.text, one.personal) for one in remarks_of(path)}


def test_texts_of_png(tmp_path: Path) -> None:
    words = PngInfo()
    words.add_text("Comment", SAID)
    words.add_text("Author", "x")
    words.add_text("note", SAID, zip=True)
    words.add_itxt("PatientName", "Zoë", zip=True)
    words.add_text("date:create", "2019-03-14T10:00:00")
    PIXELS.save(tmp_path / "x.png", pnginfo=words)
    assert fields(tmp_path / "x.png") == {
        "PNG Comment": (True, False),
        "PNG Author": (False, True),
        "PNG text": (True, False),
        "PatientName in PNG text": (False, True),
    }


def test_texts_behind_the_pixels_of_png(tmp_path: Path) -> None:
    PIXELS.save(tmp_path / "x.png")
    whole = (tmp_path / "x.png").read_bytes()
    content = b"Title\0" + SAID.encode()
    chunk = len(content).to_bytes(4, "big") + b"tEXt" + content + b"\0\0\0\0"
    (tmp_path / "x.png").write_bytes(whole[:-12] + chunk + whole[-12:])
    assert fields(tmp_path / "x.png")["PNG Title"] == (True, False)


@pytest.mark.parametrize("suffix", ["jpg", "tif", "png", "webp"])
def test_exif(tmp_path: Path, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x010E], exif[0x013B] = SAID, "x"
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + SAID.encode("utf-16-le")
    exif.get_ifd(0x8825)[2] = (48.0, 8.0, 0.0)
    PIXELS.save(tmp_path / f"x.{suffix}", exif=exif)
    found = fields(tmp_path / f"x.{suffix}")
    assert found["EXIF ImageDescription"] == (True, False) and found["EXIF Artist"] == (False, True)
    if suffix != "tif":  # Pillow writes no nested tags there
        assert found["EXIF UserComment"] == (True, False) and found["EXIF GPSLatitude"] == (False, True)


def test_comments_and_packets(tmp_path: Path) -> None:
    packet = f"<x:xmpmeta><rdf:RDF><xmp:CreateDate>2019-03-14</xmp:CreateDate><dc:x>{SAID}</dc:x></rdf:RDF></x:xmpmeta>"
    PIXELS.save(tmp_path / "x.jpg", comment=SAID.encode(), xmp=packet.encode())
    PIXELS.save(tmp_path / "x.gif", comment=SAID)
    found = fields(tmp_path / "x.jpg")
    assert found["JPEG comment"] == found["XMP"] == (True, False)
    assert not any("2019" in one.text for one in remarks_of(tmp_path / "x.jpg"))
    assert fields(tmp_path / "x.gif") == {"GIF comment": (True, False)}


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
def test_fields_of_nifti(tmp_path: Path, kind: type, name: str) -> None:
    image = kind(np.zeros((4, 4, 4), np.int16), np.eye(4))
    image.header["descrip"] = image.header["aux_file"] = SAID
    image.header["intent_name"] = SAID
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", SAID.encode()))
    image.to_filename(tmp_path / name)
    said = (True, False)
    assert fields(tmp_path / name) == dict.fromkeys(
        ("NIfTI descrip", "NIfTI aux_file", "NIfTI intent_name", "NIfTI extension"), said
    )


def test_days_when_programs_were_built_are_left_out(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4))
    for text in ("FreeSurfer Aug  3 2017", "mricron 20170101"):
        image.header["descrip"] = text
        image.to_filename(tmp_path / "x.nii")
        assert remarks_of(tmp_path / "x.nii") == []
    image.header["descrip"] = "scan of Aug 3 2017"
    image.to_filename(tmp_path / "x.nii")
    assert [one.text for one in remarks_of(tmp_path / "x.nii")] == ["scan of Aug 3 2017"]


def test_free_keys_of_volumes(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.zeros((3, 4, 5), np.int16))
    image.SetMetaData("0010|0010", "SECRET^JANE")
    image.SetMetaData("0018|5100", "HFS")
    image.SetMetaData("remark", SAID)
    for suffix, container in (("nrrd", "NRRD key"), ("mha", "MetaImage key")):
        sitk.WriteImage(image, str(tmp_path / f"x.{suffix}"))
        found = fields(tmp_path / f"x.{suffix}")
        assert found[f"PatientName in {container}"] == (False, True)
        assert found[f"PatientPosition in {container}"] == (False, False)
        assert found[container] == (True, False)
    header = tmp_path / "x.nrrd"
    header.write_bytes(header.read_bytes().replace(b"\n\n", f"\ncontent: {SAID}\n# {SAID}\n\n".encode(), 1))
    assert fields(header)["NRRD content"] == (True, False)


def test_nothing_is_written_in_plain_files(tmp_path: Path) -> None:
    for suffix in ("png", "jpg", "bmp", "tif"):
        PIXELS.save(tmp_path / f"x.{suffix}")
        assert remarks_of(tmp_path / f"x.{suffix}") == []
    image = sitk.GetImageFromArray(np.zeros((3, 4, 5), np.int16))
    for name in ("x.nii.gz", "x.nrrd", "x.mha"):
        sitk.WriteImage(image, str(tmp_path / name))
        assert not any(one.personal for one in remarks_of(tmp_path / name))
    dicom_files.save(tmp_path / "x.dcm", dicom_files.dataset(np.zeros((8, 8), np.uint16)))
    np.save(tmp_path / "x.npy", np.zeros((4, 4)))
    assert [remarks_of(tmp_path / name) for name in ("x.dcm", "x.npy", "")] == [[], [], []]


@pytest.mark.parametrize("end", [0, 20, 60, 150, 340])
def test_damaged_files_are_left_to_their_readers(tmp_path: Path, end: int) -> None:
    words = PngInfo()
    words.add_text("Comment", SAID, zip=True)
    PIXELS.save(tmp_path / "x.png", pnginfo=words)
    PIXELS.save(tmp_path / "x.jpg", comment=SAID.encode())
    nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)).to_filename(tmp_path / "x.nii.gz")
    for name in ("x.png", "x.jpg", "x.nii.gz"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:end])
        assert all(isinstance(one, Remark) for one in remarks_of(path))
