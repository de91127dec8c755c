"""Same weights, same logits as transformers' LlavaForConditionalGeneration; and as LLaVA's inputs demand."""

import copy

import pytest
import torch
from torch import nn
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, Qwen2Config, SiglipVisionConfig

from medmvl.core.layout import Layout, Segment
from medmvl.imaging.spec import VisionSpec
from medmvl.model import attention
from medmvl.model.connectors import Mlp
from medmvl.model.encoders.hf import HFEncoder
from medmvl.model.llm import load_llm
from medmvl.model.vlm import VLM, Tower

IMAGE = 99
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}


@pytest.mark.parametrize(
    ("vision", "layer", "tokens", "strategy"),
    [
        pytest.param(SiglipVisionConfig(**SIZES, vision_use_head=False), -2, "all", "full", id="siglip-2"),
        pytest.param(CLIPVisionConfig(**SIZES), -2, "patches", "default", id="clip-2"),
        pytest.param(CLIPVisionConfig(**SIZES), -2, "all", "full", id="clip-2-with-class"),
        pytest.param(SiglipVisionConfig(**SIZES, vision_use_head=False), -1, "all", "full", id="siglip-1"),
    ],
)
def test_logits_equal_transformers_llava(vision, layer, tokens, strategy):
    text = Qwen2Config(
        vocab_size=100,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        vision_feature_layer=layer,
        vision_feature_select_strategy=strategy,
        projector_hidden_act="gelu",
    )
    llava = LlavaForConditionalGeneration._from_config(config, attn_implementation="eager").eval()

    spec = VisionSpec(size=(16, 16), channels=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    encoder = HFEncoder(copy.deepcopy(vision), spec, layer=layer, tokens=tokens)
    encoder.model.load_state_dict(llava.model.vision_tower.state_dict())
    connector = Mlp(encoder.token_grid, encoder.width, 24)
    projector = llava.model.multi_modal_projector
    linear = [part for part in connector if isinstance(part, nn.Linear)]
    for own, theirs in zip(linear, [projector.linear_1, projector.linear_2], strict=True):
        own.load_state_dict(theirs.state_dict())
    llm = load_llm(text.to_dict())
    llm.load_state_dict(
        {f"model.{name}": value for name, value in llava.model.language_model.state_dict().items()}
        | {"lm_head.weight": llava.lm_head.weight}
    )
    model = VLM(llm, {"image": Tower(encoder, connector, "<image>")})
    assert llm.config._attn_implementation == attention.NAME

    ids = torch.tensor([[5, 6, *[IMAGE] * connector.num_tokens, 7, 8, 9, *[IMAGE] * connector.num_tokens, 10, 11, 12]])
    pixels = torch.randn(2, 3, 16, 16)
    count = ids.shape[1]
    with torch.no_grad():
        expected = llava(input_ids=ids, pixel_values=pixels).logits[0]
        found = model.logits(
            ids,
            torch.arange(count)[None],
            Layout((Segment(0, count),)),
            {"image": pixels},
            {"image": torch.nonzero(ids[0] == IMAGE)[:, 0]},
            torch.arange(count),
        )
    assert expected.abs().max() > 1
    assert (found - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())
