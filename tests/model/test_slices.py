"""The encoder `slices`: one 2D encoder over all slices, in chunks, its own or shared with the image tower."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

import medmvl
from chat_families import tokenizer_of
from medmvl.bundle import BundleError, packages, read_config
from medmvl.model import tune
from medmvl.model.build import build
from medmvl.model.config import ModelConfig, TowerConfig, TuneRule
from medmvl.model.encoders.base import Encoder, EncoderError
from medmvl.model.encoders.table import build_encoder
from medmvl.model.vlm import VLM
from medmvl.train.assemble import recompute
from medmvl.train.estimate import memory

WIDTH = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
PICTURE = {"image_size": 32, "patch_size": 8, **WIDTH}
SIGLIP = {"architecture": {"model_type": "siglip_vision_model", **PICTURE}}
CLIP = {"architecture": {"model_type": "clip_vision_model", **PICTURE}}
CONV = {"channels": [8, 16, 16], "image_size": 32}
INNER = {
    "conv": {"encoder": "conv", "encoder_options": CONV},
    "siglip": {"encoder": SIGLIP},
    "clip": {"encoder": CLIP},
}
CLIP_FILE = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 32},
    "crop_size": 32,
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
}
LLM = {"model_type": "qwen2", "vocab_size": 512, "num_key_value_heads": 1, **WIDTH}
FULL = TuneRule(mode="full", lr=1e-3)


def slices(inner: str = "siglip", layer: int = -1, tokens: str = "all", spec: dict | None = None, **options) -> Encoder:
    torch.manual_seed(0)
    options = {**INNER[inner], "slices": 5, **options}
    config = TowerConfig(encoder="slices", encoder_options=options, layer=layer, tokens=tokens, spec=spec)
    return build_encoder(config, where="encoder of tower 'volume'")


def volumes(encoder: Encoder, count: int = 2) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(count, 1, *encoder.spec.size)


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("layer", [-1, -2])
def test_every_slice_is_a_picture(inner: str, layer: int) -> None:
    if (inner, layer) == ("conv", -2):
        pytest.skip("conv has one layer")
    encoder = slices(inner, layer, tokens="patches", chunk=3)
    alone = build_encoder(TowerConfig(**INNER[inner], layer=layer, tokens="patches"))
    alone.load_state_dict(encoder.inner.state_dict())
    x = volumes(encoder)
    assert (encoder.grid, encoder.token_grid) == ((5, 4, 4), (5, 4, 4))
    tokens = encoder(x)
    assert tokens.shape == (2, encoder.num_tokens, encoder.width) == (2, 80, 16)
    for volume, found in zip(x, tokens, strict=True):
        pictures = torch.cat([volume[:, index] for index in range(5)])[:, None]
        expected = alone(pictures.repeat(1, alone.spec.channels, 1, 1))
        torch.testing.assert_close(found, expected.flatten(0, 1), rtol=0, atol=1e-5)


def test_the_layer_may_stand_in_the_2d_encoders_options() -> None:
    config = TowerConfig(encoder="slices", encoder_options={**INNER["clip"], "encoder_options": {"layer": -2}})
    stored = build_encoder(config).self_contained(config)
    assert stored.layer == -2, "what tables print"
    assert build_encoder(stored).self_contained(stored) == stored


@pytest.mark.parametrize("inner", INNER)
def test_chunks_change_nothing(inner: str) -> None:
    encoder, found = slices(inner), {}
    for chunk in (1, 2, 5, 32):
        encoder.chunk = chunk
        encoder.zero_grad()
        tokens = encoder(volumes(encoder))
        tokens.square().sum().backward()
        found[chunk] = tokens, {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
    tokens, gradients = found.pop(32)
    assert set(gradients) == encoder.reachable()
    for others, theirs in found.values():
        torch.testing.assert_close(others, tokens, rtol=0, atol=1e-5)
        for name, gradient in gradients.items():
            torch.testing.assert_close(theirs[name], gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [1, 3])
def test_calls_depend_on_slices_only_and_chunks_bound_them(count: int) -> None:
    """Under sharding every rank must call the inner encoder equally often, however many volumes its row holds."""
    encoder = slices("conv", chunk=2)
    seen: list[int] = []
    encoder.inner.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    encoder(volumes(encoder, count))
    assert seen == [2 * count, 2 * count, count]


def test_spec_is_the_inner_encoders_in_3d() -> None:
    spec = slices("conv").spec
    assert (spec.size, spec.channels, spec.mean, spec.std) == ((5, 32, 32), 1, (0.5,), (0.5,))
    assert (spec.resample, spec.antialias, spec.fit, spec.hu_window) == ("bilinear", True, "stretch", None)
    assert slices("siglip").spec.channels == 1
    changed = slices("siglip", slices=None, spec={"size": [3, 64, 32], "mean": [0], "std": [1], "hu_window": [-9, 9]})
    assert (changed.grid, changed.inner.spec.size, changed.spec.mean) == ((3, 8, 4), (64, 32), (0.0,))
    assert build_encoder(TowerConfig(encoder="slices", encoder_options={"encoder": "conv"})).spec.size == (32, 64, 64)


def test_channels_of_different_mean_are_normalised_inside(tmp_path: Path) -> None:
    torch.manual_seed(0)
    fields = dict(CLIP["architecture"])
    AutoModel.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields)).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(CLIP_FILE))
    config = TowerConfig(encoder="slices", encoder_options={"encoder": str(tmp_path), "slices": 2}, tokens="patches")
    encoder = build_encoder(config)
    assert (encoder.spec.mean, encoder.spec.std, encoder.spec.fit) == ((0.0,), (1.0,), "stretch")
    x = torch.rand(1, 1, 2, 32, 32)
    mean, std = (torch.tensor(CLIP_FILE[key])[:, None, None] for key in ("image_mean", "image_std"))
    expected = encoder.inner((x[0].transpose(0, 1) - mean) / std).flatten(0, 1)
    torch.testing.assert_close(encoder(x)[0], expected, rtol=0, atol=1e-6)
    # the bundle's settings have no file, and normalise the same way
    again = build_encoder(encoder.self_contained(config))
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again(x), encoder(x))
    assert str(tmp_path) not in encoder.self_contained(config).model_dump_json()


def test_class_tokens_stand_in_front_of_all_slices() -> None:
    everything, patches = slices("clip"), slices("clip", tokens="patches")
    assert (everything.class_tokens, everything.num_tokens, everything.token_grid) == (5, 85, (85,))
    x = volumes(everything)
    tokens = everything(x)
    torch.testing.assert_close(tokens[:, 5:], patches(x))
    first = everything.inner(x[:, :, 2].expand(-1, 3, -1, -1))[:, 0]
    torch.testing.assert_close(tokens[:, 2], first)


@pytest.mark.parametrize("inner", INNER)
def test_recomputing_gives_the_same_gradients(inner: str) -> None:
    config = {"encoder": "slices", "encoder_options": {**INNER[inner], "slices": 5, "chunk": 2}}
    model = make({"volume": config})
    pixels, found = volumes(model.towers["volume"].encoder), []
    inside = model.towers["volume"].encoder.modules()
    layer = next(module for module in inside if isinstance(module, nn.Conv2d if inner == "conv" else nn.Linear))
    calls: list[int] = []
    layer.register_forward_pre_hook(lambda *_: calls.append(1))
    for often, patterns in [(3, []), (6, ["volume.encoder"])]:
        recompute(model, patterns)
        model.zero_grad()
        calls.clear()
        model.towers["volume"].train()(pixels).square().sum().backward()
        assert len(calls) == often
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"slices": 0}, ["slices", "0"]),
        ({"slices": "8"}, ["'slices' must be a whole number or null", "'8'"]),
        ({"chunk": 0}, ["chunk", "0"]),
        ({"slices": 4, "spec": {"size": [5, 32, 32]}}, ["slices is 4", "[5, 32, 32]"]),
        ({"spec": {"size": [32, 32]}}, ["[slices, height, width]", "[32, 32]"]),
        ({"spec": {"channels": 3, "mean": [0] * 3, "std": [1] * 3}}, ["one channel", "3 channels"]),
        ({"encoder": "convv"}, ["its 2D encoder", "did you mean 'conv'"]),
        ({"encoder": "slices", "encoder_options": INNER["conv"]}, ["needs a 2D encoder", "'slices'", "(32, 32, 32)"]),
        ({"encoder": {"path": "conv", "architecture": {}}}, ["its 2D encoder", "either 'path'"]),
        ({"encoder_options": {"depht": 1}}, ["unknown option 'depht'"]),
        ({"layer": -9}, ["its 2D encoder", "layer -9"]),
        ({"layer": -3, "encoder_options": {"layer": -2}}, ["layer is -3", "say -2", "leave one out"]),
        ({"slice": 4}, ["unknown option 'slice'", "slices"]),
        ({"encoder": "image"}, ["image tower", "has none"]),
    ],
)
def test_misfits_tell_what_fits(changes: dict, parts: list[str]) -> None:
    with pytest.raises(EncoderError) as error:
        slices("siglip", **changes)
    assert all(part in str(error.value) for part in ["encoder of tower 'volume'", *parts]), error.value


SHARED = {"encoder": "slices", "encoder_options": {"encoder": "image", "slices": 4, "chunk": 3}}


def make(towers: dict) -> VLM:
    """Return a VLM with these towers; its tokenizer is of no interest."""
    torch.manual_seed(0)
    return build(ModelConfig(llm={"architecture": LLM}, towers=towers), tokenizer=tokenizer_of("chatml")).model


def shared(inner: str = "siglip", **volume) -> VLM:
    # the volume tower first: the image tower is there all the same when it is built
    return make({"volume": {**SHARED, **volume}, "image": {**INNER[inner], "tokens": "patches"}})


def test_shared_weights_are_there_once() -> None:
    model = shared()
    image, volume = model.towers["image"].encoder, model.towers["volume"].encoder
    assert list(model.towers) == ["volume", "image"]
    assert volume.slice_encoder is image
    assert not list(volume.parameters())
    assert not volume.reachable()
    assert not [name for name in model.state_dict() if name.startswith("towers.volume.encoder")]
    x = volumes(volume)
    with torch.no_grad():
        before = volume(x)
        next(image.parameters()).mul_(2)
        assert not torch.equal(volume(x), before)
    twin = copy.deepcopy(model)
    assert twin.towers["volume"].encoder.slice_encoder is twin.towers["image"].encoder is not image
    assert (image.spec.size, volume.spec.size) == ((32, 32), (4, 32, 32))


def test_shared_weights_learn_from_both_kinds() -> None:
    model = shared()
    table = tune.apply(model, {"image.encoder": FULL, "volume.*": FULL})
    assert [(row.part, row.mode, row.params) for row in table.rows if row.part == "volume.encoder"] == [
        ("volume.encoder", "as image.encoder", 0)
    ]
    assert sum(row.params for row in table.rows) == sum(parameter.numel() for parameter in model.parameters())
    assert [group["part"] for group in table.groups] == ["volume.connector", "image.encoder"]
    learning = [id(parameter) for group in table.groups for parameter in group["params"]]
    assert len(learning) == len(set(learning))
    for pattern in ("volume.encoder", "volume.encoder.inner", "volume.enc*"):
        with pytest.raises(tune.TuneError, match=r"volume\.encoder shares its weights with image\.encoder: tune that"):
            tune.apply(model, {pattern: FULL})
    model.towers["volume"](volumes(model.towers["volume"].encoder)).sum().backward()
    encoder = model.towers["image"].encoder
    assert {name for name, p in encoder.named_parameters() if p.grad is not None} == encoder.reachable()


def test_an_adapter_on_shared_weights_acts_on_volumes() -> None:
    model = shared()
    x = volumes(model.towers["volume"].encoder)
    before = model.towers["volume"].encoder(x)
    tune.apply(model, {"image.encoder": TuneRule(mode="lora", lr=1e-3, rank=2)})
    assert list(tune.adapters(model)) == ["image.encoder"]
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    model.eval()
    after = model.towers["volume"].encoder(x)
    assert (after - before).abs().max() > 1e-3
    tune.apply(model, {"image.encoder": FULL})
    torch.testing.assert_close(model.towers["volume"].encoder(x), after, rtol=0, atol=1e-4)


def test_memory_of_a_shared_encoder_counts_its_slices() -> None:
    def activations(volume: dict, *learning: str) -> int:
        model = make({"image": INNER["siglip"], "volume": volume})
        trainable = {part: part in learning for part in tune.parts(model)}
        return memory(model, trainable, row_tokens=512, bf16=False)["single"].activations

    own = {**SHARED, "encoder_options": {**INNER["siglip"], "slices": 4}}
    assert activations(SHARED, "image.encoder") == activations(own, "image.encoder", "volume.encoder")
    assert activations(SHARED) == activations(own)


@pytest.mark.parametrize(
    ("volume", "parts"),
    [
        ({"layer": -2}, ["layer -2", "layer -1", "leave `layer` out"]),
        ({"spec": {"size": [4, 64, 64]}}, ["(32, 32)", "the image tower", "(4, 64, 64)"]),
        ({"encoder_options": {"encoder": "image", "encoder_options": {"channels": 3}}}, ["channels", "image tower"]),
    ],
)
def test_sharing_keeps_to_the_image_tower(volume: dict, parts: list[str]) -> None:
    with pytest.raises(EncoderError) as error:
        shared(**volume)
    assert all(part in str(error.value) for part in ["encoder of tower 'volume'", *parts]), error.value


def test_shared_features_may_drop_class_tokens() -> None:
    image = {**INNER["clip"], "layer": -2, "tokens": "all"}
    model = make({"image": image, "volume": {**SHARED, "tokens": "patches", "connector": "average"}})
    encoder = model.towers["volume"].encoder
    assert (encoder.grid, encoder.class_tokens) == ((4, 4, 4), 0)
    x = volumes(encoder)
    expected = model.towers["image"].encoder(x[:, :, 1].expand(-1, 3, -1, -1))[:, 1:]
    torch.testing.assert_close(encoder(x)[:, 16:32], expected, rtol=0, atol=1e-5)


def test_code_named_inside_needs_leave(tmp_path: Path) -> None:
    tokenizer_of("chatml").save_pretrained(tmp_path / "tokenizer")
    inner = {"encoder": "medmvl.model.encoders.conv:ConvEncoder", "encoder_options": CONV}
    tower = {"encoder": "slices", "encoder_options": {**inner, "slices": 2}}
    llm = {"architecture": LLM, "tokenizer": str(tmp_path / "tokenizer")}
    bundle = medmvl.Bundle.build({"llm": llm, "towers": {"volume": tower}})
    assert packages(bundle.config) == {"medmvl": inner["encoder"]}
    bundle.save(tmp_path / "bundle")
    with pytest.raises(BundleError, match="runs code of the package 'medmvl'"):
        read_config(tmp_path / "bundle")
    assert medmvl.load(tmp_path / "bundle", allow_code=["medmvl"]).hash == bundle.hash
