"""Connectors: equal to the plain mathematics they stand for, and errors that tell what fits."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from medmvl.core.lookup import LookupNameError
from medmvl.model.connectors import ConnectorError, build_connector


def test_mlp_has_llava_keys_and_exact_gelu() -> None:
    connector = build_connector("mlp", (4, 4), 8, 12, {})
    assert list(connector.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    x = torch.randn(2, 16, 8)
    expected = connector[2](F.gelu(connector[0](x)))
    torch.testing.assert_close(connector(x), expected, rtol=0, atol=0)


def test_linear_is_one_layer() -> None:
    assert list(build_connector("linear", (4, 4), 8, 12).state_dict()) == ["0.weight", "0.bias"]


@pytest.mark.parametrize(("grid", "size"), [((4, 6), 2), ((4, 6), (2, 3)), ((4, 8, 8), 2), ((4, 8, 8), (1, 2, 4))])
def test_pool_is_average_pooling(grid: tuple[int, ...], size: int | tuple[int, ...]) -> None:
    connector = build_connector("pool", grid, 8, 12, {"size": size})
    x = torch.randn(2, torch.Size(grid).numel(), 8)
    maps = x.transpose(1, 2).unflatten(2, grid)
    pooled = (F.avg_pool2d if len(grid) == 2 else F.avg_pool3d)(maps, size, size)
    expected = connector.mlp(pooled.flatten(2).transpose(1, 2))
    torch.testing.assert_close(connector(x), expected, rtol=0, atol=1e-6)


def test_average_is_the_mean_over_slices() -> None:
    connector = build_connector("average", (6, 2, 3), 8, 12)
    assert connector.num_tokens == 6
    x = torch.randn(2, 36, 8)
    expected = connector.mlp(x.reshape(2, 6, 2, 3, 8).mean(1).flatten(1, 2))
    torch.testing.assert_close(connector(x), expected, rtol=0, atol=1e-6)


def test_pooling_of_m3d_leaves_256_tokens() -> None:
    assert build_connector("pool", (8, 16, 16), 8, 12).num_tokens == 256


def reference_attention(connector: nn.Module, x: torch.Tensor, heads: int) -> torch.Tensor:
    """Return what the connector stands for, with nn.MultiheadAttention's weights, as plain mathematics."""
    weight, bias = connector.attn.in_proj_weight, connector.attn.in_proj_bias
    query, key, value = (
        F.linear(states, part, shift).unflatten(-1, (heads, -1)).transpose(1, 2)
        for states, part, shift in zip((connector.query[None], x, x), weight.chunk(3), bias.chunk(3), strict=True)
    )
    scores = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
    return connector.mlp(connector.attn.out_proj((scores @ value).transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_attention_equals_the_plain_mathematics(training: bool) -> None:
    torch.manual_seed(0)
    connector = build_connector("attention", (8, 4, 4), 32, 12, {"queries": 9, "heads": 4}).train(training)
    module = nn.MultiheadAttention(32, 4, batch_first=True)
    module.load_state_dict(connector.attn.state_dict())
    x = torch.randn(2, 128, 32, requires_grad=True)
    weight = torch.randn(2, 9, 12)
    wanted = [x, *connector.parameters()]
    output = connector(x)
    expected = reference_attention(connector, x, 4)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)
    with_weights = connector.mlp(module(connector.query.expand(2, -1, -1), x, x, need_weights=True)[0])
    torch.testing.assert_close(output, with_weights, rtol=0, atol=1e-5)
    gradients = torch.autograd.grad((output * weight).sum(), wanted)
    for found, right in zip(gradients, torch.autograd.grad((expected * weight).sum(), wanted), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)


class Watch(TorchDispatchMode):
    """Notes the operators that run, and the shapes of all tensors that they make."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: set[str] = set()
        self.shapes: set[torch.Size] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.operators.add(str(func))
        self.shapes |= {one.shape for one in torch.utils._pytree.tree_leaves(made) if isinstance(one, torch.Tensor)}
        return made


@pytest.mark.parametrize("name", ["attention", "attention_pool", "perceiver"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_attention_weights_are_never_in_memory(name: str, training: bool) -> None:
    queries, tokens = 256, 8192
    options = {"latents": queries, "depth": 1} if name == "perceiver" else {"queries": queries}
    connector = build_connector(name, (32, 16, 16), 64, 32, options | {"heads": 2}).train(training)
    x = torch.randn(1, tokens, 64, requires_grad=training)
    with Watch() as watch, torch.set_grad_enabled(training):
        output = connector(x)
        if training:
            output.sum().backward()
    assert any("scaled_dot_product_flash_attention" in one for one in watch.operators), watch.operators
    assert not training or any("flash_attention" in one and "backward" in one for one in watch.operators)
    assert not any("softmax" in one or "bmm" in one for one in watch.operators)
    large = [shape for shape in watch.shapes if queries in shape[-2:] and max(shape[-2:]) >= tokens]
    assert not large
    assert max(shape.numel() for shape in watch.shapes) < queries * tokens


def test_attention_pool_is_ct_chats() -> None:
    """Held to CT-CHAT's projector in its own terms: keys, shapes without width, mathematics."""
    torch.manual_seed(0)
    connector = build_connector("attention_pool", (4, 2, 2), 32, 24, {"queries": 5, "heads": 4})
    state = connector.state_dict()
    assert list(state) == [
        "attn_pool.query", "attn_pool.ln_k.weight", "attn_pool.ln_k.bias", "attn_pool.ln_q.weight",
        "attn_pool.ln_q.bias", "attn_pool.to_q.weight", "attn_pool.to_kv.weight", "attn_pool.to_out.weight",
        "ln.weight", "ln.bias", "proj.0.weight", "proj.0.bias", "proj.2.weight", "proj.2.bias",
    ]  # fmt: skip
    assert (state["attn_pool.to_kv.weight"].shape, state["attn_pool.query"].shape) == ((64, 32), (5, 32))
    for parameter in connector.parameters():
        nn.init.normal_(parameter, std=0.5)
    pooler, x = connector.attn_pool, torch.randn(2, 16, 32)
    query = (pooler.ln_q(pooler.query) @ pooler.to_q.weight.T).unflatten(-1, (4, 8)).transpose(0, 1) * 8**-0.5
    key, value = (
        part.unflatten(-1, (4, 8)).transpose(1, 2) for part in (pooler.ln_k(x) @ pooler.to_kv.weight.T).chunk(2, -1)
    )
    seen = ((query @ key.transpose(-1, -2)).softmax(-1) @ value).transpose(1, 2).flatten(2)
    expected = connector.proj(connector.ln(seen @ pooler.to_out.weight.T))
    torch.testing.assert_close(connector(x), expected, rtol=1e-5, atol=1e-4)


def test_perceiver_of_radfm() -> None:
    """Held to flamingo-pytorch's resampler, with RadFM's heads that are wider or narrower than the tokens."""
    torch.manual_seed(0)
    connector = build_connector("perceiver", (4, 2, 2), 24, 20, {"latents": 5, "heads": 2, "head_width": 8})
    assert connector.layers[0].key_value.weight.shape == (32, 24)
    x = torch.randn(2, 16, 24)
    latents = connector.latents.expand(2, -1, -1)
    for layer in connector.layers:
        media, normed = layer.norm_media(x), layer.norm_latents(latents)
        query = layer.query(normed) * 8**-0.5
        key, value = layer.key_value(torch.cat((media, normed), dim=-2)).chunk(2, dim=-1)
        query, key, value = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in (query, key, value))
        scores = query @ key.transpose(-1, -2)
        weights = (scores - scores.amax(-1, keepdim=True)).softmax(-1)
        latents = latents + layer.out((weights @ value).transpose(1, 2).flatten(2))
        latents = latents + layer.feed_forward(latents)
    torch.testing.assert_close(connector(x), connector.out(connector.norm(latents)), rtol=0, atol=1e-5)
    published = build_connector("perceiver", (16, 16, 16), 768, 32, {"latents": 32, "depth": 6, "head_width": 64})
    # per layer: two norms, q 768x512, kv 768x1024, out 512x768, feed-forward norm and 2 x 768 x 3072
    layer = 2 * 1536 + 768 * 512 + 768 * 1024 + 512 * 768 + 1536 + 2 * 768 * 3072
    assert sum(p.numel() for p in published.parameters()) == 32 * 768 + 6 * layer + 1536 + 768 * 32 + 32


