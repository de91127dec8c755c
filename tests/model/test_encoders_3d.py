"""Native 3D encoders: published files load strictly, whatever stands around them; what learns, learns; errors tell."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from medmvl.imaging.spec import VisionSpec
from medmvl.model import tune
from medmvl.model.build import build as build_model
from medmvl.model.config import ModelConfig, TowerConfig, TuneRule
from medmvl.model.encoders import published
from medmvl.model.encoders.base import Encoder, EncoderError
from medmvl.model.encoders.ct_vit import CtVit
from medmvl.model.encoders.medm_clip_ct import MedMClipCt
from medmvl.model.encoders.table import build_encoder
from medmvl.model.encoders.vit3d import Vit3d
from medmvl.model.source import SourceError
from medmvl.train.assemble import recompute
from medmvl.train.recipe import Recipe

VIT = {"image_size": [4, 8, 8], "patch_size": [2, 4, 4], "width": 16, "mlp": 24, "layers": 3, "heads": 2}
CTVIT = {
    "image_size": [4, 8, 8],
    "patch_size": [2, 4, 4],
    "width": 16,
    "head_width": 8,
    "heads": 2,
    "spatial_layers": 2,
    "temporal_layers": 1,
    "codes": 12,
}
OPTIONS = {"vit3d": VIT, "medm_clip_ct": VIT, "ct_vit": CTVIT}
CLASSES = {"vit3d": Vit3d, "medm_clip_ct": MedMClipCt, "ct_vit": CtVit}
M3D_CONFIG = {
    "model_type": "m3d_clip",
    "auto_map": {"AutoModel": "modeling_m3d_clip.M3DCLIP"},
    "img_size": [4, 8, 8],
    "patch_size": [2, 4, 4],
    "in_channels": 1,
    "hidden_size": 16,
    "mlp_dim": 24,
    "num_layers": 3,
    "num_heads": 2,
    "pos_embed": "perceptron",
    "spatial_dims": 3,
    "add_cross_attention": False,
}
MEDM_CONFIG = {
    "model_type": "medm-pretrain",
    "hidden_size": 16,
    "image_size": 8,
    "image_patch_size": 4,
    "frame_size": 4,
    "frame_patch_size": 2,
    "image_num_heads": 2,
    "image_mlp_dim": 24,
    "image_num_layers": 3,
}
BERT = {"embeddings.word_embeddings.weight": torch.zeros(4, 2), "pooler.dense.bias": torch.zeros(2)}
# What stands around the weights in published files: (row, prefix, other weights by full name).
AROUND = {
    "pretrained_ViT": ("vit3d", "", {}),
    "MONAI 1.4": ("vit3d", "", {"blocks.0.norm_cross_attn.weight": 16, "blocks.2.cross_attn.to_q.weight": 16}),
    "M3D-CLIP": (
        "vit3d",
        "vision_encoder.",
        {
            **{f"language_encoder.{name}": 2 for name in BERT},
            "mm_vision_proj.weight": 16,
            "mm_language_proj.bias": 16,
            "logit_scale": 0,
        },
    ),
    "M3D-LaMed": (
        "vit3d",
        "model.vision_tower.vision_tower.",
        {"model.mm_projector.projector.0.weight": 4, "model.layers.0.mlp.up_proj.weight": 4, "lm_head.weight": 4},
    ),
    "MedM-VL": (
        "vit3d",
        "encoder_image3d.encoder.vision_encoder.",
        {"llm.lm_head.weight": 3, "encoder_image3d.encoder.language_encoder.pooler.dense.bias": 2},
    ),
    "Med-2E3": ("vit3d", "vision3d_model.vision3d_encoder.vision_encoder.", {"vision3d_connector.text_mlp.0.bias": 2}),
    "MedM-CLIP ViT": ("medm_clip_ct", "", {}),
    "MedM-CLIP-CT": ("medm_clip_ct", "vision_encoder.", {"text_encoder.pooler.dense.bias": 2, "logit_scale": 0}),
    "MedM-VL, MedM-CLIP": ("medm_clip_ct", "encoder_image3d.encoder.vision_encoder.", {"llm.lm_head.weight": 3}),
    "CTViT": ("ct_vit", "", {}),
    "CT-CLIP_v2": (
        "ct_vit",
        "visual_transformer.",
        {
            "text_transformer.embeddings.position_ids": 2,
            "to_text_latent.weight": 2,
            "to_visual_latent_extra.weight": 2,
            "temperature": 0,
        },
    ),
}


def build(name: str, options: dict | None = None, **fields: object) -> Encoder:
    torch.manual_seed(0)
    settings = {**OPTIONS.get(name, {}), **(options or {})}
    return build_encoder(
        TowerConfig(encoder=name, encoder_options=settings, **fields), where="encoder of tower 'volume'"
    )


def state_of(name: str, prefix: str = "") -> dict[str, Tensor]:
    """Return weights unlike those that `build` draws, under published names."""
    torch.manual_seed(7)
    encoder = build_encoder(TowerConfig(encoder=name, encoder_options=OPTIONS[name]))
    for tensor in encoder.state_dict().values():
        tensor.normal_(std=0.3)
    return {prefix + key: tensor.clone() for key, tensor in encoder.state_dict().items()}


def pixels(encoder: Encoder, count: int = 2) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(count, encoder.spec.channels, *encoder.spec.size)


def loaded(encoder: Encoder, state: dict[str, Tensor], prefix: str = "") -> bool:
    return all(torch.equal(tensor, state[prefix + key]) for key, tensor in encoder.state_dict().items())


@pytest.mark.parametrize("name", AROUND)
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_published_files_load(name: str, suffix: str, tmp_path: Path) -> None:
    row, prefix, others = AROUND[name]
    own = state_of(row, prefix)
    state = {**own, **{key: torch.zeros([size] if size else []) for key, size in others.items()}}
    file = tmp_path / f"weights{suffix}"
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    assert loaded(build(row, {"weights": str(file)}), own, prefix)


def test_halves_become_the_encoders_own_precision(tmp_path: Path) -> None:
    save_file({key: tensor.bfloat16() for key, tensor in state_of("vit3d").items()}, tmp_path / "half.safetensors")
    encoder = build("vit3d", {"weights": str(tmp_path / "half.safetensors")})
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards_load(suffix: str, tmp_path: Path) -> None:
    state = state_of("vit3d", "vision_encoder.")
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    files = [f"{stem}-0000{n}-of-00002{suffix}" for n in (1, 2)]
    where = {key: files[number % 2] for number, key in enumerate(state)}
    for file in files:
        part = {key: tensor for key, tensor in state.items() if where[key] == file}
        save_file(part, tmp_path / file) if suffix == ".safetensors" else torch.save(part, tmp_path / file)
    index = tmp_path / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    assert loaded(build("vit3d", {"weights": str(tmp_path)}), state, "vision_encoder.")
    (tmp_path / files[1]).unlink()
    with pytest.raises(EncoderError, match=f"{files[1]}, which is not beside it"):
        build("vit3d", {"weights": str(tmp_path)})
    index.write_text(json.dumps({"weight_map": {"a": "../b.safetensors"}}))
    with pytest.raises(EncoderError, match=r"\.\./b\.safetensors"):
        build("vit3d", {"weights": str(tmp_path)})


@pytest.mark.parametrize(
    ("config", "row", "prefix"),
    [(M3D_CONFIG, "vit3d", "vision_encoder."), (MEDM_CONFIG, "medm_clip_ct", "vision_encoder.")],
)
def test_a_published_folder_is_an_encoder(config: dict, row: str, prefix: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "modeling_m3d_clip.py").write_text("raise RuntimeError('ran remote code')")
    state = state_of(row, prefix)
    torch.save({**state, "logit_scale": torch.tensor(2.6)}, tmp_path / "pytorch_model.bin")
    torch.save({"args": 1}, tmp_path / "training_args.bin")
    encoder = build_encoder(TowerConfig(encoder=str(tmp_path)))
    assert isinstance(encoder, CLASSES[row]) and loaded(encoder, state, prefix)
    assert {key: value for key, value in encoder.options.items() if key in VIT} == VIT
    # beside it, the tower alone is preferred: the same weights, and a third of the size
    torch.save(state_of(row), tmp_path / "pretrained_ViT.bin")
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    assert loaded(build_encoder(TowerConfig(encoder=str(tmp_path))), state, prefix)
    # the tower's own settings come on top of config.json
    with pytest.raises(EncoderError, match=r"misfit|do not fit.*3 x 16 x 16|of another shape"):
        build_encoder(TowerConfig(encoder=str(tmp_path), encoder_options={"mlp": 20}))
    random = build_encoder(TowerConfig(encoder=str(tmp_path)), weights=False)
    assert not loaded(random, state, prefix)


def test_a_hub_name_fetches_pickled_weights_only_when_there_are_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(M3D_CONFIG))
    torch.save(state_of("vit3d"), tmp_path / "pretrained_ViT.bin")
    asked = []

    def fetch(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, "*.bin" in allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert loaded(build_encoder(TowerConfig(encoder="GoodBaiBai88/M3D-CLIP")), state_of("vit3d"))
    assert asked[0] == ("GoodBaiBai88/M3D-CLIP", False) and asked[-1][1]
    asked.clear()
    save_file(state_of("vit3d"), tmp_path / "model.safetensors")
    build_encoder(TowerConfig(encoder="GoodBaiBai88/M3D-CLIP"))
    assert asked and not any(pickled for _, pickled in asked)


@pytest.mark.parametrize("row", CLASSES)
def test_full_size_published_names_load_strictly(row: str) -> None:
    """All names and shapes of a published file, renamed, are all names and shapes of the encoder."""
    with torch.device("meta"):
        encoder, source = (build_encoder(TowerConfig(encoder=row)) for _ in range(2))
    prefix = max(encoder.names.prefixes, key=len)
    file = {prefix + key: tensor for key, tensor in source.state_dict().items()}
    shapes = {key: tuple(tensor.shape) for key, tensor in file.items()}
    own = {key: tuple(tensor.shape) for key, tensor in encoder.state_dict().items()}
    chosen = published.match(own, shapes, encoder.names, "file")
    encoder.load_state_dict({name: file[key] for name, key in chosen.items()}, strict=True, assign=True)
    assert set(chosen.values()) == set(file)


@pytest.mark.parametrize(
    ("row", "change", "pattern"),
    [
        (
            "vit3d",
            lambda s: s.pop("blocks.1.attn.qkv.weight"),
            r"do not fit the options; 1 missing: blocks\.1\.attn\.qkv\.weight$",
        ),
        ("vit3d", lambda s: s.update(extra=torch.zeros(1)), r"1 unexpected: extra$"),
        ("vit3d", lambda s: s.update({"blocks.3.norm1.weight": torch.zeros(16)}), r"unexpected: blocks\.3\.norm1"),
        (
            "vit3d",
            lambda s: s.update({"norm.weight": torch.zeros(9)}),
            r"1 of another shape: norm\.weight is 9 instead of 16",
        ),
        ("vit3d", lambda s: [s.pop(k) for k in list(s) if "blocks" in k], r"33 missing: .* and 28 more"),
        ("medm_clip_ct", lambda s: s.pop("mlp_head.1.bias"), r"1 missing: mlp_head\.1\.bias"),
        ("medm_clip_ct", lambda s: s.update({"text_encoder.a": torch.zeros(1)}), r"unexpected: text_encoder\.a"),
        ("ct_vit", lambda s: s.pop("vq._codebook.embed"), r"missing: vq\._codebook\.embed"),
        ("ct_vit", lambda s: s.update({"discr.a": torch.zeros(1)}), r"unexpected: discr\.a"),
    ],
)
def test_weights_that_do_not_fit_are_named(row: str, change: Callable, pattern: str, tmp_path: Path) -> None:
    state = state_of(row)
    change(state)
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(EncoderError, match=rf"(?s)encoder of tower 'volume': .*weights\.safetensors.*{pattern}"):
        build(row, {"weights": str(tmp_path / "weights.safetensors")})


def test_ct_vit_does_without_what_nothing_reads(tmp_path: Path) -> None:
    state = state_of("ct_vit")
    unread = r"to_patch_emb_first_frame|to_pixels|context_norm|null_kv|initted|cluster_size"
    torch.save({key: tensor for key, tensor in state.items() if not re.search(unread, key)}, tmp_path / "ctvit.pt")
    encoder = build("ct_vit", {"weights": str(tmp_path / "ctvit.pt")})
    own = encoder.state_dict()
    assert all(torch.equal(own[key], state[key]) for key in own if not re.search(unread, key))
    torch.save({**state, "dec_spatial_transformer.norm_out.gamma": torch.zeros(16)}, tmp_path / "ctvit.pt")
    assert loaded(build("ct_vit", {"weights": str(tmp_path / "ctvit.pt")}), state)


class Harmful:
    """Something that runs code when it is unpickled."""

    def __reduce__(self) -> tuple:
        return print, ("ran code",)


def test_files_that_cannot_be_used_are_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def refused(source: Path, error: type = EncoderError) -> str:
        with pytest.raises(error) as caught:
            build("vit3d", {"weights": str(source)})
        return str(caught.value)

    torch.save({"a": Harmful()}, tmp_path / "bad.pt")
    assert "can run code" in refused(tmp_path / "bad.pt") and "safetensors" in refused(tmp_path / "bad.pt")
    assert "ran code" not in capsys.readouterr().out
    (tmp_path / "text.bin").write_text("version https://git-lfs.github.com/spec/v1")
    assert "text.bin: is no file of torch's" in refused(tmp_path / "text.bin")
    (tmp_path / "part.bin").write_bytes((tmp_path / "bad.pt").read_bytes()[:200])
    assert "part.bin: cannot be read" in refused(tmp_path / "part.bin")
    save_file(state_of("vit3d"), tmp_path / "cut.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "cut.safetensors").read_bytes()[:-100])
    assert "cut.safetensors: cannot be read" in refused(tmp_path / "cut.safetensors")
    torch.save({"state_dict": state_of("vit3d"), "epoch": 3}, tmp_path / "nested.pt")
    assert "'state_dict', 'epoch'" in refused(tmp_path / "nested.pt")
    torch.save(state_of("medm_clip_ct"), tmp_path / "other.pt")
    assert "unexpected: pos_embedding" in refused(tmp_path / "other.pt")
    torch.save(BERT, tmp_path / "bert.pt")
    assert "none of its 2 weights has a known name (embeddings.word_embe" in refused(tmp_path / "bert.pt")
    (tmp_path / "cut.safetensors").unlink()
    assert "name one of them" in refused(tmp_path, SourceError)
    assert "neither a folder nor a hub name" in refused(tmp_path / "nowhere", SourceError)
    assert f"there is no file {tmp_path}/vit.pt" in refused(tmp_path / "vit.pt", SourceError)
    (tmp_path / "empty").mkdir()
    assert "holds no weights" in refused(tmp_path / "empty", SourceError)
    (tmp_path / "notes.txt").write_text("")
    assert "no weights file" in refused(tmp_path / "notes.txt", SourceError)


def test_ct_chat_does_not_run_on_random_weights() -> None:
    """Its encoder is frozen: without published weights the LLM would read noise."""
    tower = Recipe.load("ct_chat").model.towers["volume"]
    with pytest.raises(SourceError, match=r"there is no file CT-CLIP_v2_visual_transformer\.pt"):
        build_encoder(tower)


def test_old_torch_files_load_too(tmp_path: Path) -> None:
    torch.save(state_of("vit3d"), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert loaded(build("vit3d", {"weights": str(tmp_path / "old.pth")}), state_of("vit3d"))


def test_another_architecture_of_m3d_clip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(M3D_CONFIG | {"pos_embed": "conv"}))
    with pytest.raises(EncoderError, match=r"pos_embed 'perceptron'.*'conv'"):
        build_encoder(TowerConfig(encoder=str(tmp_path)))


def gradients(encoder: Encoder) -> dict[str, Tensor]:
    encoder.zero_grad()
    encoder(pixels(encoder)).square().mul(torch.linspace(0.5, 1, encoder.width)).sum().backward()
    return {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}


CHOICES = [
    ("vit3d", {}, {}),
    ("vit3d", {"norm": True}, {"tokens": "patches"}),
    ("vit3d", {}, {"layer": -2, "tokens": "patches"}),
    ("vit3d", {}, {"layer": 0}),
    ("vit3d", {}, {"layer": 0, "tokens": "patches"}),
    ("vit3d", {"in_channels": 3}, {"spec": {"size": [4, 12, 8]}}),
    ("medm_clip_ct", {}, {}),
    ("medm_clip_ct", {}, {"layer": 1, "tokens": "patches"}),
    ("medm_clip_ct", {}, {"layer": 0, "tokens": "patches", "spec": {"size": [6, 8, 8]}}),
    ("ct_vit", {}, {}),
    ("ct_vit", {"quantise": False, "temporal_peg": "geometric"}, {}),
]


@pytest.mark.parametrize(("row", "options", "fields"), CHOICES)
def test_exactly_what_the_feature_reaches_gets_a_gradient(row: str, options: dict, fields: dict) -> None:
    encoder = build(row, options, **fields).train()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, mean=0.1, std=0.3)
    found = gradients(encoder)
    assert found.keys() == encoder.reachable()
    # An offset that every token shares vanishes in a softmax, so its gradient may be zero; all others' are not.
    shared = {"spatial_rel_pos_bias.net.2.bias"} if row == "ct_vit" else set()
    assert all(gradient.abs().max() > 0 for name, gradient in found.items() if name not in shared)
    output = encoder(pixels(encoder))
    assert output.shape == (2, encoder.num_tokens, encoder.width)


@pytest.mark.parametrize("row", CLASSES)
def test_recomputing_changes_no_gradient(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = build(row).train()
    plain = gradients(encoder)
    runs = []
    block = next(module for module in encoder.modules() if type(module).__name__ in encoder._no_split_modules)
    hook = next(block.children()).register_forward_hook(lambda *_: runs.append(1))
    encoder.activation_checkpointing_enable({"use_reentrant": False})
    again = gradients(encoder)
    assert len(runs) == 2, "the block was not run a second time"
    hook.remove()
    assert again.keys() == plain.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-5, atol=1e-6)
    # at rest, as a frozen part is, it still recomputes
    tune.rest(encoder)
    assert block.training and not encoder.training


@pytest.mark.parametrize("row", CLASSES)
def test_quick_kernels_take_no_weight_matrix(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention is always torch's fused function; the softmax is never asked for."""
    monkeypatch.setattr(torch.Tensor, "softmax", None)
    monkeypatch.setattr(torch, "softmax", None)
    encoder = build(row)
    calls = []
    fused = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or fused(*a, **k)
    )
    encoder(pixels(encoder))
    assert len(calls) == 3


