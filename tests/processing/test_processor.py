"""The processor: placeholders, boxes, lengths, errors that name sample and file, save and load."""

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from chat_families import tokenizer_of
from medmvl.core.boxes import BOX_FORMATS, BoxFormat
from medmvl.core.schema import Sample, SampleError
from medmvl.imaging.augment import Augmentation
from medmvl.imaging.spec import VisionSpec
from medmvl.processing import encoded as encoded_module
from medmvl.processing.encoded import IGNORE, Encoded, Media
from medmvl.processing.processor import Processor, TowerInput

SPEC = VisionSpec(size=(20, 40))
TOWERS = {
    "image": TowerInput("<image>", "image", 3, SPEC),
    "volume": TowerInput("<image3d>", "volume", 5, VisionSpec(size=(4, 8, 8))),
}


def processor(template: str | None = None, family: str = "chatml", **options: Any) -> Processor:
    return Processor(tokenizer_of(family), template, options.pop("towers", TOWERS), **options)


def sample(*turns: tuple[Any, Any], **fields: Any) -> Sample:
    """Return a sample; each turn is (question, answer), contents as in a canonical dict."""
    messages = [
        {"role": role, "content": content}
        for turn in turns
        for role, content in zip(("user", "assistant"), turn, strict=True)
        if content is not None
    ]
    return Sample.model_validate({"id": "mine", "messages": messages, **fields})


def image(path: str | Path = "unread.png") -> dict[str, str]:
    return {"type": "image", "path": str(path)}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def box(number: int = 0) -> dict[str, Any]:
    return {"type": "box", "box": number}


def answer_of(processor: Processor, encoded: Encoded) -> str:
    branch = encoded.branches[-1]
    return processor.decode(branch.ids[branch.labels != IGNORE])


