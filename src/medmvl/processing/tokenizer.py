"""Train a small byte-level BPE tokenizer from a data set's own text, for models that start from random weights."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from medmvl.core.atomic import atomic_folder

USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"

# One token per role mark: short rows are what a small model on a small machine can afford.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ '" + USER + "' + message['content'] }}"
    "{% else %}{{ '" + ASSISTANT + "' + message['content'] + '" + END + "' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: str | Path) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with a three-token chat template and save it.

    Byte level means that every text round-trips; digits are split one by one, so that a coordinate is spelled
    the same way wherever it stands.

    Args:
        texts: the training text, read once.
        vocab_size: upper bound of the vocabulary, at least 300 (256 bytes and the special tokens come first).
        folder: where the tokenizer's files go.

    Raises:
        ValueError: the vocabulary is too small to hold every byte.
    """
    if vocab_size < 300:
        raise ValueError(
            f"vocab_size {vocab_size}: a byte-level tokenizer needs at least 300 (256 bytes + special tokens)"
        )
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|pad|>", USER, ASSISTANT, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token="<|pad|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    with atomic_folder(folder) as fresh:
        tokenizer.save_pretrained(fresh)
    return tokenizer
