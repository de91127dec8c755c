"""Text-guided weighting of slices (Med-2E3): the question decides how much each slice counts.

The connector `text_guided` belongs to encoders of two branches (`dual`); all others take one grid of tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medmvl.model.connectors import ConnectorError, DualGrid, DualTokens, DualWidth, Mlp, Pool


class TextGuided(nn.Module):
    """Pooled tokens of the volume, then one weighted mean of all slices' tokens.

    3D branch: mean over blocks of tokens, then an mlp. 2D branch: an mlp, token by token. A slice is described by the
    mean over its own tokens and the pooled tokens of the slab of the volume that it lies in; its score is the dot
    product with the projected question over `temperature`; softmax over the slices, dropout, weighted sum.

    Source: Med-2E3 (arXiv 2411.12783), its connector `spatial_pooling_score15`. Its keys are
    `vision3d_connector._connector.N` (here `volume.mlp.N`), `vision2d_connector._connector.N` (`slices.N`) and
    `vision3d_connector.text_mlp` (`text_mlp`).

    Args:
        grid, width_in: of both branches.
        width_out: of the LLM.
        size: side of the blocks that the volume's tokens are pooled in, one number or one per axis.
        depth: linear layers of each mlp.
        temperature: what scores are divided by.
        dropout: share of slices that are left out while training; the others' weights grow by as much.
    """

    dual = True

    def __init__(
        self,
        grid: DualGrid,
        width_in: DualWidth,
        width_out: int,
        size: int | Sequence[int] = 2,
        depth: int = 2,
        temperature: float = 5.0,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if temperature <= 0 or not 0 <= dropout < 1:
            raise ConnectorError(
                f"temperature must be above 0 and dropout in [0, 1), got temperature {temperature}, dropout {dropout}"
            )
        self.grid, self.temperature = grid, temperature
        self.volume = Pool(grid.volume, width_in.volume, width_out, size, depth)
        self.slabs = grid.volume[0] // self.volume.sizes[0]
        if grid.slices[0] % self.slabs:
            raise ConnectorError(
                f"'text_guided' cannot share {grid.slices[0]} slices among the {self.slabs} layers of tokens that "
                f"pooling leaves of the grid {grid.volume}; choose a `size` whose first number leaves a divisor"
            )
        self.slices = Mlp((grid.slices[1],), width_in.slices, width_out, depth)
        self.text_mlp = nn.Linear(width_in.text, width_out)
        self.dropout = nn.Dropout(dropout)
        self.num_tokens = self.volume.num_tokens + grid.slices[1]

    def forward(self, tokens: DualTokens) -> Tensor:
        """Return [M, num_tokens, width_out]: the volume's tokens, then the slices', for each question."""
        volume = self.volume(tokens.volume)
        slices = self.slices(tokens.slices).unflatten(1, self.grid.slices)
        weights = self.dropout(self.weights(volume, slices, self.text_mlp(tokens.text), tokens.source))
        # A volume's slices are large, and several questions may be about them: they are never copied.
        of_volume = slices.unbind(0)
        seen = [
            torch.tensordot(weight.to(slices.dtype), of_volume[which], 1)
            for weight, which in zip(weights, tokens.source.tolist(), strict=True)
        ]
        return torch.cat([volume[tokens.source], torch.stack(seen)], dim=1)

    def weights(self, volume: Tensor, slices: Tensor, text: Tensor, source: Tensor) -> Tensor:
        """Return how much each slice counts for each question, float32 [M, slices], summing to one.

        Args:
            volume: [U, tokens, width_out], pooled and projected.
            slices: [U, slices, tokens of each, width_out], projected.
            text: [M, width_out], projected.
            source: long [M].
        """
        slabs = volume.unflatten(1, (self.slabs, -1))
        inside = slabs.mean(2).repeat_interleave(self.grid.slices[0] // self.slabs, dim=1)
        share = slabs.shape[2] / (slabs.shape[2] + slices.shape[2])  # of the slab among all tokens of the mean
        described = share * inside.float() + (1 - share) * slices.mean(2).float()
        scores = (described[source] * text.float()[:, None]).sum(-1) / self.temperature
        return scores.softmax(dim=-1)
