"""What a model takes over from another: encoders across towers, connectors as far as they fit, mlps whole or not."""

import re

import pytest
import torch

from chat_families import tokenizer_of
from medmvl.model.build import build
from medmvl.model.config import ModelConfig
from medmvl.train.inherit import inherit

WIDTH = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
LLM = {"model_type": "qwen2", "vocab_size": 60, "num_key_value_heads": 1, **WIDTH}
CONV = {"encoder": "conv", "encoder_options": {"channels": [8, 16, 16], "image_size": 32}}
QUERIES = {"queries": 3, "heads": 2}


def model(llm=None, **towers):
    settings = {"llm": {"architecture": {**LLM, **(llm or {})}}, "towers": towers}
    return build(ModelConfig.model_validate(settings), tokenizer=tokenizer_of("chatml")).model


def image(connector="mlp", **options):
    return {**CONV, "connector": connector, "connector_options": options}


def volume(connector, shared=False, **options):
    inner = {"encoder": "image"} if shared else CONV
    options = {"connector": connector, "connector_options": options}
    return {"encoder": "slices", "encoder_options": {**inner, "slices": 2}, **options}


def same(one, other):
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("given", "have", "told"),
    [
        (image(), volume("average"), "carried: .*image.connector -> volume.connector$"),
        (image(), volume("attention", **QUERIES), r"-> volume.connector; new: volume.connector \(query, attn\)$"),
        (image(), volume("perceiver", heads=2), "new: volume.connector; not used: image.connector$"),
        (image("linear"), volume("average"), "new: volume.connector; not used: image.connector$"),
        (image(), volume("average", depth=3), "new: volume.connector; not used: image.connector$"),
        (image(), volume("mlp", depth=3), "new: volume.connector; not used: image.connector$"),
        (
            image("attention", **QUERIES),
            volume("attention", depth=3, **QUERIES),
            r"-> volume.connector; new: volume.connector \(mlp\)$",
        ),
    ],
)
def test_of_a_connector_what_fits(given, have, told):
    source, target = model(image=given), model(volume=have)
    before = {name: tensor.clone() for name, tensor in target.towers["volume"].connector.state_dict().items()}
    report = str(inherit(target, source, "there"))
    assert re.search(told, report), report
    assert same(source.towers["image"].encoder, target.towers["volume"].encoder.inner)
    after = target.towers["volume"].connector.state_dict()
    unfit = "" if "not used: image.connector" in report else "mlp." if "(mlp)" in report else None
    for name in before:
        if unfit is not None and name.startswith(unfit):
            assert torch.equal(before[name], after[name]), name


@pytest.mark.parametrize("pictures", [True, False])
def test_slices_get_what_they_shared(pictures):
    """From a model whose slices share the image tower's encoder, to one whose slices have their own."""
    source = model(image=image(), volume=volume("average", shared=True))
    target = model(**({"image": image()} if pictures else {}), volume=volume("average"))
    report = inherit(target, source, "there")
    assert "image.encoder -> volume.encoder.inner" in report.carried and "volume.connector" in report.carried
    assert not report.new
    assert same(source.towers["image"].encoder, target.towers["volume"].encoder.inner)
    assert same(source.towers["volume"].connector, target.towers["volume"].connector)
    assert report.unused == ([] if pictures else ["image.connector"])


def test_slices_of_their_own_do_not_become_shared():
    source = model(image=image(), volume=volume("average"))
    with pytest.raises(ValueError, match=r"volume\.encoder of there is built differently"):
        inherit(model(image=image(), volume=volume("average", shared=True)), source, "there")


VIT = {"image_size": [4, 8, 8], "patch_size": [2, 4, 4], "width": 16, "mlp": 24, "layers": 1}
SIGLIP = {"model_type": "siglip_vision_model", "image_size": 32, "patch_size": 8, **WIDTH}


def vit(inside, connector="mlp", **options):
    fields = {"connector": connector, "connector_options": options}
    return {"encoder": "vit3d", "encoder_options": {**VIT, "heads": inside}, **fields}


def siglip(heads):
    return {"encoder": {"architecture": {**SIGLIP, "num_attention_heads": heads}}}


@pytest.mark.parametrize(
    ("given", "have", "told"),
    [
        ({}, {"llm": {"num_attention_heads": 4, "num_key_value_heads": 2}}, r"llm .*differently.*head_dim"),
        ({"volume": vit(2)}, {"volume": vit(4)}, r"volume\.encoder .*differently \(blocks\.0\.attn\.heads\)"),
        ({"image": siglip(2)}, {"image": siglip(4)}, r"image\.encoder .*differently .*self_attn\.head_dim"),
    ],
)
def test_as_many_heads_too(given, have, told):
    """Weights of one shape compute something else when they are cut into other heads."""
    with pytest.raises(ValueError, match=told):
        inherit(model(**have), model(**given), "there")


def test_parts_that_may_be_new_are_new_with_other_heads():
    slices = {"encoder": "slices", "encoder_options": {**siglip(4), "slices": 2}}
    report = inherit(model(volume=slices), model(image=siglip(2)), "there")
    assert "volume.encoder" in report.new and report.unused == ["image.encoder"]
    source, target = (model(volume=vit(2, "attention", queries=3, heads=heads)) for heads in (2, 4))
    report = str(inherit(target, source, "there"))
    assert report.endswith("volume.connector; new: volume.connector (attn)"), report
    own, theirs = (one.towers["volume"].connector for one in (target, source))
    assert torch.equal(own.query, theirs.query) and same(own.mlp, theirs.mlp) and not same(own.attn, theirs.attn)
    source, target = (model(volume=vit(2, "perceiver", latents=3, heads=heads)) for heads in (2, 4))
    report = str(inherit(target, source, "there"))
    assert report.endswith("volume.connector; new: volume.connector (layers)"), report
