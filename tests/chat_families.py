"""Tiny tokenizers and chat templates in the formats of well-known LLM families, built in a moment, for any test.

The templates are our own wording of formats that are public; what matters are their habits: control tokens or plain
text as headers, trimming, default system prompts, refused roles, dropped think blocks, spaces around [INST].
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

_CORPUS = [
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful answers.",
    "USER: Is there a fracture? ASSISTANT: No. What modality is this? Chest X-ray of the left lower lobe.",
    "user assistant system model [INST] [/INST] Findings: the lesion is bright, 12 mm, in the right hippocampus.",
    "axial coronal sagittal yes no bright dark small large [12, 40, 33, 61] <image> <image3d>",
] * 8


def _train(model: models.Model, pre: pre_tokenizers.PreTokenizer, trainer: trainers.Trainer) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer


def byte_level(specials: list[AddedToken], ignore_merges: bool = False) -> Tokenizer:
    """GPT-2's kind, as in Qwen and Llama 3; special tokens lie behind the vocabulary."""
    pre = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    tokenizer = _train(models.BPE(ignore_merges=ignore_merges), pre, trainer)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    return tokenizer


def _with_bytes(tokenizer: Tokenizer, specials: list[AddedToken]) -> Tokenizer:
    """Add byte fallback, and the decoder of sentencepiece models."""
    spec = json.loads(tokenizer.to_str())
    model = spec["model"]
    for byte in range(256):
        if isinstance(model["vocab"], list):
            model["vocab"].append([f"<0x{byte:02X}>", -30.0])
        else:
            model["vocab"][f"<0x{byte:02X}>"] = len(model["vocab"])
    model["byte_fallback"] = True
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    strip = decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    tokenizer.add_special_tokens(specials)
    return tokenizer


def metaspace(specials: list[AddedToken]) -> Tokenizer:
    """Sentencepiece BPE with a space before the very first word only; special tokens lie inside the vocabulary."""
    names = ["<unk>", *(token.content for token in specials)]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=names, show_progress=False)
    return _with_bytes(
        _train(models.BPE(unk_token="<unk>"), pre_tokenizers.Metaspace(prepend_scheme="first"), trainer), specials
    )


def legacy(specials: list[AddedToken]) -> Tokenizer:
    """Llama 2's kind: a normalizer writes a space before every run of text."""
    names = ["<unk>", *(token.content for token in specials)]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=names, show_progress=False)
    tokenizer = _train(models.BPE(unk_token="<unk>", fuse_unk=True), pre_tokenizers.Metaspace(), trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("$^"), "isolated")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _with_bytes(tokenizer, specials)


def unigram(specials: list[AddedToken]) -> Tokenizer:
    """T5's and Gemma's kind: the search runs over the whole vocabulary, special tokens included."""
    names = ["<unk>", *(token.content for token in specials)]
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=names, unk_token="<unk>", show_progress=False)
    return _with_bytes(_train(models.Unigram(), pre_tokenizers.Metaspace(prepend_scheme="never"), trainer), specials)


@dataclass(frozen=True)
class Family:
    """A chat format on a tokenizer of its kind; `stable`: later prompts repeat earlier answers as they were."""

    build: Callable[[list[AddedToken]], Tokenizer]
    template: str
    specials: tuple[str, ...]
    eos: str
    bos: str | None = None
    end: str | None = None
    stable: bool = True
    system: bool = True
    rstrip: bool = False


