"""The task's words around a question, and answered examples before it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

import medmvl
from chat_families import tokenizer_of
from medmvl.core.schema import BoxRef, Image, Sample, SampleError
from medmvl.eval.answers import parse
from medmvl.eval.controls import NotAsked, blank, question_only
from medmvl.eval.shots import box_medium, with_shots, worded


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def image(path: object) -> dict[str, Any]:
    return {"type": "image", "path": str(path)}


BOX = {"type": "box", "box": 0}


def sample(
    name: str,
    asked: Sequence[dict[str, Any]],
    answer: Any = "yes",
    *,
    system: str = "",
    task: str = "set/side",
    **meta: Any,
) -> Sample:
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": list(asked)})
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    return Sample.from_dict({"id": name, "messages": messages, "task": task, "meta": meta})


def shown(one: Sample) -> str:
    """Return a conversation as one line, media by their paths, boxes by their coordinates."""

    def said(part: Any) -> str:
        if part.type == "text":
            return part.text
        return f"<{part.path}>" if isinstance(part, Image) else str([int(c) for c in one.meta.boxes[part.box].coords])

    return " | ".join(f"{m.role[0]}: " + "".join(map(said, m.content)) for m in one.messages)


# The task's words


@pytest.mark.parametrize(
    ("asked", "template", "expected"),
    [
        ([image("a"), text("\nIs it? ")], "{question}", "u: <a>\nIs it? "),
        ([image("a"), text("\nIs it? ")], "{question} One word.", "u: <a>Is it? One word."),
        ([image("a"), image("b"), text("Same?")], "Look. {question}", "u: <a><b>Look. Same?"),
        (
            [text("Left:"), image("a"), text("right"), image("b"), text("?")],
            "Q: {question} A:",
            "u: Q: Left:<a>right<b>? A:",
        ),
        ([image("a"), text("Name "), BOX, text(".")], "Q: {question} A:", "u: <a>Q: Name [1, 2, 3, 4]. A:"),
        ([image("a"), BOX], "What is {question}?", "u: <a>What is [1, 2, 3, 4]?"),
        ([image("a")], "Describe it. {question}", "u: <a>Describe it. "),
        ([text("What is {x}?")], "{question} {y}", "u: What is {x}? {y}"),
    ],
)
def test_a_template_goes_around_the_question(asked: list[dict[str, Any]], template: str, expected: str) -> None:
    boxes = [{"coords": [1, 2, 3, 4]}] if any(part["type"] == "image" for part in asked) else []
    one = sample("s", asked, boxes=boxes)
    changed = worded(one, template)
    assert shown(changed) == f"{expected} | a: yes"
    assert Sample.from_dict(changed.to_dict()) == changed
    assert changed.messages[0].content == tuple(part for part in changed.messages[0].content if part != text(""))
    assert shown(worded(one.prompt(), template)) == expected


def test_only_the_last_question_is_worded() -> None:
    turns = [{"role": role, "content": words} for role, words in zip(("user", "assistant") * 2, "abcd", strict=True)]
    assert (
        shown(worded(Sample.from_dict({"id": "s", "messages": turns}), "({question})")) == "u: a | a: b | u: (c) | a: d"
    )


def test_templates_and_samples_that_make_no_question_are_refused() -> None:
    for template in ("Say yes.", "{question} {question}"):
        with pytest.raises(ValueError, match="once"):
            worded(sample("s", [text("q")]), template)
    with pytest.raises(SampleError, match="no user asks"):
        worded(Sample.from_dict({"id": "s", "messages": [{"role": "system", "content": "x"}]}), "{question}!")


# Answered examples


def training(count: int = 6, **meta: Any) -> list[Sample]:
    return [
        sample(f"t{n}", [image(f"t{n}.png"), text("Side?")], "left", system="Be brief.", patient=f"p{n}", **meta)
        for n in range(count)
    ]


def test_examples_are_turns_before_the_question_the_same_for_all() -> None:
    asked = [
        sample(f"s{n}", [image(f"s{n}.png"), text("Left?")], "no", system="Be kind.", patient=f"q{n}") for n in range(9)
    ]
    found = with_shots([one.prompt() for one in asked], training(), 2, seed=3, template="Q: {question}")
    openings = {one.messages[:5] for one in found}
    assert len(openings) == 1
    (opening,) = openings
    assert [message.role for message in opening] == ["system", "user", "assistant", "user", "assistant"]
    assert opening[0].content[0].text == "Be kind."
    assert shown(found[7]).endswith("Q: Side? | a: left | u: <s7.png>Left?")
    assert found[7].media[-1] == asked[7].media[0] and len(found[7].media) == 3
    assert all(Sample.from_dict(one.to_dict()) == one for one in found)
    assert with_shots(asked, training(), 2, seed=3)[0].answer == "no"


def test_a_seed_fixes_the_examples_whatever_order_they_come_in() -> None:
    asked = [sample("s", [image("s.png"), text("Left?")], patient="q")]
    keys = [with_shots(asked, training(20), 4, seed)[0].media_key for seed in range(5)]
    assert with_shots(asked, training(20)[::-1], 4, seed=2)[0].media_key == keys[2]
    assert len(set(keys)) == 5
    assert with_shots(asked, training(20), 3, seed=2)[0].media_key[:3] == keys[2][:3]
    assert with_shots(asked, [], 0) == asked


@pytest.mark.parametrize("shared", ["patient", "study", "file"])
def test_never_the_same_patient_study_or_file(shared: str) -> None:
    pool = []
    for n in range(8):
        path = f"{n // 2 if shared == 'file' else n}.png"
        meta = {} if shared == "file" else {shared: f"x{n // 2}"}
        pool.append(sample(f"t{n}", [image(path), text("?")], **meta))
    for number, one in enumerate(pool):
        own = pool[number - number % 2 : number - number % 2 + 2]
        (found,) = with_shots([one], pool, 6)
        others = found.media_key[:-1]
        assert len(others) == 6
        assert not {medium for other in own for medium in other.media_key} & set(others)
        with pytest.raises(ValueError, match=rf"'{one.id}' wants 7 .* there are 6 \(8 about any patient\)"):
            with_shots([one], pool, 7)


def test_many_patients_go_before_many_examples_of_one() -> None:
    pool = [sample(f"t{n}", [image(f"{n}.png"), text("?")], patient="big" if n < 30 else f"p{n}") for n in range(33)]
    for seed in range(5):
        (found,) = with_shots([sample("s", [image("s.png"), text("?")], patient="q")], pool, 4, seed)
        assert len({path for path in found.media_key if int(path[:-4] if path[0] != "s" else 99) < 30}) == 1


def test_only_answered_samples_of_the_same_task_are_examples() -> None:
    asked = [sample("s", [image("s.png"), text("?")], patient="q")]
    others = [
        sample("a", [image("a.png"), text("?")], None),
        sample("b", [image("b.png"), text("?")], "  "),
        sample("c", [image("c.png"), text("?")], task="set/other"),
    ]
    with pytest.raises(ValueError, match=r"wants 1 answered examples of 'set/side' .* there are 0 .*fewer shots"):
        with_shots(asked, others, 1)


def test_a_control_changes_the_question_and_no_example() -> None:
    pool = [sample(f"t{n}", [image(f"t{n}.png"), text("?")], study=f"e{n}") for n in range(4)]
    own = sample("s", [image("t1.png"), text("?")], study="")
    (real,) = with_shots([own], pool, 3)
    for changed in (blank(own), question_only(own)):
        assert isinstance(changed, Sample)
        (found,) = with_shots([changed], pool, 3, originals=[own])
        assert found.messages[:6] == real.messages[:6]
    assert "t1.png" not in real.media_key[:-1]


def test_boxes_of_examples_and_of_the_question_keep_their_media() -> None:
    def boxed(name: str, corner: int, **meta: Any) -> Sample:
        boxes = [{"coords": [0, 0, 9, 9], "media": 0}, {"coords": [corner, 0, 9, 9], "media": 1}]
        asked = [image(f"{name}1"), image(f"{name}2"), text("Near "), BOX, text("?")]
        return sample(name, asked, [{"type": "box", "box": 1}], patient=name, boxes=boxes, **meta)

    own = boxed("s", 5)
    (found,) = with_shots([own], [boxed("t", 3), boxed("u", 4)], 2)
    assert Sample.from_dict(found.to_dict()) == found
    lines = shown(found).split(" | ")
    assert sorted(lines[:4]) == [
        "a: [3, 0, 9, 9]", "a: [4, 0, 9, 9]", "u: <t1><t2>Near [0, 0, 9, 9]?", "u: <u1><u2>Near [0, 0, 9, 9]?",
    ]  # fmt: skip
    assert lines[4:] == ["u: <s1><s2>Near [0, 0, 9, 9]?", "a: [5, 0, 9, 9]"]
    media = [
        found.media[found.meta.boxes[part.box].media].path
        for m in found.messages
        for part in m.content
        if isinstance(part, BoxRef)
    ]
    assert [path[-1] for path in media] == list("12" * 3) and media[-2:] == ["s1", "s2"]
    assert (box_medium(own), box_medium(own, found), box_medium(own, found.prompt())) == (1, 5, 5)
    assert box_medium(sample("s", [image("a"), text("?")])) == 0


# A real, tiny bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> medmvl.Bundle:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bundle")
    tokenizer_of("chatml").save_pretrained(folder)
    width = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    llm = {"model_type": "qwen2", "vocab_size": 512, "num_key_value_heads": 1, **width}
    encoder = {"model_type": "siglip_vision_model", "image_size": 64, "patch_size": 32, **width}
    tower = {"encoder": {"architecture": encoder}, "connector": "linear"}
    return medmvl.Bundle.build({"llm": {"architecture": llm, "tokenizer": str(folder)}, "towers": {"image": tower}})


@pytest.fixture
def boxed(tmp_path: Path) -> list[Sample]:
    """Samples about pictures of different sizes, each with a box to find; the last one to be asked."""
    found = []
    for number in range(4):
        path, width = tmp_path / f"{number}.png", 80 + 40 * number
        values = np.random.default_rng(number).integers(0, 255, (60, width), np.uint8)
        PillowImage.fromarray(values).save(path)
        box = {"coords": [width / 4, 15, width / 2, 30]}
        found.append(sample(f"s{number}", [image(path), text("Find it.")], [BOX], patient=f"p{number}", boxes=[box]))
    return found


def test_a_bundle_sees_examples_and_question_in_order_and_reads_boxes_in_the_own_frame(
    bundle: medmvl.Bundle, boxed: list[Sample]
) -> None:
    *pool, own = boxed
    template = "{question} Answer with a box."
    (prompt,) = with_shots([worded(own.prompt(), template)], pool, 2, seed=1, template=template)
    encoded = bundle.processor.prompt(prompt)
    assert [medium.path for medium in encoded.media] == [*prompt.media_key[:2], str(own.media[0].path)]
    (branch,) = encoded.branches
    read = bundle.processor.tokenizer.decode(branch.ids, skip_special_tokens=False)
    assert read.count("[25, 25, 50, 50]") == 2, "every example's box is written in its own picture's frame"
    assert read.count("Find it. Answer with a box.") == 3
    places = [i for i, token in enumerate(branch.ids) if token == bundle.processor.placeholder_ids["image"]]
    tokens = bundle.processor.towers["image"].num_tokens
    assert len(places) == 3 * tokens

    # The answer's box lies on the question's own picture: the bare sample's, or the last one of the prompt.
    def reading(words: str, asked: Sample) -> Sequence[tuple[float, ...]]:
        return bundle.processor.boxes_from_text(words, asked)

    assert parse("box", "It is at [25, 25, 50, 50].", own, reading) == pytest.approx(own.meta.boxes[0].coords)
    behind = bundle.processor.boxes_from_text("[25, 25, 50, 50]", prompt, media=box_medium(own, prompt))
    assert behind[0] == pytest.approx(own.meta.boxes[0].coords)
    assert len(bundle.generate([prompt, own.prompt()], max_new_tokens=3, temperature=0.0)) == 2
    alone = [bundle.generate([one], max_new_tokens=3, temperature=0.0)[0] for one in (prompt, own.prompt())]
    assert bundle.generate([prompt, own.prompt()], max_new_tokens=3, temperature=0.0) == alone


def test_a_bundle_answers_questions_without_their_picture(bundle: medmvl.Bundle, boxed: list[Sample]) -> None:
    words = [question_only(one) for one in boxed]
    assert all(isinstance(one, Sample) and not one.media for one in words)
    answers = bundle.generate([one for one in words if isinstance(one, Sample)], max_new_tokens=3, temperature=0.0)
    assert len(answers) == len(boxed) and len(set(answers)) == 1, "the words are the same"
    assert not bundle.processor.prompt(words[0]).media
    assert np.isfinite(bundle.score_options(words[0], ["left", "right"])).all()
    named = sample("r", [image("a.png"), text("Name "), BOX], "lesion", boxes=[{"coords": [0, 0, 9, 9]}])
    assert isinstance(question_only(named), NotAsked)