def test_the_gradient_passes_straight_through_the_codebook() -> None:
    encoder, plain = build("ct_vit"), build("ct_vit", {"quantise": False})
    weight = torch.randn(1, encoder.num_tokens, encoder.width)
    grads = []
    for one in (encoder, plain):
        (one(pixels(one)) * weight).sum().backward()
        grads.append(one.to_patch_emb[2].weight.grad)
    torch.testing.assert_close(*grads)
    codes = {tuple(code.tolist()) for code in encoder.vq._codebook.embed[0]}
    assert {tuple(token.tolist()) for token in encoder(pixels(encoder)).flatten(0, 1)} <= codes


def test_training_leaves_the_codebook_alone() -> None:
    encoder = build("ct_vit").train()
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    first, second = (encoder(pixels(encoder)) for _ in range(2))
    assert torch.equal(first, second) and torch.equal(first, encoder.eval()(pixels(encoder)))
    assert all(torch.equal(buffer, before[name]) for name, buffer in encoder.named_buffers())


def test_codes_are_compared_in_full_precision_under_autocast() -> None:
    encoder = build("ct_vit", {"codes": 500})
    book = encoder.vq._codebook
    tokens = torch.randn(400, encoder.width)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(book(tokens), book(tokens.clone()))
        inside = book(tokens)
    assert torch.equal(inside, book(tokens))


