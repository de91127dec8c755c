"""Every encoder with every connector: where grids fit a bundle travels, where they do not the error says which do."""

import itertools
from pathlib import Path

import pytest
import torch

import medmvl
from chat_families import tokenizer_of
from medmvl.model.config import CONNECTORS, ENCODERS
from medmvl.model.connectors import ConnectorError

WIDTH = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
LLM = {"model_type": "qwen2", "vocab_size": 512, "num_key_value_heads": 1, **WIDTH}
PICTURE = {"image_size": 32, "patch_size": 8, **WIDTH}
SIGLIP = {"architecture": {"model_type": "siglip_vision_model", **PICTURE}}
CLIP = {"architecture": {"model_type": "clip_vision_model", **PICTURE}}
CONV = {"channels": [8, 16, 16], "image_size": 32}
VIT = {"image_size": [4, 16, 16], "patch_size": [2, 4, 4], "width": 16, "mlp": 24, "layers": 2, "heads": 2}
CT_VIT = {"width": 16, "head_width": 8, "heads": 2, "spatial_layers": 1, "temporal_layers": 1, "codes": 32}
SLICES = {"slices": 4, "chunk": 3}
# name -> tower, settings of an encoder, axes of its grid (1: tokens that form none)
CASES = {
    "conv": ("image", {"encoder": "conv", "encoder_options": CONV}, 2),
    "siglip": ("image", {"encoder": SIGLIP}, 2),
    "clip": ("image", {"encoder": CLIP}, 1),
    "slices-conv": (
        "volume",
        {"encoder": "slices", "encoder_options": {"encoder": "conv", "encoder_options": CONV}},
        3,
    ),
    "slices-siglip": ("volume", {"encoder": "slices", "encoder_options": {"encoder": SIGLIP}, "layer": -2}, 3),
    "slices-clip": ("volume", {"encoder": "slices", "encoder_options": {"encoder": CLIP}}, 1),
    "slices-shared": ("volume", {"encoder": "slices", "encoder_options": {"encoder": "image"}}, 3),
    "vit3d": ("volume", {"encoder": "vit3d", "encoder_options": VIT, "tokens": "patches"}, 3),
    "vit3d-all": ("volume", {"encoder": "vit3d", "encoder_options": VIT}, 1),
    "medm_clip_ct": ("volume", {"encoder": "medm_clip_ct", "encoder_options": VIT, "tokens": "patches"}, 3),
    "ct_vit": (
        "volume",
        {"encoder": "ct_vit", "encoder_options": {"image_size": [8, 8, 8], "patch_size": [2, 2, 2], **CT_VIT}},
        3,
    ),
}  # fmt: skip
# name -> options, axes of the grids it takes
READERS = {
    "linear": ({}, {1, 2, 3}),
    "mlp": ({}, {1, 2, 3}),
    "pool": ({"size": 2}, {2, 3}),
    "average": ({}, {3}),
    "attention": ({"queries": 5, "heads": 2}, {1, 2, 3}),
    "attention_pool": ({"queries": 5, "heads": 2}, {1, 2, 3}),
    "perceiver": ({"latents": 5, "depth": 1, "heads": 2, "head_width": 4}, {1, 2, 3}),
}


def settings(folder: Path, encoder: str, connector: str) -> dict:
    """Return the settings of a model with this encoder and connector."""
    name, tower, _ = CASES[encoder]
    tower = {**tower, "connector": connector, "connector_options": READERS[connector][0]}
    if tower["encoder"] == "slices":
        tower["encoder_options"] = {**tower["encoder_options"], **SLICES}
    towers = {name: tower}
    if encoder == "slices-shared":
        towers["image"] = {"encoder": SIGLIP, "layer": -2}
    return {"llm": {"architecture": LLM, "tokenizer": str(folder)}, "towers": towers}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer_of("chatml").save_pretrained(folder)
    return folder


FITS = [pair for pair in itertools.product(CASES, READERS) if CASES[pair[0]][2] in READERS[pair[1]][1]]
MISFITS = [pair for pair in itertools.product(CASES, READERS) if pair not in FITS]


@pytest.mark.parametrize(("encoder", "connector"), FITS)
def test_fits(tmp_path: Path, tokenizer: Path, encoder: str, connector: str) -> None:
    torch.manual_seed(0)
    bundle = medmvl.Bundle.build(settings(tokenizer, encoder, connector))
    tower = bundle.model.towers[CASES[encoder][0]]
    spec = tower.encoder.spec
    pixels = torch.randn(2, spec.channels, *spec.size)
    tokens = tower(pixels)
    assert tokens.shape == (2, tower.num_tokens, 16)
    tokens.square().sum().backward()
    learning = [(f"encoder.{name}", p) for name, p in tower.encoder.named_parameters()]
    learning = [(name, p) for name, p in learning if name.removeprefix("encoder.") in tower.encoder.reachable()]
    learning += [(f"connector.{name}", p) for name, p in tower.connector.named_parameters()]
    assert not [name for name, parameter in learning if parameter.grad is None]

    again = medmvl.load(bundle.save(tmp_path / "bundle"))
    assert again.config == bundle.config, "settings change on the way"
    assert again.hash == bundle.hash
    assert again.model.towers[CASES[encoder][0]].encoder.spec == spec
    assert torch.equal(again.model.towers[CASES[encoder][0]](pixels), tokens)
    if encoder == "slices-shared":
        held, loaded = again.model.towers["image"].encoder, again.model.towers["volume"].encoder
        assert loaded.slice_encoder is held
        assert not any("volume.encoder" in name for name in again.model.state_dict())


@pytest.mark.parametrize(("encoder", "connector"), MISFITS)
def test_misfits(tokenizer: Path, encoder: str, connector: str) -> None:
    with pytest.raises(ConnectorError) as error:
        medmvl.Bundle.build(settings(tokenizer, encoder, connector))
    text = str(error.value)
    assert f"connector of tower {CASES[encoder][0]!r}" in text
    assert "takes a grid" in text
    assert "(slices, rows, columns)" in text
    assert ("tokens: patches" in text) == (CASES[encoder][2] == 1)
    assert "linear, mlp, attention" in text


def test_every_row_has_a_case() -> None:
    # `dual` and `text_guided` go together and with no other: they have tests of their own
    assert {tower["encoder"] for _, tower, _ in CASES.values() if isinstance(tower["encoder"], str)} == set(
        ENCODERS
    ) - {"dual"}
    assert set(READERS) == set(CONNECTORS) - {"text_guided"}
