"""Two branches and a question: Med-2E3's arithmetic, what is computed once, what goes with what, what learns."""

import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel

import tiny_dual
from medmvl.model import tune
from medmvl.model.build import build
from medmvl.model.config import ModelConfig, TextModel, TowerConfig, TuneRule
from medmvl.model.connectors import ConnectorError, DualGrid, DualTokens, DualWidth, build_connector
from medmvl.model.encoders import published, text
from medmvl.model.encoders.base import EncoderError
from medmvl.model.encoders.table import build_encoder
from medmvl.model.source import SourceError
from medmvl.train.assemble import recompute

FULL = {"mode": "full", "lr": 1e-3}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    tiny_dual.write_parts(folder)
    return folder


def encoder(parts: Path, **changes):
    settings = tiny_dual.tower(parts)
    options = {**settings["encoder_options"], **changes.pop("encoder_options", {})}
    torch.manual_seed(0)
    config = TowerConfig.model_validate({**settings, "encoder_options": options, **changes})
    return build_encoder(config, where="encoder of tower 'volume'")


def asked(volumes: int = 2, source: tuple[int, ...] = (0, 1, 0)) -> dict[str, torch.Tensor]:
    """Return the inputs of an encoder: noise, and questions of different lengths."""
    torch.manual_seed(1)
    question = torch.randint(5, 30, (len(source), 7))
    mask = torch.ones_like(question)
    mask[-1, 4:] = 0
    pixels = torch.rand(volumes, 1, *tiny_dual.SIZE)
    return {"pixels": pixels, "question": question * mask, "mask": mask, "source": torch.tensor(source)}


def guided(**options):
    """Return Med-2E3's connector: a grid of 4 x 4 x 4 pooled by two, 8 slices of 5 tokens."""
    torch.manual_seed(0)
    grid, width = DualGrid((4, 4, 4), (8, 5)), DualWidth(6, 7, 9)
    return build_connector("text_guided", grid, width, 11, options).eval()


def dual_tokens() -> DualTokens:
    torch.manual_seed(1)
    return DualTokens(torch.randn(2, 64, 6), torch.randn(2, 40, 7), torch.randn(3, 9), torch.tensor([0, 1, 0]))


def test_text_guided_is_med_2e3() -> None:
    """3D: average, mlp. 2D: mlp. Score: mean over [slab; slice] . text / 5; softmax; weighted sum; [3D; 2D]."""
    connector, given = guided(), dual_tokens()
    found = connector(given)
    assert found.shape == (3, connector.num_tokens, 11) == (3, 8 + 5, 11)
    for question, which in enumerate(given.source.tolist()):
        cube = given.volume[which].T.reshape(1, 6, 4, 4, 4)
        pooled = torch.nn.functional.avg_pool3d(cube, 2, 2).reshape(6, 8).T
        first, _, second = connector.volume.mlp
        x = torch.nn.functional.linear(pooled, first.weight, first.bias)
        volume = torch.nn.functional.linear(torch.nn.functional.gelu(x), second.weight, second.bias)
        slices = connector.slices(given.slices[which]).reshape(8, 5, 11)
        said = given.text[question] @ connector.text_mlp.weight.T + connector.text_mlp.bias
        slabs = volume.reshape(2, 4, 11).repeat_interleave(4, dim=0)
        scores = torch.cat([slabs, slices], dim=1).mean(dim=1) @ said / 5
        expected = torch.cat([volume, (torch.softmax(scores, 0)[:, None, None] * slices).sum(0)])
        torch.testing.assert_close(found[question], expected, rtol=0, atol=1e-5)


def test_text_guided_learns_everywhere_and_mixes_nothing() -> None:
    connector, given = guided(), dual_tokens()
    given = given._replace(volume=given.volume.requires_grad_(), slices=given.slices.requires_grad_())
    found = connector(given)
    found.square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in connector.parameters())
    assert given.volume.grad.abs().sum(-1).min() > 0 and given.slices.grad.abs().sum(-1).min() > 0
    one = DualTokens(given.volume[1:], given.slices[1:], given.text[1:2], torch.tensor([0]))
    torch.testing.assert_close(connector(one), found[1:2], rtol=0, atol=1e-6)
    weights = connector.weights(torch.randn(2, 8, 11), torch.randn(2, 8, 5, 11), torch.randn(3, 11), given.source)
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    dropping = guided(dropout=0.5).train()
    assert not torch.equal(dropping(given), dropping(given))
    halved = connector.bfloat16()(DualTokens(*(part.bfloat16() for part in given[:3]), given.source))
    assert halved.dtype == torch.bfloat16
    assert (halved.float() - found).norm() < 0.1 * found.norm()


