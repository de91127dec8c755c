"""Fitting volumes: boxes follow, windows are chosen once, orientation and memory order change nothing."""

import tracemalloc

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

import phantom
from medmvl.imaging.fit import fit_volume
from medmvl.imaging.geometry import invert, transform_box
from medmvl.imaging.intensity import percentiles, volume_window
from medmvl.imaging.orient import from_file
from medmvl.imaging.picture import ImageError, Picture
from medmvl.imaging.prepare import blank, normalise, prepare
from medmvl.imaging.spec import VisionSpec

AXES = {"S": (0, 0, 1), "I": (0, 0, -1), "P": (0, 1, 0), "A": (0, -1, 0), "L": (1, 0, 0), "R": (-1, 0, 0)}


def spec_of(**fields):
    return VisionSpec(**{"channels": 1, "mean": (0,), "std": (1,), **fields})


def volume_of(array, spacing=(2.0, 1.0, 1.0), letters="SPL", unit="HU", modality="CT"):
    """A volume whose file's axes z, y, x grow to `letters`."""
    direction = None if letters is None else np.array([AXES[letter] for letter in reversed(letters)]).ravel()
    return from_file(array, spacing, None, direction, "scan.nii.gz", modality, unit)


@st.composite
def scenes(draw):
    """A file with a bright cuboid in black, any orientation and spacing, and a spec for it."""
    size = [draw(st.integers(24, 48)) for _ in range(3)]
    box = []
    for length in size:
        start = draw(st.integers(0, length - 14))
        box.append((start, draw(st.integers(start + 12, length))))
    array = np.full(size, -1000, np.int16)
    array[tuple(slice(*ends) for ends in box)] = 1000
    spacing = [draw(st.floats(0.5, 4.0)) for _ in range(3)]
    letters = draw(st.sampled_from([*phantom.ORIENTATIONS, None]))
    volume = volume_of(array, spacing, letters)
    fit = draw(st.sampled_from(["stretch", "crop"]))
    wanted = draw(st.sampled_from([None, (1.5, 1.0, 1.0), (1.0, 2.0, 0.7)])) if letters else None
    low, high = (20, 70) if fit == "crop" else (8, 60)
    spec = spec_of(
        size=[draw(st.integers(low, high)) for _ in range(3)],
        hu_window=(-1000, 1000),
        fit=fit,
        spacing=wanted,
        orientation=draw(st.sampled_from(phantom.ORIENTATIONS)),
        crop_foreground=draw(st.sampled_from([None, 0.0, 0.3])),
        antialias=draw(st.booleans()),
        resample=draw(st.sampled_from(["bilinear", "bilinear", "nearest"])),
        depth=draw(st.sampled_from(["resize", "sample"])) if fit == "stretch" else "resize",
        levels=draw(st.sampled_from(["int16", "uint8", "uint8_floor"])),
    )
    coords = [ends[side] for side in (0, 1) for ends in reversed(box)]
    return volume, coords, spec


@settings(max_examples=150, deadline=None)
@given(scene=scenes())
def test_a_bright_cuboid_lands_where_its_box_says(scene):
    volume, coords, spec = scene
    fitted = fit_volume(volume, spec)
    assert fitted.file_size == volume.original.size and fitted.values.shape == spec.size
    box = np.array(transform_box(coords, fitted.to_spec, spec.size))
    bright = np.iinfo(fitted.values.dtype).max  # at its edge half of that, wherever the view cuts through
    lit = np.argwhere(fitted.values > bright / 2)[:, ::-1]
    if len(lit) == 0:
        assert np.min(box[3:] - box[:3]) < 2.01  # cut away
        return
    found = np.concatenate([lit.min(0), lit.max(0) + 1])
    # Within a voxel: of the result, or of the grid of `spacing` between, where that is coarser.
    voxel = np.ones(3) if spec.spacing is None else np.maximum(1, np.divide(spec.spacing, fitted.spacing))[::-1]
    assert (np.abs(found - box) <= 1.01 * np.tile(voxel, 2)).all()
    back = invert(fitted.to_spec)
    if (box > 0).all() and (box < np.array([*spec.size[::-1]] * 2)).all():
        np.testing.assert_allclose(transform_box(box, back), coords, atol=1e-6)


