"""Native 3D encoders equal independent ones: MONAI's blocks, torch's own layers, CTViT written out step by step."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medmvl.model.config import TowerConfig
from medmvl.model.encoders.base import Encoder
from medmvl.model.encoders.table import build_encoder

VIT = {"image_size": [8, 12, 16], "patch_size": [2, 4, 8], "width": 24, "mlp": 40, "layers": 3, "heads": 4}
CTVIT = {
    "image_size": [6, 12, 12],
    "patch_size": [2, 4, 4],
    "width": 16,
    "head_width": 6,
    "heads": 2,
    "spatial_layers": 2,
    "temporal_layers": 2,
    "codes": 30,
}


def build(name: str, options: dict, **fields: object) -> Encoder:
    """Build with random weights, none of them at a value that hides a mistake (zeros, ones)."""
    torch.manual_seed(0)
    encoder = build_encoder(TowerConfig(encoder=name, encoder_options=options, **fields))
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, mean=0.1, std=0.3)
    return encoder


def pixels(encoder: Encoder) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, encoder.spec.channels, *encoder.spec.size)


class MonaiVit(nn.Module):
    """M3D-CLIP's ViT from MONAI's blocks; gives the final norm's output and every hidden state."""

    def __init__(self, image_size: list[int], patch_size: list[int], width: int, mlp: int, layers: int, heads: int):
        from monai.networks.blocks import PatchEmbeddingBlock, TransformerBlock

        super().__init__()
        self.patch_embedding = PatchEmbeddingBlock(
            1, image_size, patch_size, width, heads, proj_type="perceptron", pos_embed_type="learnable"
        )
        self.blocks = nn.ModuleList(TransformerBlock(width, mlp, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = self.patch_embedding(x)
        states = [torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)]
        for block in self.blocks:
            states.append(block(states[-1]))
        return self.norm(states[-1]), states


@pytest.mark.parametrize("norm", [False, True])
def test_vit3d_equals_monai(norm: bool) -> None:
    encoder = build("vit3d", {**VIT, "norm": norm})
    monai = MonaiVit(**VIT).eval()
    odd = monai.load_state_dict(encoder.state_dict(), strict=False)
    assert not odd.unexpected_keys and all("cross_attn" in key for key in odd.missing_keys)
    volumes = pixels(encoder)
    normed, states = monai(volumes)
    torch.testing.assert_close(encoder(volumes), normed if norm else states[-1], rtol=0, atol=1e-5)
    assert encoder.grid == (4, 3, 2)


@pytest.mark.parametrize("layer", range(-4, 4))
def test_vit3d_layers_count_as_hidden_states(layer: int) -> None:
    encoder = build("vit3d", VIT, layer=layer, tokens="patches")
    monai = MonaiVit(**VIT).eval()
    monai.load_state_dict(encoder.state_dict(), strict=False)
    volumes = pixels(encoder)
    torch.testing.assert_close(encoder(volumes), monai(volumes)[1][layer][:, 1:], rtol=0, atol=1e-5)


def test_vit3d_patches_are_a_convolution() -> None:
    """The patch's vector is (depth, row, column, channel), so the linear layer is a convolution's weight, moved."""
    encoder = build("vit3d", {**VIT, "in_channels": 3}, layer=0, tokens="patches")
    linear, side = encoder.patch_embedding.patch_embeddings[1], VIT["patch_size"]
    weight = linear.weight.view(24, *side, 3).permute(0, 4, 1, 2, 3)
    volumes = pixels(encoder)
    expected = F.conv3d(volumes, weight, linear.bias, stride=side).flatten(2).transpose(1, 2)
    expected = expected + encoder.patch_embedding.position_embeddings
    torch.testing.assert_close(encoder(volumes), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layer", range(4))
def test_medm_clip_ct_equals_torchs_own_layers(layer: int) -> None:
    encoder = build("medm_clip_ct", VIT, layer=layer)
    state = encoder.state_dict()
    volumes = pixels(encoder)
    # patches (f, h, w) in f-major order, their vectors (p_h, p_w, p_f, c)
    vectors = torch.stack(
        [
            volumes[:, :, f : f + 2, h : h + 4, w : w + 8].permute(0, 3, 4, 2, 1).flatten(1)
            for f in range(0, 8, 2)
            for h in range(0, 12, 4)
            for w in range(0, 16, 8)
        ],
        dim=1,
    )
    x = F.layer_norm(
        vectors, vectors.shape[-1:], state["to_patch_embedding.1.weight"], state["to_patch_embedding.1.bias"]
    )
    x = F.linear(x, state["to_patch_embedding.2.weight"], state["to_patch_embedding.2.bias"])
    x = F.layer_norm(x, x.shape[-1:], state["to_patch_embedding.3.weight"], state["to_patch_embedding.3.bias"])
    x = torch.cat([state["cls_token"].expand(2, -1, -1), x], dim=1) + state["pos_embedding"]
    for index in range(layer):
        own = nn.TransformerEncoderLayer(24, 4, dim_feedforward=40, dropout=0.0, batch_first=True)
        prefix = f"transformer_layers.{index}."
        own.load_state_dict({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})
        x = own(x)
    torch.testing.assert_close(encoder(volumes), x, rtol=0, atol=1e-5)


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def peg(x: Tensor, shape: tuple[int, ...], state: dict, prefix: str) -> Tensor:
    """Depthwise 3 x 3 x 3 over `shape`, looking back only on its first axis."""
    volume = F.pad(x.reshape(*shape, -1).movedim(-1, 1), (1, 1, 1, 1, 2, 0))
    out = F.conv3d(volume, state[f"{prefix}.weight"], state[f"{prefix}.bias"], groups=volume.shape[1])
    return out.movedim(1, -1).reshape(x.shape)


def norm(x: Tensor, state: dict, prefix: str) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / (centred.pow(2).mean(dim=-1, keepdim=True) + 1e-5).sqrt() * state[f"{prefix}.gamma"]


def attention(x: Tensor, bias: Tensor | None, state: dict, prefix: str) -> Tensor:
    """Keys and values from the input as it is; cosine logits times 8."""
    query = norm(x, state, f"{prefix}.norm") @ state[f"{prefix}.to_q.weight"].T
    key, value = (x @ state[f"{prefix}.to_kv.weight"].T).chunk(2, dim=-1)
    heads = []
    width = CTVIT["head_width"]
    for head in range(CTVIT["heads"]):
        part = slice(head * width, (head + 1) * width)
        q = unit(query[..., part]) * state[f"{prefix}.q_scale"]
        k = unit(key[..., part]) * state[f"{prefix}.k_scale"]
        logits = 8 * q @ k.transpose(1, 2) + (0 if bias is None else bias[head])
        heads.append(logits.softmax(dim=-1) @ value[..., part])
    return torch.cat(heads, dim=-1) @ state[f"{prefix}.to_out.weight"].T


def feed(x: Tensor, state: dict, prefix: str) -> Tensor:
    x = F.layer_norm(x, x.shape[-1:], state[f"{prefix}.0.weight"], state[f"{prefix}.0.bias"])
    value, gate = (x @ state[f"{prefix}.1.weight"].T).chunk(2, dim=-1)
    return (value * gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2)))) @ state[f"{prefix}.4.weight"].T


