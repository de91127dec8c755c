"""Encoders: the right hidden state, the right half of a dual checkpoint, and errors that tell what to do."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel
from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

from medmvl.core.lookup import LookupNameError
from medmvl.imaging.spec import VisionSpec
from medmvl.model.config import TowerConfig
from medmvl.model.encoders.base import EncoderError, changed
from medmvl.model.encoders.table import build_encoder
from medmvl.model.source import SourceError

VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 50,
    "projection_dim": 16,
}
SIGLIP = {"model_type": "siglip_vision_model", **VIT}
CLIP = {"model_type": "clip_vision_model", **VIT}
PREPROCESSOR = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}}


def tower(architecture: dict, **options: object) -> TowerConfig:
    return TowerConfig(encoder={"architecture": architecture}, **options)


def build(architecture: dict, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return build_encoder(tower(architecture, **options), where="encoder of tower 'image'")


def save(model: nn.Module, folder: Path) -> str:
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    return str(folder)


def test_siglip_feature_is_before_post_layernorm() -> None:
    encoder = build(SIGLIP)
    nn.init.normal_(encoder.model.post_layernorm.weight)
    pixels = torch.randn(2, 3, 32, 32)
    hidden = encoder.model.embeddings(pixels)
    for layer in encoder.model.encoder.layers:
        hidden = layer(hidden, attention_mask=None)
    torch.testing.assert_close(encoder(pixels), hidden, rtol=0, atol=1e-6)


def test_final_norm_takes_the_models_own_output() -> None:
    encoder = build(SIGLIP, encoder_options={"final_norm": True})
    pixels = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(encoder(pixels), encoder.model(pixels).last_hidden_state)
    assert "model.post_layernorm.weight" in encoder.reachable()
    with pytest.raises(EncoderError, match="layer must be -1"):
        build(SIGLIP, layer=-2, encoder_options={"final_norm": True})


@pytest.mark.parametrize(("config", "model"), [(CLIPConfig, CLIPModel), (SiglipConfig, SiglipModel)])
def test_dual_checkpoint_gives_its_vision_part(config: type, model: type, tmp_path: Path) -> None:
    torch.manual_seed(0)
    dual = model(config(vision_config=VIT, text_config=TEXT)).eval()
    encoder = build_encoder(TowerConfig(encoder=save(dual, tmp_path)))
    pixels = torch.randn(2, 3, 32, 32)
    expected = dual.vision_model(pixels, output_hidden_states=True).hidden_states[-1]
    assert torch.equal(encoder(pixels), expected)
    assert not any("text" in name for name in encoder.state_dict())


@pytest.mark.parametrize("size", [(32, 32), (16, 64)])
def test_naflex_is_fed_like_its_own_processor_does(size: tuple[int, int]) -> None:
    architecture = {"model_type": "siglip2_vision_model", **VIT, "num_patches": 16}
    encoder = build(architecture, spec={"size": list(size)})
    pixels = torch.randn(2, 3, *size)
    rows, columns = size[0] // 8, size[1] // 8
    expected = encoder.model(
        torch.stack([torch.from_numpy(convert_image_to_patches(image.numpy(), 8)) for image in pixels]),
        pixel_attention_mask=torch.ones(2, rows * columns),
        spatial_shapes=torch.tensor([[rows, columns]] * 2),
        output_hidden_states=True,
    ).hidden_states[-1]
    assert encoder.grid == (rows, columns)
    torch.testing.assert_close(encoder(pixels), expected, rtol=0, atol=1e-6)


def test_registers_are_always_dropped() -> None:
    encoder = build({"model_type": "dinov2_with_registers", **VIT, "num_register_tokens": 3})
    pixels = torch.randn(1, 3, 32, 32)
    state = encoder.model(pixels, output_hidden_states=True).hidden_states[-1]
    assert torch.equal(encoder(pixels), torch.cat([state[:, :1], state[:, 4:]], dim=1))
    assert encoder.token_grid == (17,)


def test_another_size_interpolates_positions() -> None:
    encoder = build(SIGLIP, spec={"size": [48, 32]})
    assert encoder.grid == (6, 4)
    assert encoder(torch.randn(1, 3, 48, 32)).shape == (1, 24, 32)
    assert encoder.state_dict()["model.embeddings.position_embedding.weight"].shape == (16, 32)


def test_an_edge_follows_the_changes() -> None:
    clip = VisionSpec(size=(224, 224), fit="crop", edge=256)
    assert changed(clip, {"size": [448, 448]}).edge == 512
    assert changed(clip, {"size": [448, 448], "edge": 500}).edge == 500
    assert changed(clip, {"fit": "pad"}).edge is None
    assert changed(clip, {"mean": [0.1, 0.1, 0.1]}).edge == 256
    deit = VisionSpec(size=(224, 224), fit="crop", edge=(256, 256))
    assert changed(deit, {"size": (448, 448)}).edge == (512, 512)
    with pytest.raises(EncoderError, match="resample"):
        changed(clip, {"resample": "cubic", "size": 3})


def test_layers_above_the_feature_are_kept_but_not_run() -> None:
    encoder = build(SIGLIP, layer=1)
    ran = []
    for index, block in enumerate(encoder.model.encoder.layers._modules.values()):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    encoder(torch.randn(1, 3, 32, 32))
    assert ran == [0]
    assert "model.encoder.layers.2.mlp.fc1.weight" in encoder.state_dict()
    assert copy.deepcopy(encoder).model.encoder.layers.used == 1


def test_checkpointing_does_not_change_gradients() -> None:
    encoder = build(SIGLIP, layer=-2).train()
    pixels = torch.randn(2, 3, 32, 32)

    def gradients() -> dict[str, torch.Tensor]:
        encoder.zero_grad()
        encoder(pixels).square().sum().backward()
        return {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}

    plain = gradients()
    encoder.model.gradient_checkpointing_enable({"use_reentrant": False})
    again = gradients()
    assert again.keys() == plain.keys() == encoder.reachable()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=0, atol=1e-6)


def test_batch_norm_keeps_its_statistics_in_training() -> None:
    stages = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "embedding_size": 8, "image_size": 64}
    encoder = build({"model_type": "resnet", **stages}).train()
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    pixels = torch.randn(3, 3, 64, 64)
    together = encoder(pixels)
    alone = torch.cat([encoder(image[None]) for image in pixels])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(buffer, before[name]) for name, buffer in encoder.named_buffers())


def test_an_image_encoder_of_one_channel() -> None:
    encoder = build(SIGLIP | {"num_channels": 1})
    assert encoder.spec.channels == 1
    assert encoder(torch.randn(1, 1, 32, 32)).shape == (1, 16, 32)


def test_masked_autoencoder_is_refused_with_the_way_out() -> None:
    with pytest.raises(EncoderError, match=r"'vit_mae' cannot be an encoder.*model_type 'vit'"):
        build({"model_type": "vit_mae", **VIT})


@pytest.mark.parametrize(
    ("architecture", "options", "parts"),
    [
        ({"model_type": "sigclip"}, {}, ["sigclip"]),
        ({"model_type": "qwen2"}, {}, ["qwen2", "no vision model"]),
        (SIGLIP, {"layer": 9}, ["layer 9", "-4..3"]),
        (SIGLIP, {"spec": {"channels": 1, "mean": [0.5], "std": [0.5]}}, ["3 channels", "1 channels"]),
        (SIGLIP, {"spec": {"mean": [0.5]}}, ["spec: mean needs one number per channel"]),
        (SIGLIP, {"encoder_options": {"finalnorm": True}}, ["'finalnorm'", "did you mean 'final_norm'"]),
        (SIGLIP | {"hidden_size": 33}, {}, ["33"]),
        ({"model_type": "dinov3_convnext", "hidden_sizes": [8] * 4, "depths": [1] * 4}, {"layer": 0}, ["image itself"]),
        ({"model_type": "levit", "image_size": 64}, {}, ["cannot tell the token grid"]),
    ],
)
def test_what_does_not_fit_is_told(architecture: dict, options: dict, parts: list[str]) -> None:
    with pytest.raises(EncoderError) as error:
        build(architecture, **options)
    assert all(part in str(error.value) for part in ["encoder of tower 'image'", *parts]), error.value


@pytest.mark.parametrize(
    ("name", "error", "pattern"),
    [
        ("cnov", ValueError, r"did you mean 'conv'.*Encoders: conv"),
        ("/nowhere/encoder", SourceError, "neither a folder nor a hub name"),
        ("medmvl.model.encoders.conv:Conv", LookupNameError, "leads nowhere"),
    ],
)
def test_wrong_names_are_answered(name: str, error: type, pattern: str) -> None:
    with pytest.raises(error, match=pattern):
        build_encoder(TowerConfig(encoder=name))


def test_pickled_weights_are_refused_with_the_way_to_convert(tmp_path: Path) -> None:
    folder = save(build(SIGLIP).model, tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(SourceError, match=r"(?s)pytorch_model\.bin.*weights_only=True"):
        build_encoder(TowerConfig(encoder=folder))


def test_missing_weights_are_named_but_a_missing_head_does_no_harm(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = save(build(SIGLIP).model, tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    save_file({key: value for key, value in state.items() if "head" not in key}, file, {"format": "pt"})
    assert build_encoder(TowerConfig(encoder=folder)).num_tokens == 16
    save_file({key: value for key, value in state.items() if "layers.1.mlp.fc1" not in key}, file, {"format": "pt"})
    with pytest.raises(EncoderError, match=r"lacks 2 weights.*layers\.1\.mlp\.fc1"):
        build_encoder(TowerConfig(encoder=folder))


def test_damaged_or_misfit_weights_are_told(tmp_path: Path) -> None:
    folder = save(build(SIGLIP).model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    with pytest.raises(EncoderError, match="weights cannot be read"):
        build_encoder(TowerConfig(encoder=folder))
    (tmp_path / "config.json").write_text(json.dumps(config))
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(EncoderError, match="weights cannot be read"):
        build_encoder(TowerConfig(encoder=folder))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, lambda: torch.device("meta")])
def test_any_context_may_build(context: type) -> None:
    architecture = {"model_type": "siglip2_vision_model", **VIT, "num_patches": 16}
    with context():
        assert len(build(architecture, layer=-2).reachable()) == 3 + 2 * 16


def test_a_checkpoint_that_brings_code_is_refused(tmp_path: Path) -> None:
    config = {"model_type": "my_vit", "auto_map": {"AutoConfig": "code.MyConfig", "AutoModel": "code.MyModel"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text("raise RuntimeError('ran remote code')")
    with pytest.raises(EncoderError, match="never run"):
        build_encoder(TowerConfig(encoder=str(tmp_path)))


def test_meta_device_needs_no_memory() -> None:
    large = {"model_type": "siglip_vision_model", "hidden_size": 1152, "num_hidden_layers": 27, "image_size": 384}
    with torch.device("meta"):
        encoder = build_encoder(tower(large | {"num_attention_heads": 16, "intermediate_size": 4304, "patch_size": 14}))
    assert all(parameter.is_meta for parameter in encoder.parameters())
    assert (encoder.grid, encoder.width) == ((27, 27), 1152)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"channels": [8, 8]}, "three or more"),
        ({"channels": [8, 8, 8, 16]}, "equal from the third"),
        ({"image_size": 60}, "multiples of 8"),
    ],
)
def test_conv_options_are_checked(options: dict, part: str) -> None:
    with pytest.raises(EncoderError, match=part):
        build_encoder(TowerConfig(encoder="conv", encoder_options=options))


def test_conv_takes_its_size_from_the_spec_too() -> None:
    encoder = build_encoder(TowerConfig(encoder="conv", spec={"size": [64, 96], "mean": [0.3], "fit": "stretch"}))
    assert (encoder.grid, encoder.spec.mean) == ((8, 12), (0.3,))


def test_weights_without_preprocessor_are_fed_a_stated_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(
        "medmvl.model.encoders.hf.get_logger",
        lambda _: type("Log", (), {"warning": staticmethod(lambda text, *values: said.append(text % values))}),
    )
    folder = save(build(SIGLIP).model, tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    encoder = build_encoder(TowerConfig(encoder=folder))
    assert encoder.spec.size == (32, 32) and encoder.spec.mean == (0.5,) * 3
    assert len(said) == 1 and "preprocessor_config.json" in said[0] and "32 x 32" in said[0]
