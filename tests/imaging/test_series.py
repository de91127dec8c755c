"""Series of DICOM slices and enhanced multi-frame files: laid where they belong, or refused with the reason."""

import functools
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import (
    ComprehensiveSRStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    RTStructureSetStorage,
    SegmentationStorage,
)

import phantom
from dicom_files import LOSSLESS, NAME, axes, dataset, item, multiframe, save, slices, write_series
from medmvl.imaging.dicom_file import short_hash
from medmvl.imaging.geometry import transform_box
from medmvl.imaging.hounsfield import Rescale
from medmvl.imaging.picture import ImageError
from medmvl.imaging.read import read_image, read_picture
from medmvl.imaging.series import read_multiframe, read_series
from medmvl.imaging.volume import Volume


def in_file_frame(image):
    """The slices of an image as the series' own frame has them: z along the cross product of row and column."""
    values = sitk.GetArrayFromImage(image)
    return values if np.linalg.det(axes(image)) > 0 else values[::-1]


def check_phantom(volume, stored):
    """The volume is the phantom, whatever way its file laid it; boxes in the file's frame land on the mark."""
    assert volume.array.dtype == np.int16 and (volume.unit, volume.modality) == ("HU", "CT")
    np.testing.assert_array_equal(volume.array, phantom.values())
    np.testing.assert_allclose(volume.spacing, phantom.SPACING, atol=1e-6)
    np.testing.assert_allclose(volume.origin, phantom.ORIGIN, atol=1e-6)
    np.testing.assert_allclose(volume.direction, phantom.STRAIGHT, atol=1e-6)
    assert volume.original.size == stored.shape
    assert transform_box(phantom.box(stored), volume.original.to_canonical) == phantom.BOX


def world(frame, position):
    """Where a continuous (x, y, z) of a file's frame lies in the patient."""
    steps = (np.array(position) - 0.5) * frame.spacing[::-1]
    return np.array(frame.origin) + steps @ np.reshape(frame.direction, (3, 3))


def world_of(volume, position):
    steps = (np.array(position) - 0.5) * volume.spacing[::-1]
    return np.array(volume.origin) + steps @ np.reshape(volume.direction, (3, 3))


@functools.cache
def small_series():
    """Names and bytes of three slices, the same at every call."""
    with tempfile.TemporaryDirectory() as folder:
        written = write_series(Path(folder), slices(phantom.image())[:3])
        return {path.name: path.read_bytes() for path in written.iterdir()}


@functools.cache
def small_multiframe():
    """The bytes of a file of three frames, the same at every call."""
    with tempfile.TemporaryDirectory() as folder:
        return save(Path(folder) / "a.dcm", multiframe(phantom.image(), [2, 0, 1])).read_bytes()


def refused(read, path, *words):
    with pytest.raises(ImageError) as caught:
        read()
    said = str(caught.value)
    assert said.startswith(str(path))
    for word in words:
        assert word in said, said
    assert NAME not in said and "12345678" not in said
    return said