def test_headroom_keeps_what_is_brighter_than_the_window_apart():
    array = np.repeat(np.linspace(0, 100, 101).astype(np.int16), 64).reshape(101, 8, 8)
    spec = spec_of(size=(101, 8, 8), percentile_window=(0, 50), levels="uint8")
    plain, roomy = (
        fit_volume(volume_of(array, unit=""), one).values[:, 0, 0]
        for one in (spec, spec.model_copy(update={"headroom": 0.4}))
    )
    assert plain[50] == 255 and plain[80] == 255
    assert roomy[50] == 153 and roomy[80] == round(80 * 153 / 50)
    with pytest.raises(ValueError, match="headroom belongs to percentile_window"):
        spec_of(size=(4, 4, 4), headroom=0.4)


@pytest.mark.parametrize("spacing", [None, (2.0, 1.0, 1.0)])
def test_all_48_orientations_on_disk_give_one_result(spacing):
    spec = spec_of(
        size=(5, 12, 7), hu_window=(-200, 400), crop_foreground=0.2, spacing=spacing, orientation="IAL", antialias=False
    )
    results, boxes = [], []
    for letters in phantom.ORIENTATIONS:
        image = phantom.image(letters)
        array = sitk.GetArrayFromImage(image)
        direction = np.reshape(image.GetDirection(), (3, 3)).T.ravel()
        volume = from_file(array, image.GetSpacing()[::-1], image.GetOrigin(), direction, "p", "CT", "HU")
        fitted = fit_volume(volume, spec)
        results.append(fitted.values)
        boxes.append(transform_box(phantom.box(array), fitted.to_spec))
        assert fitted.spacing == pytest.approx(spacing_of(fitted, volume))
    for values, box in zip(results, boxes, strict=True):
        # Sums along the axes are taken in the order of memory: the last bit of 15 may differ.
        np.testing.assert_allclose(values, results[0], atol=1)
        np.testing.assert_allclose(box, boxes[0], atol=1e-9)


def spacing_of(fitted, volume):
    """Spacing of the prepared grid along z, y, x, from the affine alone: millimetres per prepared voxel."""
    to_mm = np.array(volume.original.spacing[::-1])
    steps = np.linalg.inv(fitted.to_spec[:, :3])  # file voxels per prepared voxel
    return tuple(np.linalg.norm(to_mm[:, None] * steps, axis=0)[::-1])


def test_the_result_is_the_same_however_memory_holds_the_volume():
    array = np.random.default_rng(0).integers(-1200, 1200, (13, 17, 19)).astype(np.int16)
    spec = spec_of(size=(7, 20, 8), hu_window=(-1000, 1000), crop_foreground=0.1)
    expected = fit_volume(volume_of(array), spec).values
    for other in (np.asfortranarray(array), np.ascontiguousarray(array[::-1, :, ::-1])[::-1, :, ::-1]):
        np.testing.assert_allclose(fit_volume(volume_of(other), spec).values, expected, atol=1)
    np.testing.assert_array_equal(fit_volume(volume_of(array.astype(np.float32)), spec).values, expected)


def test_a_larger_voxel_is_the_average_of_all_that_fall_into_it():
    array = np.random.default_rng(0).integers(0, 256, (12, 20, 18)).astype(np.uint8)
    fitted = fit_volume(volume_of(array, unit="0..255"), spec_of(size=(4, 5, 9)))
    means = array.reshape(4, 3, 5, 4, 9, 2).mean((1, 3, 5))
    np.testing.assert_allclose(fitted.values * (255 / 32767), means, atol=0.01)
    # Parts count as parts: 5 voxels in 2 are 2.5 each.
    line = np.zeros((5, 1, 1), np.uint8)
    line[2] = 250
    fitted = fit_volume(volume_of(line, unit="0..255"), spec_of(size=(2, 1, 1), levels="uint8"))
    assert fitted.values.ravel().tolist() == [50, 50]


