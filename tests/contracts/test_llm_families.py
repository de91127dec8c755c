"""Every LLM family of the table gives packed exactly what it gives one sample at a time: loss and gradients."""

import json
import zlib
from types import SimpleNamespace

import pytest
import torch
import transformers
from transformers import CONFIG_MAPPING, AutoConfig

from medmvl.model import attention, families
from medmvl.processing.collate import collate
from medmvl.processing.pack import Row, alone, pack, shared
from tiny_vlm import WINDOWED, pixels, samples, tiny_config, tiny_vlm

WINDOWS = {
    "qwen2": {"use_sliding_window": True, "sliding_window": 5, "layer_types": WINDOWED},
    "qwen3": {"use_sliding_window": True, "sliding_window": 5, "layer_types": WINDOWED},
    "smollm3": {"use_sliding_window": True, "sliding_window": 5, "layer_types": WINDOWED},
    "mixtral": {"sliding_window": 5},
    "phi3": {"sliding_window": 5},
    "ministral3": {"sliding_window": 5},
    "qwen3_moe": {"use_sliding_window": True, "sliding_window": 5},
    "starcoder2": {"sliding_window": 5},
}
CASES = [(name, {}) for name in sorted(families.VERIFIED)] + sorted(WINDOWS.items())


def run(model, rows):
    """Loss (mean over all targets) and gradients of rows, one after the other."""
    batches = [collate(row, pixels) for row in rows]
    total = sum(batch.num_supervised for batch in batches)
    model.zero_grad()
    losses = [model(**batch.model_inputs(), normalizer=total).loss for batch in batches]
    sum(losses).backward()
    return sum(losses).item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(found, wanted):
    assert found.keys() == wanted.keys()
    whole = torch.stack([g.norm() for g in wanted.values()]).norm()
    assert whole > 1e-2
    differences = {name: (found[name] - wanted[name]).norm() for name in wanted}
    assert torch.stack(list(differences.values())).norm() <= 1e-5 * whole
    for name, difference in differences.items():
        assert difference <= 1e-5 * max(wanted[name].norm(), 1e-3 * whole), name


@pytest.fixture(autouse=True)
def quiet():
    transformers.logging.set_verbosity_error()


@pytest.mark.parametrize(("family", "changes"), CASES, ids=lambda v: v if isinstance(v, str) else "+".join(v) or "own")
def test_packed_equals_one_by_one(family, changes):
    config = tiny_config(family, changes)
    assert families.packable(config) == (True, f"{family}: verified family")
    encoded = samples(zlib.crc32(family.encode()))
    groups = shared(encoded)
    assert max(len(group.branches) for group in groups) > 2
    (row,) = pack(groups, 10_000)
    found, gradients = run(tiny_vlm(config, attention.NAME), [row])
    wanted, wanted_gradients = run(tiny_vlm(config, "eager"), [Row((group,)) for group in alone(encoded)])
    assert found == pytest.approx(wanted, rel=1e-5)
    assert_same_gradients(gradients, wanted_gradients)


@pytest.mark.parametrize(("family", "changes"), CASES, ids=lambda v: v if isinstance(v, str) else "+".join(v) or "own")
def test_written_on_equals_one_by_one(family, changes):
    """The probe holds logits behind kept beginnings, several side by side, to those of the family's own attention."""
    assert families.compare(tiny_vlm(tiny_config(family, changes), attention.NAME).llm) is None


@pytest.mark.parametrize("family", sorted(set(CONFIG_MAPPING) & set(families.REFUSED)))
def test_refused_by_name(family):
    fine, reason = families.packable(SimpleNamespace(model_type=family))
    assert not fine
    assert reason == f"{family}: {families.REFUSED[family]}"


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("gemma3_text", {"use_bidirectional_attention": True}, "not causal"),
        ("llama", {"layer_types": ["full_attention", "chunked_attention"]}, "kind chunked_attention"),
        ("phimoe", {"sliding_window": 5}, "through a mask only"),
        (
            "qwen2_moe",
            {"use_sliding_window": True, "sliding_window": 5, "layer_types": WINDOWED},
            "through a mask only",
        ),
    ],
)
def test_refused_by_what_a_config_asks_for(family, changes, reason):
    config = AutoConfig.for_model(family)
    for name, value in changes.items():
        setattr(config, name, value)
    fine, said = families.packable(config)
    assert not fine
    assert reason in said


@pytest.mark.parametrize("family", ["bitnet", "diffllama", "glm4_moe_lite", "hyperclovax", "jetmoe"])
def test_unknown_family_passes_the_probe(family):
    assert families.packable(AutoConfig.for_model(family)) == (True, f"{family}: passed the probe")


@pytest.mark.parametrize("family", ["bloom", "gpt_neox_japanese", "gptj", "hrm_text", "mamba", "phimoe", "stablelm"])
def test_probe_catches_what_the_table_refuses(family):
    """The families refused by name fail the probe as well, so an unknown one of their kind cannot slip through."""
    config = AutoConfig.for_model(family)
    if family == "phimoe":
        config.sliding_window = 5
    reason = families._probe(json.dumps(config.to_diff_dict(), sort_keys=True, default=str))
    assert reason is not None
    assert "differ" in reason or "medmvl" in reason or "unexpected keyword" in reason, reason