class TestPlace:
    @pytest.mark.parametrize("orientation", phantom.ORIENTATIONS)
    def test_48_orientations_with_shuffled_names(self, tmp_path, orientation):
        image = phantom.image(orientation)
        folder = write_series(tmp_path / "ct", slices(image), seed=phantom.ORIENTATIONS.index(orientation))
        check_phantom(read_series(folder), in_file_frame(image))

    @pytest.mark.parametrize("orientation", phantom.ORIENTATIONS)
    def test_48_orientations_in_one_file(self, tmp_path, orientation):
        image = phantom.image(orientation)
        order = np.random.default_rng(0).permutation(image.GetDepth())
        path = save(tmp_path / "a.dcm", multiframe(image, order.tolist()))
        check_phantom(read_multiframe(path), in_file_frame(image))

    def test_the_files_own_frame(self, tmp_path):
        image = phantom.image("ILP")
        volume = read_series(write_series(tmp_path / "ct", slices(image, SliceThickness=99)))
        frame = volume.original
        np.testing.assert_allclose(frame.spacing, image.GetSpacing()[::-1], atol=1e-6)
        rows, columns, along = np.reshape(frame.direction, (3, 3))
        np.testing.assert_allclose(along, np.cross(rows, columns), atol=1e-9)
        np.testing.assert_allclose([rows, columns], axes(image)[:2], atol=1e-9)
        assert volume.path == str(tmp_path / "ct")

    @settings(max_examples=40, deadline=None)
    @given(
        angles=st.tuples(*[st.floats(-0.6, 0.6)] * 3),
        orientation=st.sampled_from(phantom.ORIENTATIONS),
        spacing=st.tuples(*[st.floats(0.3, 6)] * 3),
        in_one_file=st.booleans(),
    )
    def test_oblique(self, tmp_path_factory, angles, orientation, spacing, in_one_file):
        image = phantom.image(orientation)
        turn = sitk.Euler3DTransform((0, 0, 0), *angles)
        turned = np.reshape(turn.GetMatrix(), (3, 3)) @ np.reshape(image.GetDirection(), (3, 3))
        image.SetDirection(turned.ravel().tolist())
        image.SetSpacing(spacing)
        folder = tmp_path_factory.mktemp("oblique")
        if in_one_file:
            volume = read_multiframe(save(folder / "a.dcm", multiframe(image)))
        else:
            volume = read_series(write_series(folder, slices(image)))
        stored = in_file_frame(image)
        # Voxel by voxel: the same value at the same place in the patient.
        rng = np.random.default_rng(0)
        for _ in range(5):
            z, y, x = (int(rng.integers(side)) for side in stored.shape)
            own = (x + 0.5, y + 0.5, z + 0.5)
            depth = z if np.linalg.det(axes(image)) > 0 else len(stored) - 1 - z
            place = image.TransformIndexToPhysicalPoint((x, y, depth))
            np.testing.assert_allclose(world(volume.original, own), place, atol=1e-3)
            canonical = transform_box(own * 2, volume.original.to_canonical)[:3]
            np.testing.assert_allclose(world_of(volume, canonical), place, atol=1e-3)
            index = tuple(int(number) for number in canonical[::-1])
            assert volume.array[index] == stored[z, y, x]

    @pytest.mark.parametrize("seed", range(3))
    def test_held_to_simpleitk(self, tmp_path, seed):
        rng = np.random.default_rng(seed)
        image = sitk.GetImageFromArray(rng.integers(-1024, 3000, (7, 12, 10), dtype=np.int16))
        image.SetSpacing((0.7, 0.8, 2.5))
        image.SetOrigin((-100, 50, -300))
        turn = sitk.Euler3DTransform((0, 0, 0), *rng.uniform(-0.3, 0.3, 3))
        image.SetDirection(turn.GetMatrix())
        folder = write_series(tmp_path / "ct", slices(image), seed)
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
        theirs, ours = reader.Execute(), read_series(folder)
        np.testing.assert_array_equal(ours.array, sitk.GetArrayFromImage(theirs))
        np.testing.assert_allclose(ours.spacing, theirs.GetSpacing()[::-1], atol=1e-5)
        np.testing.assert_allclose(ours.origin, theirs.GetOrigin(), atol=1e-4)
        np.testing.assert_allclose(np.reshape(ours.direction, (3, 3)), axes(theirs), atol=1e-6)

    def test_rounded_positions_are_even_enough(self, tmp_path):
        made = slices(phantom.image())
        for data, z in zip(made, (0.0, 0.6, 1.3, 1.9, 2.5, 3.1), strict=True):  # 0.625 apart, one digit kept
            data.ImagePositionPatient = [0, 0, z]
        assert read_series(write_series(tmp_path / "ct", made)).spacing[0] == pytest.approx(0.62)

    def test_two_slices_are_a_volume(self, tmp_path):
        volume = read_series(write_series(tmp_path / "ct", slices(phantom.image())[:2]))
        np.testing.assert_array_equal(volume.array, phantom.values()[:2])


