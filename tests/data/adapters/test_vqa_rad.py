"""VQA-RAD: the official JSON with its odd answers and types, and the Parquet copy."""

import pytest

import adapter_root
from medmvl.core.schema import SampleError
from medmvl.data.adapters.vqa_rad import VqaRad

roots = adapter_root.builder("vqa_rad")
write_parquet, jpeg = adapter_root.builder("pathvqa").write_parquet, adapter_root.builder("pathvqa").jpeg


def _read(root, split, unpack=None):
    read = list(VqaRad(root, unpack=unpack).samples(split, ["vqa"]))
    return [one for one in read if not isinstance(one, SampleError)], [
        one for one in read if isinstance(one, SampleError)
    ]


def test_rows(tmp_path) -> None:
    root = roots.write(tmp_path / "root")
    samples, refused = _read(root, "train")
    yes, three, axial, stroke = samples
    assert (yes.answer, yes.meta.answer_type, yes.meta.choices) == ("Yes", "closed", ("Yes", "No"))
    assert yes.media_key == (str(root / "VQA_RAD Image Folder/synpic1.jpg"),)
    assert (three.answer, three.meta.answer_type) == ("3", "open"), "numbers are answers too"
    assert (axial.meta.answer_type, axial.meta.choices) == ("closed", ())
    assert stroke.meta.answer_type == "open", "a typing error of the file"
    assert yes.meta.study.endswith("synpic1")
    extra = yes.meta.model_extra
    assert (extra["qid"], extra["phrase_type"], extra["image_organ"]) == ("0", "freeform", "HEAD")
    assert [error.path for error in refused] == [f"item {n} of VQA_RAD Dataset Public.json" for n in (7, 8, 9)]
    assert "sonnet" in refused[1].message and "leaves" in refused[2].message


def test_test_phrases_are_the_test_split(tmp_path) -> None:
    samples, refused = _read(roots.write(tmp_path / "root"), "test")
    assert [sample.answer for sample in samples] == ["no", "left lobe"]
    assert [sample.meta.model_extra.get("question_rephrase") for sample in samples] == ["Is there edema?", None]
    assert "OPEN or CLOSED" in refused[0].message


@pytest.mark.parametrize("name", ["VQA_RAD_Image_Folder", "images"])
def test_other_names_of_the_folder(tmp_path, name) -> None:
    root = roots.write(tmp_path / "root")
    (root / "VQA_RAD Image Folder").rename(root / name)
    assert _read(root, "train")[0][0].media_key == (str(root / name / "synpic1.jpg"),)


def test_parquet(tmp_path) -> None:
    rows = {"train": [(jpeg(1), "is it?", "yes"), (jpeg(1), "what?", "a mass")], "test": [(jpeg(1), "why?", "no")]}
    root = write_parquet(tmp_path / "root", rows, "-eb8844602202be60")

    def unpack(name: str, content: bytes) -> str:
        return str(tmp_path / name)

    samples, refused = _read(root, "train", unpack)
    assert [(sample.answer, sample.meta.answer_type) for sample in samples] == [("yes", "closed"), ("a mass", "open")]
    assert len(_read(root, "test", unpack)[0]) == 1 and not refused


def test_it_says_that_its_splits_share_images() -> None:
    assert "share images" in VqaRad.access
