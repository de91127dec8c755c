"""Brain-Atlas-VQA, volumes: true in the file's own frame, however the file is laid out, and of the same patients."""

from collections import Counter, defaultdict
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import SimpleITK as sitk

from medmvl.core.schema import BoxRef
from medmvl.data.benchmarks import brain_atlas, brain_atlas_3d
from medmvl.data.benchmarks.atlas import PARTS, REGIONS
from medmvl.data.benchmarks.brain_atlas_3d import _atlas, _orientation, _patient, build, write_volume
from medmvl.data.benchmarks.building import ANATOMY, generator, patient_name, split_of
from medmvl.data.benchmarks.questions import FAMILIES_3D, questions
from medmvl.data.benchmarks.render import make_patient
from medmvl.data.benchmarks.render_3d import CONTRASTS, ORIENTATIONS, RAGGED, Grid, VolumeStudy, make_volume
from medmvl.data.store import SampleStore, StoreError
from medmvl.imaging.geometry import transform_box
from medmvl.imaging.orient import orientation_of
from medmvl.imaging.prepare import prepare
from medmvl.imaging.read import read_volume
from medmvl.imaging.spec import VisionSpec

PATIENTS = 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build(tmp_path_factory.mktemp("atlas") / "brain_atlas_3d", patients=PATIENTS, seed=3, workers=2)


@pytest.fixture(scope="module")
def samples(folder):
    return [sample for split in ("train", "val", "test") for sample in SampleStore(folder, split)]


@cache
def studies() -> tuple[VolumeStudy, ...]:
    """One volume in each orientation, straight from the renderer."""
    rng = np.random.default_rng(11)
    return tuple(make_volume(_atlas(), make_patient(rng), orientation, rng) for orientation in ORIENTATIONS)


def lesions():
    return [study for study in studies() if study.present == "yes"]


