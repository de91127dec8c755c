"""The memory estimate: exact for what weights need, near what autograd really keeps for activations."""

import pytest
import torch

from medmvl.core.config import load
from medmvl.core.layout import Layout, Segment
from medmvl.model import tune
from medmvl.model.build import build
from medmvl.model.config import ModelConfig, TuneRule
from medmvl.model.vlm import VLM
from medmvl.train.estimate import memory

FULL = TuneRule(mode="full", lr=1e-3)
CONFIG = {
    "llm": {
        "architecture": {
            "model_type": "qwen2",
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 512,
        }
    },
    "towers": {
        "image": {
            "encoder": {
                "architecture": {
                    "model_type": "siglip_vision_model",
                    "hidden_size": 64,
                    "intermediate_size": 128,
                    "num_hidden_layers": 3,
                    "num_attention_heads": 4,
                    "image_size": 64,
                    "patch_size": 8,
                }
            }
        }
    },
}
TOKENS, PER_IMAGE = 1024, 64


def tuned(rules: dict[str, TuneRule], device: str) -> tuple[VLM, dict[str, bool]]:
    model = build(load(ModelConfig, CONFIG), device=device, tokenizer=object()).model  # type: ignore[arg-type]
    table = tune.apply(model, rules)
    return model, {part: any(row.trainable for row in table.rows if row.part == part) for part in tune.parts(model)}


def kept(model: VLM, bf16: bool) -> int:
    """Bytes that autograd keeps of one row, weights aside."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    media, targets = TOKENS // (2 * PER_IMAGE), TOKENS // 4
    saved = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with saved, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model(
            ids=torch.zeros(1, TOKENS, dtype=torch.long),
            positions=torch.arange(TOKENS)[None],
            layout=Layout((Segment(0, TOKENS),)),
            pixels={"image": torch.randn(media, 3, 64, 64)},
            media_positions={"image": torch.arange(media * PER_IMAGE)},
            logit_index=torch.arange(targets),
            targets=torch.zeros(targets, dtype=torch.long),
        ).loss
    total = sum(seen.values())
    del loss
    return total


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("pattern", ["llm", "*", "image.connector"])
def test_activations_are_near_what_autograd_keeps(pattern: str, bf16: bool) -> None:
    rules = {pattern: FULL}
    estimated = memory(*tuned(rules, "meta"), row_tokens=TOKENS, bf16=bf16)["single"].activations
    measured = kept(tuned(rules, "cpu")[0], bf16)
    assert 0.75 < estimated / measured < 1.25


def test_weights_gradients_and_moments() -> None:
    model, trainable = tuned({"llm": FULL}, "meta")
    learns = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    fixed = sum(parameter.numel() for parameter in model.parameters()) - learns
    one = memory(model, trainable, TOKENS, bf16=True, devices=4)
    assert (one["single"].gradients, one["single"].optimizer) == (4 * learns, 8 * learns)
    assert one["single"].weights == 4 * learns + 2 * fixed + 2 * learns
    later = memory(model, trainable, TOKENS, bf16=True, halved=[])
    assert later["single"].weights == 4 * learns + 4 * fixed + 2 * learns
    alone = memory(model, trainable, TOKENS, bf16=True, running=["image.encoder"])
    assert alone["single"].gradients == 0 and alone["single"].weights < 2 * fixed
    assert one["ddp"].gradients == 2 * one["single"].gradients
    for strategy in ("fsdp2", "zero3"):
        assert one[strategy].optimizer == one["single"].optimizer // 4
        assert one[strategy].total < one["ddp"].total
    fp32 = memory(model, trainable, TOKENS, bf16=False)
    assert fp32["single"].weights == 4 * (learns + fixed)


def test_recomputing_saves_activations() -> None:
    model, trainable = tuned({"*": FULL}, "meta")
    whole = memory(model, trainable, TOKENS, bf16=True)["single"].activations
    some = memory(model, trainable, TOKENS, bf16=True, checkpointing=["llm"])["single"].activations
    all_parts = memory(model, trainable, TOKENS, bf16=True, checkpointing=["*"])["single"].activations
    assert all_parts < some < whole


def test_recomputing_counts_every_block_of_both_transformers() -> None:
    """CTViT has a spatial and a temporal one, and a longer list of other layers beside them."""
    size = {"image_size": [8, 32, 32], "patch_size": [1, 4, 4], "spatial_layers": 2, "temporal_layers": 2}
    small = {**size, "width": 64, "head_width": 16, "heads": 4, "codes": 9}
    volume = {"encoder": "ct_vit", "encoder_options": small, "connector": "attention"}
    config = load(ModelConfig, {"llm": CONFIG["llm"], "towers": {"volume": volume}})
    model = build(config, device="meta", tokenizer=object()).model  # type: ignore[arg-type]
    tune.apply(model, {"volume.encoder": FULL})
    trainable = {part: part == "volume.encoder" for part in tune.parts(model)}
    running = ["volume.encoder"]
    found = [
        memory(model, trainable, TOKENS, bf16=False, running=running, checkpointing=patterns)["single"].activations
        for patterns in ([], running)
    ]
    assert 0.25 * found[0] < found[1] < 0.4 * found[0], "one block of four, and the inputs of all"


def of_slices(chunk: int, inner: dict, learns: bool, row_tokens: int = TOKENS, recomputed: bool = False) -> int:
    """Bytes of activations of a volume tower alone, 8 slices a volume, few tokens for each in the LLM."""
    volume = {
        "encoder": "slices",
        "encoder_options": {**inner, "slices": 8, "chunk": chunk},
        "connector": "attention",
        "connector_options": {"queries": 4, "heads": 4},
    }
    config = load(ModelConfig, {"llm": CONFIG["llm"], "towers": {"volume": volume}})
    model = build(config, device="meta", tokenizer=object()).model  # type: ignore[arg-type]
    tune.apply(model, {"volume.encoder": FULL} if learns else {"llm": FULL})
    trainable = {part: learns and part == "volume.encoder" for part in tune.parts(model)}
    return memory(
        model,
        trainable,
        row_tokens,
        bf16=False,
        running=["volume.encoder"],
        checkpointing=["volume.encoder"] if recomputed else [],
    )["single"].activations


CONV = {"encoder": "conv", "encoder_options": {"image_size": 64, "channels": [8, 16, 32, 32, 32]}}
SIGLIP = {"encoder": CONFIG["towers"]["image"]["encoder"]}


@pytest.mark.parametrize("inner", [CONV, SIGLIP], ids=["conv", "siglip"])
def test_slices_hold_a_chunk_of_every_volume_in_the_row(inner: dict) -> None:
    assert of_slices(8, inner, learns=False) == of_slices(99, inner, learns=False) > 0
    assert of_slices(2, inner, learns=False) * 4 == of_slices(8, inner, learns=False)
    assert of_slices(2, inner, learns=False, row_tokens=4 * TOKENS) > 3.9 * of_slices(2, inner, learns=False)
    assert of_slices(2, inner, learns=True) == of_slices(8, inner, learns=True), "all chunks are kept for the backward"
    assert of_slices(2, inner, learns=True, recomputed=True) < of_slices(8, inner, learns=True, recomputed=True)


def test_a_frozen_encoder_holds_its_widest_layer() -> None:
    images = TOKENS // (PER_IMAGE + 64)
    model, trainable = tuned({"llm": FULL}, "meta")
    found = memory(model, trainable, TOKENS, bf16=False, running=["image.encoder"])["single"].activations
    assert found == images * PER_IMAGE * (64 + 128) * 4