def test_volumes_are_encoded_once_and_questions_alone(parts: Path) -> None:
    dual, inputs = encoder(parts), asked()
    seen = []
    for branch in (dual.volume, dual.slices):
        branch.register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
    tokens = dual(**inputs)
    assert seen == [2, 2], "every volume once, whatever is asked"
    assert tokens.volume.shape == (2, 64, 16) and tokens.slices.shape == (2, 8 * 16, 12)
    assert dual.num_tokens == 64 + 128 and (str(dual.width), dual.width.text) == ("16 and 12", 20)
    padded = {key: torch.nn.functional.pad(inputs[key], (0, 33)) for key in ("question", "mask")}
    longer = dual(**{**inputs, **padded})
    torch.testing.assert_close(longer.text, tokens.text, rtol=0, atol=1e-5)  # Med-2E3 pads to 512
    alone = dual(inputs["pixels"][:1], inputs["question"][2:, :4], inputs["mask"][2:, :4], torch.tensor([0]))
    torch.testing.assert_close(alone.text, tokens.text[2:], rtol=0, atol=1e-5)
    assert (tokens.text[0] - tokens.text[1]).abs().max() > 0.1


def test_reachable_is_what_gets_a_gradient(parts: Path) -> None:
    dual = encoder(parts)
    tokens = dual(**asked())
    sum(part.square().sum() for part in tokens[:3]).backward()
    assert {name for name, p in dual.named_parameters() if p.grad is not None} == dual.reachable()
    assert "text.model.pooler.dense.weight" in dual.reachable() and "volume.norm.weight" not in dual.reachable()


def test_slices_are_normalised_as_their_spec_says(parts: Path) -> None:
    pixels = asked()["pixels"]
    raw = {"encoder": {"architecture": tiny_dual.SIGLIP}, "spec": {"mean": [0.0], "std": [1.0]}}
    own, med_2e3 = encoder(parts), encoder(parts, encoder_options={"slices": raw})
    inputs = asked()
    torch.testing.assert_close(own(**inputs).slices, own.slices((pixels - 0.5) / 0.5), rtol=0, atol=1e-6)
    assert torch.equal(med_2e3(**inputs).slices, med_2e3.slices(pixels))
    with pytest.raises(EncoderError, match="may set 'mean' and 'std' only, not 'size'"):
        encoder(parts, encoder_options={"slices": {**raw, "spec": {"size": [8, 16, 16]}}})


def test_the_spec_is_the_towers(parts: Path) -> None:
    dual = encoder(parts, spec={"size": [8, 32, 48], "hu_window": [-100, 300]})
    assert dual.spec.size == dual.slices.spec.size == (8, 32, 48)
    assert dual.spec.hu_window == (-100, 300) and dual.grid == DualGrid((4, 4, 6), (8, 24))


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"layer": -2}, "have `layer` and `tokens` of their own"),
        ({"encoder_options": {"volume": "vit3d"}}, r"the option 'volume' must be a mapping, got 'vit3d' \(str\)"),
        ({"encoder_options": {"volume": {}}}, "volume: a branch of 'dual' is a mapping with the key 'encoder'"),
        ({"encoder_options": {"volume": {"encoder": "vit3d", "norms": 1}}}, "volume: unknown key 'norms'"),
        ({"encoder_options": {"volume": {"encoder": "conv"}}}, "volume: 'dual' needs a 3D encoder of one channel"),
        (
            {"encoder_options": {"volume": {"encoder": "vit3d", "encoder_options": tiny_dual.VIT3D, "tokens": "all"}}},
            "volume: 'dual' takes patch tokens alone; choose `tokens: patches`",
        ),
        (
            {
                "encoder_options": {
                    "volume": {"encoder": "vit3d", "encoder_options": {**tiny_dual.VIT3D, "tokens": "all"}}
                }
            },
            "volume: 'dual' takes patch tokens alone; choose `tokens: patches`",
        ),
        (
            {"encoder_options": {"slices": {"encoder": {"architecture": tiny_dual.SIGLIP}, "slices": 4}}},
            r"slices is 4, and the spec's size \[8, 32, 32\] says 8",
        ),
        ({"encoder_options": {"text": {"path": "x", "architecture": {"model_type": "bert"}}}}, "text: .*either 'path'"),
        (
            {"encoder_options": {"text": {"architecture": {"model_type": "qwen2", **tiny_dual.BERT}}}},
            "gives no pooled vector of a text .*take a text encoder such as BERT",
        ),
        ({"encoder_options": {"text": {"architecture": {"model_type": "mystery"}}}}, "has no model of type 'mystery'"),
        ({"encoder_options": {"text": "SOMEWHERE"}}, r"config\.json cannot be read"),
    ],
)
def test_branches_that_do_not_fit(parts: Path, changes: dict, pattern: str, tmp_path: Path) -> None:
    changes = json.loads(json.dumps(changes).replace("SOMEWHERE", str(tmp_path)))
    with pytest.raises(EncoderError, match=f"encoder of tower 'volume': .*{pattern}"):
        encoder(parts, **changes)


