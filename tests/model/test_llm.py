"""Loading LLMs: weights survive, attention fits the family, and what cannot be loaded says why."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from medmvl.model import attention
from medmvl.model.build import build
from medmvl.model.config import ModelConfig
from medmvl.model.llm import load_llm
from medmvl.model.source import SourceError
from tiny_vlm import tiny_config


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(tiny_config("qwen2"), dtype=torch.bfloat16).save_pretrained(tmp_path)
    return tmp_path


def test_weights_are_loaded_as_fp32_masters(folder):
    model = load_llm(folder)
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert model.config._attn_implementation == attention.NAME
    assert not model.training
    assert load_llm(str(folder), dtype=torch.bfloat16).dtype == torch.bfloat16


def test_architecture_gets_random_weights_and_meta_gets_none(folder):
    fields = json.loads((folder / "config.json").read_text())
    model = load_llm(fields)
    assert model.dtype == torch.float32
    assert all(p.device.type == "meta" for p in load_llm(folder, device="meta").parameters())
    assert all(p.device.type == "meta" for p in load_llm(fields, device="meta").parameters())


def test_rotary_frequencies_stay_exact_in_a_bf16_model(folder):
    config = ModelConfig(llm={"architecture": json.loads((folder / "config.json").read_text())})
    llm = build(config, dtype=torch.bfloat16, tokenizer=object()).model.llm
    assert llm.dtype == torch.bfloat16
    assert torch.equal(llm.model.rotary_emb.inv_freq, load_llm(folder).model.rotary_emb.inv_freq)


def test_hub_names_whose_dimensions_ship_are_built_offline():
    model = load_llm("Qwen/Qwen2.5-3B-Instruct", device="meta")
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(3.09e9, rel=0.01)


@pytest.mark.parametrize(("family", "implementation"), [("stablelm", "sdpa"), ("mamba", "eager"), ("gemma2", "medmvl")])
def test_attention_suits_the_family(family, implementation):
    model = load_llm({**tiny_config(family).to_dict(), "model_type": family})
    assert model.config._attn_implementation == implementation


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"model_type": "qwen22"}, "did you mean 'qwen2'"),
        ({}, "unknown model_type None"),
        ({"model_type": "gemma3"}, "no plain causal LM"),
        ("/nowhere/at/all", "neither a folder nor a hub name"),
    ],
)
def test_what_is_no_language_model_is_refused(source, message):
    with pytest.raises(SourceError, match=message):
        load_llm(source)


def test_pickled_weights_and_foreign_configs_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(SourceError, match="pickled"):
        load_llm(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "a.B"}}))
    with pytest.raises(SourceError, match="no config of a model that transformers knows"):
        load_llm(folder)
