"""MedQA: regions, numbers of options, and what is asked."""

import pytest

import adapter_root
from medmvl.core.schema import SampleError
from medmvl.data.adapters.medqa import MedQa
from medmvl.eval.answers import letter

roots = adapter_root.builder("medqa")


def _read(root, split, *tasks, **options):
    read = list(MedQa(root, options).samples(split, tasks or ["choice", "open"]))
    return [one for one in read if not isinstance(one, SampleError)], [
        one for one in read if isinstance(one, SampleError)
    ]


@pytest.fixture
def root(tmp_path):
    return roots.write(tmp_path / "medqa")


def _asked(sample) -> str:
    return sample.messages[0].content[-1].text


def test_choices(root) -> None:
    (sample,), _ = _read(root, "test", "choice")
    assert _asked(sample) == "A child?\n(A) Drug A\n(B) Drug B\n(C) Drug C\n(D) Drug D\n(E) Drug E"
    assert (sample.answer, sample.meta.answer_type) == ("Drug C", "choice") and not sample.media
    assert letter(sample.answer, sample.meta.choices) == "C"
    assert (sample.meta.model_extra["exam"], sample.meta.model_extra["region"]) == ("step1", "US")


def test_questions_alone(root) -> None:
    (sample,), _ = _read(root, "val", "open")
    assert (_asked(sample), sample.answer, sample.meta.choices) == ("A woman?", "Drug B", ())
    samples, _ = _read(root, "train", "open")
    assert _asked(samples[1]).endswith("And then {}?"), "braces of a question are its own"


def test_wrong_lines_are_refused_alone(root) -> None:
    samples, refused = _read(root, "train", "choice")
    assert len(samples) == 2
    assert [error.path for error in refused] == ["train.jsonl:2", "train.jsonl:3", "train.jsonl:4"]
    assert "'options'" in refused[0].message and "'D'" in refused[1].message and "'question'" in refused[2].message


@pytest.mark.parametrize(
    ("region", "four", "count"), [("US", True, 4), ("Mainland", False, 5), ("Mainland", True, 4), ("Taiwan", True, 4)]
)
def test_regions(root, region, four, count) -> None:
    for split in ("train", "val", "test"):
        samples, refused = _read(root, split, "choice", region=region, four_options=four)
        assert [len(sample.meta.choices) for sample in samples] == [count] and not refused


@pytest.mark.parametrize("above", ["data_clean", "data_clean/questions"])
def test_folders_above_may_be_left_out(root, above) -> None:
    assert len(_read(root / above, "test")[0]) == 2


def test_the_copy_with_four_options_is_flat(root) -> None:
    flat = root / "data_clean/questions/US/4_options"
    assert _read(flat, "test", "choice", four_options=True)[0][0].answer == "Drug A"