def test_slices_are_sampled_as_they_are():
    array = np.arange(9, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 4), np.uint8)
    volume = volume_of(array, unit="0..255")
    spec = spec_of(size=(3, 4, 4), depth="sample", levels="uint8")
    assert fit_volume(volume, spec).values[:, 0, 0].tolist() == [1, 4, 7]
    assert fit_volume(volume, spec_of(size=(18, 4, 4), depth="sample", levels="uint8")).values[:, 0, 0].tolist() == [
        index // 2 for index in range(18)
    ]


def test_crop_takes_the_centre_and_pads_with_the_low_end():
    array = np.random.default_rng(0).integers(-900, 1000, (6, 9, 4)).astype(np.int16)
    fitted = fit_volume(volume_of(array), spec_of(size=(9, 4, 4), fit="crop", hu_window=(-1000, 1000)))
    assert not fitted.values[:1].any() and not fitted.values[7:].any()
    np.testing.assert_allclose(fitted.values[1:7] * (2000 / 32767) - 1000, array[:, 2:6], atol=0.05)
    assert transform_box((0, 0, 0, 4, 9, 6), fitted.to_spec) == (0, -2, 1, 4, 7, 7)


def test_levels():
    array = np.array([-2000, -1000, -999, -600, 4, 999, 1000, 3000], np.int16).reshape(2, 2, 2)
    shares = np.clip((array + 1000.0) / 2000, 0, 1)
    for levels, expected in {
        "int16": np.rint(shares * 32767),
        "uint8": np.floor(shares * 255 + 0.5),
        "uint8_floor": np.floor(shares * 255),
    }.items():
        spec = spec_of(size=(2, 2, 2), hu_window=(-1000, 1000), levels=levels)
        values = fit_volume(volume_of(array), spec).values
        np.testing.assert_array_equal(values, expected)
        np.testing.assert_allclose(normalise(values, spec)[0], expected / expected.max(), atol=1e-6)


def test_flat_regions_survive_floor():
    array = np.full((11, 13, 17), 3000, np.int16)
    spec = spec_of(size=(7, 29, 5), hu_window=(-1000, 1000), levels="uint8_floor", antialias=False)
    for antialias in (False, True):
        values = fit_volume(volume_of(array), spec.model_copy(update={"antialias": antialias})).values
        assert (values == 255).all()


def test_windows_of_units():
    array = np.linspace(0, 255, 27, dtype=np.float32).reshape(3, 3, 3)
    hu = spec_of(size=(3, 3, 3), hu_window=(-1000, 1000))
    assert volume_window(volume_of(array, unit="HU"), hu) == (-1000, 1000)
    assert volume_window(volume_of(array, unit="", modality=""), hu) == (-1000, 1000)
    # A display window was applied before: it is not applied again.
    assert volume_window(volume_of(array, unit="0..255"), hu) == (0, 255)
    assert volume_window(volume_of(array / 255, unit="0..1"), hu) == (0, 1)
    plain = spec_of(size=(3, 3, 3))
    assert volume_window(volume_of(array), plain) == (-1000, 1000)
    assert volume_window(volume_of(array, unit="", modality="MR"), plain) == (0, 255)
    minmax = spec_of(size=(3, 3, 3), hu_window=(10, 1000), percentile_window=(0, 100))
    assert volume_window(volume_of(array), minmax) == (10, 255)
    assert volume_window(volume_of(array, unit="0..255"), minmax) == (0, 255)
    half = spec_of(size=(3, 3, 3), percentile_window=(0, 50))
    assert volume_window(volume_of(array), half) == pytest.approx((0, 127.5))


