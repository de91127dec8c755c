"""Addresses: what stands after the "#" of a path, what an argument says, and where the two part ways."""

from pathlib import Path

import pytest
import SimpleITK as sitk

import phantom
from dicom_files import multiframe, save, slices, write_series
from medmvl import read_image
from medmvl.imaging.address import Address, split_address
from medmvl.imaging.hounsfield import Rescale
from medmvl.imaging.picture import ImageError, Picture
from medmvl.imaging.read import read_picture, read_volume


def test_what_a_path_says():
    assert split_address("a/b.dcm") == Address(Path("a/b.dcm"), "a/b.dcm")
    assert split_address("a/b.dcm#frame=12").frame == 12
    assert split_address("a#b.dcm#frame=1").file == Path("a#b.dcm")
    assert split_address("a#b.dcm").file == Path("a#b.dcm")
    given = "ct.nii.gz#slope=1&intercept=-8192.0"
    assert split_address(given) == Address(Path("ct.nii.gz"), given, hu=Rescale(1, -8192))
    assert split_address("study#series=1.2.840.1").series == "1.2.840.1"
    assert split_address("v.npz#array=ct&unit=0..255") == Address(
        Path("v.npz"), "v.npz#array=ct&unit=0..255", unit="0..255", array="ct"
    )
    assert split_address("v.nii#hu=already_hu&orientation=IAR").orientation == "IAR"


def test_what_arguments_say():
    assert split_address("a.dcm", 3).frame == split_address("a.dcm#frame=3", 3).frame == 3
    assert split_address("study", series=2).series == "2"
    assert split_address("a.nii", hu=Rescale(2, 1)).hu == Rescale(2, 1)
    assert split_address("a.nii#hu=header", hu="header").hu == "header"


@pytest.mark.parametrize(
    ("path", "arguments", "said"),
    [
        ("a.dcm#frame=1", {"frame": 2}, "the path asks for frame 1 and the argument for frame 2; name one of them"),
        ("a.dcm#series=1", {"series": 2}, "the path asks for series 1 and the argument for series 2"),
        ("a.nii#unit=HU", {"unit": "0..1"}, "the path asks for unit HU and the argument for unit 0..1"),
        ("a.nii#hu=header", {"hu": "already_hu"}, "several sources of Hounsfield units (header, already_hu)"),
        ("a.nii#hu=header&slope=1&intercept=0", {}, "several sources of Hounsfield units (header, slope 1, intercept"),
        ("a.nii#unit=0..1&hu=header", {}, "unit 0..1 contradicts a source of Hounsfield units"),
        ("a.dcm#fram=1", {}, "unknown key 'fram' after '#'; did you mean 'frame'?"),
        ("a.dcm#frame=x", {}, "frame 'x' is no number"),
        ("a.dcm#frame=-1", {}, "frame '-1' is no number"),
        ("a.dcm", {"frame": -1}, "frame '-1' is no number"),
        ("a.dcm#frame=1&frame=2", {}, "'frame' after '#' is given twice"),
        ("a.dcm#frame=", {}, "'frame' after '#' is given without a value"),
        ("a.nii#unit=hu", {}, "unit 'hu' is unknown; did you mean 'HU'?"),
        ("a.nii#hu=table.csv", {}, "'table.csv' is unknown; known are header, already_hu"),
        ("a.nii#slope=1", {}, "slope and intercept go together"),
        ("a.nii#slope=0&intercept=1", {}, "slope '0' is no number other than 0"),
        ("a.nii#slope=1&intercept=inf", {}, "intercept 'inf' is no number"),
    ],
)
def test_what_makes_no_sense(path, arguments, said):
    with pytest.raises(ImageError) as caught:
        split_address(path, **arguments)
    assert said in str(caught.value) and str(caught.value).startswith(f"{path}: ")


def test_a_file_whose_name_looks_like_an_address(tmp_path):
    path = phantom.write(tmp_path / "a.nii").rename(tmp_path / "a#v=2.nii")
    assert read_volume(path).size == phantom.SIZE


@pytest.mark.parametrize(
    ("name", "fragment", "said"),
    [
        ("a.nii", "#series=1", "series says nothing about a .nii file; it takes frame, unit, hu, orientation"),
        ("a.nii", "#array=x", "array says nothing about a .nii file"),
        ("a.nrrd", "#frame=0", "frame says nothing about a .nrrd file; it takes unit, hu, orientation"),
        ("a.png", "#unit=HU", "unit says nothing about a picture; it takes frame"),
        ("a.png", "#hu=header", "hu says nothing about a picture"),
        ("series", "#frame=0", "frame says nothing about a folder; it takes series, hu, unit"),
        ("series", "#orientation=SPL", "orientation says nothing about a folder"),
        ("frames.dcm", "#series=3", "series says nothing about a multi-frame volume; it takes hu, unit"),
        ("series", "#unit=0..1", "is DICOM of modality CT in HU, not 0..1"),
        ("mr", "#unit=HU", "is DICOM of modality MR in unknown units, not HU"),
    ],
)
def test_what_says_nothing_is_refused(tmp_path, name, fragment, said):
    made = {"series": {}, "mr": {"Modality": "MR", "RescaleType": "US"}}
    if name in made:
        write_series(tmp_path / name, slices(phantom.image(), **made[name]))
    elif name == "frames.dcm":
        save(tmp_path / name, multiframe(phantom.image()))
    elif name == "a.png":
        sitk.WriteImage(sitk.Image(8, 8, sitk.sitkUInt8), str(tmp_path / name))
    else:
        phantom.write(tmp_path / name)
    with pytest.raises(ImageError) as caught:
        read_image(f"{tmp_path / name}{fragment}")
    assert said in str(caught.value) and str(tmp_path / name) in str(caught.value)


def test_dicom_by_folder_file_and_frame(tmp_path):
    folder = write_series(tmp_path / "series", slices(phantom.image("IAR")))
    for path in (folder, f"{folder}#series=3", f"{folder}#hu=header", f"{folder}#unit=HU&series=3"):
        volume = read_image(path)
        assert (volume.array == phantom.values()).all() and volume.path == str(path) and volume.unit == "HU"
    one = sorted(folder.iterdir())[0]
    assert isinstance(read_image(one), Picture) and isinstance(read_picture(one), Picture)
    with pytest.raises(ImageError, match=r"is no volume, and one is wanted.*the folder of a DICOM series"):
        read_volume(one)
    frames = save(tmp_path / "frames.dcm", multiframe(phantom.image()))
    assert read_image(frames).size == read_volume(frames).size == phantom.SIZE
    assert read_image(f"{frames}#frame=2").size == phantom.SIZE[1:]
    with pytest.raises(ImageError, match="holds 6 frames and none was chosen"):
        read_picture(frames)
    with pytest.raises(ImageError, match="holds a volume where a picture is wanted"):
        read_picture(folder)