@pytest.mark.parametrize("name", ["attention", "attention_pool", "perceiver"])
def test_order_is_read_only_with_positions(name: str) -> None:
    """Slices in another order give the same without positions (as published), and something else with them."""
    torch.manual_seed(0)
    grid, x = (4, 2, 2), torch.randn(1, 4, 4, 16)

    def swapped(positions: str, axis: int) -> tuple[float, float]:
        """Return how much the output changes at the start, and once positions are learned."""
        connector = build_connector(name, grid, 16, 12, {"heads": 4, "positions": positions})
        changes = []
        for std in (0, 1):
            for parameter in connector.positions.parameters():
                nn.init.normal_(parameter, std=std)
            change = connector(x.flip(axis).flatten(1, 2)) - connector(x.flatten(1, 2))
            changes.append(float(change.detach().abs().max()))
        return changes[0], changes[1]

    for positions, axis, matters in [
        ("none", 1, False),
        ("slices", 1, True),
        ("slices", 2, False),
        ("tokens", 2, True),
    ]:
        start, learned = swapped(positions, axis)
        assert start < 1e-5
        assert (learned > 1e-3) == matters, (positions, axis, learned)


@pytest.mark.parametrize(
    ("name", "grid", "options", "parts"),
    [
        ("pool", (7, 7), {}, ["(7, 7)", "[1, 7]"]),
        ("pool", (4, 6), {"size": [2, 2, 2]}, ["needs 2 numbers", "[1, 2]"]),
        ("pool", (17,), {}, ["(rows, columns) or (slices, rows, columns)", "tokens: patches", "mlp, attention"]),
        ("average", (17,), {}, ["tokens: patches"]),
        ("average", (4, 4), {}, ["(slices, rows, columns)", "(4, 4)", "no slices"]),
        ("attention", (4, 4), {"positions": "slices"}, ["positions: slices", "no slices"]),
        ("attention", (4, 4), {"positions": True}, ["none, slices, tokens", "True"]),
        ("attention_pool", (4, 4), {"heads": 3}, ["3 heads"]),
        ("perceiver", (4, 4), {"head_width": 0}, ["head_width >= 1"]),
        ("attention", (4, 4), {"heads": 5}, ["5 heads", "[1, 2, 4, 8, 16]"]),
        ("perceiver", (4, 4), {"heads": 0}, ["0 heads"]),
        ("perceiver", (4, 4), {"latents": 0}, ["latents >= 1"]),
        ("mlp", (4, 4), {"depth": 0}, ["depth >= 1"]),
        ("mlp", (4, 4), {"dept": 2}, ["'dept'", "did you mean 'depth'"]),
        ("linear", (4, 4), {"depth": 2}, ["unknown option 'depth'"]),
        ("mlp", (4, 4), {"depth": "two"}, ["'depth' must be a whole number, got 'two' (str)"]),
    ],
)
def test_misfits_tell_what_fits(name: str, grid: tuple[int, ...], options: dict, parts: list[str]) -> None:
    with pytest.raises(ConnectorError) as error:
        build_connector(name, grid, 16, 12, options, where="connector of tower 'image'")
    assert all(part in str(error.value) for part in ["connector of tower 'image'", *parts]), error.value