@pytest.mark.parametrize("row", CLASSES)
@pytest.mark.parametrize("autocast", [False, True])
def test_bf16_stays_close(row: str, autocast: bool) -> None:
    encoder = build(row, {"quantise": False} if row == "ct_vit" else None)
    full = encoder(pixels(encoder))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        half = (encoder if autocast else copy.deepcopy(encoder).bfloat16())(pixels(encoder))
    assert (half.float() - full).norm() < 0.05 * full.norm()


def test_positions_follow_another_size() -> None:
    for row, name in (("vit3d", "patch_embedding.position_embeddings"), ("medm_clip_ct", "pos_embedding")):
        encoder = build(row, spec={"size": [8, 8, 16]}, tokens="patches")
        assert encoder.grid == (4, 2, 4)
        assert encoder.get_parameter(name).shape[1] in (8, 9), "the weights keep their shape"
        assert encoder(pixels(encoder)).shape == (2, 32, 16)
    encoder = build("vit3d", spec={"size": [8, 8, 8]}, layer=0, tokens="patches")
    nn.init.zeros_(encoder.patch_embedding.patch_embeddings[1].weight)
    depth = torch.tensor([0.0, 1.0]).repeat_interleave(4)[None, :, None].expand(1, 8, 16)
    with torch.no_grad():
        encoder.patch_embedding.position_embeddings.copy_(depth)
        steps = encoder(pixels(encoder)).unflatten(1, encoder.grid)[0, :, 0, 0, 0]
    torch.testing.assert_close(steps, torch.tensor([0.0, 0.25, 0.75, 1.0]))


