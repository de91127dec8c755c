"""Pictures of every kind Pillow and numpy write come back with the values that were written."""

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medmvl.imaging.intensity import to_display
from medmvl.imaging.read import ImageError, read_image


def grey(height=6, width=9, dtype=np.uint8):
    return (np.arange(height * width).reshape(height, width) * 7 % 251).astype(dtype)


def color(height=6, width=9):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".webp", ".jp2", ".PNG", ".tiff"])
@pytest.mark.parametrize("array", [grey(), color()], ids=["grey", "color"])
def test_lossless_formats_keep_every_value(tmp_path, suffix, array):
    path = tmp_path / f"a{suffix}"
    options = {"lossless": True} if suffix == ".webp" else {}
    Image.fromarray(array).save(path, **options)
    picture = read_image(path)
    expected = np.repeat(array[..., None], 3, -1) if suffix == ".webp" and array.ndim == 2 else array
    assert picture.array.dtype == np.uint8
    np.testing.assert_array_equal(picture.array, expected)
    assert picture.path == str(path) and picture.original == array.shape[:2] and picture.spacing is None


def test_jpeg_grey_color_and_cmyk(tmp_path):
    smooth = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))
    for mode in ("L", "RGB", "CMYK"):
        path = tmp_path / f"{mode}.jpg"
        Image.fromarray(smooth).convert("RGB").convert(mode).save(path, quality=98)
        array = read_image(path).array
        assert array.shape == ((48, 64) if mode == "L" else (48, 64, 3))
        assert np.abs(array.reshape(48, 64, -1).astype(int) - smooth[..., None]).max() <= 4


def test_the_first_picture_of_a_phones_mpo(tmp_path):
    pages = [Image.fromarray(np.full((16, 16, 3), value, np.uint8)) for value in (200, 30)]
    pages[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=pages[1:])
    assert np.abs(read_image(tmp_path / "a.jpg").array.astype(int) - 200).max() <= 2


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_tiff_in_both_byte_orders(tmp_path, order):
    values = grey(dtype=np.uint16) * 200
    path = tmp_path / "a.tif"
    path.write_bytes(tiff([values], order))
    picture = read_image(path)
    assert picture.array.dtype == np.uint16
    np.testing.assert_array_equal(picture.array, values)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.uint32, np.float32])
def test_signed_wide_and_float_tiff(tmp_path, dtype):
    top = min(np.iinfo(dtype).max if np.dtype(dtype).kind != "f" else 1e9, 4e9)
    values = (np.linspace(0 if dtype == np.uint32 else -top, top, 54)).reshape(6, 9).astype(dtype)
    path = tmp_path / "a.tif"
    path.write_bytes(tiff([values]))
    picture = read_image(path)
    assert picture.array.dtype == np.float32
    np.testing.assert_array_equal(picture.array, values.astype(np.float32))


def test_16_bit_white_is_zero_is_shown_inverted(tmp_path):
    values = grey(dtype=np.uint16) * 200
    path = tmp_path / "a.tif"
    path.write_bytes(tiff([values], photometric=0))
    picture = read_image(path)
    np.testing.assert_array_equal(picture.array, values)
    assert to_display(picture)[values == values.min()].min() == 255


def test_16_bit_png_and_32_bit_and_float_tiff(tmp_path):
    values = grey(dtype=np.uint16) * 250
    Image.fromarray(values).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").array, values)
    for dtype in (np.int32, np.float32):
        Image.fromarray(values.astype(dtype) * 3).save(tmp_path / "b.tif")
        picture = read_image(tmp_path / "b.tif")
        assert picture.array.dtype == np.float32
        np.testing.assert_array_equal(picture.array, values * 3.0)


def test_frames_of_a_multi_page_tiff(tmp_path):
    pages = [grey() + np.uint8(index) for index in range(3)]
    path = tmp_path / "pages.tif"
    images = [Image.fromarray(page) for page in pages]
    images[0].save(path, save_all=True, append_images=images[1:])
    for index, page in enumerate(pages):
        np.testing.assert_array_equal(read_image(path, frame=index).array, page)
        picture = read_image(f"{path}#frame={index}")
        np.testing.assert_array_equal(picture.array, page)
        assert picture.path == f"{path}#frame={index}"
    with pytest.raises(ImageError, match=r"3 frames.*#frame=0.*0 to 2.*read_image\(path, frame=0\)"):
        read_image(path)
    with pytest.raises(ImageError, match="no frame 3; it holds frames 0 to 2"):
        read_image(path, frame=3)
    with pytest.raises(ImageError, match="frame 1 and the argument for frame 2"):
        read_image(f"{path}#frame=1", frame=2)