def tree(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def relaid(study: VolumeStudy, order: tuple[int, ...], flips: tuple[bool, ...]) -> VolumeStudy:
    """Return the same volume stored otherwise: new file axis k is old axis order[k] (x, y, z), reversed or not."""
    axes = [2 - order[2 - place] for place in range(3)]  # of arrays [z, y, x]
    turned = tuple(slice(None, None, -1 if flips[2 - place] else 1) for place in range(3))
    grid = study.grid
    vectors = grid.direction * grid.spacing
    corner = np.array(grid.origin) + vectors @ [(grid.size[axis] - 1) * flips[order.index(axis)] for axis in range(3)]
    signs = np.where(flips, -1, 1)

    def box(coords):
        pairs = [
            (grid.size[a] - coords[a + 3], grid.size[a] - coords[a]) if flip else (coords[a], coords[a + 3])
            for a, flip in zip(order, flips, strict=True)
        ]
        return (*(low for low, _ in pairs), *(high for _, high in pairs))

    return replace(
        study,
        values=np.ascontiguousarray(study.values.transpose(axes)[turned]),
        grid=Grid(
            tuple(grid.size[a] for a in order),
            tuple(grid.spacing[a] for a in order),
            tuple(corner.tolist()),
            grid.direction[:, order] * signs,
        ),
        boxes={name: box(coords) for name, coords in study.boxes.items()},
    )


def test_the_bytes_depend_on_the_seed_and_not_on_the_workers(folder, tmp_path):
    alone = tree(build(tmp_path / "alone", patients=PATIENTS, seed=3, workers=1))
    assert alone == tree(folder) and len(alone) == PATIENTS + 7
    (tmp_path / "volumes").mkdir()
    request = {"patients": 20, "seed": 3, "studies": 1}
    assert _patient(request, tmp_path, 7)[0].meta.patient == "bp00007"  # the same patient in a smaller benchmark
    assert (tmp_path / "volumes/bp00007-v0.nii.gz").read_bytes() == alone["volumes/bp00007-v0.nii.gz"]
    _patient(request | {"seed": 4}, tmp_path, 7)
    assert (tmp_path / "volumes/bp00007-v0.nii.gz").read_bytes() != alone["volumes/bp00007-v0.nii.gz"]


def test_patients_and_splits_are_those_of_the_pictures(samples, tmp_path):
    (tmp_path / "images").mkdir()
    splits = defaultdict(set)
    for sample in samples:
        splits[sample.meta.patient].add(sample.split)
    for number in range(PATIENTS):
        assert splits[patient_name(number)] == {split_of(3, number)}
    flat = brain_atlas._patient({"seed": 3, "size": 32, "studies": 1}, tmp_path, 5)
    assert (flat[0].meta.patient, flat[0].split) == ("bp00005", split_of(3, 5))
    anatomies = [make_patient(generator(3, 5, ANATOMY)) for _ in range(2)]
    assert np.array_equal(anatomies[0].phase, anatomies[1].phase)
    assert not {sample.id for sample in samples} & {sample.id for sample in flat}


def test_all_orientations_occur_and_spacing_and_size_vary(samples):
    found, spacings, sizes, straight = set(), set(), set(), 0
    for path in {sample.media[0].path for sample in samples}:
        image = sitk.ReadImage(path)
        assert image.GetPixelID() == sitk.sitkInt16
        matrix = np.reshape(image.GetDirection(), (3, 3))
        found.add(orientation_of(matrix.T.ravel()))
        straight += bool(np.isclose(np.abs(matrix).max(0), 1, atol=1e-6).all())
        steps = sorted(round(step, 3) for step in image.GetSpacing())
        assert steps[0] == pytest.approx(steps[1], abs=2e-3) and 2.4 <= steps[0] <= 4 and 3 <= steps[2] <= 8
        spacings.add(steps[0])
        sizes.add(image.GetSize())
    assert len(found) == 48 and len(spacings) > 40 and len(sizes) > 40
    assert 0.2 < straight / PATIENTS < 0.8
    assert len({_orientation(9, number) for number in range(48, 96)}) == 48


def test_points_of_a_grid_go_where_single_points_go():
    rng = np.random.default_rng(2)
    for _ in range(5):
        patient, steps, start = make_patient(rng), rng.normal(0, 3, (3, 3)), rng.normal(0, 50, 3)
        x, y, z = rng.integers(0, (9, 7, 5), (50, 3)).T
        points = patient.grid_to_atlas(start, steps, (9, 7, 5)).reshape(5, 7, 9, 3)
        head = np.stack([x, y, z], 1) @ steps + start
        assert np.abs(points[z, y, x] - patient.to_atlas(head)).max() < 1e-3


def test_a_lesion_lies_on_the_side_that_is_said_in_the_patient_not_in_the_file(tmp_path):
    found = set()
    for study in lesions():
        write_volume(study, tmp_path / "x.nii.gz")
        image = sitk.ReadImage(str(tmp_path / "x.nii.gz"))
        points = [image.TransformIndexToPhysicalPoint(i[::-1].tolist()) for i in np.argwhere(study.lesion)]
        middle = np.array(
            [image.TransformIndexToPhysicalPoint(i[::-1].tolist()) for i in np.argwhere(study.parts)[::50]]
        )
        right, left = np.percentile(middle[:, 0], (1, 99))  # LPS: x grows to the patient's left
        assert (study.side == "left") == (np.mean(points, 0)[0] > (right + left) / 2)
        assert (study.side == "left") == (study.lesion_head[0] > 0)
        found.add(study.side)
    assert found == {"left", "right"} and len(lesions()) > 15


def test_boxes_hold_what_the_labels_say_in_the_order_of_the_file():
    for study in studies():
        masks = {part: study.parts == code for code, part in enumerate(PARTS, 1)} | {"lesion": study.lesion}
        assert study.values.shape == study.parts.shape == study.grid.size[::-1]
        assert set(PARTS) <= set(study.boxes) and ("lesion" in study.boxes) == (study.present == "yes")
        for name, (x0, y0, z0, x1, y1, z1) in study.boxes.items():
            mask = masks[name]
            inside = mask[int(z0) : int(z1), int(y0) : int(y1), int(x0) : int(x1)]
            least = 0 if name == "lesion" else RAGGED * mask.sum()
            assert inside.sum() == mask.sum() if name == "lesion" else inside.sum() > 0.97 * mask.sum()
            for axis, (low, high) in enumerate(((z0, z1), (y0, y1), (x0, x1))):
                planes = mask.sum(tuple({0, 1, 2} - {axis}))
                assert planes[int(low)] > least and planes[int(high) - 1] > least
                assert (planes[: int(low)] <= least).all() and (planes[int(high) :] <= least).all()


def test_a_lesion_can_be_seen_as_it_is_said():
    volume = {"small": [], "large": []}
    for study in lesions():
        inside = np.median(study.values[study.lesion])
        brain = np.median(study.values[(study.parts > 0) & ~study.lesion])
        assert inside > 1.15 * brain if study.bright == "bright" else inside < 0.5 * brain, study.contrast
        volume[study.size].append(study.lesion.sum() * np.prod(study.grid.spacing))
        assert study.structure in REGIONS
    assert max(volume["small"]) < 0.6 * min(volume["large"])


def test_contrasts_look_like_themselves():
    """Fluid is dark on T1 and FLAIR and bright on T2; white matter is brighter than grey matter on T1 only."""
    seen = defaultdict(list)
    for study in studies():
        healthy = study.values[~study.lesion], study.parts[~study.lesion]
        means = {part: healthy[0][healthy[1] == code].mean() for code, part in enumerate(PARTS, 1)}
        seen[study.contrast].append(
            (means["ventricles"] / means["deep nuclei"], means["brainstem"] / means["frontal lobe"])
        )
    assert set(seen) == set(CONTRASTS)
    assert min(np.array(seen["T2"])[:, 0]) > 1.15
    assert max(*np.array(seen["T1"])[:, 0], *np.array(seen["FLAIR"])[:, 0]) < 0.95
    assert np.mean(np.array(seen["T1"])[:, 1]) > np.mean(np.array(seen["FLAIR"])[:, 1])


def test_where_the_lesion_is_in_eighths_follows_the_patient():
    for study in lesions():
        image = sitk.GetImageFromArray(study.lesion.astype(np.uint8))
        image.SetDirection(study.grid.direction.ravel().tolist())
        z, y, x = np.argwhere(sitk.GetArrayFromImage(sitk.DICOMOrient(image, "LPS"))).mean(0)
        size = np.array(sitk.DICOMOrient(image, "LPS").GetSize())
        told = [int(study.attributes[name]) for name in ("column", "row", "slice")]
        assert np.abs(np.array([x, y, z]) + 0.5 - (np.array(told) + 0.5) * size / 8).max() < size.max() / 8


@pytest.mark.parametrize("crop", [None, 0.1])
def test_the_same_volume_stored_otherwise_is_the_same_to_a_model(tmp_path, crop):
    spec = VisionSpec(
        size=(20, 32, 32), percentile_window=(0.5, 99.5), resample="bilinear", channels=1, mean=(0.5,), std=(0.5,),
        crop_foreground=crop, spacing=None if crop else (8.0, 6.5, 6.5), fit="stretch" if crop else "crop",
    )  # fmt: skip
    for number, study in enumerate(lesions()[:4]):
        pixels, boxes = [], []
        for order, flips in (((0, 1, 2), (False,) * 3), ((2, 0, 1), (True, False, True)), ((1, 0, 2), (True,) * 3)):
            other = relaid(study, order, flips)
            path = tmp_path / f"{number}-{order}.nii.gz"
            write_volume(other, path)
            prepared = prepare(read_volume(path), spec)
            pixels.append(prepared.pixels)
            boxes.append({name: transform_box(box, prepared.to_spec) for name, box in other.boxes.items()})
        for some, told in zip(pixels[1:], boxes[1:], strict=True):
            np.testing.assert_allclose(some, pixels[0], atol=2e-3)
            assert {name: pytest.approx(box, abs=1e-3) for name, box in boxes[0].items()} == told


def test_every_family_is_asked_with_an_answer_the_attributes_confirm(samples):
    assert {sample.task for sample in samples} == {f"brain_atlas_3d/{family}" for family in FAMILIES_3D}
    for sample in samples:
        meta, truth, family = sample.meta, sample.meta.attributes, sample.task.split("/")[1]
        assert sample.id.startswith(f"{meta.study}-{family}") and sample.media[0].type == "volume"
        if meta.answer_type == "closed":
            assert sample.answer == truth[family] and sample.answer in meta.choices
        elif family == "choice":
            finding = "no lesion" if truth["present"] == "no" else f"{truth['size']} {truth['bright']} lesion"
            assert sample.answer in meta.choices and sample.answer in (truth["contrast"], truth["structure"], finding)
        elif family == "report":
            assert truth["contrast"] in sample.answer
            assert ("no lesion" in sample.answer.lower()) == (truth["present"] == "no")
            assert truth["side"] == "none" or f"{truth['side']} {truth['structure']}" in sample.answer
        elif family == "rec":
            assert sample.messages[1].content == (BoxRef(box=0),) and len(meta.boxes[0].coords) == 6
        elif family == "reg":
            assert BoxRef(box=0) in sample.messages[0].content and meta.boxes[0].label in f"{sample.answer}"
    assert all(s.meta.attributes["side"] != "none" for s in samples if s.meta.attributes["present"] == "yes")


def test_words_are_those_of_the_pictures(samples, tmp_path):
    """A model and a tokenizer that come from the pictures meet few new words, all of them the contrast's."""
    (tmp_path / "images").mkdir()
    pictures = [s for n in range(60) for s in brain_atlas._patient({"seed": 0, "size": 32, "studies": 3}, tmp_path, n)]

    def words(some):
        texts = (p.text for s in some for m in s.messages for p in m.content if p.type == "text")
        return {word.strip(".,:?()[]") for text in texts for word in text.split()}

    assert words(samples) - words(pictures) <= {"T2", "FLAIR", "contrast"}


def test_guessing_blindly_earns_little():
    rng, answers = np.random.default_rng(5), defaultdict(Counter)
    for number, study in enumerate(studies() * 12):
        drawn = make_case_of(study, rng)
        for sample in questions(drawn, "x.nii.gz", str(number), "p", "train", rng):
            kind = sample.task.split("/")[1]
            if kind == "choice":
                answers[f"choice of {len(sample.meta.choices)}"]["ABCD"[sample.meta.choices.index(sample.answer)]] += 1
            elif kind not in ("report", "rec"):
                answers[kind][sample.answer] += 1
    share = {kind: max(counts.values()) / counts.total() for kind, counts in answers.items()}
    assert share["contrast"] < 0.4 and share["choice of 3"] < 0.45 and share["choice of 4"] < 0.36
    for kind in ("present", "bright", "size", "side"):
        assert share[kind] < 0.58, (kind, answers[kind])
    assert share["open"] < 0.17 and share["reg"] < 0.24


def make_case_of(study: VolumeStudy, rng: np.random.Generator) -> VolumeStudy:
    """Return the study with its answers drawn anew as `draw_case` does, so that balance is seen without rendering."""
    told = {"bright": ("bright", "dark"), "size": ("small", "large"), "side": ("left", "right"), "structure": REGIONS}
    boxes = {name: box for name, box in study.boxes.items() if name != "lesion"}
    drawn = {"contrast": str(rng.choice(CONTRASTS))}
    if rng.random() < 0.5:
        return replace(study, present="no", **dict.fromkeys(told, "none"), **drawn, boxes=boxes)
    answers = {name: str(rng.choice(pool)) for name, pool in told.items()}
    return replace(study, present="yes", **answers, **drawn, boxes=boxes | {"lesion": (1.0, 1.0, 1.0, 9.0, 9.0, 4.0)})


def test_what_is_there_is_left_alone_or_refused(folder, tmp_path):
    before = (folder / "manifest.json").stat().st_mtime_ns
    assert build(folder, patients=PATIENTS, seed=3) == folder
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(StoreError, match="something other than Brain-Atlas-VQA"):
        brain_atlas.build(folder, patients=20)
    with pytest.raises(ValueError, match="brain_atlas_3d: patients=5 is out of range"):
        build(tmp_path / "x", patients=5)
    manifest = SampleStore(folder).manifest
    assert manifest["name"] == "brain_atlas_3d" and "no clinical data" in manifest["description"]
    assert manifest["version"] == brain_atlas_3d.VERSION and "CC BY-NC" in manifest["licence"]