def test_connectors_and_encoders_that_do_not_go_together(parts: Path) -> None:
    with pytest.raises(ConnectorError, match=r"its slices and a question, which 'mlp' cannot .*'text_guided'"):
        tiny_dual.bundle(parts, volume=tiny_dual.tower(parts, connector="mlp", connector_options={}))
    alone = {"encoder": "vit3d", "encoder_options": tiny_dual.VIT3D, "connector": "text_guided"}
    with pytest.raises(ConnectorError, match=r"one grid of tokens, \(65,\), which 'text_guided' cannot .*'dual'"):
        tiny_dual.bundle(parts, volume=alone)
    with pytest.raises(ConnectorError, match="cannot share 7 slices among the 2 layers of tokens"):
        build_connector("text_guided", DualGrid((4, 4, 4), (7, 5)), DualWidth(6, 7, 9), 11)
    with pytest.raises(ConnectorError, match="temperature must be above 0"):
        guided(temperature=0)


def test_text_encoders_and_tokenizers_must_fit(parts: Path, tmp_path: Path) -> None:
    bare = {"architecture": {"model_type": "bert", "vocab_size": 98, **tiny_dual.BERT}}
    small = {"architecture": {**bare["architecture"], "vocab_size": 50}, "tokenizer": str(parts / "bert")}
    options = tiny_dual.tower(parts)["encoder_options"]
    for given, pattern in (
        (bare, r"name a folder or hub name as `towers\.volume\.encoder_options\.text\.tokenizer`"),
        (small, r"its tokenizer knows \d+ tokens, but its weights 50"),
    ):
        with pytest.raises(SourceError, match=pattern):
            tiny_dual.bundle(parts, volume=tiny_dual.tower(parts, encoder_options={**options, "text": given}))
    missing = BertModel(BertConfig(vocab_size=98, **tiny_dual.BERT), add_pooling_layer=False)
    missing.save_pretrained(tmp_path)
    with pytest.raises(EncoderError, match=r"lacks 2 of its weights: pooler\.dense\.bias"):
        text.TextEncoder(TextModel(path=str(tmp_path)))


def test_the_text_half_of_a_clip_is_taken(tmp_path: Path) -> None:
    half = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    clip = CLIPModel(CLIPConfig(text_config={**half, "vocab_size": 50}, vision_config={**half, "image_size": 32}))
    clip.save_pretrained(tmp_path)
    taken = text.TextEncoder(TextModel(path=str(tmp_path)))
    ids = torch.tensor([[3, 7, 49]])
    expected = clip.text_model(ids, torch.ones_like(ids)).pooler_output
    torch.testing.assert_close(taken(ids, torch.ones_like(ids)), expected)
    assert (taken.width, taken.max_tokens) == (16, 77)


def test_m3d_clips_text_half_by_its_published_names() -> None:
    """A BERT of 199 tensors under language_encoder., beside 138 of the vision encoder and five of the heads."""
    with torch.device("meta"):
        bert = text.TextEncoder(TextModel(path="GoodBaiBai88/M3D-CLIP"), weights=False)
    shapes = {name: tensor.shape for name, tensor in bert.model.state_dict().items()}
    assert len(shapes) == 199 and sum(p.numel() for p in bert.parameters()) == 109_482_240
    held = {f"language_encoder.{name}": shape for name, shape in shapes.items()}
    beside = {"vision_encoder.norm.weight": (768,), "mm_vision_proj.weight": (768, 768), "logit_scale": ()}
    older = {"language_encoder.embeddings.position_ids": (1, 512)}
    chosen = published.match(shapes, {**held, **beside, **older}, text.NAMES, "M3D-CLIP")
    assert chosen == {name: f"language_encoder.{name}" for name in shapes}
    del held["language_encoder.pooler.dense.bias"]
    with pytest.raises(EncoderError, match=r"1 missing: pooler\.dense\.bias"):
        published.match(shapes, {**held, **beside}, text.NAMES, "M3D-CLIP")