def test_frame_zero_of_a_single_picture_is_that_picture(tmp_path):
    Image.fromarray(grey()).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", frame=0).array, grey())
    with pytest.raises(ImageError, match="no frame 1; it holds one frame, number 0"):
        read_image(tmp_path / "a.png", frame=1)


def test_transparency_is_laid_over_black(tmp_path):
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (200, 100, 50, 255)
    rgba[0, 1] = (200, 100, 50, 0)
    rgba[1, 0] = (200, 100, 50, 128)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    array = read_image(tmp_path / "a.png").array
    np.testing.assert_array_equal(array[0], [[200, 100, 50], [0, 0, 0]])
    np.testing.assert_allclose(array[1, 0], [100, 50, 25], atol=1)
    Image.fromarray(rgba[..., [0, 3]].copy(), "LA").save(tmp_path / "la.png")
    np.testing.assert_array_equal(read_image(tmp_path / "la.png").array[0], [200, 0])


def test_palette_bilevel_and_palette_transparency(tmp_path):
    Image.fromarray(color()).quantize(200).save(tmp_path / "p.png")
    expected = np.asarray(Image.open(tmp_path / "p.png").convert("RGB"))
    np.testing.assert_array_equal(read_image(tmp_path / "p.png").array, expected)
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 250, 240, 230])
    image.putdata([0, 1])
    image.save(tmp_path / "t.png", transparency=1)
    np.testing.assert_array_equal(read_image(tmp_path / "t.png").array, [[[10, 20, 30], [0, 0, 0]]])
    Image.fromarray(grey() > 100).save(tmp_path / "1.png")
    np.testing.assert_array_equal(read_image(tmp_path / "1.png").array, (grey() > 100) * np.uint8(255))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = grey(6, 9)
    # How the standard says the stored picture must be turned, undone.
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.T, 6: np.rot90(upright, 1), 7: np.rot90(upright, 2).T, 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    picture = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(picture.array, upright)
    assert picture.original == stored.shape and picture.size == upright.shape


@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">u2", "int16", "int64", "float16", "float64", "bool"])
def test_npy_types(tmp_path, dtype):
    values = grey().astype(dtype)
    np.save(tmp_path / "a.npy", values)
    array = read_image(tmp_path / "a.npy").array
    kept = {"uint8": "uint8", "uint16": "uint16", ">u2": "uint16", "bool": "uint8"}.get(dtype, "float32")
    assert array.dtype == kept and array.dtype.isnative
    np.testing.assert_array_equal(array, values * 255 if dtype == "bool" else values)
    assert type(array) is np.ndarray


def test_npy_shapes(tmp_path):
    frames = np.stack([grey(), grey() + np.uint8(3)])
    np.save(tmp_path / "frames.npy", frames)
    np.testing.assert_array_equal(read_image(tmp_path / "frames.npy#frame=1").array, frames[1])
    with pytest.raises(ImageError, match="2 frames"):
        read_image(tmp_path / "frames.npy")
    np.save(tmp_path / "one.npy", grey()[..., None])
    np.testing.assert_array_equal(read_image(tmp_path / "one.npy").array, grey())
    np.save(tmp_path / "color.npy", color())
    np.testing.assert_array_equal(read_image(tmp_path / "color.npy").array, color())
    np.save(tmp_path / "four.npy", np.zeros((2, 3, 4, 5)))
    with pytest.raises(ImageError, match=r"holds float64 \[2, 3, 4, 5\]"):
        read_image(tmp_path / "four.npy")


def test_npy_never_unpickles(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object))
    with pytest.raises(ImageError, match=r"cannot be read as \.npy"):
        read_image(tmp_path / "a.npy")