def test_unknown_name_is_answered_with_all_names() -> None:
    with pytest.raises(LookupNameError, match=r"did you mean 'perceiver'.*attention_pool, average, linear, mlp"):
        build_connector("perciever", (4, 4), 16, 12)


def test_dotted_path_extends_the_table() -> None:
    assert build_connector("medmvl.model.connectors:Mlp", (2, 2), 4, 6, {"depth": 1}).num_tokens == 4


def test_published_sizes() -> None:
    """MedM-VL-CT-Chest: 256 queries on SigLIP's 768, an LLM of 2048; keys but for `mlp.*`, theirs is `connector.*`."""
    with torch.device("meta"):
        connector = build_connector("attention", (32, 16, 16), 768, 2048)
    assert {name: tuple(tensor.shape) for name, tensor in connector.state_dict().items()} == {
        "query": (256, 768),
        "attn.in_proj_weight": (2304, 768),
        "attn.in_proj_bias": (2304,),
        "attn.out_proj.weight": (768, 768),
        "attn.out_proj.bias": (768,),
        "mlp.0.weight": (2048, 768),
        "mlp.0.bias": (2048,),
        "mlp.2.weight": (2048, 2048),
        "mlp.2.bias": (2048,),
    }
    assert sum(parameter.numel() for parameter in connector.parameters()) == 8_330_240
