"""Tiny text encoders on disk, with real tokenizers: for metrics that read texts with a model."""

import random
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizer, RobertaConfig, RobertaModel, RobertaTokenizer

WORDS = ["no", "acute", "effusion", "left", "right", "lung", "pleural", "small", "large", "is", "seen", "in", "the"]
WORDS += [
    "there",
    "of",
    "opacity",
    "heart",
    "size",
    "normal",
    "edema",
    "fracture",
    ".",
    ",",
    "mild",
    "unchanged",
    "new",
]
LONGEST = 24


def reports(n: int, seed: int = 0, longest: int = 14) -> list[str]:
    """Return n texts of 1 to `longest` words, some of them unknown to the tokenizers; some texts recur."""
    draw = random.Random(seed)
    words = [*WORDS, "lungs", "effusions", "Zebra", "LEFT"]
    texts = [" ".join(draw.choices(words, k=draw.randint(1, longest))) for _ in range(n)]
    return [draw.choice(texts) if draw.random() < 0.2 else text for text in texts]


def bert(folder: Path, layers: int = 3, positions: int = LONGEST) -> Path:
    """Write a BERT of width 32 with a WordPiece vocabulary."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s"]
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    BertTokenizer(vocabulary, model_max_length=positions).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=positions,
        initializer_range=0.3,  # of the default 0.02 all tokens would look alike
    )
    BertModel(config).save_pretrained(folder)
    return folder


def roberta(folder: Path, layers: int = 3, positions: int = LONGEST) -> Path:
    """Write a RoBERTa of width 32 with a byte-level vocabulary of characters; its tokenizer knows no longest text."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "Ġ", *sorted({c for word in WORDS for c in word} - {"a"}), "a"]
    merges = [("Ġ", "a"), ("Ġ", "n"), ("Ġn", "o")]
    vocabulary = {piece: place for place, piece in enumerate([*pieces, *("".join(pair) for pair in merges)])}
    RobertaTokenizer(vocabulary, merges).save_pretrained(folder)
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=positions + 2,
        type_vocab_size=1,
        initializer_range=0.3,
    )
    RobertaModel(config).save_pretrained(folder)
    return folder