@pytest.mark.parametrize(("modality", "unit"), [("MR", ""), ("PT", "BQML"), ("", "US")])
def test_a_hu_window_is_for_ct(modality, unit):
    volume = volume_of(np.zeros((3, 3, 3), np.int16), modality=modality, unit=unit)
    with pytest.raises(ImageError, match=r"scan\.nii\.gz: is no CT in HU .*percentile_window"):
        fit_volume(volume, spec_of(size=(3, 3, 3), hu_window=(-1000, 1000)))


def test_values_that_nothing_explains_are_scaled_with_a_warning(caplog):
    """A CT written as NIfTI by most programs says nothing about HU: one bright voxel would darken all others."""
    array = np.random.default_rng(0).integers(-1000, 1000, (4, 8, 8)).astype(np.int16)
    array[0, 0, 0] = 20000
    told = {}
    for unit, fields in (("", {}), ("HU", {}), ("", {"percentile_window": (0.5, 99.5)}), ("", {"hu_window": (0, 9)})):
        caplog.clear()
        path = f"unit {unit!r} {fields}.nii.gz"
        volume_window(from_file(array, (1, 1, 1), None, None, path, "", unit), spec_of(size=(2, 4, 4), **fields))
        told[path] = [one.getMessage() for one in caplog.records if path in one.getMessage() and "#hu=" in one.message]
    first, *others = told.values()
    assert len(first) == 1 and "to 20000" in first[0]
    assert not any("scaled by their own range" in text for texts in others for text in texts)


def test_refusals_name_the_file():
    volume = volume_of(np.full((4, 4, 4), -1000, np.int16), spacing=None)
    with pytest.raises(ImageError, match=r"scan\.nii\.gz: has no foreground.*-1000"):
        fit_volume(volume, spec_of(size=(4, 4, 4), crop_foreground=0.0))
    with pytest.raises(ImageError, match=r"scan\.nii\.gz: states no spacing.* 2 mm"):
        fit_volume(volume, spec_of(size=(4, 4, 4), spacing=(2, 1, 1)))
    with pytest.raises(ImageError, match=r"scan\.nii\.gz: would become 40000000 voxels"):
        fit_volume(volume_of(volume.array, (1e7, 1, 1)), spec_of(size=(4, 4, 4), spacing=(1, 1, 1)))
    with pytest.raises(ImageError, match=r"scan\.nii\.gz: .*no finite value"):
        fit_volume(volume_of(np.full((2, 2, 2), np.nan, np.float32), unit=""), spec_of(size=(2, 2, 2)))
    with pytest.raises(ValueError, match="picture spec"):
        fit_volume(volume, VisionSpec(size=(4, 4)))
    with pytest.raises(ValueError, match="picture cannot be prepared for the volume spec"):
        prepare(Picture(np.zeros((4, 4), np.uint8)), spec_of(size=(4, 4, 4)))
    with pytest.raises(ValueError, match=r"int16 of size \(4, 4, 4\).*got uint8"):
        normalise(np.zeros((4, 4, 4), np.uint8), spec_of(size=(4, 4, 4)))


def test_nan_and_infinity_are_the_ends_of_the_window():
    array = np.array([np.nan, -np.inf, np.inf, 0, 50, 100, 25, 75], np.float32).reshape(2, 2, 2)
    values = fit_volume(volume_of(array, unit=""), spec_of(size=(2, 2, 2), levels="uint8")).values
    assert values.ravel().tolist() == [0, 0, 255, 0, 128, 255, 64, 191]


def test_a_flat_volume_is_black():
    for array in (np.full((2, 2, 2), 7, np.int16), np.full((2, 2, 2), 7.5, np.float32)):
        for window in (None, (0, 100), (1, 99)):
            spec = spec_of(size=(2, 2, 2), percentile_window=window)
            assert not fit_volume(volume_of(array, unit=""), spec).values.any()