class TestTilt:
    """A tilted gantry: slices stand upright on their normal, the table moves along the body's axis."""

    def tilted(self, *degrees):
        """Slices of a field that is linear in the patient's coordinates, so that linear resampling of it is exact.

        The gantry is turned around x by the first angle, and around y by the second.
        """
        turn = sitk.Euler3DTransform((0, 0, 0), *np.deg2rad((*degrees, 0.0)[:2]), 0.0)
        rows, columns, _ = np.reshape(turn.GetMatrix(), (3, 3)).T
        made = []
        for index in range(8):
            place = np.array([-10.0, -8.0, 30.0 + 3 * index])
            y, x = np.mgrid[:30, :24]
            points = place + (x * 0.8)[..., None] * rows + (y * 0.7)[..., None] * columns
            stored = 1000 + points @ (10.0, 20.0, 5.0)
            made.append(
                dataset(
                    np.rint(stored * 10).astype(np.uint16), RescaleSlope="0.1", RescaleIntercept="-1000",
                    ImagePositionPatient=[f"{number:.6f}" for number in place],
                    ImageOrientationPatient=[f"{number:.10f}" for number in (*rows, *columns)],
                    PixelSpacing=[0.7, 0.8], SeriesInstanceUID="1.2.3",
                )
            )  # fmt: skip
        return made

    @pytest.mark.parametrize("degrees", [(20.0,), (-12.5,), (0.0, 15.0), (10.0, -20.0)])
    def test_the_volume_is_straight_and_places_are_kept(self, tmp_path, degrees):
        volume = read_series(write_series(tmp_path / "ct", self.tilted(*degrees)))
        axes_ = np.reshape(volume.direction, (3, 3))
        np.testing.assert_allclose(axes_ @ axes_.T, np.eye(3), atol=1e-9)
        assert volume.spacing[0] == pytest.approx(3 * np.prod(np.cos(np.deg2rad(degrees))))
        assert volume.original.size == (8, 30, 24)
        assert [side > given for side, given in zip(volume.size, (8, 30, 24), strict=True)] == [
            False, degrees[0] != 0, len(degrees) > 1,
        ]  # fmt: skip
        outside = volume.array == -1000
        assert outside.any() and not outside.all()
        # Away from the edges every voxel has the field's value at its own place in the patient.
        inner = ~outside
        for axis in (1, 2):
            inner &= np.roll(inner, 1, axis) & np.roll(inner, -1, axis) & ~_border(inner.shape, axis)
        assert inner.sum() > 2000
        for z, y, x in np.argwhere(inner)[::37]:
            place = world_of(volume, (x + 0.5, y + 0.5, z + 0.5))
            assert volume.array[z, y, x] == pytest.approx(place @ (10.0, 20.0, 5.0), abs=0.11)

    def test_boxes_of_the_slanted_frame(self, tmp_path):
        volume = read_series(write_series(tmp_path / "ct", self.tilted(20.0)))
        for own in ((0.5, 0.5, 0.5), (3.5, 7.5, 2.5), (23.5, 29.5, 7.5)):
            canonical = transform_box(own * 2, volume.original.to_canonical)[:3]
            np.testing.assert_allclose(world_of(volume, canonical), world(volume.original, own), atol=1e-5)
        _, y0, z0, _, y1, z1 = transform_box((0, 0, 0, 24, 30, 8), volume.original.to_canonical)
        assert z1 - z0 == pytest.approx(8) and y1 - y0 > 30

    def test_whole_values_stay_whole(self, tmp_path):
        made = self.tilted(20.0)
        for data in made:
            data.RescaleSlope = 1
        assert read_series(write_series(tmp_path / "ct", made)).array.dtype == np.int16

    def test_too_steep_or_beside(self, tmp_path):
        folder = write_series(tmp_path / "steep", self.tilted(60.0))
        refused(lambda: read_series(folder), folder, "60 degrees from their normal")
        made = slices(phantom.image())
        made[3].ImagePositionPatient = [made[3].ImagePositionPatient[0] + 20, *made[3].ImagePositionPatient[1:]]
        folder = write_series(tmp_path / "moved", made)
        refused(lambda: read_series(folder), folder, "do not lie above each other", "pixels beside")


def _border(shape, axis):
    edge = np.zeros(shape, bool)
    edge[(slice(None),) * axis + ([0, -1],)] = True
    return edge


