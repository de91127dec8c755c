"""Every connector keeps the contract: token count, shapes, gradients, states that travel."""

import pytest
import torch

from medmvl.model.config import CONNECTORS
from medmvl.model.connectors import ConnectorError, build_connector

CASES = [
    ("linear", {}),
    ("mlp", {}),
    ("mlp", {"depth": 4}),
    ("pool", {}),
    ("pool", {"size": 4, "depth": 1}),
    ("average", {}),
    ("average", {"depth": 1}),
    ("attention", {"queries": 6, "heads": 4}),
    ("attention", {"queries": 6, "heads": 2, "positions": "tokens"}),
    ("attention", {"queries": 6, "heads": 2, "positions": "slices"}),
    ("attention_pool", {"queries": 6, "heads": 4}),
    ("attention_pool", {"queries": 6, "positions": "slices"}),
    ("perceiver", {"latents": 5, "depth": 3, "heads": 4}),
    ("perceiver", {"latents": 5, "positions": "tokens"}),
    ("perceiver", {"latents": 5, "heads": 3, "head_width": 8, "positions": "slices"}),
]
IDS = [f"{name}-{'-'.join(map(str, options.values()))}" for name, options in CASES]


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
@pytest.mark.parametrize("grid", [(4, 8), (4, 4, 8)], ids=["2d", "3d"])
def test_contract(name: str, options: dict, grid: tuple[int, ...]) -> None:
    if len(grid) == 2 and (name == "average" or options.get("positions") == "slices"):
        with pytest.raises(ConnectorError, match=r"takes a grid \(slices, rows, columns\).*\(4, 8\): .*no slices"):
            build_connector(name, grid, 16, 24, options)
        return
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
    # `text_guided` reads two branches and a question, and has tests of its own
    assert {name for name, _ in CASES} == set(CONNECTORS) - {"text_guided"}