def test_specs_are_the_published_ones() -> None:
    with torch.device("meta"):
        specs = {row: build_encoder(TowerConfig(encoder=row)).spec for row in CLASSES}
    common = {"channels": 1, "hu_window": (-1000, 1000), "resample": "bilinear", "antialias": False}
    small = {"size": (32, 256, 256), "crop_foreground": 0.0, **common}
    assert specs["vit3d"] == VisionSpec(mean=(0.0,), std=(1.0,), percentile_window=(0, 100), **small)
    assert specs["medm_clip_ct"] == VisionSpec(mean=(55.6982188356434,), std=(66.1943479570918,), rescale=1.0, **small)
    assert specs["ct_vit"] == VisionSpec(
        size=(240, 480, 480),
        mean=(0.5,),
        std=(0.5,),
        fit="crop",
        spacing=(1.5, 0.75, 0.75),
        orientation="SLP",
        **common,
    )
    changed = build("vit3d", spec={"hu_window": None, "levels": "uint8_floor", "crop_foreground": None}).spec
    assert (changed.hu_window, changed.levels, changed.crop_foreground) == (None, "uint8_floor", None)


def test_radfms_patches_and_channels_fit() -> None:
    radfm = {"image_size": [64, 512, 512], "patch_size": [4, 32, 32], "in_channels": 3, "mlp": 2048, "heads": 8}
    with torch.device("meta"):
        encoder = build_encoder(TowerConfig(encoder="vit3d", encoder_options=radfm, tokens="patches"))
    assert encoder.grid == (16, 16, 16) and encoder.spec.channels == 3
    assert encoder.patch_embedding.patch_embeddings[1].in_features == 12288


