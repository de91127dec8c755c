"""Building a model: from folders, from architectures, on the meta device; what comes out needs no folder any more."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast

from medmvl.core import shipped
from medmvl.model.build import build
from medmvl.model.config import PUBLISHED, ModelConfig, TowerConfig
from medmvl.model.connectors import ConnectorError
from medmvl.model.encoders.base import EncoderError
from medmvl.model.source import SourceError

LLM = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 60,
}
CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.fixture
def llm(tmp_path: Path) -> str:
    """Write an LLM with a tokenizer, as on the hub."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config_of(LLM)).save_pretrained(tmp_path / "llm")
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(60)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "llm")
    return str(tmp_path / "llm")


@pytest.fixture
def encoder(tmp_path: Path) -> str:
    """Write an encoder with its preprocessor config, as on the hub."""
    torch.manual_seed(0)
    AutoModel.from_config(config_of(CLIP)).save_pretrained(tmp_path / "encoder")
    processor = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 36}, "crop_size": 32}
    (tmp_path / "encoder" / "preprocessor_config.json").write_text(json.dumps(processor))
    return str(tmp_path / "encoder")


def config_of(fields: dict) -> AutoConfig:
    fields = dict(fields)
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def test_from_folders(llm: str, encoder: str) -> None:
    built = build(ModelConfig(llm=llm, towers={"image": {"encoder": encoder}}))
    tower = built.model.towers["image"]
    assert (tower.placeholder, tower.num_tokens) == ("<image>", 17)
    assert (tower.encoder.spec.edge, tower.encoder.spec.size) == (36, (32, 32))
    assert built.tokenizer(["w5", "w7"], is_split_into_words=True).input_ids == [5, 7]
    source = AutoModelForCausalLM.from_pretrained(llm, dtype=torch.float32)
    assert all(torch.equal(p, q) for p, q in zip(built.model.llm.parameters(), source.parameters(), strict=True))
    assert all(p.data_ptr() % 64 == 0 for p in built.model.parameters()), "still where the file puts them"
    assert not built.model.training
    assert tower(torch.randn(2, 3, 32, 32)).shape == (2, 17, 32)


def test_what_was_built_needs_no_folder(llm: str, encoder: str, tmp_path: Path) -> None:
    tower = {"encoder": encoder, "layer": -2, "tokens": "patches", "connector": "pool", "spec": {"resample": "box"}}
    volume = {"encoder": "slices", "encoder_options": {"encoder": encoder, "slices": 2}}
    built = build(ModelConfig(llm=llm, towers={"image": tower, "volume": volume}))
    stored = built.config.model_dump_json()
    assert str(tmp_path) not in stored

    config = ModelConfig.model_validate_json(stored)
    again = build(config, tokenizer=built.tokenizer)
    assert again.config == built.config == config
    assert again.model.load_state_dict(built.model.state_dict())
    for name, pixels in (("image", torch.randn(1, 3, 32, 32)), ("volume", torch.randn(1, 1, 2, 32, 32))):
        assert again.model.towers[name].encoder.spec == built.model.towers[name].encoder.spec
        assert torch.equal(again.model.towers[name](pixels), built.model.towers[name](pixels))


def test_a_native_encoder_is_stored_with_its_spec(llm: str) -> None:
    built = build(ModelConfig(llm=llm, towers={"image": {"encoder": "conv", "spec": {"mean": [0.2]}}}))
    tower = built.config.towers["image"]
    assert (tower.encoder.path, tower.spec["mean"], tower.spec["size"]) == ("conv", [0.2], [64, 64])
    assert build(built.config, tokenizer=built.tokenizer).model.load_state_dict(built.model.state_dict())


