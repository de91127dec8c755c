"""MedPix: single pictures, cases and questions from RadFM's lists."""

import pytest

import adapter_root
from medmvl.core.schema import SampleError
from medmvl.data.adapters.base import LayoutError
from medmvl.data.adapters.medpix import MedPix
from medmvl.data.questions import pool
from medmvl.data.rows import TableError

roots = adapter_root.builder("medpix")


def _read(root, split, *tasks):
    read = list(MedPix(root).samples(split, tasks))
    return [one for one in read if not isinstance(one, SampleError)], [
        one for one in read if isinstance(one, SampleError)
    ]


@pytest.fixture
def root(tmp_path):
    return roots.write(tmp_path / "medpix")


def _asked(sample) -> str:
    return sample.messages[0].content[-1].text


def test_single_pictures(root) -> None:
    (caption, modality, plane), refused = _read(root, "train", "report", "modality", "plane")
    assert caption.answer == "Axial CT shows a mass, left" and _asked(caption) in pool("medpix_caption")
    assert (modality.answer, plane.answer) == ("CT w/contrast (IV)", "Axial")
    assert caption.media_key == (str(root / "images/synpic1.png"),)
    assert [error.path.rpartition(":")[2] for error in refused] == ["5", "6", "7"]
    assert "'context' is empty" in refused[0].message and "colour" in refused[2].message
    (test,), _ = _read(root, "test", "report")
    assert _asked(test) == "Describe this input image."


def test_cases_have_several_pictures(root) -> None:
    samples, refused = _read(root, "train", "findings", "diagnosis", "treatment")
    findings, diagnosis, treatment = samples
    assert [key.rpartition("/")[2] for key in findings.media_key] == ["synpic1.png", "synpic2.png"]
    assert findings.media_key == diagnosis.media_key
    assert _asked(findings).startswith("55 year old with cough. ")
    assert _asked(diagnosis) in pool("medpix_diagnosis") and _asked(treatment) in pool("medpix_treatment")
    assert "•" not in findings.answer and "'name' is empty" in refused[0].message


def test_questions(root) -> None:
    (sample,), refused = _read(root, "train", "vqa")
    assert (_asked(sample), sample.answer) == ("What is the sign?", "Halo")
    assert sample.meta.model_extra["explanation"] == "It is seen in angioinvasion" and len(refused) == 1


def test_pictures_that_are_missing_keep_their_rows(root) -> None:
    (root / "images/synpic1.png").unlink()
    samples, _ = _read(root, "train", "report")
    assert len(samples) == 1


def test_a_right_spelling_and_a_folder_of_lists_are_taken(root) -> None:
    before, _ = _read(root, "train", "findings")
    (root / "data_csv").mkdir()
    (root / "MedPix_muli_train.csv").rename(root / "data_csv/MedPix_multi_train.csv")
    (root / "images").rename(root / "MedPix-Images")
    after, _ = _read(root, "train", "findings")
    assert [sample.answer for sample in after] == [sample.answer for sample in before]


def test_only_the_lists_of_the_tasks_are_needed(root) -> None:
    (root / "MedPix_questions_train.csv").unlink()
    assert _read(root, "train", "report")[0]
    with pytest.raises(LayoutError, match=r"MedPix_questions_train\.csv"):
        _read(root, "train", "vqa")
    samples, _ = _read(root, "train", *MedPix.tasks)
    assert samples and not any(sample.task == "medpix/vqa" for sample in samples)
    (root / "MedPix_single_train.csv").write_text("image,context,type\n")
    with pytest.raises(TableError, match="'name'"):
        _read(root, "train", "report")
