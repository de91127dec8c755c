"""Controls: never the same patient, nothing but the picture changes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PillowImage

import phantom
from medmvl.core.schema import Sample
from medmvl.eval.controls import NotAsked, blank, body_frame, question_only, shuffle
from medmvl.imaging.prepare import blank as prepare_blank
from medmvl.imaging.spec import VisionSpec
from medmvl.processing.encoded import Media


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


def test_blank_keeps_the_file_and_says_that_nothing_of_it_is_shown() -> None:
    one = sample(0, "p")
    changed = blank(one)
    assert changed.media[0].blank and not one.media[0].blank
    assert changed.media_key == one.media_key and changed.messages[0].content[1:] == one.messages[0].content[1:]
    assert Sample.from_dict(changed.to_dict()) == changed


def test_a_blank_medium_has_the_frame_of_its_file_and_nothing_else_of_it(tmp_path: Path) -> None:
    picture, volume = tmp_path / "scan.png", tmp_path / "scan.nii.gz"
    PillowImage.fromarray(np.arange(48 * 64, dtype=np.uint8).reshape(48, 64)).save(picture)
    phantom.write(volume, "IAR")
    specs = {
        picture: VisionSpec(size=(8, 8), fit="pad"),
        volume: VisionSpec(size=(4, 6, 8), crop_foreground=0.2, resample="bilinear"),
    }
    for path, spec in specs.items():
        one = Media("t", str(path), 0, 1, str(path), "s", spec)
        other = replace(one, blank=True)
        assert np.array_equal(other.view.pixels, prepare_blank(spec)) and np.ptp(one.view.pixels) > 0
        assert np.array_equal(other.view.affine, one.view.affine) and other.view.file_size == one.view.file_size


def test_boxes_in_shares_are_the_same_however_a_volume_is_stored(tmp_path: Path) -> None:
    depth, height, width = phantom.SIZE
    expected = np.array(phantom.BOX) / np.tile([width, height, depth], 2)
    for orientation in phantom.ORIENTATIONS[::5]:
        path = phantom.write(tmp_path / f"{orientation}.nii.gz", orientation)
        box = phantom.box(sitk.GetArrayFromImage(phantom.image(orientation)))
        frame = body_frame(str(path))
        assert frame.shares(box) == pytest.approx(expected)
        assert frame.box(frame.shares(box)) == pytest.approx(box)


def test_a_box_in_a_question_moves_to_the_other_patients_frame(tmp_path: Path) -> None:
    samples, boxes = [], []
    for number, orientation in enumerate(("SPL", "IAR", "LPS")):
        path = phantom.write(tmp_path / f"{number}.nii.gz", orientation)
        boxes.append(phantom.box(sitk.GetArrayFromImage(phantom.image(orientation))))
        asked = [{"type": "volume", "path": str(path)}, {"type": "box", "box": 0}]
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": "block"}]
        meta = {"patient": str(number), "boxes": [{"coords": boxes[-1]}]}
        samples.append(Sample.from_dict({"id": str(number), "messages": turns, "meta": meta}))
    owner = {one.media_key: number for number, one in enumerate(samples)}
    for one, other in zip(samples, shuffle(samples), strict=True):
        assert other is not None and other.media_key != one.media_key
        assert other.meta.boxes[0].coords == pytest.approx(boxes[owner[other.media_key]])


def test_a_question_alone_has_no_media_no_boxes_and_no_answer() -> None:
    turns = [("user", [{"type": "image", "path": "a.png"}]), ("assistant", "a brain"), ("system", "Be brief.")]
    turns.append(
        (
            "user",
            [{"type": "text", "text": "Where "}, {"type": "volume", "path": "b.nii"}, {"type": "text", "text": "?"}],
        )
    )
    turns.append(("assistant", [{"type": "box", "box": 0}]))
    meta = {"patient": "p", "boxes": [{"coords": [0, 0, 0, 1, 1, 1], "media": 1}], "choices": ["x"]}
    messages = [{"role": role, "content": content} for role, content in turns]
    one = Sample.from_dict({"id": "s", "messages": messages, "meta": meta})
    alone = question_only(one)
    assert isinstance(alone, Sample)
    assert (alone.media, alone.meta.boxes, alone.meta.choices, alone.patient) == ((), (), ("x",), "p")
    told = [(m.role, "".join(part.text for part in m.content)) for m in alone.messages]
    assert told == [("user", ""), ("assistant", "a brain"), ("system", "Be brief."), ("user", "Where ?")]
    assert Sample.from_dict(alone.to_dict()) == alone
    assert question_only(alone) == alone
    assert len(one.media) == 2 and len(one.messages) == 5


def test_questions_that_only_a_picture_explains_are_not_asked_alone() -> None:
    picture, box = {"type": "image", "path": "a.png"}, {"type": "box", "box": 0}
    for content, reason in (
        ([picture, {"type": "text", "text": " "}], "nothing in words"),
        ([picture, box], "a box in it"),
    ):
        turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "x"}]
        found = question_only(
            Sample.from_dict({"id": "s", "messages": turns, "meta": {"boxes": [{"coords": [0, 0, 1, 1]}]}})
        )
        assert isinstance(found, NotAsked) and reason in found.reason
