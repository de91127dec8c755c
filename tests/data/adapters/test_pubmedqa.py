"""PubMedQA: its three parts, the official test set, folds."""

import pytest

import adapter_root
from medmvl.core.schema import SampleError
from medmvl.data.adapters.base import LayoutError
from medmvl.data.adapters.pubmedqa import PubMedQa
from medmvl.data.rows import TableError

roots = adapter_root.builder("pubmedqa")
TASKS = ("abstract", "question", "conclusion")


def _read(root, split, *tasks, **options):
    read = list(PubMedQa(root, options).samples(split, tasks or TASKS))
    return [one for one in read if not isinstance(one, SampleError)], [
        one for one in read if isinstance(one, SampleError)
    ]


@pytest.fixture
def root(tmp_path):
    return roots.write(tmp_path / "pubmedqa")


def _asked(sample) -> str:
    return sample.messages[0].content[-1].text


def test_three_tasks(root) -> None:
    (abstract, question, conclusion, *_), refused = _read(root, "test")
    assert _asked(question) == (
        "If you are a doctor, please answer the following question using 'yes', 'no' or 'maybe': "
        "Do statins reduce atrial fibrillation?"
    )
    sections = "BACKGROUND: Fibrillation is common.\nMETHODS: 221 patients were followed.\n"
    assert sections + "Do statins reduce atrial fibrillation?" in _asked(abstract)
    assert (abstract.answer, abstract.meta.answer_type) == ("no", "closed")
    assert abstract.meta.choices == question.meta.choices == ("yes", "no", "maybe")
    assert (conclusion.answer, conclusion.meta.answer_type) == ("Statins may reduce it.", "open")
    assert "Statins may" not in _asked(conclusion) + _asked(abstract)
    assert abstract.meta.study == "200" and abstract.patient == abstract.id
    (error,) = refused
    assert "not that of the test set" in error.message and "'202'" in error.path


def test_the_official_test_set_is_left_out_of_training(root) -> None:
    articles = {
        (split, fold): [
            sample.meta.study for sample in _read(root, split, "question", **({"fold": 0} if fold else {}))[0]
        ]
        for split in ("train", "val", "test")
        for fold in (False, True)
    }
    assert articles["train", False] == ["100", "101", "102"] and articles["val", False] == []
    assert articles["train", True] == ["100", "102"] and articles["val", True] == ["101"]
    assert articles["test", False] == articles["test", True] == ["200", "201"]
    with pytest.raises(LayoutError, match=r"pqal_fold3/dev_set\.json"):
        _read(root, "train", fold=3)


def test_artificial_and_unlabeled(root, tmp_path) -> None:
    samples, _ = _read(root, "train", "question", subset="artificial")
    assert [sample.answer for sample in samples] == ["yes", "no"]
    assert _read(root, "val", subset="artificial") == ([], [])
    cut = roots.write(tmp_path / "cut", cut=True)
    assert [sample.meta.study for sample in _read(cut, "train", "question", subset="artificial")[0]] == ["300"]
    assert [sample.meta.study for sample in _read(cut, "val", "question", subset="artificial")[0]] == ["301"]
    (only,), _ = _read(root, "train", subset="unlabeled")
    assert only.task == "pubmedqa/conclusion"
    assert _read(root, "test", subset="unlabeled") == ([], [])


def test_the_folder_data_may_be_left_out(root) -> None:
    assert len(_read(root / "data", "test")[0]) == 6


def test_wrong_articles_are_refused_alone(root) -> None:
    _, refused = _read(root, "train")
    assert ["'103'" in refused[0].path, "'104'" in refused[1].path] == [True, True]
    assert "QUESTION" in refused[0].message and "perhaps" in refused[1].message


def test_a_wrong_test_set_is_no_test_set(root) -> None:
    (root / "data/test_ground_truth.json").write_text('{"200": "no", "201": "unsure"}')
    with pytest.raises(TableError, match="'201'"):
        _read(root, "test")
    (root / "data/test_ground_truth.json").unlink()
    with pytest.raises(LayoutError, match=r"test_ground_truth\.json"):
        _read(root, "train")
