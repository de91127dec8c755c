"""Tiny image-text-to-text checkpoints of real architectures, written to disk as published ones lie there."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast

from chat_families import byte_level, legacy

_TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_CHATML = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else -%}
{%- for part in message.content -%}
{%- if part.type == "image" -%}IMAGE{%- else -%}{{ part.text }}{%- endif -%}
{%- endfor -%}{%- endif -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""
_VICUNA = """\
{%- for message in messages -%}
{%- if message.role == "user" -%}USER: {% for part in message.content if part.type == "image" -%}<image>
{% endfor -%}{%- for part in message.content if part.type == "text" -%}{{ part.text }}{%- endfor %} {% else -%}
ASSISTANT: {% for part in message.content -%}{{ part.text }}{%- endfor -%}</s>{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}ASSISTANT:{%- endif -%}"""
_GEMMA = """\
{{ bos_token }}{%- for message in messages -%}
<start_of_turn>{{ "model" if message.role == "assistant" else message.role }}
{% for part in message.content -%}
{%- if part.type == "image" -%}<start_of_image>{%- else -%}{{ part.text | trim }}{%- endif -%}
{%- endfor -%}<end_of_turn>
{% endfor -%}
{%- if add_generation_prompt -%}<start_of_turn>model
{% endif -%}"""
_STRINGS = """\
{%- for message in messages -%}
{{ "<|im_start|>" + message["role"] + "\\n" + message["content"] + "<|im_end|>" + "\\n" }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ "<|im_start|>assistant\\n" }}{%- endif -%}"""


def llava(folder: Path, **changes: Any) -> Path:
    """LLaVA of SigLIP and Qwen2, an even number of tokens per picture."""
    tokenizer = _byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"], eos="<|im_end|>")
    vision = {"model_type": "siglip_vision_model", "image_size": 16, "patch_size": 4, "vision_use_head": False}
    config = {
        "model_type": "llava",
        "vision_config": {**_VISION, **vision},
        "text_config": _text("qwen2", tokenizer),
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }
    processor = {"processor_class": "LlavaProcessor", "patch_size": 4, "vision_feature_select_strategy": "full"}
    pictures = transformers.SiglipImageProcessorPil(size={"height": 16, "width": 16})
    template = changes.pop("template", _CHATML.replace("IMAGE", "<image>"))
    return _write(folder, config | changes, tokenizer, pictures, processor, template)


def llava_clip(folder: Path) -> Path:
    """LLaVA 1.5 of CLIP and Llama: a tokenizer that writes spaces before texts, a picture's class token dropped."""
    specials = [AddedToken(text, special=True, normalized=False) for text in ("<s>", "</s>", "<image>", "<pad>")]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=legacy(specials), bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    config = {
        "model_type": "llava",
        "vision_config": {**_VISION, "model_type": "clip_vision_model", "image_size": 16, "patch_size": 4},
        "text_config": _text("llama", tokenizer),
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
    }
    processor = {
        "processor_class": "LlavaProcessor",
        "patch_size": 4,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
    pictures = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, do_center_crop=True
    )
    return _write(folder, config, tokenizer, pictures, processor, _VICUNA)


def qwen2_5_vl(folder: Path) -> Path:
    """Qwen2.5-VL: pictures of any size, positions along three axes, a processor that wants to see videos too."""
    marks = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = _byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *marks], eos="<|im_end|>")
    ids = dict(zip(marks, tokenizer.convert_tokens_to_ids(marks), strict=True))
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    config = {
        "model_type": "qwen2_5_vl",
        "vision_config": {
            "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "out_hidden_size": 32,
            "patch_size": 4, "window_size": 16, "fullatt_block_indexes": [1],
        },
        "text_config": {**_text("qwen2_5_vl_text", tokenizer), "rope_parameters": rope},
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }  # fmt: skip
    pictures = transformers.Qwen2VLImageProcessorPil(patch_size=4, min_pixels=8 * 8, max_pixels=32 * 32)
    template = _CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    return _write(folder, config, tokenizer, pictures, {"processor_class": "Qwen2_5_VLProcessor"}, template)