def test_from_architectures(llm: str) -> None:
    config = ModelConfig(
        llm={"architecture": LLM, "tokenizer": llm},
        towers={"image": {"encoder": {"architecture": CLIP}, "placeholder": "<scan>"}},
    )
    torch.manual_seed(3)
    first = build(config)
    torch.manual_seed(3)
    second = build(config, dtype=torch.bfloat16)
    assert first.tokenizer.vocab_size == 60
    assert first.model.towers["image"].placeholder == "<scan>"
    for p, q in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert (p.dtype, q.dtype) == (torch.float32, torch.bfloat16)
        torch.testing.assert_close(p.bfloat16(), q, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("name", shipped.names("model/architectures", ".json"))
def test_shipped_architectures_build_on_meta_without_a_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise AssertionError("went to the hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", no_network)
    data = json.loads(shipped.path("model/architectures", name, ".json").read_text())
    hub_name = name.replace("--", "/")
    if "preprocessor" in data or data["config"]["model_type"] in PUBLISHED:
        tower = "image" if "preprocessor" in data else "volume"
        config = ModelConfig(llm={"architecture": LLM}, towers={tower: {"encoder": hub_name, "layer": -2}})
    else:
        config = ModelConfig(llm=hub_name)
    built = build(config, device="meta")
    assert built.tokenizer is None
    assert all(parameter.is_meta for parameter in built.model.parameters())
    assert build(built.config, device="meta").config == built.config


def test_meta_takes_a_tokenizer_that_is_at_hand(llm: str) -> None:
    config = ModelConfig(llm={"path": "Qwen/Qwen2.5-3B-Instruct", "tokenizer": llm})
    assert build(config, device="meta").tokenizer.vocab_size == 60


@pytest.mark.parametrize(
    ("settings", "error", "pattern"),
    [
        ({"llm": {"architecture": LLM}}, SourceError, r"no tokenizer; name a folder or hub name as `llm\.tokenizer`"),
        ({"llm": "/nowhere/llm"}, SourceError, r"neither a folder nor a hub name"),
        ({"llm": {"architecture": LLM, "tokenizer": "ENCODER"}}, SourceError, r"holds no tokenizer"),
        ({"towers": {"image": {"encoder": "LLM"}}}, EncoderError, r"encoder of tower 'image'.*no vision model"),
        ({"towers": {"volume": {"encoder": "ENCODER"}}}, EncoderError, r"takes pictures of size \(32, 32\).*'slices'"),
        ({"towers": {"image": {"encoder": "vit3d"}}}, EncoderError, r"takes volumes of size.*the tower 'volume'"),
        ({"towers": {"image": {"encoder": "ENCODER", "connector": "pool"}}}, ConnectorError, r"tokens: patches"),
        (
            {"towers": {"image": {"encoder": "ENCODER", "connector_options": {"deep": 2}}}},
            ConnectorError,
            r"connector of tower 'image'.*did you mean 'depth'",
        ),
    ],
)
def test_what_cannot_be_built_is_told(settings: dict, error: type, pattern: str, llm: str, encoder: str) -> None:
    text = (
        json.dumps({"llm": llm} | settings).replace('"LLM"', json.dumps(llm)).replace('"ENCODER"', json.dumps(encoder))
    )
    with pytest.raises(error, match=pattern):
        build(ModelConfig.model_validate_json(text))


def test_options_is_short_for_encoder_options() -> None:
    settings = {"encoder": "slices", "options": {"encoder": "conv", "layer": -1, "slices": 4}, "connector": "average"}
    tower = TowerConfig.model_validate(settings)
    assert tower.encoder_options == {"encoder": "conv", "slices": 4}
    assert TowerConfig.model_validate(tower.model_dump()) == tower
    with pytest.raises(ValueError, match="options"):
        TowerConfig.model_validate({**settings, "encoder_options": {}})
    schema = TowerConfig.model_json_schema()
    assert set(settings) <= set(schema["properties"]) and not schema["additionalProperties"], "what editors are told"


VIT = {"image_size": [4, 8, 8], "patch_size": [2, 4, 4], "width": 16, "mlp": 24, "layers": 3, "heads": 2}


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("volume", "vit3d", {**VIT, "layer": -2}),
        ("volume", "vit3d", {**VIT, "tokens": "patches"}),
        ("volume", "slices", {"encoder": "ENCODER", "slices": 2, "layer": -2, "tokens": "patches"}),
        ("volume", "slices", {"encoder": "ENCODER", "slices": 2, "encoder_options": {"layer": -2}}),
        ("image", "ENCODER", {"layer": -2, "spec": {"mean": [0.1, 0.1, 0.1]}}),
    ],
)
def test_what_stands_in_the_options_is_stored(name: str, kind: str, options: dict, llm: str, encoder: str) -> None:
    settings = json.loads(json.dumps({"encoder": kind, "options": options}).replace("ENCODER", encoder))
    built = build(ModelConfig(llm=llm, towers={name: settings}))
    again = build(built.config, tokenizer=built.tokenizer)
    assert again.config == built.config
    assert again.model.load_state_dict(built.model.state_dict())
    one, other = (made.model.towers[name].encoder for made in (built, again))
    assert (one.spec, one.grid, one.class_tokens) == (other.spec, other.grid, other.class_tokens)
    pixels = torch.randn(1, one.spec.channels, *one.spec.size)
    assert torch.equal(one(pixels), other(pixels))


def test_what_is_told_twice_must_agree() -> None:
    stated = {"encoder": "vit3d", "layer": -2}
    assert TowerConfig.model_validate({**stated, "options": {"layer": -2}}).layer == -2
    with pytest.raises(ValueError, match="'layer' is -2, and -3 in encoder_options; leave one out"):
        TowerConfig.model_validate({**stated, "options": {"layer": -3}})
