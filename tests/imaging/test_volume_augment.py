"""Augmentation of volumes: decided by its seed, rigid in millimetres, never mirrors unasked, boxes follow."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medmvl.imaging.augment import Augmentation, augment_volume
from medmvl.imaging.geometry import transform_box

FULL = Augmentation(rotate=12, scale=0.1, shift=0.05, brightness=0.1, contrast=0.2, noise=0.03)
MOVES = Augmentation(rotate=12, scale=0.1, shift=0.05)
seeds = st.tuples(st.integers(0, 2**31), st.integers(0, 100), st.text(max_size=20))


def noise_volume(shape=(8, 20, 26), dtype=np.int16):
    return np.random.default_rng(0).integers(0, 32768 if dtype == np.int16 else 256, shape).astype(dtype)


@settings(max_examples=20, deadline=None)
@given(seed=seeds, dtype=st.sampled_from([np.int16, np.uint8]))
def test_same_seed_same_volume_in_any_order(seed, dtype):
    values = noise_volume(dtype=dtype)
    values.flags.writeable = False  # as from the cache
    first, affine = augment_volume(values, FULL, seed)
    augment_volume(values, FULL, (7, 7, "another"))
    second, again = augment_volume(values, FULL, seed)
    assert first.dtype == dtype and first.shape == values.shape
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(affine, again)
    other, _ = augment_volume(values, FULL, (*seed, 0))
    assert (other != first).mean() > 0.5


def test_one_seed_one_draw_for_good():
    """Recipes are repeated years later; these numbers change only on purpose."""
    values = np.zeros((4, 8, 8), np.uint8)
    values[:, :, :4] = 200
    moved, affine = augment_volume(values, FULL, (3, "x"), (2.0, 1.0, 1.0))
    assert int(moved.astype(int).sum()) == pytest.approx(18872, abs=5)
    np.testing.assert_allclose(
        affine,
        [[0.9065, -0.1011, 0.0217, 0.9521], [0.0983, 0.8963, 0.2765, -0.8838], [-0.013, -0.0681, 0.9016, 0.6362]],
        atol=1e-4,
    )


@settings(max_examples=80, deadline=None)
@given(seed=seeds, data=st.data(), mirror=st.booleans())
def test_a_box_follows_its_cuboid(seed, data, mirror):
    size = [data.draw(st.integers(28, 40)) for _ in range(3)]
    spacing = data.draw(st.sampled_from([None, (1.0, 1.0, 1.0), (2.0, 1.0, 1.5)]))
    starts = [data.draw(st.integers(0, length - 14)) for length in size]
    ends = [data.draw(st.integers(start + 12, length)) for start, length in zip(starts, size, strict=True)]
    values = np.zeros(size, np.int16)
    values[tuple(slice(*pair) for pair in zip(starts, ends, strict=True))] = 32767
    policy = Augmentation(rotate=8, scale=0.15, shift=0.08, mirror=mirror)
    moved, affine = augment_volume(values, policy, seed, spacing)
    box = np.array(transform_box((*starts[::-1], *ends[::-1]), affine, moved.shape))
    lit = np.argwhere(moved > 2000)[:, ::-1]
    if not len(lit):
        assert np.min(box[3:] - box[:3]) < 3
        return
    found = np.concatenate([lit.min(0), lit.max(0) + 1])
    # Nothing of the cuboid lies outside its box.
    assert (found - box >= -1.01)[:3].all() and (found - box <= 1.01)[3:].all()
    if (box > 0.1).all() and (box < np.array([*moved.shape[::-1]] * 2) - 0.1).all():
        # All of it is visible: its far corners, thin as they are, come close to the box, and its middle is the middle.
        assert np.abs(found - box).max() <= 6
        centre = affine[:, :3] @ (np.array(starts[::-1]) + ends[::-1]) / 2 + affine[:, 3]
        weights = moved / moved.sum(dtype=float)
        mass = [(weights.sum((0, 1)) * (np.arange(size[2]) + 0.5)).sum()]
        mass.append((weights.sum((0, 2)) * (np.arange(size[1]) + 0.5)).sum())
        mass.append((weights.sum((1, 2)) * (np.arange(size[0]) + 0.5)).sum())
        np.testing.assert_allclose(mass, centre, atol=0.3)


@settings(max_examples=100, deadline=None)
@given(seed=seeds, spacing=st.tuples(*[st.floats(0.3, 9)] * 3))
def test_rotation_and_scale_keep_angles_in_millimetres(seed, spacing):
    values = np.zeros((4, 9, 7), np.int16)
    _, affine = augment_volume(values, Augmentation(rotate=45, scale=0.2, shift=0.1), seed, spacing)
    steps = np.array(spacing[::-1])
    in_mm = affine[:, :3] * steps[:, None] / steps
    factor = np.cbrt(np.linalg.det(in_mm))
    np.testing.assert_allclose(in_mm @ in_mm.T, factor**2 * np.eye(3), atol=1e-9)
    assert 0.8 <= factor <= 1.2  # positive: no mirror image
    assert (np.diag(in_mm) > 0).all()  # left stays left, head stays up, front stays in front


def test_without_spacing_the_field_of_view_is_a_cube():
    values = np.zeros((4, 8, 16), np.int16)
    _, affine = augment_volume(values, Augmentation(rotate=30), (0,))
    _, same = augment_volume(values, Augmentation(rotate=30), (0,), (4.0, 2.0, 1.0))
    np.testing.assert_allclose(affine, same, atol=1e-12)


@pytest.mark.parametrize(("orientation", "axis"), [("SPL", 2), ("SRA", 1), ("LPS", 0)])
def test_mirroring_only_when_asked_and_only_left_and_right(orientation, axis):
    values = noise_volume()
    draws = [augment_volume(values, Augmentation(mirror=True), (0, n), None, orientation) for n in range(60)]
    signs = [np.sign(np.linalg.det(affine[:, :3])) for _, affine in draws]
    assert 15 < signs.count(-1) < 45
    np.testing.assert_array_equal(draws[signs.index(-1)][0], np.flip(values, axis))
    assert draws[signs.index(1)][0] is values


def test_nothing_to_do_changes_nothing():
    values = noise_volume()
    same, affine = augment_volume(values, Augmentation(), (0,))
    assert same is values
    np.testing.assert_array_equal(affine, np.eye(3, 4))


def test_turning_one_amount_on_leaves_the_others():
    values = noise_volume()
    _, alone = augment_volume(values, Augmentation(shift=0.1), (5,))
    _, both = augment_volume(values, Augmentation(shift=0.1, noise=0.1, brightness=0.2), (5,))
    np.testing.assert_array_equal(alone, both)


@pytest.mark.parametrize("dtype", [np.int16, np.uint8])
def test_values_stay_in_range_and_change_as_said(dtype):
    white = 32767 if dtype == np.int16 else 255
    values = noise_volume(dtype=dtype)
    for seed in range(10):
        changed, _ = augment_volume(values, Augmentation(brightness=0.5, contrast=0.5, noise=0.2), (seed,))
        assert changed.min() >= 0 and changed.max() <= white
    brighter = [augment_volume(values // 2, Augmentation(brightness=0.2), (seed,))[0] for seed in range(10)]
    steps = {float(np.median(one.astype(float) - values // 2)) / white for one in brighter}
    assert len(steps) == 10 and max(steps) < 0.21 and min(steps) > -0.21
    even = np.full((6, 30, 30), white // 2, dtype)
    spread = max(augment_volume(even, Augmentation(noise=0.1), (seed,))[0].std() / white for seed in range(10))
    assert 0.05 < spread < 0.105


def test_other_types_are_refused():
    with pytest.raises(ValueError, match="int16 or uint8, got float32"):
        augment_volume(np.zeros((2, 2, 2), np.float32), MOVES, (0,))