def gemma3(folder: Path) -> Path:
    """Gemma 3: a mark in the prompt that becomes other marks, pictures' tokens that see each other, sliding windows."""
    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    turns = ["<start_of_turn>", "<end_of_turn>"]
    tokenizer = _byte_level(["<pad>", "<bos>", "<eos>", *turns, *names.values()], eos="<eos>", bos="<bos>", **names)
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    config = {
        "model_type": "gemma3",
        "vision_config": {**_VISION, "model_type": "siglip_vision_model", "image_size": 16, "patch_size": 4},
        "text_config": {**_text("gemma3_text", tokenizer), "head_dim": 8, "sliding_window": 8},
        "mm_tokens_per_image": 4,
        "tie_word_embeddings": False,
        "boi_token_index": tokenizer.convert_tokens_to_ids("<start_of_image>"),
        "eoi_token_index": tokenizer.convert_tokens_to_ids("<end_of_image>"),
        "image_token_index": tokenizer.convert_tokens_to_ids("<image_soft_token>"),
        "eos_token_id": [tokenizer.eos_token_id, end],
    }
    pictures = transformers.Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
    return _write(
        folder, config, tokenizer, pictures, {"processor_class": "Gemma3Processor", "image_seq_length": 4}, _GEMMA
    )


def idefics3(folder: Path) -> Path:
    """Idefics 3: pictures cut into tiles, with marks for rows and columns."""
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    marks = ["<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>", *tiles]
    tokenizer = _byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *marks], eos="<|im_end|>")
    config = {
        "model_type": "idefics3",
        "vision_config": {**_VISION, "image_size": 16, "patch_size": 4},
        "text_config": _text("llama", tokenizer),
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "scale_factor": 2,
    }
    pictures = transformers.Idefics3ImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    processor = {"processor_class": "Idefics3Processor", "image_seq_len": 4}
    return _write(folder, config, tokenizer, pictures, processor, _CHATML.replace("IMAGE", "<image>"))


def internvl(folder: Path) -> Path:
    """InternVL: pictures cut into patches, a processor that pads on a side of its own and wants to see videos too."""
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    names["video_token"] = "<video>"
    tokenizer = _byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *names.values()], eos="<|im_end|>", **names)
    config = {
        "model_type": "internvl",
        "vision_config": {**_VISION, "image_size": [16, 16], "patch_size": [4, 4]},
        "text_config": _text("qwen2", tokenizer),
        "image_token_id": tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        "image_seq_length": 4,
        "downsample_ratio": 0.5,
    }
    pictures = transformers.GotOcr2ImageProcessorPil(
        size={"height": 16, "width": 16}, crop_to_patches=True, min_patches=1, max_patches=3
    )
    processor = {"processor_class": "InternVLProcessor", "image_seq_length": 4}
    return _write(folder, config, tokenizer, pictures, processor, _CHATML.replace("IMAGE", "<IMG_CONTEXT>\n"))


def llava_of_strings(folder: Path) -> Path:
    """LLaVA with a template that knows texts only, as many converted checkpoints have it."""
    return llava(folder, template=_STRINGS)


FAMILIES = (llava, llava_clip, llava_of_strings, qwen2_5_vl, gemma3, idefics3, internvl)


def _byte_level(specials: list[str], eos: str, bos: str | None = None, **names: str) -> PreTrainedTokenizerFast:
    tokens = [AddedToken(text, special=True, normalized=False) for text in specials]
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level(tokens), bos_token=bos, eos_token=eos, pad_token=specials[0],
        extra_special_tokens=names or None,
    )  # fmt: skip


def _text(kind: str, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return {
        "model_type": kind, "vocab_size": len(tokenizer) + 5, "num_key_value_heads": 2, "initializer_range": 0.3,
        "max_position_embeddings": 2048, "tie_word_embeddings": False, "pad_token_id": tokenizer.pad_token_id,
        **ends, **_TEXT,
    }  # fmt: skip


def _write(
    folder: Path,
    config: dict[str, Any],
    tokenizer: PreTrainedTokenizerFast,
    pictures: Any,
    processor: dict[str, Any],
    template: str,
) -> Path:
    torch.manual_seed(0)
    parsed = AutoConfig.for_model(**config)
    model = AutoModelForImageTextToText.from_config(parsed, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:  # large enough that pictures and words change answers
            torch.nn.init.normal_(parameter, std=0.3 if "lm_head" not in name else 0.6)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pictures.save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps(processor))
    if template:
        (folder / "chat_template.jinja").write_text(template)
    return folder