def test_m3d_clips_text_half_is_found_beside_the_file_of_its_vision_half(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "m3d_clip", "vocab_size": 98}))
    torch.manual_seed(1)
    bert = BertModel(BertConfig(vocab_size=98)).state_dict()
    state = {**{f"language_encoder.{name}": tensor for name, tensor in bert.items()}, "logit_scale": torch.ones(())}
    torch.save(state, tmp_path / "pytorch_model.bin")
    torch.save({"cls_token": torch.zeros(1, 1, 768)}, tmp_path / "pretrained_ViT.bin")
    own = text.TextEncoder(TextModel(path=str(tmp_path))).model.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in bert.items())


def test_tuning_reaches_branches_and_leaves_a_frozen_text_encoder_at_rest(parts: Path) -> None:
    model = tiny_dual.bundle(parts).model
    rules = {"volume.encoder.slices": TuneRule(**FULL), "volume.connector": TuneRule(**FULL)}
    table = {row.part: row for row in tune.apply(model, rules).rows}
    assert table["volume.encoder.slices"].trainable > 0 and table["volume.encoder"].trainable == 0
    dual = model.towers["volume"].encoder
    dual.train()
    assert dual.slices.inner.model.training and not any(module.training for module in dual.text.modules())
    tune.apply(model, {"volume.encoder": TuneRule(**FULL)})
    dual.train()
    assert dual.text.model.encoder.layer[0].output.dropout.training


def test_recomputing_changes_no_gradient(parts: Path) -> None:
    model = tiny_dual.bundle(parts).model
    dual = model.towers["volume"].encoder.requires_grad_(False)
    for branch in (dual.volume, dual.slices):
        branch.requires_grad_(True)
    dual.train()

    def gradients() -> dict[str, torch.Tensor]:
        dual.zero_grad()
        tokens = dual(**asked())
        (tokens.volume.square().sum() + tokens.slices.square().sum()).backward()
        return {name: p.grad.clone() for name, p in dual.named_parameters() if p.grad is not None}

    plain = gradients()
    recompute(model, ["volume.encoder"])
    again = gradients()
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-5, atol=1e-5)


def test_med_2e3_has_its_published_shapes() -> None:
    """Built on the meta device without a network: parts, widths and the 512 tokens that Med-2E3 states."""
    volume = {
        "encoder": "dual",
        "encoder_options": {
            "volume": {"encoder": "GoodBaiBai88/M3D-CLIP"},
            "slices": {"encoder": "google/siglip-large-patch16-256", "spec": {"mean": [0.0], "std": [1.0]}},
            "text": "GoodBaiBai88/M3D-CLIP",
        },
        "connector": "text_guided",
    }
    config = ModelConfig.model_validate({"llm": "microsoft/Phi-3-mini-128k-instruct", "towers": {"volume": volume}})
    built = build(config, device="meta")
    tower = built.model.towers["volume"]
    assert sum(parameter.numel() for parameter in built.model.llm.parameters()) == 3_821_079_552
    assert sum(parameter.numel() for parameter in tower.encoder.volume.parameters()) == 87_389_184
    assert tower.encoder.token_grid == DualGrid((8, 16, 16), (32, 256))
    assert tower.encoder.width == DualWidth(768, 1024, 768) and tower.num_tokens == 512
    assert tower.encoder.spec.mean == tower.encoder.slices.spec.mean == (0.0,)
    shapes = {name: tuple(tensor.shape) for name, tensor in tower.connector.state_dict().items()}
    assert shapes["volume.mlp.0.weight"] == (3072, 768) and shapes["slices.0.weight"] == (3072, 1024)
    assert shapes["text_mlp.weight"] == (3072, 768)
    assert "GoodBaiBai88" not in built.config.model_dump_json()
    again = build(built.config, device="meta")
    assert again.config == built.config