@pytest.mark.parametrize(
    ("row", "options", "fields", "pattern"),
    [
        ("vit3d", {}, {"layer": 4}, r"layer 4 does not exist; choose -4\.\.3"),
        ("vit3d", {"norm": True}, {"layer": -2}, "norm belongs to the last block"),
        ("vit3d", {"heads": 3}, {}, "width 16 must be a multiple of the heads, 3"),
        ("vit3d", {"image_size": [4, 9, 8]}, {}, r"multiples of its patches, \(2, 4, 4\); the size is \(4, 9, 8\)"),
        ("vit3d", {"image_size": [8, 8]}, {}, "size"),
        ("vit3d", {"patch_size": [4, 4]}, {}, "multiples of its patches"),
        ("vit3d", {"patch_size": [0, 4, 4]}, {}, r"multiples of its patches, \(0, 4, 4\)"),
        ("vit3d", {}, {"spec": {"size": [4, 8, 6]}}, r"the size is \(4, 8, 6\)"),
        ("vit3d", {}, {"spec": {"channels": 3, "mean": [0.0] * 3, "std": [1.0] * 3}}, "in_channels"),
        ("vit3d", {"hidden": 3}, {}, r"unknown option 'hidden'.*width"),
        ("medm_clip_ct", {}, {"layer": -5}, "layer -5 does not exist"),
        ("medm_clip_ct", {"norm": True}, {}, "unknown option 'norm'"),
        ("ct_vit", {}, {"layer": -2}, "its last layer only"),
        ("ct_vit", {"heads": 0}, {}, "multiple of the heads, 0"),
        ("ct_vit", {"temporal_peg": "geometry"}, {}, "did you mean 'geometric'"),
        ("vit3d", {"width": "16"}, {}, r"'width' must be a whole number, got '16' \(str\)"),
        ("vit3d", {"image_size": 32}, {}, "'image_size' must be a list of whole numbers, got 32"),
        (
            "medm_clip_ct",
            {"heads": 2.0, "layer": 1, "mlps": 3},
            {},
            "2 mistakes.*'heads' must be.*option 'mlps'; did you",
        ),
    ],
)
def test_options_that_do_not_fit_are_told(row: str, options: dict, fields: dict, pattern: str) -> None:
    with pytest.raises(EncoderError, match=f"(?s)encoder of tower 'volume': .*{pattern}"):
        build(row, options, **fields)


