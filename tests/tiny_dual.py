"""Tiny models that read a volume twice and the question once, and volumes and samples for them."""

import copy
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import medmvl
from chat_families import tokenizer_of

SIZE = (8, 32, 32)
VIT3D = {"image_size": list(SIZE), "patch_size": [2, 8, 8], "width": 16, "mlp": 24, "layers": 2, "heads": 2}
SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 12,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
BERT = {
    "hidden_size": 20,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 40,
}
LLM = {
    "model_type": "qwen2",
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
WORDS = ["where", "is", "the", "lesion", "which", "side", "how", "large", "it", "why", "?", "[", "]", "cls", "sep"]


def bert_tokenizer():
    """A WordPiece tokenizer as BERT's, of a few words and all letters."""
    letters = [mark + letter for letter in "abcdefghijklmnopqrstuvwxyz0123456789" for mark in ("", "##")]
    vocabulary = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters])
    ids = {word: number for number, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(list(ids)[:5])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    )
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def write_parts(folder):
    """Write a text encoder and the tokenizer of an LLM, as on the hub."""
    folder = Path(folder)
    torch.manual_seed(0)
    tokenizer = bert_tokenizer()
    # Weights larger than at the start of training, so that questions differ.
    BertModel(BertConfig(vocab_size=len(tokenizer), initializer_range=0.5, **BERT)).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    tokenizer_of("chatml").save_pretrained(folder / "tokenizer")


def tower(folder, **changes):
    """Return the settings of the volume tower."""
    settings = {
        "encoder": "dual",
        "encoder_options": {
            "volume": {"encoder": "vit3d", "encoder_options": copy.deepcopy(VIT3D)},
            "slices": {"encoder": {"architecture": SIGLIP}},
            "text": str(Path(folder) / "bert"),
        },
        "connector": "text_guided",
        "connector_options": {"temperature": 0.1},
        "spec": {"hu_window": None, "crop_foreground": None},
    }
    return settings | changes


def bundle(folder, seed=0, **towers):
    """Return a bundle with a dual volume tower (and others); the parts must lie in the folder."""
    torch.manual_seed(seed)
    llm = {"architecture": LLM, "tokenizer": str(Path(folder) / "tokenizer")}
    made = medmvl.Bundle.build({"llm": llm, "towers": {"volume": tower(folder), **towers}}, max_tokens=512)
    for parameter in made.model.towers["volume"].connector.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def write_volumes(folder, names="ab"):
    """Write noise as NIfTI volumes, one per letter."""
    import SimpleITK

    rng = np.random.default_rng(0)
    for name in names:
        image = SimpleITK.GetImageFromArray(rng.integers(0, 255, SIZE).astype(np.int16))
        SimpleITK.WriteImage(image, str(Path(folder) / f"{name}.nii.gz"))


def sample(folder, name, *turns, **fields):
    """Return a sample; each turn is (paths shown, question, answer), the answer None for none."""
    messages = []
    for paths, question, answer in turns:
        kinds = {True: "image", False: "volume"}
        content = [{"type": kinds[path.endswith(".png")], "path": path} for path in paths]
        messages.append({"role": "user", "content": [*content, {"type": "text", "text": question}]})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
    return medmvl.Sample.from_dict({"id": name, "messages": messages, **fields}, root=folder)
