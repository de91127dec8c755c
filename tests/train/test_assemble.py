"""What a stage is made of: here, how frozen weights are stored."""

import pytest
import torch

from chat_families import tokenizer_of
from medmvl.model.build import build
from medmvl.model.config import ModelConfig
from medmvl.train.assemble import store_frozen_small
from medmvl.train.recipe import Stage

WIDTH = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
LLM = {"architecture": {"model_type": "qwen2", "vocab_size": 60, "num_key_value_heads": 1, **WIDTH}}
STAGES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "image_size": 32}
CT_VIT = {"image_size": [4, 8, 8], "patch_size": [2, 4, 4], "width": 16, "head_width": 8, "heads": 2, "codes": 12}
VIT = {"image_size": [4, 8, 8], "patch_size": [2, 4, 4], "width": 16, "mlp": 24, "layers": 1, "heads": 2}
ENCODERS = {
    "resnet": ("image", {"encoder": {"architecture": {"model_type": "resnet", "embedding_size": 8, **STAGES}}}),
    "slices": ("volume", {"encoder": "slices", "encoder_options": {"encoder": "conv", "slices": 2}}),
    "vit3d": ("volume", {"encoder": "vit3d", "encoder_options": VIT}),
    "medm_clip_ct": ("volume", {"encoder": "medm_clip_ct", "encoder_options": VIT}),
    "ct_vit": ("volume", {"encoder": "ct_vit", "encoder_options": {**CT_VIT, "quantise": False}}),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_frozen_encoders_stored_in_half_run_and_give_nearly_the_same(name):
    tower, settings = ENCODERS[name]
    torch.manual_seed(0)
    model = build(ModelConfig(llm=LLM, towers={tower: settings}), tokenizer=tokenizer_of("chatml")).model
    model.requires_grad_(False)
    encoder = model.towers[tower].encoder
    pixels = torch.randn(1, encoder.spec.channels, *encoder.spec.size)
    full = encoder(pixels)
    rule = {f"{tower}.connector": {"mode": "full", "lr": 1e-3}}
    stage = Stage(name="align", steps=1, global_batch=1, data=[{"source": "none"}], tune=rule)
    store_frozen_small(model, [stage], {"towers.image.connector.0.weight", "towers.volume.connector.0.weight"})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = encoder(pixels)
    assert (half.float() - full).norm() < 0.05 * full.norm()
    stored = [(parameter.dtype, parameter.numel()) for parameter in encoder.parameters()]
    small = sum(count for dtype, count in stored if dtype == torch.bfloat16)
    assert small > 0.9 * sum(count for _, count in stored)
    assert {one.dtype for one in model.llm.parameters()} == {torch.bfloat16}
    assert model.towers[tower].connector[0].weight.dtype == torch.float32