LLM = {
    "model_type": "qwen2",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "vocab_size": 40,
}


def model_of(encoder: str, options: dict, **tower: object) -> ModelConfig:
    volume = {"encoder": encoder, "encoder_options": options, "connector": "linear", **tower}
    return ModelConfig(llm={"architecture": LLM}, towers={"volume": volume})


@pytest.fixture
def tokenizer() -> object:
    """Stands for one: nothing here reads text."""
    return object()


@pytest.mark.parametrize("row", CLASSES)
def test_what_was_built_needs_no_file(row: str, tokenizer: object, tmp_path: Path) -> None:
    save_file(state_of(row), tmp_path / "weights.safetensors")
    options = {**OPTIONS[row], "weights": str(tmp_path / "weights.safetensors")}
    fields = {"layer": -2, "tokens": "patches"} if row != "ct_vit" else {}
    built = build_model(model_of(row, options, **fields), tokenizer=tokenizer)
    stored = built.config.model_dump_json()
    assert str(tmp_path) not in stored and "weights" not in built.config.towers["volume"].encoder_options
    again = build_model(ModelConfig.model_validate_json(stored), tokenizer=tokenizer)
    again.model.load_state_dict(built.model.state_dict(), strict=True)
    encoders = [one.model.towers["volume"].encoder for one in (built, again)]
    assert again.config == built.config and encoders[0].spec == encoders[1].spec
    assert torch.equal(*(one(pixels(one)) for one in encoders))