_CHATML = """
{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou are a helpful model.<|im_end|>\n' }}{% endif %}
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

_THINK = """
{%- set ns = namespace(last=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
    {%- set said = m.content.split('</think>')[-1].lstrip('\n') %}
    {{- '<|im_start|>' + m.role + '\n' }}
    {%- if m.role == 'assistant' and loop.index0 > ns.last and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}
    {{- said + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}
{%- endif %}"""

_INST = """
{%- if messages[0].role == 'system' %}{% set head = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}
{%- set rest = messages[1:] %}{% else %}{% set head = '' %}{% set rest = messages %}{% endif %}
{%- for m in rest %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
    {%- set said = head + m.content if loop.index0 == 0 else m.content %}
    {%- if m.role == 'user' %}{{ bos_token + '[INST] ' + said.strip() + ' [/INST]' }}
    {%- else %}{{ ' ' + said.strip() + ' ' + eos_token }}{% endif %}
{%- endfor %}"""

_MISTRAL = """
{{- bos_token }}
{%- for m in messages %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
    {%- if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}
    {%- else %}{{ ' ' + m.content + eos_token }}{% endif %}
{%- endfor %}"""

_GEMMA = """
{{- bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for m in messages %}
    {%- set role = 'model' if m.role == 'assistant' else m.role %}
    {{- '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""

_PHI3 = """
{%- for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"""

_LLAMA3 = """
{{- bos_token }}
{%- for m in messages %}
    {{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

_ZEPHYR = """
{%- for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}
    {%- if loop.last and add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}
{%- endfor %}"""

_ALPACA = """
{%- for m in messages %}
    {%- if m.role == 'assistant' %}{{ '### Response:\n' + m.content + '\n\n' }}
    {%- elif m.role == 'user' %}{{ '### Instruction:\n' + m.content + '\n\n' }}
    {%- else %}{{ m.content + '\n\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"""

_REASONING = """
{{- bos_token }}
{%- for m in messages %}
    {%- if m.role == 'assistant' %}{{ '<|Assistant|>' + m.content.split('</think>')[-1] + eos_token }}
    {%- elif m.role == 'user' %}{{ '<|User|>' + m.content }}{% else %}{{ m.content }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"""

_HEADERLESS = """
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"""

_IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_S = ("<s>", "</s>")

FAMILIES: dict[str, Family] = {
    "chatml": Family(byte_level, _CHATML, _IM, eos="<|im_end|>"),
    "chatml_think": Family(byte_level, _THINK, (*_IM, "<think>", "</think>"), eos="<|im_end|>", stable=False),
    "chatml_no_generation_prompt": Family(byte_level, _HEADERLESS, _IM, eos="<|endoftext|>", end="<|im_end|>"),
    "inst_legacy": Family(legacy, _INST, _S, eos="</s>", bos="<s>"),
    "inst_metaspace": Family(metaspace, _MISTRAL, _S, eos="</s>", bos="<s>", system=False),
    "gemma": Family(
        unigram,
        _GEMMA,
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        eos="<eos>",
        bos="<bos>",
        end="<end_of_turn>",
        system=False,
    ),
    "phi3": Family(
        metaspace,
        _PHI3,
        (*_S, "<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"),
        eos="<|endoftext|>",
        bos="<s>",
        end="<|end|>",
        rstrip=True,
    ),
    "llama3": Family(
        lambda specials: byte_level(specials, ignore_merges=True),
        _LLAMA3,
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        eos="<|eot_id|>",
        bos="<|begin_of_text|>",
    ),
    "zephyr": Family(metaspace, _ZEPHYR, _S, eos="</s>", bos="<s>"),
    "alpaca": Family(byte_level, _ALPACA, ("<|endoftext|>",), eos="<|endoftext|>", stable=False),
    "reasoning": Family(
        byte_level,
        _REASONING,
        ("<|begin|>", "<|finish|>", "<|User|>", "<|Assistant|>", "<think>", "</think>"),
        eos="<|finish|>",
        bos="<|begin|>",
        stable=False,
    ),
}


@cache
def _backend(name: str) -> str:
    family = FAMILIES[name]
    specials = [AddedToken(text, special=True, normalized=False, rstrip=family.rstrip) for text in family.specials]
    return family.build(specials).to_str()


def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """Return a fresh tokenizer of a family, with the family's chat template; tests may change it."""
    family = FAMILIES[name]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_backend(name)), eos_token=family.eos, bos_token=family.bos
    )
    tokenizer.chat_template = family.template
    return tokenizer
