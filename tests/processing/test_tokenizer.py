"""A tokenizer trained from a data set's text."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from medmvl.processing.tokenizer import train_tokenizer

TEXTS = ["Which plane is shown?", "axial", "lesion at [12, 40, 33, 61]"] * 20


def test_round_trip_chat_and_digits(tmp_path: Path) -> None:
    train_tokenizer(TEXTS, 400, tmp_path / "tok")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tok")
    for text in [*TEXTS, "größer — 病灶 7"]:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    assert len(tokenizer.encode("1234", add_special_tokens=False)) == 4
    chat = [{"role": "user", "content": "Which plane?"}, {"role": "assistant", "content": "axial"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<|user|>Which plane?<|assistant|>axial<|end|>"
    prompt = tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|user|>Which plane?<|assistant|>"
    assert tokenizer.eos_token == "<|end|>"


def test_too_small_a_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 300"):
        train_tokenizer(TEXTS, 100, tmp_path)
