"""Connectors: equal to the plain mathematics they stand for, and errors that tell what fits."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

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


def test_attention_equals_multihead_attention_with_weights() -> None:
    connector = build_connector("attention", (4, 4), 16, 12, {"queries": 5, "heads": 4})
    reference = nn.MultiheadAttention(16, 4, batch_first=True)
    reference.load_state_dict(connector.attn.state_dict())
    x = torch.randn(2, 16, 16)
    query = connector.query.expand(2, -1, -1)
    expected = connector.mlp(reference(query, x, x, need_weights=True)[0])
    torch.testing.assert_close(connector(x), expected, rtol=0, atol=1e-6)


def test_attention_reads_order_only_with_positions() -> None:
    x = torch.randn(1, 16, 16)
    plain = build_connector("attention", (4, 4), 16, 12, {"queries": 5, "heads": 4})
    torch.testing.assert_close(plain(x.flip(1)), plain(x), rtol=0, atol=1e-5)
    placed = build_connector("attention", (4, 4), 16, 12, {"queries": 5, "heads": 4, "positions": True})
    nn.init.normal_(placed.positions)
    assert (placed(x.flip(1)) - placed(x)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "grid", "options", "parts"),
    [
        ("pool", (7, 7), {}, ["(7, 7)", "[1, 7]"]),
        ("pool", (4, 6), {"size": [2, 2, 2]}, ["needs 2 numbers", "[1, 2]"]),
        ("pool", (17,), {}, ["tokens: patches"]),
        ("attention", (4, 4), {"heads": 5}, ["5 heads", "[1, 2, 4, 8, 16]"]),
        ("perceiver", (4, 4), {"heads": 0}, ["0 heads"]),
        ("perceiver", (4, 4), {"latents": 0}, ["latents >= 1"]),
        ("mlp", (4, 4), {"depth": 0}, ["depth >= 1"]),
        ("mlp", (4, 4), {"dept": 2}, ["'dept'", "did you mean 'depth'"]),
        ("linear", (4, 4), {"depth": 2}, ["no option 'depth'"]),
        ("mlp", (4, 4), {"depth": "two"}, ["'two'"]),
    ],
)
def test_misfits_tell_what_fits(name: str, grid: tuple[int, ...], options: dict, parts: list[str]) -> None:
    with pytest.raises(ConnectorError) as error:
        build_connector(name, grid, 16, 12, options, where="connector of tower 'image'")
    assert all(part in str(error.value) for part in ["connector of tower 'image'", *parts]), error.value


def test_unknown_name_is_answered_with_all_names() -> None:
    with pytest.raises(LookupNameError, match=r"did you mean 'perceiver'.*attention, linear, mlp"):
        build_connector("perciever", (4, 4), 16, 12)


def test_dotted_path_extends_the_table() -> None:
    assert build_connector("medmvl.model.connectors:Mlp", (2, 2), 4, 6, {"depth": 1}).num_tokens == 4
