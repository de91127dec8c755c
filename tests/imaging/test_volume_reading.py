"""Reading volumes: all orientations alike, values and affines as nibabel has them, and every bad file named."""

from __future__ import annotations

import gzip
import itertools
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

import phantom
from medmvl import read_image
from medmvl.core.schema import Sample, SampleError
from medmvl.imaging import volume as volume_module
from medmvl.imaging.geometry import identity, invert, transform_box
from medmvl.imaging.orient import orientation_of
from medmvl.imaging.picture import ImageError, Picture
from medmvl.imaging.read import read_picture, read_volume
from medmvl.imaging.volume import Volume

FILES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")


def assert_is_phantom(volume: Volume) -> None:
    np.testing.assert_array_equal(volume.array, phantom.values())
    assert volume.array.dtype == np.int16
    np.testing.assert_allclose(volume.spacing, phantom.SPACING, rtol=1e-6)
    np.testing.assert_allclose(volume.origin, phantom.ORIGIN, rtol=1e-6)
    np.testing.assert_allclose(volume.direction, phantom.STRAIGHT, atol=1e-6)
    assert volume.oriented and volume.size == phantom.SIZE


class TestOrientations:
    """The same patient in all 48 layouts of a file is the same volume."""

    @pytest.mark.parametrize("suffix", FILES)
    def test_all_48(self, tmp_path: Path, suffix: str) -> None:
        for orientation in phantom.ORIENTATIONS:
            path = phantom.write(tmp_path / f"a{suffix}", orientation)
            volume = read_image(path)
            assert_is_phantom(volume)
            stored = sitk.GetArrayFromImage(phantom.image(orientation))
            frame = volume.original
            assert frame.size == stored.shape and volume.path == str(path)
            assert orientation_of(frame.direction) == orientation
            box = phantom.box(stored)
            assert transform_box(box, frame.to_canonical) == phantom.BOX
            assert transform_box(phantom.BOX, invert(frame.to_canonical)) == box

    @pytest.mark.parametrize("suffix", [".nii", ".nrrd", ".mha"])
    @settings(max_examples=25, deadline=None)
    @given(
        turn=st.lists(st.floats(-1, 1), min_size=4, max_size=4).filter(lambda q: np.linalg.norm(q) > 0.1),
        steps=st.lists(st.floats(0.2, 8), min_size=3, max_size=3),
        origin=st.lists(st.floats(-500, 500), min_size=3, max_size=3),
        mirrored=st.booleans(),
    )
    def test_any_voxel_stays_where_it_was_in_the_patient(
        self,
        suffix: str,
        turn: list,
        steps: list,
        origin: list,
        mirrored: bool,
        tmp_path_factory: pytest.TempPathFactory,
    ) -> None:
        stored = np.arange(4 * 3 * 2, dtype=np.int16).reshape(2, 3, 4)
        image = sitk.GetImageFromArray(stored)
        a, b, c, d = np.array(turn) / np.linalg.norm(turn)
        versor = sitk.VersorTransform((b, c, d, a) if a >= 0 else (-b, -c, -d, -a))
        matrix = np.reshape(versor.GetMatrix(), (3, 3)) * [1, 1, -1 if mirrored else 1]
        image.SetSpacing(steps)
        image.SetOrigin(origin)
        image.SetDirection(matrix.ravel())
        path = tmp_path_factory.mktemp("oblique") / f"a{suffix}"
        sitk.WriteImage(image, str(path))
        volume = read_volume(path)
        axes = np.reshape(volume.direction, (3, 3)) * np.array(volume.spacing[::-1])[:, None]
        for z, y, x in np.ndindex(stored.shape):
            w, v, u = (int(i[0]) for i in np.nonzero(volume.array == stored[z, y, x]))
            truth = image.TransformIndexToPhysicalPoint((x, y, z))
            np.testing.assert_allclose(np.array(volume.origin) + np.array([u, v, w]) @ axes, truth, atol=2e-3)
            centre = volume.original.to_canonical @ [x + 0.5, y + 0.5, z + 0.5, 1]
            np.testing.assert_allclose(centre, [u + 0.5, v + 0.5, w + 0.5], atol=1e-9)
        # No other choice of whole axes points nearer to left, back and head.
        best = max(np.abs(matrix[range(3), order]).sum() for order in itertools.permutations(range(3)))
        assert np.diag(np.reshape(volume.direction, (3, 3))).sum() == pytest.approx(best, abs=1e-5)

    def test_arrays_have_no_sides_until_told(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", phantom.values())
        plain = read_image(f"{tmp_path / 'a.npy'}#unit=HU")
        assert not plain.oriented and plain.spacing is None and plain.origin is None
        np.testing.assert_array_equal(plain.array, phantom.values())
        np.testing.assert_array_equal(plain.original.to_canonical, identity(3))
        for orientation in phantom.ORIENTATIONS:
            stored = sitk.GetArrayFromImage(phantom.image(orientation))
            np.save(tmp_path / "a.npy", stored)
            told = read_image(f"{tmp_path / 'a.npy'}#unit=HU&orientation={orientation}")
            np.testing.assert_array_equal(told.array, phantom.values())
            assert told.oriented and told.direction == phantom.STRAIGHT and told.spacing is None
            assert transform_box(phantom.box(stored), told.original.to_canonical) == phantom.BOX


class TestNifti:
    """Golden against nibabel; bytes of the header are changed by hand."""

    @pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8", "i8"])
    @pytest.mark.parametrize("order", "<>")
    @pytest.mark.parametrize("kind", ["nifti1", "nifti2", "pair"])
    def test_values_and_affine_are_nibabels(self, tmp_path: Path, dtype: str, order: str, kind: str) -> None:
        form = {"nifti1": nibabel.Nifti1Image, "nifti2": nibabel.Nifti2Image, "pair": nibabel.Nifti1Pair}[kind]
        stored = np.random.default_rng(0).integers(0, 120, (5, 4, 3)).astype(dtype)
        affine = nibabel.affines.from_matvec(sitk_rotation(0.3) @ np.diag([-2, 3, 0.5]), [10, -20, 30])
        header = form.header_class(endianness=order)
        header.set_data_dtype(np.dtype(dtype).newbyteorder(order))
        path = tmp_path / ("a.img" if kind == "pair" else "a.nii.gz")
        nibabel.save(form(stored, affine, header), path)
        given = nibabel.load(path)
        for name in (path, path.with_suffix(".hdr")) if kind == "pair" else (path,):
            volume = read_volume(name)
            same_as_nibabel(volume, given)
            expected = {"u1": np.uint8, "u2": np.uint16, "f4": np.float32, "f8": np.float32}.get(dtype, np.int16)
            assert volume.array.dtype == expected and volume.unit == ""

    @pytest.mark.parametrize(
        ("dtype", "slope", "intercept", "expected"),
        [
            ("i2", 1, -1024, np.int16), ("u2", 1, -8192, np.int16), ("u1", 1, -1024, np.int16), ("u1", 1, 0, np.uint8),
            ("i2", 2, 0, np.int16), ("i2", 300, 0, np.float32), ("i2", 0.5, 3.25, np.float32),
            ("i2", np.nan, np.nan, np.int16), ("i2", 0, 7, np.int16), ("i4", 1, 0, np.int16), ("u2", 1, 0, np.uint16),
            ("i4", 1, 40000, np.uint16), ("f8", 2, 1, np.float32), ("i2", -1, 0, np.int16), ("f4", 1, 0, np.float32),
        ],
    )  # fmt: skip
    def test_rescaling_is_applied_once_and_keeps_whole_numbers(
        self, tmp_path: Path, dtype: str, slope: float, intercept: float, expected: type
    ) -> None:
        stored = np.random.default_rng(0).integers(0, 250, (3, 4, 5)).astype(dtype)
        path = tmp_path / "a.nii"
        nibabel.save(nibabel.Nifti1Image(stored, np.eye(4)), path)
        patch(path, SLOPE, "<2f", slope, intercept)
        volume = read_volume(path)
        same_as_nibabel(volume, nibabel.load(path))
        assert volume.array.dtype == expected

    def test_sform_wins_and_units_are_followed(self, tmp_path: Path) -> None:
        path = tmp_path / "a.nii"
        image = nibabel.Nifti1Image(phantom.values(), np.diag([2, 2, 2, 1]))
        image.header.set_qform(np.diag([2.0, 2, 2, 1]), 1)
        image.header["sform_code"] = 0
        nibabel.save(image, path)
        assert read_volume(path).spacing == (2, 2, 2)
        patch(path, 123, "B", 1)  # metres
        assert read_volume(path).spacing == (2000, 2000, 2000)
        patch(path, 123, "B", 2)
        patch(path, SFORM_CODE, "<h", 1)
        patch(path, SROW, "<12f", 3, 0, 0, 0, 0, 3, 0, 0, 0, 0, 3, 0)
        assert read_volume(path).spacing == (3, 3, 3)

    def test_qform_alone(self, tmp_path: Path) -> None:
        for orientation in phantom.ORIENTATIONS:
            path = phantom.write(tmp_path / "a.nii", orientation)
            patch(path, SFORM_CODE, "<h", 0)
            assert_is_phantom(read_volume(path))

    def test_matrices_that_contradict_each_other(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = phantom.write(tmp_path / "a.nii")
        sform = np.array(struct.unpack_from("<12f", path.read_bytes(), SROW)).reshape(3, 4)
        patch(path, SROW, "<12f", *(sform * [[-1], [1], [1]]).ravel())
        with pytest.raises(ImageError, match=r"a\.nii: its sform \(SPR\) and its qform \(SPL\) .* different sides"):
            read_volume(path)
        patch(path, SROW, "<12f", *(sform * [[1], [-1], [1]]).ravel())
        with caplog.at_level("WARNING", "medmvl"):
            volume = read_volume(path)
        assert "sform (SAL) and qform (SPL) contradict each other; the sform is followed" in caplog.text
        assert str(path) in caplog.text and orientation_of(volume.original.direction) == "SAL"
        caplog.clear()
        patch(path, SROW, "<12f", *(sform * [2, 2, 2, 1]).ravel())
        assert read_volume(path).spacing == tuple(2 * step for step in phantom.SPACING)
        assert "the sform is followed" in caplog.text

    def test_neither_code_is_an_error_that_can_be_answered(self, tmp_path: Path) -> None:
        path = no_codes(tmp_path)
        volume = read_volume(f"{path}#orientation=SPL")
        np.testing.assert_array_equal(volume.array, phantom.values())
        np.testing.assert_allclose(volume.spacing, phantom.SPACING)
        assert volume.oriented and volume.origin is None
        refused(phantom.write(tmp_path / "b.nii"), "its header says where its axes point", "#orientation=SPR")
        refused(path, "'SPX' is not one letter each of S/I, A/P and L/R", "#orientation=SPX")

    def test_one_volume_of_several(self, tmp_path: Path) -> None:
        several = np.stack([phantom.values(), phantom.values() + 1, phantom.values() - 5], -1)
        for name in ("a.nii", "a.nii.gz"):
            nibabel.save(nibabel.Nifti1Image(several, np.eye(4)), tmp_path / name)
            for index in range(3):
                volume = read_volume(f"{tmp_path / name}#frame={index}")
                np.testing.assert_array_equal(stored_of(volume), several[..., index].T)
            refused(tmp_path / name, "has no volume 3", "#frame=3")
        one = nibabel.Nifti1Image(several[..., :1, None], np.eye(4))
        nibabel.save(one, tmp_path / "one.nii")
        assert read_volume(tmp_path / "one.nii").size == phantom.SIZE[::-1]

    def test_gzip_of_several_members_and_with_padding(self, tmp_path: Path) -> None:
        content = phantom.write(tmp_path / "a.nii").read_bytes()
        packed = gzip.compress(content[:400]) + gzip.compress(content[400:]) + bytes(512)
        (tmp_path / "b.nii.gz").write_bytes(packed)
        assert_is_phantom(read_volume(tmp_path / "b.nii.gz"))
        (tmp_path / "c.nii").write_bytes(packed)  # a packed file without its suffix
        assert_is_phantom(read_volume(tmp_path / "c.nii"))

    def test_suffix_may_be_missing(self, tmp_path: Path) -> None:
        for name in ("a.nii", "a.nrrd"):
            phantom.write(tmp_path / name).rename(tmp_path / "scan")
            assert_is_phantom(read_volume(tmp_path / "scan"))


class TestHounsfield:
    """Units are said, applied once, and doubted where the values do not look like them."""

    def table(self, folder: Path, *rows: str) -> Path:
        path = folder / "validation_metadata.csv"
        path.write_text("VolumeName,Manufacturer,RescaleIntercept,RescaleSlope\n" + "\n".join(rows))
        return path

    def ct(self, path: Path, offset: int = 0, header: tuple[float, float] = (1, 0)) -> Path:
        """Half air, half tissue; stored values are HU + offset."""
        values = np.where(np.arange(8)[:, None, None] < 4, -1000, 40) + np.arange(6 * 7).reshape(6, 7) + offset
        nibabel.save(nibabel.Nifti1Image(values.astype(np.int16).T, np.diag([-1, -1, 1, 1])), path)
        return patch(path, SLOPE, "<2f", *header)

    def test_unit_is_known_only_where_it_is_said(self, tmp_path: Path) -> None:
        path = self.ct(tmp_path / "a.nii")
        assert read_volume(path).unit == ""
        for told in ("#hu=header", "#hu=already_hu", "#unit=HU", "#slope=1&intercept=0"):
            assert read_volume(f"{path}{told}").unit == "HU"
        assert read_volume(path, hu="header").unit == read_volume(path, unit="HU").unit == "HU"

    @pytest.mark.parametrize("intercept", [-1024, -8192])
    def test_ct_rate_table(self, tmp_path: Path, intercept: int, caplog: pytest.LogCaptureFixture) -> None:
        path = self.ct(tmp_path / "valid_1_a_1.nii", -intercept)
        table = self.table(tmp_path, f"valid_1_a_1.nii,Siemens Healthineers,{intercept},1")
        truth = read_volume(self.ct(tmp_path / "truth.nii")).array
        from medmvl.imaging.hounsfield import CtRateTable

        for hu in (table, str(table), CtRateTable.read(table)):
            volume = read_volume(path, hu=hu)
            assert volume.unit == "HU" and volume.array.dtype == np.int16
            np.testing.assert_array_equal(volume.array, truth)
        np.testing.assert_array_equal(read_volume(f"{path}#slope=1&intercept={intercept}").array, truth)
        assert not caplog.records

    def test_never_twice(self, tmp_path: Path) -> None:
        path = self.ct(tmp_path / "v.nii", 1024, (1, -1024))
        table = self.table(tmp_path, "v.nii,x,-1024,1")
        truth = read_volume(self.ct(tmp_path / "truth.nii")).array
        np.testing.assert_array_equal(read_volume(path, hu="header").array, truth)
        np.testing.assert_array_equal(read_volume(path, hu=table).array, truth)  # both say the same: once
        np.testing.assert_array_equal(read_volume(path, hu="already_hu").array, truth + 1024)
        with pytest.raises(ImageError, match=r"v\.nii: its header rescales already .*twice"):
            read_volume(path, hu=self.table(tmp_path, "v.nii,x,-8192,1"))

    @pytest.mark.parametrize(("offset", "said"), [(1024, "not applied"), (-1024, "applied twice"), (8192, "not appl")])
    def test_a_doubtful_range_warns_once_with_the_name(
        self, tmp_path: Path, offset: int, said: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = self.ct(tmp_path / "doubt.nii", offset)
        with caplog.at_level("WARNING", "medmvl"):
            read_volume(path)
            assert not caplog.records  # nothing was claimed
            read_volume(path, hu="header")
            read_volume(path, hu="header")
        assert len(caplog.records) == 1 and str(path) in caplog.text and said in caplog.text

    def test_bad_tables(self, tmp_path: Path) -> None:
        path = self.ct(tmp_path / "v.nii")
        table = self.table(tmp_path, "other.nii,x,-1024,1")
        with pytest.raises(ImageError, match=r"v\.nii: has no row in .*validation_metadata\.csv"):
            read_volume(path, hu=table)
        with pytest.raises(ImageError, match="line 2: RescaleSlope and RescaleIntercept are numbers, got '1', 'none'"):
            read_volume(path, hu=self.table(tmp_path, "v.nii,x,none,1"))
        table.write_text("VolumeName,Slope\nv.nii,1\n")
        with pytest.raises(ImageError, match=r"lacks the column\(s\) RescaleIntercept, RescaleSlope"):
            read_volume(path, hu=table)
        with pytest.raises(ImageError, match=r"nothere\.csv: cannot be read"):
            read_volume(path, hu=tmp_path / "nothere.csv")
        with pytest.raises(ImageError, match="'hounsfield' is unknown; known are header, already_hu"):
            read_volume(path, hu="hounsfield")


SLOPE, QFORM_CODE, SFORM_CODE, SROW, PIXDIM, DIM = 112, 252, 254, 280, 76, 40


def patch(path: Path, offset: int, form: str, *values: float) -> Path:
    """Change bytes of a file, packed or not."""
    packed = path.suffix == ".gz"
    content = bytearray(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    struct.pack_into(form, content, offset, *values)
    path.write_bytes(gzip.compress(bytes(content)) if packed else bytes(content))
    return path


def no_codes(folder: Path) -> Path:
    return patch(phantom.write(folder / "a.nii.gz"), QFORM_CODE, "<2h", 0, 0)


def sitk_rotation(angle: float) -> np.ndarray:
    return np.reshape(sitk.VersorTransform((0.6, 0.0, 0.8), angle).GetMatrix(), (3, 3))


def stored_of(volume: Volume) -> np.ndarray:
    """The array [z, y, x] as it lay in the file, from the canonical one."""
    back = invert(volume.original.to_canonical)
    stored = np.empty(volume.original.size, volume.array.dtype)
    for index in np.ndindex(volume.array.shape):
        x, y, z = (back @ [*(np.array(index[::-1]) + 0.5), 1]).astype(int)
        stored[z, y, x] = volume.array[index]
    return stored


def same_as_nibabel(volume: Volume, given: nibabel.Nifti1Image) -> None:
    np.testing.assert_array_equal(stored_of(volume), given.get_fdata().T.astype(volume.array.dtype))
    frame = volume.original
    matrix = np.reshape(frame.direction, (3, 3)).T * frame.spacing[::-1]
    ours = np.column_stack([matrix, frame.origin]) * [[-1], [-1], [1]]
    np.testing.assert_allclose(ours, given.affine[:3], atol=1e-5)


def refused(path: Path, said: str, fragment: str = "") -> None:
    with pytest.raises(ImageError) as caught:
        read_volume(f"{path}{fragment}")
    assert said in str(caught.value) and str(path) in str(caught.value)


def nifti(folder: Path, offset: int, form: str, *values: float) -> Path:
    return patch(phantom.write(folder / "a.nii.gz"), offset, form, *values)


def nifti_of(folder: Path, array: np.ndarray) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), folder / "a.nii.gz")
    return folder / "a.nii.gz"


def cut(path: Path, share: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def edited(path: Path, old: str, new: str) -> Path:
    """Change a text header."""
    content = path.read_bytes()
    assert old.encode() in content
    path.write_bytes(content.replace(old.encode(), new.encode(), 1))
    return path


def image_of(path: Path, image: sitk.Image, packed: bool = False) -> Path:
    sitk.WriteImage(image, str(path), packed)
    return path


def damaged_gzip(folder: Path) -> Path:
    path = phantom.write(folder / "a.nii.gz")
    content = bytearray(path.read_bytes())
    content[-6] ^= 0xFF  # in the sum at the end
    path.write_bytes(bytes(content))
    return path


def complex_nifti(folder: Path) -> Path:
    return nifti_of(folder, np.ones((3, 3, 3), np.complex64))


def pair_alone(folder: Path, missing: str) -> Path:
    nibabel.save(nibabel.Nifti1Pair(phantom.values(), np.eye(4)), folder / "a.img")
    (folder / f"a.{missing}").unlink()
    return folder / ("a.hdr" if missing == "img" else "a.img")


def holed(array: np.ndarray, *values: float) -> np.ndarray:
    array = array.astype(np.float32)
    array.flat[: len(values)] = values
    return array


NAN = float("nan")
SHEARED = (1.25, 0.2, 0, 0, 0, 0.75, 0, 0, 0, 0, 3, 0)
BAD = {
    "truncated .nii.gz": (lambda d: cut(phantom.write(d / "a.nii.gz"), 0.7), "cut off"),
    "gzip without its last bytes": (lambda d: cut(phantom.write(d / "a.nii.gz"), 0.995), "cut off"),
    "gzip with a wrong sum": (damaged_gzip, "damaged (Error -3 while decompressing data: incorrect data check)"),
    "truncated .nii": (lambda d: cut(phantom.write(d / "a.nii"), 0.7), "cut off: the header asks for 1,312 bytes"),
    "truncated header": (lambda d: cut(phantom.write(d / "a.nii"), 0.1), "a NIfTI header has 348 bytes, 131 are there"),
    "no NIfTI": (lambda d: patch(phantom.write(d / "a.nii"), 0, "4s", b"<htm"), "is no NIfTI file"),
    "Analyze": (lambda d: nifti(d, 344, "4s", b"\0\0\0\0"), "is Analyze 7.5 or damaged"),
    "4D": (lambda d: nifti_of(d, np.ones((3, 4, 5, 6), np.int16)), "is 4D: it holds 6 volumes"),
    "5D": (lambda d: nifti_of(d, np.ones((3, 4, 5, 1, 3), np.int16)), "has 5 axes (3 x 4 x 5 x 1 x 3)"),
    "2D": (lambda d: nifti_of(d, np.ones((3, 4), np.int16)), "on 2 axes; a volume has 3"),
    "zero spacing": (lambda d: nifti(d, PIXDIM + 8, "<f", 0), "a voxel size of 0 along y (pixdim)"),
    "negative spacing": (lambda d: nifti(d, PIXDIM + 4, "<f", -1), "a voxel size of -1 along x (pixdim)"),
    "NaN spacing": (lambda d: nifti(d, PIXDIM + 12, "<f", NAN), "a voxel size of nan along z (pixdim)"),
    "no codes": (no_codes, "sform_code and qform_code are both 0"),
    "sheared sform": (lambda d: nifti(d, SROW, "<12f", *SHEARED), "its sform is sheared: axes x and y are 14.93 deg"),
    "empty sform": (lambda d: nifti(d, SROW, "<12f", *[0] * 12), "its sform says that voxels have no extent along x"),
    "flat sform": (lambda d: nifti(d, SROW, "<12f", 1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0), "its sform is sheared"),
    "NaN sform": (lambda d: nifti(d, SROW, "<f", NAN), "its sform holds NaN"),
    "NaN origin": (lambda d: nifti(d, SROW + 12, "<f", NAN), "its sform holds NaN"),
    "no rotation": (lambda d: patch(nifti(d, SFORM_CODE, "<h", 0), 256, "<3f", 1, 1, 1), "its qform is no rotation"),
    "huge": (lambda d: nifti(d, DIM, "<4h", 3, 32767, 32767, 32767), "32767 x 32767 x 32767"),
    "large, and not there": (lambda d: nifti(d, DIM, "<4h", 3, 1000, 1000, 1000), "cut off: the header asks for 2,000"),
    "no voxels": (lambda d: nifti(d, DIM, "<4h", 3, 8, 0, 6), "the volume has no voxels"),
    "negative size": (lambda d: nifti(d, DIM, "<4h", 3, 8, -10, 6), "the volume has no voxels"),
    "axes": (lambda d: nifti(d, DIM, "<h", 9), "says that it has 9 axes"),
    "complex": (complex_nifti, "holds complex numbers (datatype 32)"),
    "RGB": (lambda d: nifti(d, 70, "<h", 128), "holds RGB colour (datatype 128)"),
    "scale": (lambda d: nifti(d, SLOPE, "<2f", 2, NAN), "its scl_inter is nan"),
    "offset": (lambda d: nifti(d, 108, "<f", NAN), "voxels start at byte nan"),
    "unit of length": (lambda d: nifti(d, 123, "B", 7), "an unknown unit of length (code 7)"),
    "pair without header": (lambda d: pair_alone(d, "hdr"), "has no header beside it: a.hdr is missing"),
    "pair without voxels": (lambda d: pair_alone(d, "img"), "its voxels should be in a.img beside it"),
    "NaN voxels": (
        lambda d: nifti_of(d, holed(phantom.values(), NAN, NAN, np.inf)), "3 of 480 voxels are NaN or infinite",
    ),
    "beyond float32": (lambda d: nifti_of(d, np.array([1e300, 1.0]).reshape(1, 1, 2)), "1 of 2 voxels are NaN or inf"),
    "all zero": (lambda d: nifti_of(d, np.zeros((3, 4, 5), np.int16)), "shows nothing: every voxel is 0"),
    "constant": (lambda d: nifti_of(d, np.full((3, 4, 5), -1024, np.int16)), "every voxel has the value -1024"),
    "empty file": (lambda d: cut(phantom.write(d / "a.nii"), 0), "is empty (0 bytes)"),
    "nrrd truncated": (lambda d: cut(phantom.write(d / "a.nrrd"), 0.8), "cut off: the header asks for 960 bytes"),
    "nrrd packed truncated": (lambda d: cut(image_of(d / "a.nrrd", phantom.image(), True), 0.8), "cut off or damaged"),
    "no nrrd": (lambda d: edited(phantom.write(d / "a.nrrd"), "NRRD0004", "Nrrd0004"), "is no NRRD file"),
    "nrrd zero": (lambda d: edited(phantom.write(d / "a.nrrd"), "(0,0,3)", "(0,0,0)"), "no extent along z (spacing 0)"),
    "nrrd NaN": (lambda d: edited(phantom.write(d / "a.nrrd"), "(0,0,3)", "(0,0,nan)"), "its header holds NaN"),
    "nrrd sheared": (lambda d: edited(phantom.write(d / "a.nrrd"), "(0,0,3)", "(0,1,3)"), "axes y and z are 18.43 deg"),
    "nrrd without directions": (
        lambda d: edited(phantom.write(d / "a.nrrd"), "space directions: (1.25,0,0) (0,0.75,0) (0,0,3)", "# none"),
        "does not say where its axes point (it states no space and space directions)",
    ),
    "nrrd without space": (
        lambda d: edited(phantom.write(d / "a.nrrd"), "left-posterior-superior", "3D-right-handed"),
        "does not say where its axes point",
    ),
    "nrrd damaged": (lambda d: edited(phantom.write(d / "a.nrrd"), "8 10 6", "8 ten 6"), "its header is damaged"),
    "nrrd huge": (lambda d: edited(phantom.write(d / "a.nrrd"), "8 10 6", "80000 10000 6000"), "MEDMVL_MAX_VOXELS"),
    "nrrd vectors": (
        lambda d: image_of(d / "a.nrrd", sitk.Image([4, 4, 4], sitk.sitkVectorFloat32, 3)), "has 4 axes (3 x 4 x 4 x 4",
    ),
    "nrrd data outside": (
        lambda d: edited(phantom.write(d / "a.nhdr"), "data file: a.raw", "data file: ../a.raw"),
        "takes its voxels from '../a.raw', which is not beside it",
    ),
    "nrrd data missing": (
        lambda d: edited(phantom.write(d / "a.nhdr"), "file: a.raw", "file: b.raw"), "should be in 'b.raw' beside it",
    ),
    "nrrd data list outside": (
        lambda d: edited(phantom.write(d / "a.nhdr"), "data file: a.raw", "data file: LIST\n/etc/passwd\n/etc/passwd"),
        "takes its voxels from '/etc/passwd'",
    ),
    "nrrd data outside, before a vertical tab": (
        lambda d: edited(
            phantom.write(d / "a.nhdr"), "data file: a.raw", "data file: ../b.raw\ncontent: x\x0bdatafile: a.raw"
        ),
        "states 'datafile' twice",
    ),
    "nrrd pattern": (
        lambda d: edited(phantom.write(d / "a.nhdr"), "data file: a.raw", "data file: a%999999d.raw 1 6 1"),
        "which is no pattern such as 'slice%03d.raw 1 40 1'",
    ),
    "nrrd encoding": (
        lambda d: edited(phantom.write(d / "a.nrrd"), "encoding: raw", "encoding: bzip2"), "is packed as 'bzip2'",
    ),
    "mha data outside, with a colon": (
        lambda d: edited(phantom.write(d / "a.mha"), "ElementDataFile", "ElementDataFile: ../b.raw\nElementDataFile"),
        "names ElementDataFile twice",
    ),
    "mha data outside, after a blank": (
        lambda d: edited(phantom.write(d / "a.mha"), "ElementDataFile", " ElementDataFile = ../b.raw\nElementDataFile"),
        "names ElementDataFile twice",
    ),
    "mha truncated": (lambda d: cut(phantom.write(d / "a.mha"), 0.8), "cut off: the header asks for 960 bytes"),
    "mha packed truncated": (lambda d: cut(image_of(d / "a.mha", phantom.image(), True), 0.8), "cut off"),
    "no mha": (lambda d: edited(phantom.write(d / "a.mha"), "ElementDataFile", "Elementdatafile"), "is no MetaImage"),
    "mha zero": (lambda d: edited(phantom.write(d / "a.mha"), "Spacing = 1.25 0.75", "Spacing = 1.25 0"), "0 along y"),
    "mha no spacing": (
        lambda d: edited(phantom.write(d / "a.mha"), "ElementSpacing", "ElementSpac"), "no spacing for its 3 axes",
    ),
    "mha no matrix": (
        lambda d: edited(phantom.write(d / "a.mha"), "TransformMatrix", "Matrix"), "it states no TransformMatrix",
    ),
    "mha sheared": (
        lambda d: edited(phantom.write(d / "a.mha"), "0 1 0 0 0 1", "0 0.8 0.6 0 0 1"), "axes y and z are 36.87 deg",
    ),
    "mha stretched": (
        lambda d: edited(phantom.write(d / "a.mha"), "0 1 0 0 0 1", "0 2 0 0 0 1"), "are no unit vectors",
    ),
    "mha 4D": (
        lambda d: image_of(d / "a.mha", sitk.JoinSeries([phantom.image()] * 2)), "has 4 axes (8 x 10 x 6 x 2 values)",
    ),
    "mha colour": (
        lambda d: image_of(d / "a.mha", sitk.Image([4, 4, 4], sitk.sitkVectorUInt8, 3)), "more than one number per",
    ),
    "mha huge": (lambda d: edited(phantom.write(d / "a.mha"), "8 10 6", "80000 10000 6000"), "MEDMVL_MAX_VOXELS"),
    "mhd data outside": (
        lambda d: edited(phantom.write(d / "a.mhd"), "File = a.raw", "File = /etc/hostname"), "which is not beside it",
    ),
    "mhd data missing": (
        lambda d: edited(phantom.write(d / "a.mhd"), "File = a.raw", "File = b.raw"), "should be in 'b.raw' beside it",
    ),
    "mha all zero": (lambda d: image_of(d / "a.mha", phantom.image() * 0), "shows nothing: every voxel is 0"),
    "mha NaN": (
        lambda d: image_of(d / "a.mha", phantom.image(array=holed(phantom.values(), NAN))), "1 of 480 voxels are NaN",
    ),
}  # fmt: skip


def test_voxels_in_several_files(tmp_path: Path) -> None:
    """One file for each slice, named by a list or a pattern, also in a folder below and under any name."""
    (tmp_path / "slices").mkdir()
    names = [f"slices/é {number}.raw" for number in range(6)]
    for name, plane in zip(names, phantom.values(), strict=True):
        plane.tofile(tmp_path / name)
    headers = {
        "a.mhd": ("ElementDataFile = a.raw", "ElementDataFile = LIST\n" + "\n".join(names)),
        "a.nhdr": ("data file: a.raw", "data file: LIST\n" + "\n".join(names)),
    }
    for name, (one, several) in headers.items():
        path = edited(phantom.write(tmp_path / name), one, several)
        assert np.array_equal(read_volume(path).array, phantom.values())
    for number, name in enumerate(names):
        (tmp_path / name).rename(tmp_path / f"s{number:02d}.raw")
    path = edited(phantom.write(tmp_path / "b.nhdr"), "data file: b.raw", "Data File: s%02d.raw 0 5 1")
    assert np.array_equal(read_volume(path).array, phantom.values())


class TestBadFiles:
    """Each error names the file and what is wrong with it."""

    @pytest.mark.parametrize("name", BAD)
    def test_is_named(self, name: str, tmp_path: Path) -> None:
        make, said = BAD[name]
        path = make(tmp_path)
        refused(path, said)
        with pytest.raises(ImageError) as caught:
            read_image(path)
        assert caught.value.path == str(path)

    def test_the_limit_can_be_raised(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = phantom.write(tmp_path / "a.nii")
        monkeypatch.setattr(volume_module, "MAX_VOXELS", 479)
        refused(path, "6 x 10 x 8")
        monkeypatch.setattr(volume_module, "MAX_VOXELS", 480)
        assert_is_phantom(read_volume(path))

    def test_missing_files_with_a_near_name(self, tmp_path: Path) -> None:
        phantom.write(tmp_path / "scan.nii.gz")
        for name in ("scan.nii", "scan.nrrd", "scan"):
            refused(tmp_path / name, f"but {tmp_path / 'scan.nii.gz'} does")

    @pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".npy", ".npz"])
    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def test_damaged_files_never_raise_anything_else(
        self, suffix: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
    ) -> None:
        path = tmp_path_factory.mktemp("damaged") / f"a{suffix}"
        if suffix == ".npy":
            np.save(path, phantom.values())
        elif suffix == ".npz":
            np.savez_compressed(path, a=phantom.values())
        else:
            phantom.write(path)
        content = bytearray(path.read_bytes())
        reach = min(len(content), 420) - 1
        for _ in range(data.draw(st.integers(1, 6))):
            content[data.draw(st.integers(0, reach))] = data.draw(st.integers(0, 255))
        path.write_bytes(bytes(content[: data.draw(st.integers(8, len(content)))]))
        try:
            read_volume(path, unit="0..255" if suffix.startswith(".np") else None)
        except ImageError as error:
            assert str(path) in str(error)


class TestArrays:
    """numpy's files: what the values are is told, never guessed; nothing is unpickled."""

    @pytest.mark.parametrize("name", ["a.npy", "a.npz"])
    def test_shapes_types_and_units(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / name
        shown = np.linspace(0, 1, 60).reshape(3, 4, 5)
        for array, unit, dtype in (
            (shown, "0..1", np.float32), (shown[None].astype(np.float32), "0..1", np.float32),
            ((shown * 255).astype(np.uint8), "0..255", np.uint8), (np.asfortranarray(shown), "0..1", np.float32),
            ((shown * 3000 - 1000).astype(">i4"), "HU", np.int16), (shown.astype(np.float16), "0..1", np.float32),
        ):  # fmt: skip
            save(path, array)
            volume = read_image(f"{path}#unit={unit}")
            assert volume.unit == unit and volume.array.dtype == dtype and volume.size == (3, 4, 5)
            np.testing.assert_allclose(volume.array, array.reshape(3, 4, 5), rtol=1e-6)
            np.testing.assert_array_equal(read_volume(path, unit=unit).array, volume.array)

    def test_stored_values_of_a_ct(self, tmp_path: Path) -> None:
        save(tmp_path / "a.npy", phantom.values() + 1024)
        volume = read_volume(f"{tmp_path / 'a.npy'}#slope=1&intercept=-1024")
        np.testing.assert_array_equal(volume.array, phantom.values())
        assert volume.unit == "HU"

    def test_one_of_several(self, tmp_path: Path) -> None:
        path = tmp_path / "a.npz"
        np.savez(path, ct=phantom.values(), mask=np.ones(3))
        np.testing.assert_array_equal(read_volume(f"{path}#unit=HU&array=ct").array, phantom.values())
        refused(path, "holds 2 arrays (ct, mask); name one", "#unit=HU")
        refused(path, "holds no array 'maks'; did you mean 'mask'? Arrays: ct, mask", "#unit=HU&array=maks")
        refused(path, "holds float64 [3]; a volume is a number array [D, H, W]", "#unit=HU&array=mask")

    @pytest.mark.parametrize("name", ["a.npy", "a.npz"])
    def test_bad_arrays(self, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / name
        save(path, phantom.values())
        refused(path, "an array does not say what its values are")
        refused(path, "which is not the declared unit 0..255", "#unit=0..255")
        refused(path, "unit '0-255' is unknown; did you mean '0..255'?", "#unit=0-255")
        save(path, phantom.values() / 4000 + 0.5)
        refused(path, "that is unit 0..1, not the declared 0..255", "#unit=0..255")
        for array, said in (
            (np.zeros((3, 4, 5)), "every voxel is 0"), (holed(np.ones((2, 3, 4)), NAN), "1 of 24 voxels are NaN"),
            (np.zeros((2, 3, 4, 5)), "holds float64 [2, 3, 4, 5]"), (np.zeros((3, 4)), "holds float64 [3, 4]"),
            (np.ones((2, 2, 2), bool), "holds bool [2, 2, 2]"), (np.ones((2, 2, 2), complex), "holds complex128"),
            (np.zeros((2, 0, 4)), "has no voxels"),
        ):  # fmt: skip
            save(path, array)
            refused(path, said, "#unit=0..1")
        np.save(tmp_path / "objects.npy", np.array([[[{"a": 1}]]], dtype=object))
        refused(tmp_path / "objects.npy", "holds object [1, 1, 1]", "#unit=HU")
        save(path, phantom.values())
        monkeypatch.setattr(volume_module, "MAX_VOXELS", 479)
        refused(path, "MEDMVL_MAX_VOXELS", "#unit=HU")

    def test_cut_off(self, tmp_path: Path) -> None:
        save(tmp_path / "a.npy", phantom.values())
        refused(cut(tmp_path / "a.npy", 0.5), "cut off", "#unit=HU")
        save(tmp_path / "a.npz", phantom.values())
        refused(cut(tmp_path / "a.npz", 0.5), "a.npz", "#unit=HU")

    def test_an_even_grey_is_allowed_where_it_is_declared(self, tmp_path: Path) -> None:
        path = nifti_of(tmp_path, np.full((3, 4, 5), 128, np.uint8))
        assert read_volume(f"{path}#unit=0..255").array.max() == 128
        refused(path, "every voxel has the value 128")


def save(path: Path, array: np.ndarray) -> None:
    if path.suffix == ".npz":
        np.savez_compressed(path, arr_0=array)
    else:
        np.save(path, array)


class TestWhatIsWanted:
    """A picture where a volume is wanted, and the other way round, says what to do."""

    def test_volume_for_picture(self, tmp_path: Path) -> None:
        path = phantom.write(tmp_path / "a.nii")
        with pytest.raises(ImageError, match=r"a\.nii: holds a volume where a picture is wanted; name a PNG"):
            read_picture(path)
        with pytest.raises(ImageError, match="holds a volume where a picture is wanted"):
            read_picture(tmp_path)

    def test_picture_for_volume(self, tmp_path: Path) -> None:
        sitk.WriteImage(sitk.GetImageFromArray(np.eye(8, dtype=np.uint8)), str(tmp_path / "a.png"))
        with pytest.raises(ImageError, match=r"a\.png: is no volume, and one is wanted; name a NIfTI"):
            read_volume(tmp_path / "a.png")
        assert isinstance(read_picture(tmp_path / "a.png"), Picture)

    def test_npy_is_both(self, tmp_path: Path) -> None:
        path = tmp_path / "a.npy"
        np.save(path, np.arange(60, dtype=np.uint8).reshape(3, 4, 5))
        assert isinstance(read_image(f"{path}#frame=1"), Picture)
        assert isinstance(read_image(path, unit="0..255"), Volume)
        with pytest.raises(ImageError, match=r"holds 3 frames and none was chosen.*a volume.*a\.npy#unit=HU"):
            read_image(path)
        np.save(path, np.zeros((1, 3, 4, 5), np.int16))
        with pytest.raises(ImageError, match=r"int16 \[1, 3, 4, 5\].*a volume.*a\.npy#unit=HU"):
            read_image(path)
        with pytest.raises(ImageError, match="does not say what its values are"):
            read_volume(path)


@pytest.mark.parametrize("order", ["<", ">"])
def test_one_volume_of_memory(tmp_path: Path, order: str) -> None:
    """The values are decoded into the array that is returned; nothing as large is made beside it."""
    import tracemalloc

    stored = np.random.default_rng(0).integers(-1000, 1000, (64, 128, 128)).astype(np.int16)
    image = nibabel.Nifti1Image(stored.T, np.eye(4), nibabel.Nifti1Header(endianness=order))
    image.set_data_dtype(np.int16)
    nibabel.save(image, tmp_path / "a.nii.gz")
    patch(tmp_path / "a.nii.gz", SLOPE, f"{order}2f", 1, -24)
    tracemalloc.start()
    volume = read_volume(tmp_path / "a.nii.gz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert volume.array.dtype == np.int16 and peak < 1.4 * stored.nbytes


def test_addresses_pass_through_samples(tmp_path: Path) -> None:
    path = phantom.write(tmp_path / "a.nii")

    def sample(name: str) -> Sample:
        content = [{"type": "volume", "path": name}, {"type": "text", "text": "?"}]
        return Sample.from_dict({"id": "1", "messages": [{"role": "user", "content": content}]}, root=tmp_path)

    for fragment in ("", "#hu=header", "#slope=1&intercept=-1024", "#unit=0..255", "#frame=0&hu=already_hu"):
        given = sample(f"a.nii{fragment}")
        assert given.media_key == (f"{path}{fragment}",)
        assert given.to_dict(tmp_path)["messages"][0]["content"][0]["path"] == f"a.nii{fragment}"
        assert given.media_key == sample(f"./x/../a.nii{fragment}").media_key
    for name in ("..#frame=0", "..#frame=0/.", "../a.nii#hu=header", "x#hu=a/../../../a.nii", "/etc#series=1"):
        with pytest.raises(SampleError, match="leaves the given folders"):
            sample(name)
    assert sample(".#series=2").media_key == (f"{tmp_path}#series=2",)
    (tmp_path / "b#1.nii").write_bytes(path.read_bytes())
    assert_is_phantom(read_volume(sample("b#1.nii").media_key[0]))
