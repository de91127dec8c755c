"""MedMNIST: labels in the right order, official questions, images unpacked one by one, and archives that lie."""

import io
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

import adapter_root
from medmvl.core.schema import Sample, SampleError, Text
from medmvl.data.adapters.base import LayoutError
from medmvl.data.adapters.medmnist import SUBSETS, MedMnist
from medmvl.data.rows import TableError
from medmvl.imaging.read import read_volume

roots = adapter_root.builder("medmnist")


@pytest.fixture
def root(tmp_path) -> Path:
    return roots.build(tmp_path / "medmnist").path


def _read(root: Path, split: str = "test", *tasks: str, **options) -> list[Sample | SampleError]:
    def unpack(name: str, content: bytes) -> str:
        path = root.parent / "media" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return str(path)

    return list(MedMnist(root, options, unpack).samples(split, tasks or ("classification",)))


def _asked(sample: Sample) -> str:
    return next(part.text for part in sample.messages[0].content if isinstance(part, Text))


def _one(root: Path, flag: str, label: int, size: int = 28) -> Sample:
    """Return the sample of a subset that consists of one image with this label."""
    subset = SUBSETS[flag]
    shape = (size,) * 3 if flag.endswith("3d") else (size, size, 3)[: 3 if subset.channels == 3 else 2]
    suffix = "" if size == 28 else f"_{size}"
    labels = {split: [label] for split in roots.COUNTS}
    root.mkdir(exist_ok=True)
    np.savez_compressed(root / f"{flag}{suffix}.npz", **roots.arrays(size, shape, labels))
    (sample,) = _read(root, subsets=[flag], size=size)
    return sample


def test_official_questions(tmp_path) -> None:
    derma = _one(tmp_path / "root", "dermamnist", 5, 224)
    assert _asked(derma) == (
        "Which category does this multi-source dermatoscopic image of common pigmented skin lesions belong to: actinic "
        "keratoses and intraepithelial carcinoma, basal cell carcinoma, benign keratosis-like lesions, "
        "dermatofibroma, melanoma, melanocytic nevi, or vascular lesions?"
    )
    assert derma.answer == "melanocytic nevi" and derma.meta.attributes == {"dermamnist": "melanocytic nevi"}
    assert derma.id == "dermamnist_test_0" and derma.meta.answer_type == "choice"
    organs = _one(tmp_path / "root", "organsmnist", 5, 224)
    assert _asked(organs) == (
        "Which category does this CT image belong to: bladder, left femur, right femur, heart, left kidney, right "
        "kidney, liver, left lung, right lung, pancreas, or spleen?"
    )
    assert organs.answer == "right kidney" and organs.answer in organs.meta.choices


@pytest.mark.parametrize(
    ("flag", "label", "answer"),
    [
        ("organamnist", 1, "left femur"),
        ("organcmnist", 10, "spleen"),
        ("organmnist3d", 1, "right kidney"),  # an order of its own
        ("organmnist3d", 10, "pancreas"),
        ("breastmnist", 0, "malignant"),
        ("breastmnist", 1, "normal, benign"),
        ("bloodmnist", 3, "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)"),
        ("tissuemnist", 0, "Collecting Duct, Connecting Tubule"),
        ("retinamnist", 4, "4"),
        ("pathmnist", 8, "colorectal adenocarcinoma epithelium"),
        ("fracturemnist3d", 0, "buckle rib fracture"),
        ("synapsemnist3d", 1, "excitatory synapse"),
    ],
)
def test_labels(tmp_path, flag, label, answer) -> None:
    sample = _one(tmp_path / "root", flag, label)
    assert sample.answer == answer and sample.meta.choices[label] == answer
    assert f"belong to: {SUBSETS[flag].listing}?" in _asked(sample)


def test_all_eighteen_subsets_have_their_number_of_classes() -> None:
    wanted = [9, 14, 7, 4, 2, 5, 2, 8, 8, 11, 11, 11, 11, 2, 2, 3, 2, 2]
    assert [len(subset.names) for subset in SUBSETS.values()] == wanted
    assert SUBSETS["breastmnist"].listing == "malignant; or normal, benign"
    assert SUBSETS["pneumoniamnist"].listing == "normal or pneumonia"


def test_findings(root) -> None:
    none, two, *_ = _read(root, "train", "multilabel", subsets=["chestmnist"])
    assert none.answer == "no finding" and set(none.meta.attributes.values()) == {"no"}
    assert two.answer == "cardiomegaly, pneumonia" and two.meta.attributes["pneumonia"] == "yes"
    samples = _read(root, "test", "presence")
    assert [sample.answer for sample in samples[:14]] == ["yes"] + ["no"] * 13
    assert _asked(samples[12]) == "Does this chest X-ray show pleural thickening?"
    assert len({sample.media_key for sample in samples[:14]}) == 1
    assert _read(root, "test", subsets=["chestmnist"]) == []


def test_labels_that_are_stored_columns_first(root) -> None:
    """As numpy does with a table that pandas held."""
    before = _read(root, "test", "multilabel")
    path = root / "chestmnist.npz"
    with np.load(path) as file:
        stored = {name: np.asfortranarray(file[name]) if "labels" in name else file[name] for name in file.files}
    np.savez_compressed(path, **stored)
    assert _read(root, "test", "multilabel") == before


