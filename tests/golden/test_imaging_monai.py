"""Volumes prepared as MONAI's transforms prepare them, and as published code around them does."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.transforms import (
    Compose,
    CropForeground,
    EnsureChannelFirst,
    LoadImage,
    Orientation,
    Resize,
    ScaleIntensityRange,
    ScaleIntensityRangePercentiles,
)
from torch.nn.functional import interpolate

import phantom
from medmvl.imaging.fit import fit_volume
from medmvl.imaging.orient import from_file
from medmvl.imaging.prepare import prepare
from medmvl.imaging.spec import VisionSpec
from medmvl.imaging.volume import Volume

TOLERANCE = 1e-4  # of the range, here 0..1

parity = partial(VisionSpec, channels=1, mean=(0,), std=(1,), antialias=False)


def scan(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """int16 [z, y, x] like a CT: air with a little noise, a noisy body off the centre."""
    generator = np.random.default_rng(seed)
    array = generator.integers(-1024, -1000, shape, endpoint=True).astype(np.int16)
    body = tuple(slice(n // 7 + seed % 2, n - n // 5) for n in shape)
    array[body] = generator.normal(0, 600, array[body].shape).clip(-1500, 3000).astype(np.int16)
    return array


def unoriented(array: np.ndarray, unit: str = "HU", modality: str = "CT") -> Volume:
    return from_file(array, None, None, None, "array", modality, unit)


def read(path: Path) -> Volume:
    """The file as SimpleITK reads it, with HU told."""
    image = sitk.ReadImage(str(path))
    direction = np.reshape(image.GetDirection(), (3, 3)).T.ravel()
    array = sitk.GetArrayFromImage(image)
    return from_file(array, image.GetSpacing()[::-1], image.GetOrigin(), direction, path, "CT", "HU")


@pytest.mark.parametrize("target", [(32, 64, 64), (8, 20, 31), (45, 50, 96), (17, 33, 29)])
@pytest.mark.parametrize("shape", [(40, 70, 60), (17, 33, 29), (90, 48, 101), (5, 64, 64)])
def test_window_crop_and_resize(shape: tuple[int, int, int], target: tuple[int, int, int]) -> None:
    array = scan(shape, seed=sum(shape))
    chain = Compose(
        [ScaleIntensityRange(-1000, 1000, 0, 1, clip=True), CropForeground(), Resize(target, mode="trilinear")]
    )
    expected = chain(torch.from_numpy(array[None].astype(np.float32))).numpy()
    pixels = prepare(unoriented(array), parity(size=target, hu_window=(-1000, 1000), crop_foreground=0.0)).pixels
    assert np.abs(pixels - expected).max() < TOLERANCE


@pytest.mark.parametrize("letters", ["SPL", "SAR", "IPR", "LSP", "PIR", "ARS"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_files_of_any_orientation(tmp_path: Path, letters: str, suffix: str) -> None:
    """MONAI's axes are x, y, z to the patient's right, front and head; ours z, y, x to head, back and left."""
    array = scan((20, 41, 35))
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.8, 1.3, 4.0))
    image.SetOrigin((-10.0, 20.0, 30.0))
    path = tmp_path / f"scan{suffix}"
    sitk.WriteImage(sitk.DICOMOrient(image, letters[::-1]), str(path))
    chain = Compose(
        [
            LoadImage(image_only=True),
            EnsureChannelFirst(),
            Orientation("RAS", labels=None),
            ScaleIntensityRange(-1000, 1000, 0, 1, clip=True),
            CropForeground(),
            Resize((24, 30, 12), mode="trilinear"),
        ]
    )
    expected = chain(str(path)).numpy()[0].transpose(2, 1, 0)
    spec = parity(size=(12, 30, 24), hu_window=(-1000, 1000), crop_foreground=0.0)
    assert np.abs(prepare(read(path), spec).pixels[0] - expected[:, ::-1, ::-1]).max() < TOLERANCE
    spec = spec.model_copy(update={"orientation": "SAR"})
    assert np.abs(prepare(read(path), spec).pixels[0] - expected).max() < TOLERANCE


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize("shape", [(30, 40, 50), (80, 120, 110)])  # MONAI takes another road above a million voxels
def test_percentiles(shape: tuple[int, int, int], dtype: type) -> None:
    array = (np.random.default_rng(0).gamma(2, 150, shape) * (np.arange(shape[2]) > 9)).astype(dtype)
    expected = ScaleIntensityRangePercentiles(0.5, 99.5, 0, 1, clip=True)(torch.from_numpy(array[None]).float())
    spec = parity(size=shape, percentile_window=(0.5, 99.5))
    assert np.abs(prepare(unoriented(array, "", "MR"), spec).pixels - expected.numpy()).max() < TOLERANCE


def test_the_recipe_of_m3d() -> None:
    """Slices as pictures, /255, min-max of the volume, foreground, [32, 256, 256]; and the same from HU."""
    array = scan((60, 90, 84))
    grey = ((array.clip(-900, 600) + 900) / 1500 * 200 + 30).astype(np.uint8)  # its range is 30..230

    def m3d(values: np.ndarray) -> np.ndarray:
        values = values - values.min()
        values = values / np.clip(values.max(), 1e-8, None)
        chain = Compose([CropForeground(), Resize((32, 256, 256), mode="bilinear")])
        return chain(torch.from_numpy(values[None])).numpy()

    spec = parity(size=(32, 256, 256), percentile_window=(0, 100), crop_foreground=0.0)
    pixels = prepare(unoriented(grey, "0..255"), spec).pixels
    assert np.abs(pixels - m3d(grey.astype(np.float32) / 255)).max() < TOLERANCE
    narrow = array.clip(-700, 800)
    spec = spec.model_copy(update={"hu_window": (-1000.0, 1000.0)})
    windowed = ((narrow.astype(np.float32) + 1000) / 2000 * 255).clip(0, 255) / 255
    assert np.abs(prepare(unoriented(narrow), spec).pixels - m3d(windowed)).max() < TOLERANCE


def test_the_recipe_of_medm_vl_down_to_the_byte() -> None:
    """HU to 0..255, foreground, resize, cut to uint8; a value on the border of two levels may fall to either side."""
    array = scan((60, 90, 84))
    values = torch.from_numpy((array[None].astype(np.float32) + 1000) / 2000 * 255).clip(0, 255)
    expected = Resize((32, 64, 64), mode="trilinear")(CropForeground()(values)).to(torch.uint8).numpy()[0]
    spec = parity(size=(32, 64, 64), hu_window=(-1000, 1000), crop_foreground=0.0, levels="uint8_floor")
    differences = fit_volume(unoriented(array), spec).values.astype(int) - expected
    assert np.abs(differences).max() <= 1 and (differences != 0).mean() < 5e-4


def ct_clip(stored: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """CT-CLIP's published recipe on an array [x, y, z] of HU; returns [240, 480, 480] in -1..1."""
    values = torch.from_numpy(stored.astype(np.float32)).clip(-1000, 1000).permute(2, 0, 1)[None, None]
    wanted = (1.5, 0.75, 0.75)
    given = (spacing[2], spacing[0], spacing[1])
    size = [int(n * (now / target)) for n, now, target in zip(values.shape[2:], given, wanted, strict=True)]
    values = interpolate(values, size=size, mode="trilinear", align_corners=False)[0, 0] / 1000
    for axis, target in enumerate((240, 480, 480)):
        extra = max(values.shape[axis] - target, 0) // 2
        values = values.narrow(axis, extra, min(values.shape[axis], target))
        before = (target - values.shape[axis]) // 2
        sizes = [0, 0, 0, 0, 0, 0]
        sizes[-1 - 2 * axis], sizes[-2 - 2 * axis] = target - values.shape[axis] - before, before
        values = torch.nn.functional.pad(values, sizes, value=-1)
    return values.numpy()


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((70, 61, 40), (1.7, 6.1, 5.0)),
        ((301, 80, 151), (1.31, 3.33, 2.51)),
    ],  # padded; cut and padded
)
def test_the_recipe_of_ct_clip(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> None:
    """Its arrays are as stored, z first and then x and y: here to the patient's head, left and back."""
    array = scan(shape[::-1])
    volume = from_file(array, spacing[::-1], (0, 0, 0), phantom.STRAIGHT, "scan", "CT", "HU")
    spec = VisionSpec(
        size=(240, 480, 480), channels=1, mean=(0.5,), std=(0.5,), orientation="SLP", hu_window=(-1000, 1000),
        spacing=(1.5, 0.75, 0.75), fit="crop", antialias=False,
    )  # fmt: skip
    expected = ct_clip(array.transpose(2, 1, 0), spacing)
    assert np.abs(prepare(volume, spec).pixels[0] - expected).max() < 2 * TOLERANCE  # its range is 2


def test_antialiasing_by_whole_factors_is_the_mean() -> None:
    array = np.random.default_rng(0).integers(0, 256, (12, 30, 20)).astype(np.uint8)
    expected = torch.nn.functional.avg_pool3d(torch.from_numpy(array[None] / np.float32(255)), (3, 2, 5)).numpy()
    pixels = prepare(unoriented(array, "0..255"), parity(size=(4, 15, 4), antialias=True)).pixels
    assert np.abs(pixels - expected).max() < TOLERANCE
