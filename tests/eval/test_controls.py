"""Controls: never the same patient, nothing but the picture changes."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PillowImage

from medmvl.core.schema import Sample
from medmvl.eval.controls import blank, frame_size, shuffle


def sample(number: int, patient: str, modality: str = "MR", picture: str = "") -> Sample:
    content = [{"type": "image", "path": picture or f"{number}.png"}, {"type": "text", "text": "Left?"}]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "no"}]
    return Sample.from_dict({"id": str(number), "messages": turns, "meta": {"patient": patient, "modality": modality}})


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["MR", "CT"])), max_size=24), st.integers(0, 5))
def test_never_the_same_patient_always_the_same_modality(rows: list[tuple[int, str]], seed: int) -> None:
    samples = [sample(i, f"p{patient}", modality) for i, (patient, modality) in enumerate(rows)]
    owner = {one.media_key: (one.patient, one.meta.modality) for one in samples}
    for one, other in zip(samples, shuffle(samples, seed), strict=True):
        rivals = [p for p, m in owner.values() if m == one.meta.modality and p != one.patient]
        if other is None:
            assert not rivals
            continue
        patient, modality = owner[other.media_key]
        assert patient != one.patient
        assert modality == one.meta.modality
        assert other.id == one.id
        assert other.meta == one.meta
        assert other.messages[1:] == one.messages[1:]
        assert other.messages[0].content[1:] == one.messages[0].content[1:]


def test_every_picture_is_used_once_and_shared_pictures_stay_shared() -> None:
    samples = [sample(i, f"p{i // 4}", picture=f"{i // 2}.png") for i in range(40)]
    changed = shuffle(samples, seed=1)
    keys = [other.media_key for other in changed if other]
    assert sorted(set(keys)) == sorted({one.media_key for one in samples})
    assert all(keys[i] == keys[i + 1] for i in range(0, 40, 2))
    assert keys == [other.media_key for other in shuffle(samples, seed=1) if other]
    assert keys != [other.media_key for other in shuffle(samples, seed=2) if other]


def test_one_patient_with_most_pictures_still_gets_others() -> None:
    samples = [sample(i, "big" if i < 8 else "small") for i in range(10)]
    keys = [other.media_key[0] for other in shuffle(samples) if other]
    assert set(keys[:8]) <= {"8.png", "9.png"}
    assert len(keys) == 10


@pytest.mark.parametrize("size", [(64, 48), (31, 200)])
def test_blank_is_grey_of_the_same_frame(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "scan.png"
    PillowImage.fromarray(np.arange(size[0] * size[1], dtype=np.uint8).reshape(size[::-1])).save(path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    one = blank(sample(0, "p", picture=str(path)), scratch)
    array = np.array(PillowImage.open(one.media_key[0]))
    assert frame_size(one.media_key[0]) == frame_size(str(path)) == size
    assert array.min() == array.max() == 128
    assert one.messages[0].content[1].text == "Left?"
    assert list(scratch.iterdir()) == [Path(one.media_key[0])]