def spelled(processor: Processor, encoded: Encoded) -> str:
    return processor.tokenizer.decode(encoded.branches[-1].ids)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture 80 wide and 60 high."""
    path = tmp_path / "picture.png"
    Image.fromarray(np.arange(60 * 80, dtype=np.uint8).reshape(60, 80)).save(path)
    return path


def test_placeholders_are_special_tokens_repeated_per_medium() -> None:
    subject = processor()
    size = len(subject.tokenizer)
    assert sorted(subject.placeholder_ids.values()) == [size - 2, size - 1]
    volume = {"type": "volume", "path": "v.nii.gz"}
    found = subject.encode(sample(([image(), text("first <image>?"), volume, image("b.png")], "yes")))
    ids = found.branches[0].ids.tolist()
    assert ids.count(subject.placeholder_ids["image"]) == 6
    assert ids.count(subject.placeholder_ids["volume"]) == 5
    assert [(m.tower, m.path, m.num_tokens) for m in found.media] == [
        ("image", "unread.png", 3),
        ("volume", "v.nii.gz", 5),
        ("image", "b.png", 3),
    ]
    assert "<image>first <image>?<image3d>" not in spelled(subject, found)
    assert "\nfirst <image>?<image3d>" in spelled(subject, found)


def test_a_placeholder_the_tokenizer_knows_is_taken_as_it_is() -> None:
    tokenizer = tokenizer_of("chatml")
    size = len(tokenizer)
    subject = Processor(tokenizer, None, {"image": TowerInput("<|endoftext|>", "image", 3, SPEC)})
    assert len(tokenizer) == size
    assert subject.placeholder_ids == {"image": tokenizer.convert_tokens_to_ids("<|endoftext|>")}


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        ([image(), text("Is it?")], "<image>\nIs it?<|im_end|>"),
        ([image(), text("\n\nIs it?")], "<image>\n\nIs it?<|im_end|>"),
        ([image(), text(" Is it?  ")], "<image> Is it?<|im_end|>"),
        ([text("  Is it? "), image()], "user\nIs it? <image><|im_end|>"),
        ([text("Left:"), image(), text("right"), text(" side")], "Left:<image>\nright side<|im_end|>"),
        ([image(), text("  ")], "user\n<image><|im_end|>"),
    ],
)
def test_one_line_break_between_media_and_text(content: list[dict[str, str]], shown: str) -> None:
    subject = processor()
    found = spelled(subject, subject.encode(sample((content, "yes"))))
    assert shown in found.replace("<image>" * 3, "<image>")


def test_an_empty_system_message_is_none() -> None:
    subject = processor()
    turn = ("q?", "a")
    empty = Sample.model_validate(
        {"id": "mine", "messages": [{"role": "system", "content": " "}, *sample(turn).messages]}
    )
    assert subject.encode(empty).branches[0].ids.tolist() == subject.encode(sample(turn)).branches[0].ids.tolist()


def test_stop_ids_are_the_end_mark_and_the_end_token() -> None:
    subject = processor(family="phi3", towers={})
    names = subject.tokenizer.convert_ids_to_tokens(list(subject.stop_ids))
    assert sorted(names) == ["<|endoftext|>", "<|end|>"]
    ids = subject.tokenizer("No.", add_special_tokens=False).input_ids
    assert subject.decode([*ids, *subject.stop_ids]) == "No."


# Boxes


def test_boxes_are_written_in_the_frame_the_encoder_sees(picture: Path) -> None:
    question = [image(picture), text("What is in "), box(0), text("?")]
    meta = {"boxes": [{"media": 0, "coords": [20, 15, 40, 45]}]}
    stretched = sample((question, [text("a box: "), box(0)]), meta=meta)
    subject = processor()
    found = subject.encode(stretched)
    assert answer_of(subject, found) == "a box: [25, 25, 50, 75]"
    assert "What is in [25, 25, 50, 75]?" in spelled(subject, found)
    # Padded to 80 x 80: ten rows above and below.
    padded = processor(towers={"image": TowerInput("<image>", "image", 3, VisionSpec(size=(40, 40), fit="pad"))})
    assert answer_of(padded, padded.encode(stretched)) == "a box: [25, 31, 50, 69]"
    # The middle 60 x 60 is left: ten columns off each side.
    crop = VisionSpec(size=(30, 30), fit="crop", edge=30)
    cropped = processor(towers={"image": TowerInput("<image>", "image", 3, crop)}, box_format=BoxFormat(1000))
    assert answer_of(cropped, cropped.encode(stretched)) == "a box: [167, 250, 500, 750]"


def test_predicted_boxes_come_back_in_the_frame_of_the_file(picture: Path) -> None:
    meta = {"boxes": [{"media": 0, "coords": [20, 15, 40, 45]}]}
    asked = sample(([image(picture), text("Where?")], [box(0)]), meta=meta)
    for fit in ("stretch", "pad", "crop"):
        spec = VisionSpec(size=(40, 40), fit=fit, edge=40 if fit == "crop" else None)
        subject = processor(towers={"image": TowerInput("<image>", "image", 3, spec)}, box_format=BoxFormat(1000))
        (found,) = subject.boxes_from_text(answer_of(subject, subject.encode(asked)), asked)
        assert found == pytest.approx((20, 15, 40, 45), abs=0.1)
        for corners in subject.boxes_from_text("[0, 0, 1000, 1000] and no box [1, 2]", asked):
            assert 0 <= corners[0] < corners[2] <= 80
            assert 0 <= corners[1] < corners[3] <= 60
    with pytest.raises(SampleError, match=r"'mine'.*has 1 media, number 1"):
        subject.boxes_from_text("[1, 2, 3, 4]", asked, media=1)


def test_boxes_follow_the_augmentation_and_the_pixels_do_too(tmp_path: Path) -> None:
    path = tmp_path / "square.png"
    pixels = np.zeros((100, 100), np.uint8)
    pixels[30:50, 20:60] = 255
    Image.fromarray(pixels).save(path)
    subject = processor(
        towers={"image": TowerInput("<image>", "image", 3, VisionSpec(size=(100, 100), mean=(0,) * 3, std=(1,) * 3))}
    )
    asked = sample(([image(path), text("Where?")], [box(0)]), meta={"boxes": [{"coords": [20, 30, 60, 50]}]})
    policy = Augmentation(scale=0.2, shift=0.1)
    answers = set()
    for seed in range(4):
        found = subject.encode(asked, policy, (seed, 0))
        (medium,) = found.media
        rows, columns = np.nonzero(medium.view.pixels[0] > 0.5)
        seen = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        written = [int(word) for word in answer_of(subject, found).strip("[]").split(", ")]
        assert written == pytest.approx(seen, abs=1.01)
        answers.add(tuple(written))
        again = subject.encode(asked, policy, (seed, 0))
        assert again.media[0].key == medium.key
        assert np.array_equal(again.media[0].view.pixels, medium.view.pixels)
    assert len(answers) > 1


def test_a_variation_that_moves_a_box_out_of_sight_is_left_out(picture: Path) -> None:
    subject = processor()
    corner = sample(([image(picture), text("Where?")], [box(0)]), meta={"boxes": [{"coords": [0, 0, 2, 2]}]})
    keys = {subject.encode(corner, Augmentation(shift=0.3), (seed,)).media[0].key for seed in range(20)}
    assert f"image:{picture}" in keys and len(keys) > 1


def test_a_box_the_encoder_does_not_see_is_refused(picture: Path) -> None:
    crop = VisionSpec(size=(30, 30), fit="crop", edge=30)
    subject = processor(towers={"image": TowerInput("<image>", "image", 3, crop)})
    outside = sample(([image(picture), text("Where?")], [box(0)]), meta={"boxes": [{"coords": [0, 0, 5, 60]}]})
    with pytest.raises(SampleError, match=r"'mine' \(.*picture\.png\): box 0 .* outside of what the encoder sees"):
        subject.encode(outside)


@pytest.mark.parametrize(
    ("coords", "said"),
    [
        ([20, 15, 84, 45], "reaches out of its file, which has 80 x 60 pixels (x, y); boxes are absolute, x first"),
        ([0, 40, 60, 80], "reaches out of its file"),  # y first
        ([90, 15, 120, 45], "lies outside of its file"),
    ],
)
def test_a_box_beyond_its_picture_is_refused(coords: list[int], said: str, picture: Path) -> None:
    wrong = sample(([image(picture), text("Where?")], [box(0)]), meta={"boxes": [{"coords": coords}]})
    with pytest.raises(SampleError, match=rf"'mine' \(.*picture\.png\): box 0 .*{re.escape(said)}"):
        processor().encode(wrong, Augmentation(shift=0.1), (0,))


def test_a_box_may_leave_its_picture_by_rounding(picture: Path) -> None:
    rounded = sample(([image(picture), text("Where?")], [box(0)]), meta={"boxes": [{"coords": [0, 0, 81, 60.9]}]})
    assert answer_of(processor(), processor().encode(rounded)) == "[0, 0, 100, 100]"


def test_a_box_beyond_its_volume_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scan.npy"
    np.save(path, np.arange(4 * 20 * 30, dtype=np.int16).reshape(4, 20, 30))
    shown = {"type": "volume", "path": f"{path}#unit=HU"}

    def encode(*coords: float) -> Encoded:
        meta = {"boxes": [{"coords": list(coords)}]}
        return processor().encode(sample(([shown, text("Where?")], [box(0)]), meta=meta))

    assert answer_of(processor(), encode(0, 0, 0, 30, 10, 5)) == "[0, 0, 0, 100, 50, 100]"
    with pytest.raises(
        SampleError, match=r"box 0 .* reaches out of its file, which has 30 x 20 x 4 voxels \(x, y, z\)"
    ):
        encode(0, 0, 0, 4, 20, 30)  # z first
    with pytest.raises(SampleError, match=r"box 0 .* lies outside of its file"):
        encode(1, 1, 7.5, 20, 20, 9)  # millimetres


# Files


def test_files_are_opened_late_and_once_per_pool(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    read = encoded_module.read_picture
    monkeypatch.setattr(encoded_module, "read_picture", lambda path: opened.append(path) or read(path))
    subject = processor()
    pool: dict[str, Media] = {}
    plain = [subject.encode(sample(([image(picture), text(q)], "a")), pool=pool) for q in "pqr"]
    assert not opened
    boxed = sample(([image(picture), text("Where?")], [box(0)]), meta={"boxes": [{"coords": [0, 0, 5, 60]}]})
    plain.append(subject.encode(boxed, pool=pool))
    assert len({id(found.media[0]) for found in plain}) == 1
    assert plain[0].media[0].view.pixels.shape == (3, 20, 40)
    assert opened == [str(picture)]


def test_a_volume_never_takes_the_place_of_a_picture() -> None:
    subject = processor()
    pool: dict[str, Media] = {}
    for tower in ("image", "volume", "image"):
        shown = subject.encode(sample(([image() | {"type": tower}, text("q")], "a")), pool=pool)
        assert shown.media[0].tower == tower
        placeholder = subject.placeholder_ids[tower]
        assert (shown.branches[0].ids == placeholder).sum() == TOWERS[tower].num_tokens


def test_missing_and_damaged_files_are_named_with_their_sample(picture: Path, tmp_path: Path) -> None:
    subject = processor()
    cut = tmp_path / "cut.png"
    cut.write_bytes(picture.read_bytes()[:100])
    for path in (tmp_path / "missing.png", cut):
        found = subject.encode(sample(([image(path), text("q")], "a")))
        with pytest.raises(SampleError) as caught:
            _ = found.media[0].view
        assert (caught.value.sample_id, caught.value.path) == ("mine", str(path))
        assert str(caught.value).count(str(path)) == 1


def test_media_need_their_tower() -> None:
    subject = processor(towers={"image": TOWERS["image"]})
    volume = sample(([{"type": "volume", "path": "v.nii.gz"}, text("q")], "a"))
    with pytest.raises(SampleError, match=r"'mine' \(v\.nii\.gz\).*one volume, but the model takes: image"):
        subject.encode(volume)
    with pytest.raises(SampleError, match="takes: text only"):
        processor(towers={}).prompt(volume)


# What is learned


def test_a_sample_must_end_with_an_answer_that_says_something() -> None:
    subject = processor("pretrain")
    with pytest.raises(SampleError, match=r"'mine'.*ends without an answer.*prompt\(\)"):
        subject.encode(sample(("q", "a"), ("q", None)))
    with pytest.raises(SampleError, match="answers are empty"):
        subject.encode(sample(([image(), text("q")], " ")))


def test_the_prompt_leaves_the_last_answer_out() -> None:
    subject = processor()
    whole = sample((text_only := "q?", "a"), ("r?", "b"))
    (asked,) = subject.prompt(whole).branches
    (branch,) = subject.encode(whole).branches
    assert branch.ids[: len(asked.ids)].tolist() == asked.ids.tolist()
    assert subject.prompt(sample((text_only, "a"), ("r?", None))).branches[0].ids.tolist() == asked.ids.tolist()
    with pytest.raises(SampleError, match="nothing to ask"):
        subject.prompt(sample((None, "a")))


def test_text_alone_is_learned_from_its_second_token() -> None:
    subject = processor("plain")
    (branch,) = subject.encode(sample((None, "Only text, read often."))).branches
    assert branch.labels[0] == IGNORE
    assert branch.labels[1:].tolist() == branch.ids[1:].tolist()


# Length


def test_a_sample_that_is_too_long_is_refused_with_its_length() -> None:
    long = sample(([image(), text("q")], "word " * 50))
    length = processor().encode(long).num_tokens
    assert processor(max_tokens=length).encode(long).num_tokens == length
    with pytest.raises(SampleError, match=rf"'mine': {length} tokens are more than max_tokens {length - 1}; raise"):
        processor(max_tokens=length - 1).encode(long)
    with pytest.raises(ValueError, match="shorten is 'text' or None, got 'image'"):
        processor(shorten="image")


@pytest.mark.parametrize("family", ["chatml", "gemma", "alpaca", "chatml_think"])
@pytest.mark.parametrize(("question", "answer"), [("q", "word " * 60), ("word " * 60, "a"), ("wo " * 60, "rd " * 70)])
def test_shortening_cuts_text_only(family: str, question: str, answer: str) -> None:
    whole = processor(family=family)
    long = sample(([image(), text(question), image("b.png")], answer))
    floor = whole.encode(sample(([image(), text(question[0]), image("b.png")], answer[0]))).num_tokens
    for limit in (floor + 2, floor + 20, floor + 60):
        subject = processor(family=family, max_tokens=limit, shorten="text")
        found = subject.encode(long)
        assert limit - 8 <= found.num_tokens <= limit
        assert found.shortened > 0
        (branch,) = found.branches
        assert (branch.ids == subject.placeholder_ids["image"]).sum() == 6
        assert branch.labels[branch.labels != IGNORE][-1] == subject.template.end_mark
        assert answer.startswith(answer_of(subject, found))
        assert answer_of(subject, found)
    with pytest.raises(SampleError, match="'mine': even with its last texts cut off"):
        processor(family=family, max_tokens=8, shorten="text").encode(long)
    assert (
        processor(family=family, max_tokens=whole.encode(long).num_tokens, shorten="text").encode(long).shortened == 0
    )


def test_a_prompt_is_shortened_in_its_last_question() -> None:
    subject = processor(max_tokens=60, shorten="text")
    found = subject.prompt(sample(([image(), text("word " * 80)], "a")))
    assert 55 <= found.num_tokens <= 60
    assert spelled(subject, found).endswith("<|im_end|>\n<|im_start|>assistant\n")


# On disk, in workers


@pytest.mark.parametrize("family", ["chatml", "inst_legacy", "inst_metaspace", "gemma", "phi3", "llama3"])
@pytest.mark.parametrize("template", [None, "vicuna", "pretrain"])
def test_load_gives_what_was_saved(family: str, template: str | None, tmp_path: Path) -> None:
    subject = processor(template, family, max_tokens=777, shorten="text", box_format=BoxFormat(1000))
    subject.save(tmp_path)
    again = Processor.load(tmp_path)
    travelled = pickle.loads(pickle.dumps(subject))
    talk = sample(([image(), text("Is <image> </s> bright?")], "  12 mm <eos>"), ("So?", "[1, 2]"))
    for other in (again, travelled):
        assert [b.ids.tolist() for b in other.encode(talk).branches] == [
            b.ids.tolist() for b in subject.encode(talk).branches
        ]
        assert other.towers == subject.towers
        assert other.stop_ids == subject.stop_ids
        assert (other.max_tokens, other.shorten, other.box_format) == (777, "text", BoxFormat(1000))
        assert other.template.name == subject.template.name


def test_folders_of_former_versions_keep_their_scale_of_boxes(tmp_path: Path) -> None:
    processor().save(tmp_path)
    state = json.loads((tmp_path / "processor.json").read_text())
    del state["boxes"]
    (tmp_path / "processor.json").write_text(json.dumps({**state, "box_scale": 1000}))
    assert Processor.load(tmp_path).box_format == BoxFormat(1000)


@pytest.mark.parametrize("name", BOX_FORMATS)
def test_boxes_are_written_and_read_in_every_format(name: str, picture: Path, tmp_path: Path) -> None:
    meta = {"boxes": [{"media": 0, "coords": [20, 15, 40, 45]}]}
    asked = sample(([image(picture), text("Where?")], [text("Here: "), box(0)]), meta=meta)
    spec = VisionSpec(size=(40, 40), fit="stretch")
    subject = processor(towers={"image": TowerInput("<image>", "image", 3, spec)}, box_format=BOX_FORMATS[name])
    subject.save(tmp_path)
    again = Processor.load(tmp_path)
    assert again.box_format == BOX_FORMATS[name]
    answer = answer_of(again, again.encode(asked))
    (found,) = again.boxes_from_text(answer, asked)
    assert found == pytest.approx((20, 15, 40, 45), abs=0.8)
    assert answer == f"Here: {BOX_FORMATS[name].format_box((10, 10, 20, 30), (40, 40))}"


def test_a_folder_without_processor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no processor folder: processor\.json is missing"):
        Processor.load(tmp_path)


@pytest.mark.parametrize(
    ("towers", "message"),
    [
        ({"a": TOWERS["image"], "b": TowerInput("<b>", "image", 3, SPEC)}, "towers a, b: two of them take the same"),
        ({"a": TOWERS["image"], "b": TowerInput("<image>", "volume", 3, SPEC)}, "two towers share a placeholder"),
        ({"a": TowerInput("<|im_end|>", "image", 3, SPEC)}, r"'<\|im_end\|>' of tower 'a' already begins or ends"),
    ],
)
def test_towers_must_be_told_apart(towers: dict[str, TowerInput], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        processor(towers=towers)