def test_a_volume_without_orientation_stays_as_stored():
    array = np.random.default_rng(0).integers(0, 256, (2, 3, 4)).astype(np.uint8)
    volume = volume_of(array, letters=None, unit="0..255")
    fitted = fit_volume(volume, spec_of(size=(2, 3, 4), orientation="IAR", levels="uint8"))
    np.testing.assert_array_equal(fitted.values, array)
    np.testing.assert_array_equal(fitted.to_spec, np.eye(3, 4))


def test_a_spacing_written_in_float32_costs_no_voxel():
    array = np.random.default_rng(0).integers(-900, 900, (10, 64, 64)).astype(np.int16)
    volume = volume_of(array, (2, float(np.float32(0.7)) - 1e-8, 0.7))
    spec = spec_of(size=(10, 64, 64), fit="crop", spacing=(2, 0.7, 0.7), hu_window=(-1000, 1000))
    np.testing.assert_allclose(fit_volume(volume, spec).values * (2000 / 32767) - 1000, array, atol=0.05)


def test_prepare_and_blank_for_volumes():
    array = np.random.default_rng(0).integers(-900, 900, (6, 8, 8)).astype(np.int16)
    spec = VisionSpec(size=(3, 4, 4), hu_window=(-1000, 1000))
    prepared = prepare(volume_of(array), spec)
    fitted = fit_volume(volume_of(array), spec)
    assert prepared.pixels.shape == (3, 3, 4, 4) and prepared.pixels.dtype == np.float32
    np.testing.assert_array_equal(prepared.to_spec, fitted.to_spec)
    np.testing.assert_allclose(prepared.pixels[1], (fitted.values / 32767 - 0.5) / 0.5, atol=1e-6)
    assert blank(spec).shape == (3, 3, 4, 4) and np.allclose(blank(spec), (128 / 255 - 0.5) / 0.5, atol=1e-6)
    fitted.values.flags.writeable = False  # as from the cache
    assert normalise(fitted.values, spec).flags.writeable


def test_memory_stays_near_the_volume():
    array = np.random.default_rng(0).integers(-1200, 1200, (60, 256, 256), dtype=np.int16)
    for letters in ("SPL", "ILP"):
        for spec in (
            spec_of(size=(16, 64, 64), hu_window=(-1000, 1000), crop_foreground=0.0),
            spec_of(size=(16, 64, 64), hu_window=(-1000, 1000), percentile_window=(1, 99), spacing=(3, 2, 2)),
        ):
            volume = volume_of(array, letters=letters)
            tracemalloc.start()
            fit_volume(volume, spec)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 0.6 * array.nbytes


shapes = st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6))


@settings(max_examples=100, deadline=None)
@given(st.data(), shapes, st.sampled_from(["int16", "uint16", "uint8", "float32", "nan"]), st.booleans())
def test_percentiles_equal_numpy(data, shape, dtype, clip):
    generator = np.random.default_rng(data.draw(st.integers(0, 1000)))
    if dtype in ("float32", "nan"):
        array = (generator.normal(size=shape) * 10.0 ** generator.integers(-3, 6)).astype(np.float32)
        if dtype == "nan":
            array.ravel()[:: generator.integers(2, 5)] = generator.choice([np.nan, np.inf, -np.inf])
    else:
        limits = np.iinfo(dtype)
        array = generator.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
    shares = sorted(data.draw(st.tuples(st.floats(0, 100), st.floats(0, 100))))
    finite = array[np.isfinite(array)]
    if not finite.size:
        with pytest.raises(ValueError, match="finite"):
            percentiles(array, shares)
        return
    low, high = (float(np.median(finite)) - 1, float(np.median(finite)) + 5) if clip else (-np.inf, np.inf)
    expected = np.percentile(np.clip(finite.astype(float), low, high), shares)
    np.testing.assert_allclose(percentiles(array, shares, low, high), expected, rtol=1e-6, atol=1e-9)
