"""Data sets in the forms of Hugging Face, as the installed `datasets` itself writes them."""

import json

import pytest

from adapter_root import build
from data.adapters.roots_hf import png, write
from medmvl.core.schema import Sample, SampleError
from medmvl.data.adapters.base import LayoutError
from medmvl.data.adapters.hf import HuggingFace
from medmvl.data.rows import TableError

OPTIONS = {"image": "picture", "answer": "label"}


class Unpacked(dict):
    def __call__(self, name, content):
        assert self.setdefault(name, content) == content
        return f"/media/{name}"


def read(root, of="train", options=OPTIONS):
    return list(HuggingFace(root, options, Unpacked()).samples(of, ["qa"]))


@pytest.fixture
def saved(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    features = datasets.Features(
        picture=datasets.Image(),
        question=datasets.Value("string"),
        label=datasets.ClassLabel(names=["benign", "malignant"]),
        choices=datasets.List(datasets.ClassLabel(names=["benign", "malignant"])),
    )
    columns = {"question": ["What?"] * 5, "label": [0, 1, 0, 1, 1], "choices": [[0, 1]] * 5}
    pictures = [png(grey) for grey in range(5)]
    return datasets.Dataset.from_dict({"picture": pictures, **columns}, features=features)


def test_a_saved_dictionary_of_splits(saved, tmp_path):
    import datasets

    parts = datasets.DatasetDict(train=saved.select([3, 1, 2]), validation=saved.select([4]))
    parts.save_to_disk(str(tmp_path / "set"), num_shards={"train": 2, "validation": 1})
    samples = read(tmp_path / "set")
    assert [one.answer for one in samples] == ["malignant", "malignant", "benign"]
    assert samples[0].meta.choices == ("benign", "malignant") and samples[0].media_key[0].endswith(".png")
    assert [one.id for one in samples][::2] == [
        "train/data-00000-of-00002.arrow:1",
        "train/data-00001-of-00002.arrow:1",
    ]
    assert len(read(tmp_path / "set", "val")) == 1 and read(tmp_path / "set", "test") == []


def test_a_saved_set_without_splits(saved, tmp_path):
    saved.save_to_disk(str(tmp_path / "set"))
    assert len(read(tmp_path / "set")) == 5 and read(tmp_path / "set", "test") == []
    assert len(read(tmp_path / "set", "test", OPTIONS | {"split": "test"})) == 5


def test_parquet_that_datasets_wrote(saved, tmp_path):
    (tmp_path / "en/train").mkdir(parents=True)
    saved.to_parquet(str(tmp_path / "en/train/0000.parquet"))
    assert [one.answer for one in read(tmp_path)] == ["benign", "malignant", "benign", "malignant", "malignant"]


def test_classes_have_names_and_bad_cells_their_place(tmp_path):
    root = build("hf", tmp_path / "root")
    found = read(root.path)
    assert [one.answer for one in found if isinstance(one, Sample)] == ["benign", "malignant", "malignant"]
    assert found[0].media_key == found[3].media_key  # equal pictures, though in two files
    wrong = [one for one in [*found, *read(root.path, "test")] if isinstance(one, SampleError)]
    assert [(error.path.partition("-")[0], error.path.partition(":")[2]) for error in wrong] == [
        ("train", "3"), ("train", "2"), ("test", "2"), ("test", "3")
    ]  # fmt: skip
    told = ("'image' is empty", "leaves", "'answer' is empty", "a class that has no name")
    assert all(words in error.message for words, error in zip(told, wrong, strict=True))


def test_files_of_a_folder_are_named_beside_their_metadata(tmp_path):
    (tmp_path / "train").mkdir()
    row = {"file_name": "a.png", "question": "What?", "answer": "this"}
    (tmp_path / "train/metadata.jsonl").write_text(json.dumps(row) + "\n")
    (sample,) = read(tmp_path, options={"image": "file_name"})
    assert sample.media_key == (str(tmp_path / "train/a.png"),)


def test_what_cannot_be_told_is_asked_for(tmp_path, saved):
    for name in ("en", "zh"):
        write(tmp_path / f"two/{name}/train-00000-of-00001.parquet", [png(1)], [0])
    with pytest.raises(LayoutError, match="several data sets, in en, zh; name one"):
        read(tmp_path / "two")
    write(tmp_path / "odd/test5k.parquet", [png(1)], [0])
    with pytest.raises(LayoutError, match="cannot tell the split of test5k; did you mean 'test'"):
        read(tmp_path / "odd")
    assert len(read(tmp_path / "odd", "test", OPTIONS | {"split": "test"})) == 1
    saved.save_to_disk(str(tmp_path / "set"))
    (tmp_path / "set/data-00000-of-00001.arrow").unlink()
    with pytest.raises(LayoutError, match=r"data-00000-of-00001\.arrow is missing"):
        read(tmp_path / "set")


def test_a_damaged_file_is_told(tmp_path, saved):
    saved.save_to_disk(str(tmp_path / "set"))
    file = tmp_path / "set/data-00000-of-00001.arrow"
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(TableError, match=r"data-00000-of-00001\.arrow: cannot be read"):
        read(tmp_path / "set")
    (tmp_path / "set/state.json").write_text("{")
    with pytest.raises(TableError, match=r"state\.json: cannot be read"):
        read(tmp_path / "set")


def test_no_script_of_the_folder_runs(tmp_path):
    root = build("hf", tmp_path / "root")
    (root.path / "root.py").write_text("raise SystemExit('ran')")
    (root.path / "data/data.py").write_text("raise SystemExit('ran')")
    assert len(read(root.path)) == 5