def stage(x: Tensor, shape: tuple[int, ...], bias: Tensor | None, state: dict, prefix: str) -> Tensor:
    for index in range(2):
        layer = f"{prefix}.layers.{index}"
        x = peg(x, shape, state, f"{layer}.0.dsconv") + x
        x = attention(x, bias, state, f"{layer}.1") + x
        x = feed(x, state, f"{layer}.3") + x
    return norm(x, state, f"{prefix}.norm_out")


def position_bias(height: int, width: int, state: dict) -> Tensor:
    places = [(row, column) for row in range(height) for column in range(width)]
    delta = torch.tensor([[(a[0] - b[0], a[1] - b[1]) for b in places] for a in places], dtype=torch.float32)
    x = torch.sign(delta) * torch.log(delta.abs() + 1)
    for name in ("0.0", "1.0"):
        x = x @ state[f"spatial_rel_pos_bias.net.{name}.weight"].T + state[f"spatial_rel_pos_bias.net.{name}.bias"]
        x = torch.where(x > 0, x, 0.1 * x)
    x = x @ state["spatial_rel_pos_bias.net.2.weight"].T + state["spatial_rel_pos_bias.net.2.bias"]
    return x.permute(2, 0, 1)


def ct_vit(volumes: Tensor, state: dict, grid: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """CTViT with patches of 2 x 4 x 4, written out; gives the tokens before and after the codebook, [B, t*h*w, C]."""
    batch, (t, h, w) = len(volumes), grid
    vectors = torch.stack(
        [
            volumes[:, :, z : z + 2, y : y + 4, x : x + 4].flatten(1)  # (c, pt, p1, p2)
            for z in range(0, 2 * t, 2)
            for y in range(0, 4 * h, 4)
            for x in range(0, 4 * w, 4)
        ],
        dim=1,
    )
    x = F.layer_norm(vectors, vectors.shape[-1:], state["to_patch_emb.1.weight"], state["to_patch_emb.1.bias"])
    x = x @ state["to_patch_emb.2.weight"].T + state["to_patch_emb.2.bias"]
    x = F.layer_norm(x, x.shape[-1:], state["to_patch_emb.3.weight"], state["to_patch_emb.3.bias"])

    shape = (batch, t, h, w)
    x = stage(x.reshape(batch * t, h * w, -1), shape, position_bias(h, w, state), state, "enc_spatial_transformer")
    x = x.reshape(batch, t, h * w, -1).transpose(1, 2).reshape(batch * h * w, t, -1)
    x = stage(x, shape, None, state, "enc_temporal_transformer")  # this shape is not theirs: kept for parity
    x = x.reshape(batch, h * w, t, -1).transpose(1, 2).reshape(batch, t * h * w, -1)

    codes = state["vq._codebook.embed"][0]
    return x, codes[(unit(x) @ unit(codes).T).argmax(dim=-1)]


@pytest.mark.parametrize("size", [[6, 12, 12], [4, 12, 8]])
def test_ct_vit_equals_itself_written_out(size: list[int]) -> None:
    options = {**CTVIT, "image_size": size}
    encoder = build("ct_vit", options)
    plain = build("ct_vit", {**options, "quantise": False})
    volumes = pixels(encoder)
    before, after = ct_vit(volumes, encoder.state_dict(), encoder.grid)
    torch.testing.assert_close(plain(volumes), before, rtol=0, atol=1e-5)
    assert torch.equal(encoder(volumes), after)
    assert len(after.unique(dim=1)) > 1 and len({tuple(code.tolist()) for code in after.flatten(0, 1)}) > 3


def test_ct_vit_temporal_convolution_runs_over_row_column_depth() -> None:
    """With equal sides, reading the tokens in the wrong order is the convolution over (row, column, depth)."""
    encoder = build("ct_vit", CTVIT)
    convolve = getattr(encoder.enc_temporal_transformer.layers[0], "0")
    tokens = torch.randn(2, 3, 3, 3, 16)  # (b, t, h, w, c)
    laid_out = tokens.permute(0, 2, 3, 1, 4)
    expected = convolve(laid_out, (2, 3, 3, 3), False)
    torch.testing.assert_close(convolve(laid_out.reshape(18, 3, 16), (2, 3, 3, 3), False), expected.reshape(18, 3, 16))
    # and the geometric reading is the spatial stage's convolution on the same tokens
    right = convolve(tokens, (2, 3, 3, 3), False).permute(0, 2, 3, 1, 4).reshape(18, 3, 16)
    torch.testing.assert_close(convolve(laid_out.reshape(18, 3, 16), (2, 3, 3, 3), True), right)
    assert not torch.allclose(right, expected.reshape(18, 3, 16))


def test_full_size_has_the_published_names_shapes_and_counts() -> None:
    with torch.device("meta"):
        built = {name: build_encoder(TowerConfig(encoder=name)) for name in ("vit3d", "medm_clip_ct", "ct_vit")}
    shapes = {name: {key: tuple(t.shape) for key, t in one.state_dict().items()} for name, one in built.items()}
    counts = {name: (len(shapes[name]), sum(p.numel() for p in one.parameters())) for name, one in built.items()}
    assert counts == {"vit3d": (138, 87_389_184), "medm_clip_ct": (156, 88_011_776), "ct_vit": (157, 25_890_200)}
    assert shapes == {"vit3d": vit3d_shapes(), "medm_clip_ct": medm_clip_ct_shapes(), "ct_vit": ct_vit_shapes()}
    assert built["vit3d"].num_tokens == built["medm_clip_ct"].num_tokens == 2049
    assert built["ct_vit"].token_grid == (24, 24, 24)


def layer_shapes(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    """Return the names of a layer's weight (of this shape) and bias."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def vit3d_shapes() -> dict[str, tuple[int, ...]]:
    shapes = {"cls_token": (1, 1, 768), "patch_embedding.position_embeddings": (1, 2048, 768)}
    shapes |= layer_shapes("patch_embedding.patch_embeddings.1", 768, 1024) | layer_shapes("norm", 768)
    for n in range(12):
        block = f"blocks.{n}"
        shapes |= layer_shapes(f"{block}.norm1", 768) | layer_shapes(f"{block}.norm2", 768)
        shapes |= {f"{block}.attn.qkv.weight": (2304, 768)} | layer_shapes(f"{block}.attn.out_proj", 768, 768)
        shapes |= layer_shapes(f"{block}.mlp.linear1", 3072, 768) | layer_shapes(f"{block}.mlp.linear2", 768, 3072)
    return shapes


def medm_clip_ct_shapes() -> dict[str, tuple[int, ...]]:
    shapes = {"pos_embedding": (1, 2049, 768), "cls_token": (1, 1, 768)}
    shapes |= layer_shapes("to_patch_embedding.1", 1024) | layer_shapes("to_patch_embedding.2", 768, 1024)
    shapes |= layer_shapes("to_patch_embedding.3", 768)
    shapes |= layer_shapes("mlp_head.0", 768) | layer_shapes("mlp_head.1", 768, 768)
    for n in range(12):
        block = f"transformer_layers.{n}"
        shapes |= {f"{block}.self_attn.in_proj_weight": (2304, 768), f"{block}.self_attn.in_proj_bias": (2304,)}
        shapes |= layer_shapes(f"{block}.self_attn.out_proj", 768, 768)
        shapes |= layer_shapes(f"{block}.linear1", 3072, 768) | layer_shapes(f"{block}.linear2", 768, 3072)
        shapes |= layer_shapes(f"{block}.norm1", 768) | layer_shapes(f"{block}.norm2", 768)
    return shapes


def ct_vit_shapes() -> dict[str, tuple[int, ...]]:
    shapes = layer_shapes("spatial_rel_pos_bias.net.0.0", 512, 2) | layer_shapes(
        "spatial_rel_pos_bias.net.1.0", 512, 512
    )
    shapes |= layer_shapes("spatial_rel_pos_bias.net.2", 8, 512)
    for name, vector in (("to_patch_emb_first_frame", 400), ("to_patch_emb", 4000)):
        shapes |= layer_shapes(f"{name}.1", vector) | layer_shapes(f"{name}.2", 512, vector)
        shapes |= layer_shapes(f"{name}.3", 512)
    for name in ("enc_spatial_transformer", "enc_temporal_transformer"):
        for n in range(4):
            layer = f"{name}.layers.{n}"
            shapes |= layer_shapes(f"{layer}.0.dsconv", 512, 1, 3, 3, 3) | layer_shapes(f"{layer}.3.0", 512)
            shapes |= {f"{layer}.1.null_kv": (8, 0, 32), f"{layer}.1.q_scale": (32,), f"{layer}.1.k_scale": (32,)}
            shapes |= {
                f"{layer}.1.{norm}.{part}": (512,) for norm in ("norm", "context_norm") for part in ("gamma", "beta")
            }
            shapes |= {f"{layer}.1.to_q.weight": (256, 512), f"{layer}.1.to_kv.weight": (512, 512)}
            shapes |= {f"{layer}.1.to_out.weight": (512, 256)}
            shapes |= {f"{layer}.3.1.weight": (2730, 512), f"{layer}.3.4.weight": (512, 1365)}
        shapes |= {f"{name}.norm_out.gamma": (512,), f"{name}.norm_out.beta": (512,)}
    shapes |= {
        "vq._codebook.initted": (1,),
        "vq._codebook.cluster_size": (1, 8192),
        "vq._codebook.embed": (1, 8192, 512),
    }
    return shapes | layer_shapes("to_pixels_first_frame.0", 400, 512) | layer_shapes("to_pixels.0", 4000, 512)
