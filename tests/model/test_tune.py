"""The tuning table is what the optimizer gets, over any sequence of stages."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from medmvl.core.layout import Layout, Segment
from medmvl.model import tune
from medmvl.model.build import build
from medmvl.model.config import ModelConfig, TuneRule
from medmvl.model.tune import TuneError
from medmvl.model.vlm import VLM

QWEN = {
    "model_type": "qwen2",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 60,
}
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 60}
SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 8,
}
FULL = TuneRule(mode="full", lr=1e-3)
LORA = TuneRule(mode="lora", lr=1e-4, rank=4, dropout=0.0)
FROZEN = TuneRule(mode="frozen")


def make(llm: dict = QWEN, seed: int = 0, **tower: object) -> VLM:
    tower = {"encoder": {"architecture": SIGLIP}, "layer": -2} | tower
    torch.manual_seed(seed)
    return build(ModelConfig(llm={"architecture": llm}, towers={"image": tower}), tokenizer=object()).model


def loss(model: VLM) -> Tensor:
    """Loss of a fixed row: an image and six words."""
    tower = model.towers["image"]
    count = tower.num_tokens
    total = count + 6
    generator = torch.Generator().manual_seed(1)
    return model(
        ids=torch.randint(0, 60, (1, total), generator=generator),
        positions=torch.arange(total)[None],
        layout=Layout((Segment(0, total),)),
        pixels={"image": torch.randn(1, tower.encoder.spec.channels, *tower.encoder.spec.size, generator=generator)},
        media_positions={"image": torch.arange(1, 1 + count)},
        logit_index=torch.arange(count, total - 1),
        targets=torch.randint(0, 60, (5,), generator=generator),
        normalizer=5.0,
    ).loss


def step(model: VLM, table: tune.TuningTable, times: int = 2) -> None:
    optimizer = torch.optim.AdamW([{"params": group["params"], "lr": 1e-2} for group in table.groups])
    for _ in range(times):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()


def check(model: VLM, table: tune.TuningTable) -> None:
    """The table counts every parameter once; groups are exactly what learns, and all of it gets a gradient."""
    assert sum(row.params for row in table.rows) == sum(p.numel() for p in model.parameters())
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    grouped = [name for group in table.groups for name in group["names"]]
    assert sorted(grouped) == sorted(learning), "a parameter in two groups, or none"
    for group in table.groups:
        assert all(p is learning[name] for name, p in zip(group["names"], group["params"], strict=True))
    by_part = {row.part: row for row in table.rows if row.trainable}
    assert [(group["part"], group["lr"]) for group in table.groups] == [(r.part, r.lr) for r in by_part.values()]
    for group in table.groups:
        assert by_part[group["part"]].trainable == sum(p.numel() for p in group["params"])
    model.zero_grad()
    loss(model).backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(learning)
    model.zero_grad()


@pytest.mark.parametrize("llm", [QWEN, GPT2], ids=["qwen2", "gpt2"])
@pytest.mark.parametrize("modes", list(itertools.product(["full", "lora", "frozen"], repeat=3))[:-1], ids="-".join)
def test_every_mode_of_every_part(modes: tuple[str, ...], llm: dict) -> None:
    rule = {"frozen": FROZEN, "full": FULL, "lora": LORA}
    model = make(llm)
    table = tune.apply(model, dict(zip(tune.parts(model), map(rule.get, modes), strict=True)))
    check(model, table)
    before = {name: p.clone() for name, p in model.named_parameters()}
    step(model, table)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    # A bias of a key projection cannot change the softmax: its gradient is zero up to rounding, or exactly.
    learning = {name for group in table.groups for name in group["names"]}
    assert moved <= learning
    assert {name for name in learning - moved if "k_proj.bias" not in name} == set()


def test_parts_not_named_are_frozen_and_unreached_weights_stay_out() -> None:
    model = make()
    table = tune.apply(model, {"image.encoder": FULL})
    rows = {row.part: row for row in table.rows}
    assert (rows["llm"].mode, rows["image.connector"].mode) == ("frozen", "frozen")
    encoder = rows["image.encoder"]
    assert encoder.trainable + encoder.unreached == encoder.params
    assert not any("post_layernorm" in name or "layers.2." in name for name in table.groups[0]["names"])
    check(model, table)


def test_the_longest_pattern_wins() -> None:
    model = make()
    rules = {"llm": LORA, "llm.model.layers.0": FULL, "llm.model.layers.*.input_layernorm": FROZEN, "image.*": FULL}
    table = tune.apply(model, rules)
    check(model, table)
    rows = {row.part: row for row in table.rows}
    assert [rows[part].mode for part in rules if part in rows] == ["lora", "full", "frozen"]
    assert rows["image.encoder"].mode == rows["image.connector"].mode == "full"
    names = [name for group in table.groups for name in group["names"]]
    assert "llm.model.layers.0.mlp.up_proj.weight" in names
    assert "llm.model.layers.0.input_layernorm.weight" not in names
    assert "llm.model.layers.1.mlp.up_proj.lora_A.default.weight" in names


def test_targets_choose_layers() -> None:
    model = make()
    rule = TuneRule(mode="lora", lr=1e-4, rank=2, targets=["q_proj", "v_proj"])
    names = tune.apply(model, {"llm": rule}).groups[0]["names"]
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in names} == {"q_proj", "v_proj"}
    assert "lm_head" not in str(names)
    with pytest.raises(TuneError, match=r"'llm': target 'q_porj' is no linear layer of it; did you mean 'q_proj'"):
        tune.apply(make(), {"llm": TuneRule(mode="lora", lr=1e-4, targets=["q_porj"])})


def test_targets_of_a_later_stage_choose_among_the_adapters() -> None:
    model = make()
    step(model, tune.apply(model, {"llm": LORA}))
    before = loss(model)
    table = tune.apply(model, {"llm": LORA.model_copy(update={"targets": ["q_proj"]})})
    names = table.groups[0]["names"]
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in names} == {"q_proj"}
    assert torch.equal(loss(model), before), "the other adapters must stay in the forward pass"
    check(model, table)
    # targets without an adapter get one, of their own rank; those that carry another stay as they are
    other = TuneRule(mode="lora", lr=1e-4, rank=2, dropout=0.0, targets=["up_proj"])
    again = make()
    tune.apply(again, {"llm": LORA.model_copy(update={"targets": ["q_proj"]})})
    table = tune.apply(again, {"llm": other})
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in table.groups[0]["names"]} == {"up_proj"}
    assert [(kind["rank"], len(kind["layers"])) for kind in tune.adapters(again)["llm"]] == [(4, 2), (2, 2)]
    check(again, table)


def test_a_target_misspelt_in_a_later_stage_is_told() -> None:
    model = make()
    tune.apply(model, {"llm": LORA})
    with pytest.raises(TuneError, match=r"target 'q_porj' is no linear layer of it; did you mean 'q_proj'"):
        tune.apply(model, {"llm": LORA.model_copy(update={"targets": ["q_porj"]})})


def test_targets_of_several_parts_need_to_be_in_one_of_them() -> None:
    rule = TuneRule(mode="lora", lr=1e-4, rank=2, targets=["q_proj"])
    (group,) = tune.apply(make(), {"image.*": rule}).groups
    assert group["part"] == "image.encoder"


def test_a_fresh_adapter_changes_nothing() -> None:
    model = make()
    before = loss(model)
    rule = TuneRule(mode="lora", lr=1e-4, rank=2, dropout=0.5)
    table = tune.apply(model, {"llm": rule, "image.encoder": rule, "image.connector": rule})
    assert torch.equal(loss(model), before)
    step(model, table)
    assert torch.equal(loss(model), loss(model)), "dropout in eval mode"
    assert not torch.equal(loss(model.train()), loss(model))


def test_stages_keep_adapters() -> None:
    model = make()
    step(model, tune.apply(model, {"llm": LORA, "image.connector": FULL}))
    first, state = loss(model), tune.adapters(model)
    table = tune.apply(model, {"image.connector": FULL})
    check(model, table)
    assert torch.equal(loss(model), first), "a frozen adapter must stay in the forward pass"
    table = tune.apply(model, {"llm": TuneRule(mode="lora", lr=1e-5, rank=4, dropout=0.5), "image.encoder": LORA})
    check(model, table)
    assert torch.equal(loss(model), first)
    kinds = tune.adapters(model)["llm"]
    assert [kind | {"dropout": 0.0} for kind in kinds] == state["llm"]
    assert kinds[0]["dropout"] == 0.5


def test_full_after_lora_merges() -> None:
    model = make()
    step(model, tune.apply(model, {"llm": LORA, "image.encoder": LORA}))
    before = loss(model)
    table = tune.apply(model, {"llm": FULL})
    torch.testing.assert_close(loss(model), before, rtol=0, atol=1e-5)
    assert list(tune.adapters(model)) == ["image.encoder"]
    assert [row.mode for row in table.rows] == ["full", "frozen", "frozen"]
    assert {name for name, _ in model.llm.named_parameters()} == {name for name, _ in make().llm.named_parameters()}
    check(model, table)


def test_another_rank_is_refused() -> None:
    model = make()
    tune.apply(model, {"llm": LORA})
    with pytest.raises(TuneError, match=r"rank 4, alpha 8 .* rank 8, alpha 16"):
        tune.apply(model, {"llm": TuneRule(mode="lora", lr=1e-4, rank=8)})


def test_adapters_travel_as_json_and_state() -> None:
    model = make()
    step(model, tune.apply(model, {"llm": LORA, "image.encoder": LORA}))
    again = make(seed=5)
    tune.restore(again, tune.adapters(model))
    again.load_state_dict(model.state_dict())
    assert torch.equal(loss(again), loss(model))
    assert tune.adapters(again) == tune.adapters(model)
    with pytest.raises(TuneError, match=r"no such part.*did you mean 'image\.encoder'"):
        tune.restore(make(), {"image.encodr": []})
    with pytest.raises(TuneError, match=r"no linear layer is called 'model\.layers\.9\.mlp'"):
        tune.restore(make(), {"llm": [{"rank": 1, "alpha": 1, "dropout": 0, "layers": ["model.layers.9.mlp"]}]})


def test_merge_as_an_export() -> None:
    model = make()
    step(model, tune.apply(model, {"llm": LORA, "image.connector": LORA}))
    before = loss(model)
    for module in tune.parts(model).values():
        tune.merge(module)
    torch.testing.assert_close(loss(model), before, rtol=0, atol=1e-5)
    assert model.state_dict().keys() == make().state_dict().keys()


@pytest.mark.parametrize(
    ("rules", "parts"),
    [
        ({"image.encodr": FULL}, ["'image.encodr' matches nothing", "did you mean 'image.encoder'", "llm"]),
        ({"volume.encoder": FULL}, ["'volume.encoder' matches nothing", "image.connector, image.encoder, llm"]),
        ({"llm.model.layers.7": FULL}, ["'llm.model.layers.7' matches nothing"]),
        ({"image.encoder.model.head": FULL}, ["nothing follows 'image.encoder.model.head'", "feature depends on"]),
        ({"llm.model.norm": LORA}, ["'llm.model.norm' has no linear layer"]),
        ({"llm": FULL, "llm.*": LORA}, ["nothing follows 'llm'"]),
    ],
)
def test_rules_that_cannot_be_followed(rules: dict, parts: list[str]) -> None:
    with pytest.raises(TuneError) as error:
        tune.apply(make(), rules)
    assert all(part in str(error.value) for part in parts), error.value


def test_convolutions_take_no_adapter() -> None:
    with pytest.raises(TuneError, match=r"'image\.encoder' has no linear layer.*mode full"):
        tune.apply(make(encoder="conv", layer=-1, encoder_options={"image_size": 16}), {"image.encoder": LORA})


def test_torchs_own_attention_takes_no_adapter() -> None:
    model = make(connector="attention", connector_options={"queries": 4, "heads": 4})
    table = tune.apply(model, {"image.connector": LORA})
    check(model, table)
    assert {name.split(".")[3] for name in table.groups[0]["names"]} == {"mlp"}
    said = "image.connector: LoRA sits on 2 linear layers; it leaves attn.in_proj_weight, attn.out_proj.weight, query"
    assert str(table).splitlines()[-1] == said


def test_what_lora_leaves_of_medm_clip_ct_is_told() -> None:
    options = {"image_size": [4, 8, 8], "patch_size": [2, 4, 4], "width": 8, "mlp": 16, "layers": 2, "heads": 2}
    towers = {"volume": {"encoder": "medm_clip_ct", "encoder_options": options}}
    model = build(ModelConfig(llm={"architecture": QWEN}, towers=towers), tokenizer=object()).model
    table = tune.apply(model, {"volume.encoder": LORA})
    layers = {name.split(".lora_")[0].partition("encoder.")[2] for name in table.groups[0]["names"]}
    assert {f"transformer_layers.{number}.self_attn.out_proj" for number in (0, 1)} <= layers
    (note,) = table.notes
    assert note.startswith("volume.encoder: LoRA sits on 7 linear layers; it leaves cls_token, pos_embedding, ")
    assert "self_attn.in_proj_weight" in note


def test_meta_device() -> None:
    towers = {"image": {"encoder": {"architecture": SIGLIP}}}
    model = build(ModelConfig(llm={"architecture": QWEN}, towers=towers), device="meta").model
    table = tune.apply(model, {"llm": LORA, "image.connector": FULL})
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(row.params for row in table.rows) == sum(p.numel() for p in model.parameters())


def test_the_table_reads_well() -> None:
    lines = str(tune.apply(make(), {"llm": LORA, "image.connector": FULL})).splitlines()
    assert lines[0].split() == ["part", "mode", "lr", "parameters", "trainable", "never", "reached"]
    assert lines[1].split()[:3] == ["llm", "lora", "0.0001"]
    assert lines[2].split()[:3] == ["image.encoder", "frozen", "-"]
    assert lines[4].startswith("total")
    assert len({len(line) for line in lines[:5]}) == 1
    assert lines[5:] == ["llm: LoRA sits on 14 linear layers; it leaves lm_head.weight, model.embed_tokens.weight"]


MODES = st.sampled_from([FROZEN, FULL, LORA])
STAGE = st.fixed_dictionaries({"llm": MODES, "image.encoder": MODES, "image.connector": MODES})


@settings(max_examples=6, deadline=None)
@given(st.lists(STAGE, min_size=2, max_size=3))
def test_any_sequence_of_stages(stages: list[dict]) -> None:
    model = make()
    for rules in stages:
        before = loss(model)
        table = tune.apply(model, rules)
        torch.testing.assert_close(loss(model), before, rtol=0, atol=1e-4)
        if table.groups:
            check(model, table)
            step(model, table, times=1)


def test_a_model_without_towers() -> None:
    model = build(ModelConfig(llm={"architecture": QWEN}), tokenizer=object()).model
    assert isinstance(model.towers, nn.ModuleDict)
    assert [row.part for row in tune.apply(model, {"llm": FULL}).rows] == ["llm"]