def test_files_without_suffix_are_known_by_their_first_bytes(tmp_path):
    Image.fromarray(grey()).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "IM0001")
    np.testing.assert_array_equal(read_image(tmp_path / "IM0001").array, grey())
    np.save(tmp_path / "b.npy", grey())
    (tmp_path / "b.npy").rename(tmp_path / "b.data")
    np.testing.assert_array_equal(read_image(tmp_path / "b.data").array, grey())


class TestErrors:
    """Each names the file and says what to do."""

    def refused(self, path, *words):
        with pytest.raises(ImageError) as caught:
            read_image(path)
        assert str(path) in str(caught.value) and caught.value.path == str(path)
        for word in words:
            assert word in str(caught.value)

    def test_missing(self, tmp_path):
        self.refused(tmp_path / "a.png", "does not exist", "check the path")
        self.refused(tmp_path / "no" / "way" / "a.png", f"last folder of it that exists is {tmp_path}")
        Image.fromarray(grey()).save(tmp_path / "b.jpg")
        self.refused(tmp_path / "b.png", f"but {tmp_path / 'b.jpg'} does")

    def test_a_name_no_file_can_have(self, tmp_path):
        self.refused(tmp_path / ("a" * 300 + ".png"), "cannot be reached")

    def test_empty(self, tmp_path):
        (tmp_path / "a.png").touch()
        self.refused(tmp_path / "a.png", "is empty", "get the file again")

    def test_unknown_kind(self, tmp_path):
        (tmp_path / "a.txt").write_text("hello")
        self.refused(tmp_path / "a.txt", "'.txt' is not known", ".png", ".dcm")
        (tmp_path / "a.png").write_text("hello")
        self.refused(tmp_path / "a.png", "no picture that Pillow can read")

    def test_formats_that_run_programs_are_not_opened(self, tmp_path):
        (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
        self.refused(tmp_path / "a.png", "no picture that Pillow can read")

    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".webp", ".jp2"])
    def test_truncated(self, tmp_path, suffix):
        path = tmp_path / f"a{suffix}"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        self.refused(path)

    def test_huge(self, tmp_path, monkeypatch):
        Image.fromarray(np.zeros((40, 60), np.uint8)).save(tmp_path / "a.png")
        np.save(tmp_path / "a.npy", np.zeros((40, 60), np.uint8))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        self.refused(tmp_path / "a.png", "decompression bomb", "MAX_IMAGE_PIXELS")
        self.refused(tmp_path / "a.npy", "40 x 60 pixels", "MAX_IMAGE_PIXELS")

    @pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "GIF", "WEBP", "JPEG2000", "BMP"])
    @settings(max_examples=30, deadline=None)
    @given(data=st.data())
    def test_damaged_files_never_raise_anything_else(self, form, tmp_path_factory, data):
        buffer = io.BytesIO()
        Image.fromarray(color(16, 16)).save(buffer, form)
        content = bytearray(buffer.getvalue())
        for _ in range(data.draw(st.integers(1, 6))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path = tmp_path_factory.mktemp("damaged") / "a.png"
        path.write_bytes(bytes(content[: data.draw(st.integers(8, len(content)))]))
        with contextlib.suppress(ImageError):
            read_image(path)


def tiff(pages, order="<", photometric=1):
    """A TIFF of grey pages, written by hand so that no library's reading of the standard is tested against itself."""
    endian = {"<": "little", ">": "big"}[order]

    def number(value, size):
        return value.to_bytes(size, endian)

    content = (b"II" if order == "<" else b"MM") + number(42, 2) + number(8, 4)
    for page in pages:
        height, width = page.shape
        entries = [
            (256, width), (257, height), (258, 8 * page.itemsize), (259, 1), (262, photometric), (273, 0), (277, 1),
            (278, height), (279, page.nbytes), (339, {"u": 1, "i": 2, "f": 3}[page.dtype.kind]),
        ]  # fmt: skip
        start = len(content) + 2 + 12 * len(entries) + 4
        content += number(len(entries), 2)
        for tag, value in entries:
            content += number(tag, 2) + number(4, 2) + number(1, 4) + number(start if tag == 273 else value, 4)
        content += number(0, 4) + page.astype(page.dtype.newbyteorder(order)).tobytes()
    return content
