"""Text never becomes control tokens, whatever the tokenizer's kind and habits."""

import pickle

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from chat_families import FAMILIES, tokenizer_of
from medmvl.processing.text import TextEncoder, control_tokens


def word_level(unknown: str, eos: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows three words."""
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "yes": 2, "no": 3}, unk_token=unknown))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, unk_token=unknown)


@pytest.mark.parametrize("name", FAMILIES)
def test_spelled_out_control_tokens_come_back_as_text(name: str) -> None:
    tokenizer = tokenizer_of(name)
    encoder = TextEncoder(tokenizer)
    text = "a " + " ".join(FAMILIES[name].specials) + "".join(FAMILIES[name].specials)
    for place in ("start", "segment", "continuation"):
        ids = encoder.encode(text, place)
        assert not control_tokens(tokenizer).keys() & set(ids)
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text


def test_a_word_vocabulary_hides_its_control_tokens() -> None:
    encoder = TextEncoder(word_level("<unk>", "</s>"))
    assert encoder.encode("yes </s> no", "start") == [2, 0, 3]


def test_an_unknown_token_that_ends_texts_is_refused() -> None:
    encoder = TextEncoder(word_level("</s>", "</s>"))
    assert encoder.encode("yes no", "start") == [2, 3]
    with pytest.raises(ValueError, match=r"into control tokens .*: 'yes maybe'"):
        encoder.encode("yes maybe", "start")


def test_runs_of_whitespace_are_text_although_added() -> None:
    tokenizer = tokenizer_of("chatml")
    tokenizer.add_tokens(["\n\n", "▁▁", "<table>"])
    encoder = TextEncoder(tokenizer)
    blank, table = tokenizer.convert_tokens_to_ids(["\n\n", "<table>"])
    assert blank in encoder.encode("a\n\nb", "start")
    assert table not in encoder.encode("<table>", "start")
    assert table in control_tokens(tokenizer)
    assert blank not in control_tokens(tokenizer)


def test_a_control_token_that_the_vocabulary_can_merge_stays_hidden() -> None:
    vocabulary = {"<": 0, "x": 1, ">": 2, "<x": 3, "<x>": 4}
    backend = Tokenizer(models.BPE(vocabulary, [("<", "x"), ("<x", ">")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert tokenizer("<x>").input_ids == [4]
    tokenizer.add_tokens([AddedToken("<x>", special=True)], special_tokens=True)
    assert TextEncoder(tokenizer).encode("<x>", "start") == [3, 2]


@pytest.mark.parametrize(
    ("name", "start", "segment", "continuation"),
    [
        ("inst_metaspace", "▁No", "No", "No"),
        ("inst_legacy", "▁No", "▁No", "No"),
        ("chatml", "No", "No", "No"),
    ],
)
def test_a_space_is_put_in_front_only_where_the_tokenizer_would(
    name: str, start: str, segment: str, continuation: str
) -> None:
    tokenizer = tokenizer_of(name)
    encoder = TextEncoder(tokenizer)
    for place, expected in (("start", start), ("segment", segment), ("continuation", continuation)):
        assert "".join(tokenizer.convert_ids_to_tokens(encoder.encode("No", place))) == expected


def test_it_travels_to_workers() -> None:
    encoder = TextEncoder(tokenizer_of("gemma"))
    ids = encoder.encode("left lower lobe", "start")
    assert pickle.loads(pickle.dumps(encoder)).encode("left lower lobe", "start") == ids


def test_a_tokenizer_in_python_only_is_refused() -> None:
    class Slow(PreTrainedTokenizerBase):
        pass

    with pytest.raises(ValueError, match="Slow has no `tokenizers` backend"):
        TextEncoder(Slow())
