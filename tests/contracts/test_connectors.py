"""Every connector keeps the contract: token count, shapes, gradients, states that travel."""

import pytest
import torch

from medmvl.model.config import CONNECTORS
from medmvl.model.connectors import build_connector

CASES = [
    ("linear", {}),
    ("mlp", {}),
    ("mlp", {"depth": 4}),
    ("pool", {}),
    ("pool", {"size": 4, "depth": 1}),
    ("attention", {"queries": 6, "heads": 4}),
    ("attention", {"queries": 6, "heads": 2, "positions": True}),
    ("perceiver", {"latents": 5, "depth": 3, "heads": 4}),
    ("perceiver", {"latents": 5, "positions": True}),
]
IDS = [f"{name}-{'-'.join(map(str, options.values()))}" for name, options in CASES]


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
@pytest.mark.parametrize("grid", [(4, 8), (4, 4, 8)], ids=["2d", "3d"])
def test_contract(name: str, options: dict, grid: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    connector = build_connector(name, grid, 16, 24, options)
    tokens = torch.randn(2, torch.Size(grid).numel(), 16, requires_grad=True)
    output = connector(tokens)
    assert output.shape == (2, connector.num_tokens, 24)
    output.square().sum().backward()
    assert all(parameter.grad is not None for parameter in connector.parameters())
    assert tokens.grad.abs().sum(-1).min() > 0, "a token of the image is never read"

    again = build_connector(name, grid, 16, 24, options)
    again.load_state_dict(connector.state_dict())
    assert torch.equal(again(tokens), output)
    # A row's media must not depend on each other: one by one equals together.
    alone = torch.cat([connector(tokens[:1]), connector(tokens[1:])])
    torch.testing.assert_close(alone, output, rtol=0, atol=1e-5)


def test_every_connector_has_a_case() -> None:
    assert {name for name, _ in CASES} == set(CONNECTORS)