class TestValues:
    def test_rescale_of_each_slice(self, tmp_path):
        made = slices(phantom.image(), SOPClassUID=PositronEmissionTomographyImageStorage, Modality="PT", Units="BQML")
        stored = np.stack([data.pixel_array for data in made])
        slopes = np.linspace(0.5, 3.3, len(made))
        for data, slope in zip(made, slopes, strict=True):
            data.RescaleSlope, data.RescaleIntercept = f"{slope:.6f}", "0"
        volume = read_series(write_series(tmp_path / "pt", made))
        assert volume.array.dtype == np.float32 and (volume.unit, volume.modality) == ("", "PT")
        np.testing.assert_allclose(volume.array, stored * slopes[:, None, None], rtol=1e-5)

    def test_whole_rescales_of_each_slice_stay_int16(self, tmp_path):
        made = slices(phantom.image())
        for index, data in enumerate(made):
            data.RescaleIntercept = -1024 - index
        volume = read_series(write_series(tmp_path / "ct", made))
        assert volume.array.dtype == np.int16
        np.testing.assert_array_equal(volume.array, phantom.values() - np.arange(len(made))[:, None, None])

    @pytest.mark.parametrize("last", [40000, 70000])
    def test_what_int16_cannot_hold_becomes_float32(self, tmp_path, last):
        made = slices(phantom.image(), Modality="MR", SOPClassUID=MRImageStorage, RescaleIntercept=last - 65535)
        stored = np.full(phantom.SIZE[1:], 65535, np.uint16)
        made[-2].PixelData = stored.tobytes()
        volume = read_series(write_series(tmp_path / "mr", made))
        assert volume.array.dtype == np.float32
        assert volume.array.max() == last
        np.testing.assert_array_equal(volume.array[0], phantom.values()[0] + 1024.0 + last - 65535)

    @pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32])
    def test_stored_types(self, tmp_path, dtype):
        values = np.arange(24, dtype=dtype).reshape(2, 3, 4) + 100
        made = slices(sitk.GetImageFromArray(values.astype(np.int16)), RescaleIntercept=0)
        for data, plane in zip(made, values, strict=True):
            other = dataset(plane)
            for keyword in ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData"):
                setattr(data, keyword, getattr(other, keyword))
            data["PixelData"].VR = other["PixelData"].VR
        volume = read_series(write_series(tmp_path / "ct", made))
        assert volume.array.dtype == np.int16
        np.testing.assert_array_equal(volume.array, values)

    def test_unit(self, tmp_path):
        image = phantom.image()
        assert read_series(write_series(tmp_path / "a", slices(image, RescaleType="US"))).unit == ""
        assert read_series(write_series(tmp_path / "b", slices(image, Modality="MR"))).unit == ""
        plain = slices(image)
        for data in plain:
            del data.RescaleSlope, data.RescaleIntercept
        volume = read_series(write_series(tmp_path / "c", plain))
        assert volume.unit == ""
        np.testing.assert_array_equal(volume.array, phantom.values() + 1024)

    def test_hu_said_by_the_caller(self, tmp_path):
        folder = write_series(tmp_path / "a", slices(phantom.image()))
        stored = read_series(folder, hu="already_hu")
        assert stored.unit == "HU"
        np.testing.assert_array_equal(stored.array, phantom.values() + 1024)
        np.testing.assert_array_equal(read_series(folder, hu="header").array, phantom.values())
        refused(lambda: read_series(folder, hu=Rescale(1, -8192)), folder, "header rescales already")

    def test_padding_is_air_in_ct(self, tmp_path):
        made = slices(phantom.image(), PixelPaddingValue=63536)
        for data in made:
            stored = data.pixel_array.astype(np.int16)
            stored[:2] = -2000
            data.PixelRepresentation, data.PixelData = 1, stored.tobytes()
        made[2].PixelData = np.full(phantom.SIZE[1:], -2000, np.int16).tobytes()  # nothing but padding
        for data in made:
            data["PixelPaddingValue"].VR = "US"  # as some scanners write it
        volume = read_series(write_series(tmp_path / "ct", made))
        assert (volume.array[:, :2] == -1000).all() and (volume.array[2] == -1000).all()
        np.testing.assert_array_equal(volume.array[3, 2:], phantom.values()[3, 2:])

    def test_padding_elsewhere_is_the_lowest_value(self, tmp_path):
        made = slices(phantom.image(), Modality="MR", PixelPaddingValue=0, RescaleIntercept=0)
        for data in made:
            stored = data.pixel_array.copy()
            stored[:2] = 0
            data.PixelData = stored.tobytes()
        volume = read_series(write_series(tmp_path / "mr", made))
        rest = phantom.values()[:, 2:] + 1024
        assert (volume.array[:, :2] == rest.min()).all()
        np.testing.assert_array_equal(volume.array[:, 2:], rest)

    @pytest.mark.parametrize("syntax", LOSSLESS)
    def test_compressed(self, tmp_path, syntax):
        image = phantom.image("SRA")
        folder = write_series(tmp_path / "ct", slices(image), compress=LOSSLESS[syntax])
        assert pydicom.dcmread(next(folder.iterdir())).file_meta.TransferSyntaxUID.is_compressed
        check_phantom(read_series(folder), in_file_frame(image))

    @pytest.mark.parametrize("syntax", [DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
    def test_other_encodings(self, tmp_path, syntax):
        made = slices(phantom.image())
        for data in made:
            if syntax == ExplicitVRBigEndian:
                data.PixelData = data.pixel_array.astype(">u2").tobytes()
            data.file_meta.TransferSyntaxUID = syntax
        folder = write_series(tmp_path / "ct", made)
        check_phantom(read_series(folder), phantom.values())


class TestFolder:
    def mixed(self, folder):
        """A CT of six slices, another of four, and a scout of one."""
        write_series(folder, slices(phantom.image(), SeriesNumber=3, SeriesDescription=NAME))
        for index, data in enumerate(slices(phantom.image(), SeriesNumber=4, Modality="MR")[:4]):
            save(folder / f"other{index}.dcm", data)
        scout = slices(phantom.image("PSL"), SeriesNumber=1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])[0]
        save(folder / "scout.dcm", scout)
        return folder

    def test_several_series_are_listed_and_asked_for(self, tmp_path):
        folder = self.mixed(tmp_path / "study")
        said = refused(
            lambda: read_series(folder), folder, "holds 3 series", f"{folder}#series=",
            "series=3 or ", "CT, 6 slices of 10 x 8", "MR, 4 slices of 10 x 8", "CT, 1 slice of",
        )  # fmt: skip
        uids = {str(pydicom.dcmread(path).SeriesInstanceUID): path for path in folder.iterdir()}
        assert not any(uid in said for uid in uids)
        check_phantom(read_series(folder, "3"), phantom.values())
        uid = str(pydicom.dcmread(folder / "other0.dcm").SeriesInstanceUID)
        for name in ("4", uid, short_hash(uid)):
            assert read_series(folder, name).array.shape[0] == 4
            assert read_image(f"{folder}#series={name}").modality == "MR"
        assert short_hash(uid) in said
        refused(lambda: read_series(folder, "9"), folder, "none of its series is '9'", "series=3 or")
        refused(lambda: read_series(folder, "1"), folder, "one slice (scout.dcm), a picture and no volume")

    def test_one_number_for_two_series(self, tmp_path):
        folder = write_series(tmp_path / "study", slices(phantom.image()))
        for index, data in enumerate(slices(phantom.image(), Modality="MR")):
            save(folder / f"b{index}", data)
        uid = str(pydicom.dcmread(folder / "b0").SeriesInstanceUID)
        said = refused(lambda: read_series(folder, "3"), folder, "2 of its series are '3'", short_hash(uid))
        assert "series=3 or" not in said
        assert read_series(folder, short_hash(uid)).modality == "MR"

    def test_localizers_within_a_series_are_left_out(self, tmp_path):
        made = slices(phantom.image())
        scout = slices(phantom.image("PSL"), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])[0]
        scout.SeriesInstanceUID = made[0].SeriesInstanceUID
        check_phantom(read_series(write_series(tmp_path / "ct", [*made, scout])), phantom.values())

    def test_files_that_are_no_slices_are_left_out(self, tmp_path):
        folder = write_series(tmp_path / "ct", slices(phantom.image()))
        for index, kind in enumerate((ComprehensiveSRStorage, RTStructureSetStorage, MediaStorageDirectoryStorage)):
            save(folder / f"extra{index}.dcm", self.without_picture(kind))
        seg = slices(phantom.image(), SOPClassUID=SegmentationStorage, Modality="SEG")[0]
        save(folder / "seg.dcm", seg)
        (folder / "LICENSE").write_text("free")
        (folder / "notes.txt").touch()
        (folder / "._IM0000.dcm").write_bytes(b"\0\5\x16\7" * 50)
        (folder / "sub").mkdir()
        check_phantom(read_series(folder), phantom.values())

    def without_picture(self, kind):
        data = dataset(np.zeros((4, 4), np.uint16), SOPClassUID=kind)
        for keyword in ("Rows", "Columns", "PixelData", "BitsAllocated"):
            delattr(data, keyword)
        return data

    def test_nothing_to_read(self, tmp_path):
        folder = tmp_path / "a"
        folder.mkdir()
        refused(lambda: read_series(folder), folder, "is an empty folder")
        (folder / "notes.txt").write_text("x")
        refused(lambda: read_series(folder), folder, "no DICOM slices, only 1 files of other kinds")
        save(folder / "report.dcm", self.without_picture(ComprehensiveSRStorage))
        refused(lambda: read_series(folder), folder, "only 1 DICOM files without a picture")
        write_series(folder / "series7", slices(phantom.image()))
        refused(lambda: read_series(folder), folder, "its subfolders do (series7)")
        for index in range(6):
            write_series(folder / f"deep{index}" / "below", slices(phantom.image())[:1])
        refused(lambda: read_series(folder), folder, "deep0/below, deep1/below", "deep4/below and more)")

    def test_one_slice_is_a_picture(self, tmp_path):
        folder = write_series(tmp_path / "ct", slices(phantom.image())[:1])
        refused(lambda: read_series(folder), folder, "IM0000.dcm", "a picture and no volume")

    def test_nobody_is_named(self, tmp_path, caplog):
        folder = self.mixed(tmp_path / "study")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = pydicom.dcmread(folder / "IM0002.dcm")
            data.PatientBirthDate = f"{NAME} is no date"
            save(folder / "IM0002.dcm", data)
        caplog.clear()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            volume = read_series(folder, "3")
        assert not said
        for text in (repr(volume), repr(volume.original), caplog.text):
            assert NAME not in text and "12345678" not in text

    def test_warnings_about_odd_elements_do_not_repeat_them(self, tmp_path, caplog):
        folder = write_series(tmp_path / "ct", slices(phantom.image()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for path in folder.iterdir():
                data = pydicom.dcmread(path)
                data.SeriesInstanceUID = data.FrameOfReferenceUID = f"1.2.{NAME}"
                save(path, data)
        caplog.clear()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            read_series(folder)
            read_picture(folder / "IM0002.dcm")
        assert NAME not in caplog.text + " ".join(str(one.message) for one in said)


class TestRefusals:
    def series(self, tmp_path, change, **elements):
        made = slices(phantom.image(), **elements)
        change(made)
        return write_series(tmp_path / "ct", made)

    def refuse(self, tmp_path, change, *words, **elements):
        folder = self.series(tmp_path, change, **elements)
        return refused(lambda: read_series(folder), folder, *words)

    @pytest.mark.parametrize("lost", [1, 2, 3, 4])
    def test_missing_slice(self, tmp_path, lost):
        places = [phantom.ORIGIN[2] + 3 * index for index in (lost - 1, lost + 1)]
        self.refuse(
            tmp_path, lambda made: made.pop(lost), "1 of 6 slices are missing", "3.000 mm apart",
            *(f"{place:.2f} mm (IM" for place in places),
        )  # fmt: skip

    def test_several_missing(self, tmp_path):
        image = phantom.image("LSP")  # more slices than from foot to head
        made = slices(image)
        count = len(made)
        folder = write_series(tmp_path / "ct", [made[index] for index in range(count) if index not in (2, 3, 5)])
        said = refused(
            lambda: read_series(folder), folder, f"3 of {count} slices are missing", "2 between", "1 between"
        )
        assert "IM" in said

    def test_uneven_distances(self, tmp_path):
        def change(made):
            for data, z in zip(made, (0, 1, 2, 3, 3.4, 5), strict=True):
                data.ImagePositionPatient = [0, 0, z]

        self.refuse(tmp_path, change, "not evenly spaced", "1.00 mm (3 times)", "0.40 mm (1 times)")

    def test_two_slices_at_one_place(self, tmp_path):
        def change(made):
            made[2].ImagePositionPatient = made[3].ImagePositionPatient

        self.refuse(tmp_path, change, "several slices lie at 1 of 5 positions", "-121.00 mm", "tells them apart")

    def test_copies(self, tmp_path):
        self.refuse(
            tmp_path, lambda made: made.extend(made[:2]), "2 of 6 positions", "copies of one image", "remove the copies"
        )

    @pytest.mark.parametrize(
        "element, values, words",
        [
            ("AcquisitionNumber", (1, 2), "acquisition number (1, 2)"),
            ("EchoTime", (2.5, 5.1), "echo time (2.5, 5.1)"),
            ("FrameReferenceTime", (500.0, 1500.0), "frame reference time (1500, 500)"),
            ("TemporalPositionIdentifier", (1, 2), "temporal position (1, 2)"),
            ("DiffusionBValue", (0.0, 800.0), "diffusion b-value (0, 800)"),
        ],
    )
    def test_several_volumes_in_one_series(self, tmp_path, element, values, words):
        def change(made):
            again = slices(phantom.image())
            for data, value in zip((*made, *again), (values[0],) * 6 + (values[1],) * 6, strict=True):
                data.SeriesInstanceUID, data.FrameOfReferenceUID = made[0].SeriesInstanceUID, "1.2.3"
                setattr(data, element, value)
            made.extend(again)

        self.refuse(tmp_path, change, "6 of 6 positions", words, "several volumes")

    @pytest.mark.parametrize(
        "change, words",
        [
            ({"PixelSpacing": [0.75, 1.3]}, ("differ in pixel spacing", r"0.75\1.25: 5 (", r"0.75\1.3: 1 (IM")),
            ({"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}, ("differ in orientation", r"1\0\0\0\0\-1: 1 (IM")),
            ({"ImageOrientationPatient": [1, 0, 0, 0, 0.999, 0.0447]}, ("differ in orientation",)),
            ({"Rows": 5, "Columns": 16}, ("differ in size", "10 x 8: 5", "5 x 16: 1")),
            ({"PhotometricInterpretation": "MONOCHROME1"}, ("differ in photometric", "MONOCHROME1: 1")),
            ({"RescaleType": "US"}, ("differ in unit of the rescaled values", "HU: 5", "unspecified: 1")),
            ({"RescaleSlope": None}, ("differ in unit of the rescaled values", "no rescale: 1")),
            ({"Modality": "PT"}, ("differ in modality", "CT: 5", "PT: 1")),
            ({"FrameOfReferenceUID": "1.2.3"}, ("differ in frame of reference",)),
            ({"ImagePositionPatient": None}, ("1 of 6 slices state no usable ImagePositionPatient",)),
            ({"ImageOrientationPatient": None}, ("1 of 6 slices state no usable ImageOrientationPatient",)),
            ({"PixelSpacing": None}, ("1 of 6 slices state no usable PixelSpacing",)),
            ({"PixelSpacing": [0, 0]}, (r"PixelSpacing of IM", r"is 0\0")),
            ({"ImageOrientationPatient": [1, 0, 0, 0.5, 0.5, 0]}, ("not two unit vectors at right angles",)),
        ],
    )
    def test_mixed(self, tmp_path, change, words):
        def apply(made):
            for keyword, value in change.items():
                setattr(made[4], keyword, value)

        self.refuse(tmp_path, apply, *words)

    def test_kinds_of_pixels(self, tmp_path):
        inverted = {"PhotometricInterpretation": "MONOCHROME1", "Modality": "MR"}
        self.refuse(tmp_path, lambda made: None, "is MONOCHROME1", **inverted)
        table = item(LUTDescriptor=[2, 0, 16], ModalityLUTType="US")
        table.add_new("LUTData", "US", [1, 2])
        shutil.rmtree(tmp_path / "ct")
        self.refuse(tmp_path, lambda made: None, "lookup table", ModalityLUTSequence=[table])
        color = [
            dataset(np.zeros((4, 4, 3), np.uint8), PixelSpacing=[1, 1], SeriesInstanceUID="1.2",
                    ImagePositionPatient=[0, 0, z], ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
            for z in range(3)
        ]  # fmt: skip
        folder = write_series(tmp_path / "color", color)
        refused(lambda: read_series(folder), folder, "in colour")

    def test_nothing_but_padding_or_zeros(self, tmp_path):
        def blank(made):
            for data in made:
                data.PixelData = bytes(len(data.PixelData))

        self.refuse(tmp_path, blank, "all its pixels are padding", PixelPaddingValue=0)
        shutil.rmtree(tmp_path / "ct")
        self.refuse(tmp_path, blank, "every voxel")

    def test_huge_headers_are_refused_before_anything_is_allocated(self, tmp_path):
        self.refuse(tmp_path, lambda made: None, "6 x 65535 x 65535", "MAX_VOXELS", Rows=65535, Columns=65535)

    @pytest.mark.parametrize("syntax", [None, *LOSSLESS.values()])
    def test_a_cut_file_is_named(self, tmp_path, syntax):
        noise = np.random.default_rng(0).integers(0, 2000, (3, 64, 64), dtype=np.int16)
        folder = write_series(tmp_path / "ct", slices(sitk.GetImageFromArray(noise)), compress=syntax)
        broken = folder / "IM0001.dcm"
        whole = broken.read_bytes()
        broken.write_bytes(whole[: int(len(whole) * 0.7)])
        refused(lambda: read_series(folder), broken, "damaged")

    def test_files_that_should_be_slices_are_named(self, tmp_path):
        folder = self.series(tmp_path, lambda made: None)
        broken = folder / "IM0001.dcm"
        whole = broken.read_bytes()
        for content, words in (
            (b"", "is empty (0 bytes)"),
            (b"<html>no such file</html>" * 9, "named like DICOM but does not start so"),
            (whole[:420], "get the file again"),
            (whole[: whole.index(b"\x28\x00\x10\x00")], "ends before its pixels are described"),
        ):
            broken.write_bytes(content)
            refused(lambda: read_series(folder), broken, words)

    @settings(max_examples=80, deadline=None)
    @given(data=st.data())
    def test_damaged_series_never_raise_anything_else(self, tmp_path_factory, data):
        folder = tmp_path_factory.mktemp("damaged")
        for name, whole in small_series().items():
            (folder / name).write_bytes(whole)
        path = folder / "IM0001.dcm"
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(132, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert isinstance(read_series(folder), Volume)
            except ImageError as error:
                assert NAME not in str(error)


class TestMultiframe:
    @settings(max_examples=80, deadline=None)
    @given(data=st.data())
    def test_damaged_files_never_raise_anything_else(self, tmp_path_factory, data):
        path = tmp_path_factory.mktemp("damaged") / "a.dcm"
        content = bytearray(small_multiframe())
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(132, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert isinstance(read_multiframe(path), Volume | None)
            except ImageError as error:
                assert NAME not in str(error)

    def refuse(self, tmp_path, data, *words):
        path = save(tmp_path / "a.dcm", data)
        return refused(lambda: read_multiframe(path), path, *words)

    @pytest.mark.parametrize("syntax", [None, *LOSSLESS.values()])
    def test_encodings_and_a_folder_with_one_file(self, tmp_path, syntax):
        image = phantom.image("RSP")
        order = np.random.default_rng(1).permutation(image.GetDepth()).tolist()
        folder = write_series(tmp_path / "ct", [multiframe(image, order, SeriesInstanceUID="1.2")], compress=syntax)
        check_phantom(read_series(folder), in_file_frame(image))

    def test_films_and_single_frames_are_no_volumes(self, tmp_path):
        image = phantom.image()
        film = dataset(np.zeros((3, 8, 8), np.uint8), NumberOfFrames=3, SeriesInstanceUID="1.2")
        assert read_multiframe(save(tmp_path / "film.dcm", film)) is None
        refused(lambda: read_series(tmp_path), tmp_path / "film.dcm", "3 frames without places")
        still = multiframe(image)
        for frame in still.PerFrameFunctionalGroupsSequence:
            frame.PlanePositionSequence[0].ImagePositionPatient = [1, 2, 3]
        assert read_multiframe(save(tmp_path / "still.dcm", still)) is None
        assert read_multiframe(save(tmp_path / "one.dcm", slices(image)[0])) is None
        assert read_multiframe(save(tmp_path / "first.dcm", multiframe(image, [0]))) is None

    def test_several_stacks(self, tmp_path):
        data = multiframe(phantom.image())
        for frame in data.PerFrameFunctionalGroupsSequence[3:]:
            frame.FrameContentSequence[0].StackID = "2"
        self.refuse(tmp_path, data, "holds 2 stacks (1, 2)")

    @pytest.mark.parametrize(
        "macro, element, values, words",
        [
            ("FrameContentSequence", "TemporalPositionIndex", (1, 2), "temporal position (1, 2)"),
            ("MREchoSequence", "EffectiveEchoTime", (2.3, 4.6), "echo time (2.3, 4.6)"),
            ("MRDiffusionSequence", "DiffusionBValue", (0.0, 1000.0), "diffusion b-value (0, 1000)"),
        ],
    )
    def test_several_volumes(self, tmp_path, macro, element, values, words):
        data = multiframe(phantom.image(), [*range(6), *range(6)])
        for index, frame in enumerate(data.PerFrameFunctionalGroupsSequence):
            value = values[index // 6]
            if macro in frame:
                setattr(frame[macro][0], element, value)
            else:
                setattr(frame, macro, [item(**{element: value})])
        self.refuse(tmp_path, data, "at 6 of 6 positions", "frame 0, frame 6", words)

    def test_the_rules_of_series_hold(self, tmp_path):
        image = phantom.image()
        self.refuse(tmp_path, multiframe(image, [0, 1, 3, 4, 5]), "1 of 6 slices are missing", "(frame 1)", "(frame 2)")
        data = multiframe(image)
        del data.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence
        self.refuse(tmp_path, data, "1 of 6 slices state no usable ImagePositionPatient (frame 2)")
        data = multiframe(image)
        data.PerFrameFunctionalGroupsSequence[2].PixelMeasuresSequence = [item(PixelSpacing=[2, 2])]
        self.refuse(tmp_path, data, "differ in pixel spacing", "(frame 2)")
        data = multiframe(image)
        data.NumberOfFrames = 9
        self.refuse(tmp_path, data, "describes 6 frames and says it holds 9")
        self.refuse(tmp_path, multiframe(image, Rows=65535, Columns=65535), "MAX_VOXELS")

    @pytest.mark.parametrize("syntax", [None, *LOSSLESS.values()])
    def test_cut_files(self, tmp_path, syntax):
        noise = np.random.default_rng(0).integers(0, 2000, (3, 64, 64), dtype=np.int16)
        folder = write_series(tmp_path / "ct", [multiframe(sitk.GetImageFromArray(noise))], compress=syntax)
        path = folder / "IM0000.dcm"
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * 0.7)])
        refused(lambda: read_multiframe(path), path, "damaged")

    def test_several_files_of_several_frames(self, tmp_path):
        made = [multiframe(phantom.image(), SeriesInstanceUID="1.2") for _ in range(2)]
        folder = write_series(tmp_path / "ct", made)
        refused(lambda: read_series(folder), folder, "2 of 2 files of the series hold several frames")
