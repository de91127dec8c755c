"""What a tower that reads the question is given: the user's turn, never an answer, and each volume once."""

import numpy as np
import pytest
import torch

import tiny_dual
from chat_families import tokenizer_of
from medmvl.core.schema import Sample
from medmvl.imaging.spec import VisionSpec
from medmvl.processing import encoded as encoded_module
from medmvl.processing.collate import collate
from medmvl.processing.encoded import Encoded
from medmvl.processing.pack import Row, alone, shared
from medmvl.processing.processor import Processor, TowerInput
from medmvl.processing.question import QuestionEncoder

BERT = tiny_dual.bert_tokenizer()
QUESTIONS = QuestionEncoder(BERT, 20)
TOWERS = {
    "image": TowerInput("<image>", "image", 3, VisionSpec(size=(4, 4))),
    "volume": TowerInput("<image3d>", "volume", 5, VisionSpec(size=(4, 8, 8)), QUESTIONS),
}


def processor(family: str = "chatml", **options) -> Processor:
    return Processor(tokenizer_of(family), None, TOWERS, **options)


def talk(*turns: tuple[tuple[str, ...] | str, ...], name: str = "s") -> Sample:
    """Return a sample of (what the user's message holds, answer or None) turns; names with a dot are files."""
    messages = []
    for said, answer in turns:
        content = []
        for part in said:
            if "." in part:
                content.append({"type": "image" if part.endswith("png") else "volume", "path": part})
            else:
                content.append({"type": "text", "text": part})
        messages.append({"role": "user", "content": content})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
    return Sample.model_validate({"id": name, "messages": messages})


def read(encoded: Encoded) -> list[str | None]:
    """Return the question of each medium as text without spaces and marks."""
    tokens = [medium.question and BERT.convert_ids_to_tokens(medium.question)[1:-1] for medium in encoded.media]
    return [None if one is None else "".join(one).replace("##", "") for one in tokens]


def test_ids_are_those_of_the_tokenizer_but_text_is_never_a_mark() -> None:
    for said in ("Where is the lesion?", "", "which  side\n how"):
        assert list(QUESTIONS.encode(said)) == BERT(said).input_ids
    assert BERT.sep_token_id not in QUESTIONS.encode("where [SEP] is")[1:-1]
    long = QUESTIONS.encode("where is " * 30)
    assert len(long) == 20 and (long[0], long[-1]) == (BERT.cls_token_id, BERT.sep_token_id)


def test_the_question_is_what_users_say_in_the_turn_that_shows_the_medium() -> None:
    subject = processor()
    first = (("a.nii", "where is it?"), "on the left")
    later = (("b.nii", "which", "c.png", "side?"), "right")
    whole = subject.encode(talk(first, (("why?",), "so"), later))
    assert read(whole) == ["whereisit?", "whichside?", None]
    assert read(subject.prompt(talk(first, (("why?",), None)))) == ["whereisit?"]
    assert read(subject.encode(talk((("a.nii",), None), (("where is it?",), "left")))) == ["whereisit?"]
    assert read(subject.encode(talk((("a.nii",), "what do you want to know?"), (("which side?",), "left")))) == [""]
    system = Sample.model_validate(
        {"id": "s", "messages": [{"role": "system", "content": "why?"}, *talk(first).model_dump()["messages"]]}
    )
    assert read(subject.encode(system)) == ["whereisit?"]


@pytest.mark.parametrize("family", ["chatml", "chatml_think"])
def test_no_answer_reaches_a_question_and_prompts_ask_as_training_does(family: str) -> None:
    subject = processor(family)
    turns = [(("a.nii", "where is it?"), "left"), (("b.nii", "why?"), "so"), (("which side?",), "right")]
    whole = subject.encode(talk(*turns))
    other = subject.encode(talk(*((said, "the lesion is large") for said, _ in turns)))
    assert [m.question for m in whole.media] == [m.question for m in other.media]
    for count in range(1, 4):
        asked = subject.prompt(talk(*turns[:count]))
        assert [m.question for m in asked.media] == [m.question for m in whole.media][: len(asked.media)]
        assert asked.branches[0].num_media == len(asked.media)


def test_a_shortened_question_is_read_as_it_stands() -> None:
    subject = processor(max_tokens=60, shorten="text")
    found = subject.encode(talk((("a.nii", "where is the lesion? " * 30), "left")))
    kept = subject.tokenizer.decode(found.branches[0].ids).replace(" ", "")
    (question,) = read(found)
    assert found.shortened and question.startswith("whereisthelesion?") and f"{question}<" in kept


def test_only_equal_questions_about_a_volume_share_its_tokens() -> None:
    subject, pool = processor(), {}
    samples = [("where is it?", "left"), ("which side?", "left"), ("where is it?", "right")]
    found = [
        subject.encode(talk((("a.nii", said), answer), name=str(number)), pool=pool)
        for number, (said, answer) in enumerate(samples)
    ]
    assert [group.sample_ids for group in shared(found)] == [("0", "2"), ("1",)]
    pictures = [
        subject.encode(talk((("a.png", said), a), name=str(n)), pool=pool) for n, (said, a) in enumerate(samples)
    ]
    assert [group.sample_ids for group in shared(pictures)] == [("0", "1", "2")]


def test_a_volume_is_read_and_stacked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    view = encoded_module.View(np.zeros((1, 4, 8, 8), np.float32), np.eye(4)[:3], (4, 8, 8))
    monkeypatch.setattr(encoded_module.Media, "_volume", lambda self: (reads.append(self.path), view)[1])
    subject, pool = processor(), {}
    asked = [("a.nii", "where is it?"), ("b.nii", "where is the lesion?"), ("a.nii", "which side?"), ("a.nii", "why?")]
    found = [subject.encode(talk((one, "left"), name=str(number)), pool=pool) for number, one in enumerate(asked)]
    batch = collate(Row(tuple(alone(found)))).to("cpu")
    assert reads == ["a.nii", "b.nii"]
    assert batch.pixels["volume"].shape == (2, 1, 4, 8, 8)
    assert len(batch.media_positions["volume"]) == 4 * 5
    questions = batch.model_inputs()["questions"]["volume"]
    assert questions["source"].tolist() == [0, 1, 0, 0]
    for line, (_, said) in enumerate(asked):
        ids = BERT(said).input_ids
        assert questions["question"][line, : len(ids)].tolist() == ids
        assert questions["mask"][line].tolist() == [1] * len(ids) + [0] * (questions["mask"].shape[1] - len(ids))


def test_towers_without_text_carry_none() -> None:
    found = processor().encode(talk((("a.png", "where?"), "left")))
    batch = collate(Row(tuple(alone([found]))), lambda media: np.zeros((3, 4, 4), np.float32))
    assert found.media[0].question is None and batch.questions == {}
    assert batch.pixels["image"].dtype == torch.float32


def test_save_and_load(tmp_path) -> None:
    processor(max_tokens=77).save(tmp_path)
    again = Processor.load(tmp_path)
    assert again.towers["image"].questions is None
    sample = talk((("a.nii", "Where [SEP] is it?"), "left"))
    assert again.encode(sample).media[0].question == processor().encode(sample).media[0].question
    assert len(again.towers["volume"].questions.encode("where " * 50)) == 20


def test_a_tokenizer_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"puts no mark, such as \[CLS\], around a text"):
        QuestionEncoder(tokenizer_of("chatml"), 20)
    assert len(QUESTIONS.encode("")) == 2
