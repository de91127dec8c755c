"""The contract of chat templates, over every shipped one and every well-known format, on tokenizers of each kind."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_families import FAMILIES, tokenizer_of
from medmvl.core import shipped
from medmvl.core.schema import Sample, SampleError
from medmvl.imaging.spec import VisionSpec
from medmvl.processing.encoded import IGNORE, Encoded
from medmvl.processing.processor import Processor, TowerInput
from medmvl.processing.template import Template
from medmvl.processing.text import control_tokens

TOWERS = {"image": TowerInput("<image>", "image", 3, VisionSpec(size=(16, 16)))}
SHIPPED = shipped.names("processing/templates", ".jinja")
KINDS = ("chatml", "inst_legacy", "inst_metaspace", "gemma")  # one family per kind of tokenizer
CASES = [(name, None) for name in FAMILIES] + [(name, template) for name in KINDS for template in SHIPPED]
CONTROLS = sorted({text for family in FAMILIES.values() for text in family.specials} | {"<image>", "<unk>"})

# "▁" is a space to sentencepiece tokenizers, which no encoding can tell apart.
words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), min_size=1, max_size=12)
says = (
    st.lists(
        st.one_of(words, st.sampled_from(CONTROLS), st.sampled_from(["\n", " No.", "\U00100001", "\U0010fffe1"])),
        min_size=1,
        max_size=6,
    )
    .map("".join)
    .filter(str.strip)
)

_processors: dict[tuple[str, str | None], Processor] = {}


def processor_of(case: tuple[str, str | None]) -> Processor:
    if case not in _processors:
        name, template = case
        _processors[case] = Processor(tokenizer_of(name), template, TOWERS)
    return _processors[case]


def conversation(turns: list[tuple[str, str]], image: bool = True) -> Sample:
    messages = []
    for question, answer in turns:
        content = [{"type": "text", "text": question}]
        if image and not messages:
            content.insert(0, {"type": "image", "path": "unread.png"})
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return Sample.model_validate({"id": "s", "messages": messages})


def learned(encoded: Encoded) -> list[list[int]]:
    """Return the runs of supervised tokens, one per answer."""
    runs: list[list[int]] = []
    for branch in encoded.branches:
        marks = [*(branch.labels != IGNORE), False]
        edges = [i for i, (a, b) in enumerate(pairwise([False, *marks])) if a != b]
        runs += [branch.ids[a:b].tolist() for a, b in zip(edges[::2], edges[1::2], strict=True)]
    return runs


@pytest.mark.parametrize("case", CASES, ids=str)
@settings(max_examples=25)
@given(turns=st.lists(st.tuples(says, says), min_size=1, max_size=3))
def test_supervised_tokens_are_the_answers_and_their_end_mark(
    case: tuple[str, str | None], turns: list[tuple[str, str]]
) -> None:
    processor = processor_of(case)
    encoded = processor.encode(conversation(turns))
    end = processor.template.end_mark
    answers = [answer for _, answer in turns]
    if end is None:  # nothing separates the answers of the open-ended template
        assert [processor.decode(run) for run in learned(encoded)][:1] == ["".join(a.strip() for a in answers).strip()]
        return
    runs = [run for joined in learned(encoded) for run in _split(joined, end)]
    assert [processor.decode(run) for run in runs] == [answer.strip() for answer in answers]
    assert all(run[-1] == end for run in runs)


def _split(run: list[int], end: int) -> list[list[int]]:
    """Split supervised tokens behind each end mark: the plain template writes nothing between answers."""
    cuts = [0, *(i + 1 for i, token in enumerate(run) if token == end)]
    assert cuts[-1] == len(run)
    return [run[a:b] for a, b in pairwise(cuts)]


@pytest.mark.parametrize("case", CASES, ids=str)
@settings(max_examples=15)
@given(turns=st.lists(st.tuples(says, says), min_size=1, max_size=3))
def test_prompt_is_the_unsupervised_prefix(case: tuple[str, str | None], turns: list[tuple[str, str]]) -> None:
    processor = processor_of(case)
    sample = conversation(turns)
    encoded = processor.encode(sample)
    for k in range(len(turns)):
        (prompt,) = processor.prompt(conversation(turns[: k + 1])).branches
        branch = encoded.branches[k if len(encoded.branches) > 1 else 0]
        asked = len(prompt.ids)
        assert branch.ids[:asked].tolist() == prompt.ids.tolist()
        assert (prompt.labels == IGNORE).all()
        assert branch.labels[asked] == branch.ids[asked] != IGNORE


@pytest.mark.parametrize("case", CASES, ids=str)
@settings(max_examples=25)
@given(turns=st.lists(st.tuples(says, says), min_size=1, max_size=2))
def test_nothing_said_becomes_a_control_token(case: tuple[str, str | None], turns: list[tuple[str, str]]) -> None:
    processor = processor_of(case)
    controls = control_tokens(processor.tokenizer).keys() | set(processor.placeholder_ids.values())
    harmless = [("question", "answer")] * len(turns)
    for said, plain in zip(
        processor.encode(conversation(turns)).branches, processor.encode(conversation(harmless)).branches, strict=True
    ):
        assert [i for i in said.ids.tolist() if i in controls] == [i for i in plain.ids.tolist() if i in controls]


@pytest.mark.parametrize("name", FAMILIES)
def test_one_branch_unless_past_answers_are_rewritten(name: str) -> None:
    encoded = processor_of((name, None)).encode(conversation([("a?", "b"), ("c?", "d"), ("e?", "f")]))
    assert len(encoded.branches) == (1 if FAMILIES[name].stable else 3)
    assert len(learned(encoded)) == 3


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("alpaca", "reasoning")])
@settings(max_examples=20)
@given(
    question=st.text("abc ISn.\n?", min_size=1, max_size=30).filter(str.strip), answer=st.sampled_from(["No.", "a b"])
)
def test_ids_are_those_of_transformers_on_harmless_text(name: str, question: str, answer: str) -> None:
    """Cutting at control tokens and answers changes no id that the tokenizer itself gives the whole text."""
    processor = processor_of((name, None))
    (branch,) = processor.encode(conversation([(question, answer)], image=False)).branches
    chat = [{"role": "user", "content": question.strip()}, {"role": "assistant", "content": answer}]
    text = processor.tokenizer.apply_chat_template(chat, tokenize=False, enable_thinking=False)
    whole = processor.tokenizer(text, add_special_tokens=False).input_ids
    assert whole[: len(branch.ids)] == branch.ids.tolist()


@pytest.mark.parametrize("name", FAMILIES)
def test_system_message_is_shown_or_refused_by_name(name: str) -> None:
    processor = processor_of((name, None))
    sample = conversation([("q?", "a")])
    system = {"role": "system", "content": "Speak briefly."}
    sample = Sample.model_validate({"id": "mine", "messages": [system, *sample.messages]})
    if FAMILIES[name].system:
        (branch,) = processor.encode(sample).branches
        assert "Speak briefly." in processor.tokenizer.decode(branch.ids)
    else:
        with pytest.raises(SampleError, match=r"'mine'.*refuses messages.*system, user, assistant"):
            processor.encode(sample)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bos_is_there_as_the_template_says_and_once(case: tuple[str, str | None]) -> None:
    name, template = case
    processor = processor_of(case)
    ids = processor.encode(conversation([("q?", "a")])).branches[0].ids.tolist()
    bos = processor.tokenizer.bos_token_id
    wanted = template is None and "bos_token" in FAMILIES[name].template
    assert ids.count(bos) == int(wanted)
    assert ids[0] == bos or not wanted


@pytest.mark.parametrize("name", ["inst_legacy", "chatml"])
@pytest.mark.parametrize("template", SHIPPED)
def test_shipped_templates_begin_with_bos_where_the_tokenizer_does(name: str, template: str) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tokenizer_of(name)
    bos = FAMILIES[name].specials[0]
    tokenizer.bos_token = bos
    number = tokenizer.convert_tokens_to_ids(bos)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, number)])
    ids = Processor(tokenizer, template, TOWERS).encode(conversation([("q?", "a")])).branches[0].ids.tolist()
    assert ids[0] == number
    assert ids.count(number) == 1


def test_shipped_templates_load_on_every_kind_of_tokenizer() -> None:
    assert {"vicuna", "plain", "pretrain"} <= set(SHIPPED)
    for kind in KINDS:
        tokenizer = tokenizer_of(kind)
        for name in SHIPPED:
            end = Template.load(name, tokenizer).end_mark
            assert end == (None if name == "pretrain" else tokenizer.eos_token_id)