def test_images_come_back_as_they_were(root) -> None:
    with np.load(root / "dermamnist_64.npz") as file:
        images = file["val_images"]
    for sample, image in zip(_read(root, "val", subsets=["dermamnist"]), images, strict=True):
        with Picture.open(sample.media_key[0]) as picture:
            assert np.array_equal(np.asarray(picture), image)
    with np.load(root / "organmnist3d.npz") as file:
        volume = file["val_images"][1]
    address = _read(root, "val", subsets=["organmnist3d"])[1].media_key[0]
    read = read_volume(address)
    assert address.endswith("/organmnist3d_28/val/000001.npy#unit=0..255")
    assert np.array_equal(read.array, volume) and not read.oriented


def test_the_largest_size_is_taken_unless_one_is_named(root) -> None:
    assert "/dermamnist_64/" in _read(root)[1].media_key[0]
    small = [one for one in _read(root, size=28) if "/dermamnist_28/" in one.media_key[0]]
    assert len(small) == 3
    with pytest.raises(LayoutError, match=r"dermamnist_224\.npz is missing") as error:
        _read(root, subsets=["dermamnist"], size=224)
    assert "dermamnist_64.npz" in str(error.value)
    (root / "dermamnist.npz").rename(root / "dermamnist_28.npz")
    assert _read(root, size=28, subsets=["dermamnist"])[0].answer.startswith("actinic")


def test_a_label_without_meaning_is_refused_alone(root) -> None:
    refused = [one for one in _read(root, "train") if isinstance(one, SampleError)]
    assert [(one.path, one.message) for one in refused] == [
        ("dermamnist_64.npz, train 3", "its label is 7; known are 0 to 6")
    ]
    (chest,) = [one for one in _read(root, "val", "multilabel") if isinstance(one, SampleError)]
    assert "each of the 14 is 0 or 1" in chest.message and chest.path == "chestmnist.npz, val 1"


def _member(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


def _npy(array: np.ndarray, shape: tuple[int, ...] | None = None) -> bytes:
    """Return a .npy whose header may claim another shape."""
    stream = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(array) | ({} if shape is None else {"shape": shape})
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + array.tobytes()


def test_archives_that_lie_are_refused_before_they_are_unpacked(tmp_path) -> None:
    labels = _npy(np.zeros((2, 1), np.uint8))
    path = tmp_path / "dermamnist.npz"
    images = np.zeros((2, 28, 28, 3), np.uint8)
    wrong = {
        "says uint8": _npy(images, (10**9, 28, 28, 3)),
        "one image for each label": _npy(images[:1]),
        "is uint8 .2, 28, 28.": _npy(images[..., 0]),
        "is float32": _npy(images.astype(np.float32)),
    }
    for told, content in wrong.items():
        _member(path, test_images=content, test_labels=labels)
        with pytest.raises(TableError, match=told):
            _read(tmp_path)
    _member(path, test_images=_npy(images), test_labels=_npy(np.zeros((10**6 + 1, 1), np.uint8)))
    with pytest.raises(TableError, match=r"test_labels is uint8 \[1000001, 1\]"):
        _read(tmp_path)
    _member(path, train_images=_npy(images))
    with pytest.raises(TableError, match="holds no array 'test_labels'"):
        _read(tmp_path)
    np.savez(path, test_images=np.array([{}]), test_labels=np.array([{}]))
    with pytest.raises(TableError, match="is object"):
        _read(tmp_path)


def test_a_bomb_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("medmvl.data.npz._LARGEST_UNPACKED", 2**20)
    images = np.zeros((2000, 28, 28, 3), np.uint8)
    _member(tmp_path / "dermamnist.npz", test_images=_npy(images), test_labels=_npy(np.zeros((2000, 1), np.uint8)))
    with pytest.raises(TableError, match="would unpack to 4,704,128 bytes from"):
        _read(tmp_path)


def test_a_damaged_or_cut_archive_is_told(root) -> None:
    path = root / "organmnist3d.npz"
    content = bytearray(path.read_bytes())
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(TableError, match=r"organmnist3d\.npz: damaged or cut off"):
        _read(root, subsets=["organmnist3d"])
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(TableError, match=r"organmnist3d\.npz: damaged or cut off"):
        _read(root, "train", subsets=["organmnist3d"])
        _read(root, "val", subsets=["organmnist3d"])
        _read(root, "test", subsets=["organmnist3d"])


def test_memory_does_not_grow_with_the_file(tmp_path) -> None:
    """64 MiB of images: only some of them are in memory at any moment."""
    count = 2**26 // (224 * 224)
    images = np.random.default_rng(0).integers(0, 255, (count, 224, 224), np.uint8)
    np.savez(tmp_path / "organsmnist_224.npz", test_images=images, test_labels=np.zeros((count, 1), np.uint8))
    del images
    adapter = MedMnist(tmp_path, unpack=lambda name, content: f"/media/{name}")
    tracemalloc.start()
    read = sum(1 for _ in adapter.samples("test", ["classification"]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert read == count and peak < 4 * 2**20


def test_a_root_without_the_subset_says_which_file_it_wants(root) -> None:
    with pytest.raises(LayoutError, match=r"bloodmnist\.npz is missing"):
        _read(root, subsets=["bloodmnist"])
    with pytest.raises(LayoutError, match=r"bloodmnist_128\.npz is missing"):
        _read(root, subsets=["bloodmnist"], size=128)
