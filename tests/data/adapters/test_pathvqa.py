"""PathVQA: both kinds of pickles and the Parquet copy."""

import pickle
from pathlib import Path

import pytest

import adapter_root
from medmvl.core.schema import SampleError
from medmvl.data.adapters.base import LayoutError
from medmvl.data.adapters.pathvqa import PathVqa
from medmvl.data.rows import TableError

roots = adapter_root.builder("pathvqa")


class Unpacked:
    """Keeps what is unpacked, and its names."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.names = folder, []
        folder.mkdir()

    def __call__(self, name: str, content: bytes) -> str:
        self.names.append(name)
        (self.folder / name).parent.mkdir(exist_ok=True)
        (self.folder / name).write_bytes(content)
        return str(self.folder / name)


def _read(root, split="train", unpack=None):
    read = list(PathVqa(root, unpack=unpack).samples(split, ["vqa"]))
    return [one for one in read if not isinstance(one, SampleError)], [
        one for one in read if isinstance(one, SampleError)
    ]


@pytest.mark.parametrize("top", ["pvqa", "."])
def test_rich_rows(tmp_path, top) -> None:
    root = roots.write(tmp_path / "root", top)
    (where, seen, number), refused = _read(root)
    assert where.media_key == (str((root / top / "images/train/train_0001.jpg").resolve()),)
    assert (where.answer, where.meta.answer_type, where.meta.choices) == ("in the canals of hering", "open", ())
    assert where.meta.model_extra["question_id"] == "100422000"
    assert (seen.answer, seen.meta.answer_type, seen.meta.choices) == ("yes", "closed", ("yes", "no"))
    assert number.meta.answer_type == "open"
    assert [(error.path, error.message.split(";")[0]) for error in refused[:1]] == [
        ("item 4 of train_vqa.pkl", "field 'sent' is missing")
    ]
    assert "leaves" in refused[1].message and "essay" in refused[2].message and "no dict" in refused[3].message
    # what the data set calls open stays open, whatever the answer
    (yes,), _ = _read(root, "val")
    assert (yes.answer, yes.meta.answer_type) == ("yes", "open")


@pytest.mark.parametrize("answer", ["yes", "No", "YES", "no"])
def test_choices_are_spelt_as_the_answer(tmp_path, answer) -> None:
    root = roots.write(tmp_path / "root")
    item = {"img_id": "test_0001", "sent": "Is it stained?", "answer_type": "yes/no", "label": {answer: 1}}
    (root / "pvqa/qas/test_vqa.pkl").write_bytes(pickle.dumps([item], 2))
    (sample,), _ = _read(root, "test")
    assert sample.meta.answer_type == "closed" and answer in sample.meta.choices
    assert [choice.casefold() for choice in sample.meta.choices] == ["yes", "no"]


def test_a_pickle_without_rows_is_told(tmp_path, caplog) -> None:
    root = roots.write(tmp_path / "root")
    (root / "pvqa/qas/test_vqa.pkl").write_bytes(pickle.dumps([], 2))
    with caplog.at_level("WARNING"):
        assert _read(root, "test") == ([], [])
    assert "test_vqa.pkl: holds no rows" in caplog.text


def test_plain_rows_where_no_rich_ones_are(tmp_path) -> None:
    root = roots.write(tmp_path / "root")
    rich, _ = _read(root, "test")
    (root / "pvqa/qas/test_vqa.pkl").unlink()
    (root / "pvqa/qas/test").mkdir()
    rows = [
        {"image": "test_0001", "question": "is it stained?", "answer": "No"},
        {"image": "test_0001", "question": "what is it?", "answer": "fat"},
        {"image": "test_0001", "question": "and this?", "answer": ""},
    ]
    (root / "pvqa/qas/test/test_qa.pkl").write_bytes(pickle.dumps(rows, 2))
    plain, refused = _read(root, "test")
    assert [sample.media_key for sample in plain] == [sample.media_key for sample in rich]
    assert [(sample.answer, sample.meta.answer_type) for sample in plain] == [("No", "closed"), ("fat", "open")]
    assert "'answer' is empty" in refused[0].message


def test_a_pickle_that_runs_code_is_refused_as_a_whole(tmp_path, capsys) -> None:
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    root = roots.write(tmp_path / "root")
    (root / "pvqa/qas/train_vqa.pkl").write_bytes(pickle.dumps([Evil()]))
    with pytest.raises(TableError, match="can run code"):
        _read(root)
    (root / "pvqa/qas/train_vqa.pkl").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(TableError, match="a list of questions"):
        _read(root)
    assert not capsys.readouterr().out


@pytest.mark.parametrize("hashed", ["", "-eb8844602202be60"])
def test_parquet_keeps_a_picture_once(tmp_path, hashed) -> None:
    one, two = roots.jpeg(10), roots.jpeg(90)
    rows = [(one, f"question {n}?", "yes" if n % 2 else "a lobule") for n in range(6)]
    rows += [(two, "other?", "no"), (None, "none?", "no"), (b"GIF89a", "gif?", "no"), (two, None, "no")]
    root = roots.write_parquet(tmp_path / "root", {"train": rows, "validation": rows[:1]}, hashed)
    unpack = Unpacked(tmp_path / "media")
    samples, refused = _read(root, unpack=unpack)
    assert len(samples) == 7 and len(set(unpack.names)) == 2
    assert [sample.media_key for sample in samples[:6]] == [samples[0].media_key] * 6
    assert Path(samples[0].media_key[0]).read_bytes() == one
    assert [(sample.answer, sample.meta.answer_type) for sample in samples[:2]] == [
        ("a lobule", "open"),
        ("yes", "closed"),
    ]
    places = [(error.path.rpartition(":")[2], error.message) for error in refused]
    assert [place for place, _ in places] == ["8", "9", "10"]
    assert "no picture" in places[0][1] and "unknown kind" in places[1][1] and "question" in places[2][1]
    (val,), _ = _read(root, "val", unpack)
    assert val.media_key == samples[0].media_key, "equal pictures of two splits are found out by their path"


def test_missing_parts_are_told(tmp_path) -> None:
    root = roots.write_parquet(tmp_path / "root", {"train": [(roots.jpeg(1), "q?", "no")]})
    with pytest.raises(LayoutError, match=r"data/test-00000-of-00001\.parquet is missing"):
        _read(root, "test", Unpacked(tmp_path / "media"))
    (root / "data/train-00000-of-00001.parquet").rename(root / "data/train-00001-of-00003.parquet")
    with pytest.raises(LayoutError, match=r"train-00000-of-00003\.parquet is missing"):
        _read(root, unpack=Unpacked(tmp_path / "more"))
    _, refused = _read(roots.write_parquet(tmp_path / "other", {"test": [(roots.jpeg(1), "q?", "no")]}), "test")
    assert "say where to unpack" in refused[0].message