def test_a_published_folder_becomes_self_contained(tokenizer: object, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(M3D_CONFIG))
    torch.save(state_of("vit3d"), tmp_path / "pretrained_ViT.bin")
    built = build_model(model_of(str(tmp_path), {"norm": True}), tokenizer=tokenizer)
    tower = built.config.towers["volume"]
    assert tower.encoder.path == "vit3d" and tower.encoder_options == {**VIT, "in_channels": 1, "norm": True}


def test_meta_needs_neither_network_nor_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    built = build_model(model_of("vit3d", {"weights": "/nowhere/weights.bin"}), device="meta")
    assert built.model.towers["volume"].encoder.num_tokens == 2049
    for name, row in (("GoodBaiBai88/M3D-CLIP", "vit3d"), ("shiym2000/MedM-CLIP-CT", "medm_clip_ct")):
        built = build_model(model_of(name, {}), device="meta")
        assert built.config.towers["volume"].encoder.path == row
        assert all(parameter.is_meta for parameter in built.model.parameters())


@pytest.mark.parametrize("row", CLASSES)
def test_a_tower_learns_in_part_in_full_and_by_adapter(row: str, tokenizer: object) -> None:
    model = build_model(model_of(row, OPTIONS[row]), tokenizer=tokenizer).model
    encoder = model.towers["volume"].encoder
    table = tune.apply(model, {"volume.encoder": TuneRule(mode="full", lr=1e-4)})
    names = {name.removeprefix("towers.volume.encoder.") for name in table.groups[0]["names"]}
    assert names == encoder.reachable()
    recompute(model, ["volume.encoder"])
    tune.apply(model, {"volume.encoder": TuneRule(mode="lora", lr=1e-4, rank=2)})
    learning = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    encoder.train()(pixels(encoder)).square().sum().backward()
    assert learning and all(parameter.grad is not None for parameter in learning)
