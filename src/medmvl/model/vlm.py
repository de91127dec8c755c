"""The vision-language model: towers turn pixels into tokens, the LLM reads them among the words, the loss is inside."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from medmvl.core.layout import Layout
from medmvl.model import attention, head
from medmvl.model.families import packable, position_limit, position_table


class Tower(nn.Module):
    """Encoder + connector + placeholder for one kind of media."""

    def __init__(self, encoder: nn.Module, connector: nn.Module, placeholder: str) -> None:
        super().__init__()
        self.encoder, self.connector, self.placeholder = encoder, connector, placeholder

    @property
    def num_tokens(self) -> int:
        """Tokens that one medium becomes in the LLM's row."""
        return self.connector.num_tokens

    def forward(self, pixels: Tensor | None = None, features: Tensor | None = None, **question: Tensor) -> Tensor:
        """Return [M, num_tokens, width of the LLM].

        Args:
            pixels: prepared, [M, C, ...].
            features: instead of pixels, what the encoder made of them before: [M, tokens, its width].
            question: for an encoder that reads it (`reads_text`).
        """
        if features is None:
            return self.connector(self.encoder(pixels, **question))
        weight = next(self.connector.parameters(), features)
        return self.connector(features.to(weight.dtype))


class VLMOutput(NamedTuple):
    """What a forward gives; a tuple, so that every distributed wrapper finds its tensors.

    Attributes:
        loss: scalar fp32, sum of the token losses over the normalizer.
        token_losses: fp32 [S], negative log-likelihood of each target; a report, not differentiable.
    """

    loss: Tensor
    token_losses: Tensor


class VLM(nn.Module):
    """An LLM and a tower for each kind of media.

    Media tokens replace the embeddings at their placeholders as the connector gives them. A family that scales word
    embeddings (Gemma) does so in its embedding layer, in front of that, so media tokens are never scaled: the connector
    learns its own scale. transformers' LLaVA does the same.
    """

    def __init__(self, llm: PreTrainedModel, towers: Mapping[str, Tower] | None = None) -> None:
        super().__init__()
        self.llm = llm
        self.towers = nn.ModuleDict(towers)
        self.position_limit = position_limit(llm.config) if self.packable else 0
        """Longest sample that may share a row with others; None for any, 0 for none."""
        self.longest = position_table(llm.config)
        """Longest sample that the LLM has positions for, answer included; None for any."""

    def check_max_tokens(self, max_tokens: int) -> None:
        """Raise ValueError for a longest sample that is longer than the LLM has positions for."""
        if self.longest is not None and max_tokens > self.longest:
            raise ValueError(
                f"max_tokens {max_tokens} is more than the {self.longest} positions that this LLM "
                f"({self.llm.config.model_type}) has; set max_tokens to {self.longest} or fewer"
            )

    @property
    def packable(self) -> bool:
        """Whether several samples may share a row."""
        return self.llm.config._attn_implementation == attention.NAME

    @property
    def why_packable(self) -> str:
        """The family, and why it is packed or not."""
        return packable(self.llm.config)[1]

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        layout: Layout,
        pixels: Mapping[str, Tensor],
        media_positions: Mapping[str, Tensor],
        logit_index: Tensor,
        targets: Tensor,
        normalizer: float | Tensor | None = None,
        questions: Mapping[str, Mapping[str, Tensor]] | None = None,
        features: Mapping[str, Tensor] | None = None,
    ) -> VLMOutput:
        """Compute the loss of one flat row of N tokens.

        Args:
            ids: long [1, N]; what stands at a placeholder is never looked up.
            positions: long [1, N], position ids.
            layout: which tokens attend to which.
            pixels: tower -> [M, C, ...]. A tower without places still runs, with weight zero: under sharding every
                rank must call every tower equally often.
            media_positions: tower -> long [M * num_tokens], where its tokens go.
            logit_index: long [S], the token that predicts target s; logits are computed there only, and never all at
                once.
            targets: long [S].
            normalizer: what the summed loss is divided by, usually the supervised tokens of the whole optimizer step;
                None for the sum.
            questions: tower that reads the question -> what its encoder takes beside the pixels.
            features: tower -> [M, tokens, width] of its encoder, made before; such a tower has no pixels, and its
                encoder does not run.

        Raises:
            ValueError: media and places do not match, or the LLM cannot run this row packed.
        """
        embeddings = self.embed(ids, pixels, media_positions, questions, features)
        states = self._states(embeddings, positions, layout, logit_index)
        return VLMOutput(*head.losses(self.llm, states, targets, normalizer))

    def logits(
        self,
        ids: Tensor,
        positions: Tensor,
        layout: Layout,
        pixels: Mapping[str, Tensor],
        media_positions: Mapping[str, Tensor],
        logit_index: Tensor,
        questions: Mapping[str, Mapping[str, Tensor]] | None = None,
        features: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Return the logits [S, vocabulary] at `logit_index`; arguments and errors as for `forward`."""
        embeddings = self.embed(ids, pixels, media_positions, questions, features)
        return head.logits(self.llm, self._states(embeddings, positions, layout, logit_index))

    def embed(
        self,
        ids: Tensor,
        pixels: Mapping[str, Tensor],
        media_positions: Mapping[str, Tensor],
        questions: Mapping[str, Mapping[str, Tensor]] | None = None,
        features: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Return the embeddings [1, N, width] of a row, media in place.

        Raises:
            ValueError: media and places do not match, or an id is neither a word nor a medium's place.
        """
        features = features or {}
        shown = {*pixels, *features}
        if not set(media_positions) <= shown <= set(self.towers) or set(pixels) & set(features):
            raise ValueError(
                f"places for {sorted(media_positions)} need pixels or features, one of them, and those for "
                f"{sorted(shown)} need a tower; "
                f"the model's towers: {', '.join(self.towers) or 'none'}"
            )
        places = torch.cat([ids.new_empty(0), *media_positions.values()])
        embedding = self.llm.get_input_embeddings()
        try:
            embeddings = embedding(ids.index_fill(1, places, 0))
        except IndexError as error:
            raise ValueError(
                f"an id (at most {int(ids.max())}) is neither a row of the embedding table ({embedding.num_embeddings} "
                "rows) nor a medium's place: a placeholder without its image?"
            ) from error
        # In the model's own order, not in that of the row: under sharding all ranks must call the towers alike.
        for name in (name for name in self.towers if name in shown):
            media = self.towers[name](pixels.get(name), features.get(name), **(questions or {}).get(name, {}))
            tokens = media.flatten(0, 1)
            where = media_positions.get(name)
            if where is None or len(where) == 0:
                embeddings = embeddings + (tokens.sum() * 0).to(embeddings.dtype)
            elif len(where) == len(tokens):
                embeddings = embeddings.index_copy(1, where, tokens[None].to(embeddings.dtype))
            else:
                raise ValueError(
                    f"tower {name!r}: {len(media)} media give {len(tokens)} tokens, "
                    f"but the row has {len(where)} places for them"
                )
        return embeddings

    def _check_length(self, layout: Layout) -> None:
        if self.position_limit is None or len(layout.segments) == 1:
            return
        longest = max(segment.prefix_length + segment.length for segment in layout.segments)
        if longest > self.position_limit:
            raise ValueError(
                f"{self.llm.config.model_type}: a sample of {longest} tokens changes the rotary frequencies of its "
                f"whole row; keep max_tokens at most {self.position_limit}, or give each sample a row of its own"
            )

    def _states(self, embeddings: Tensor, positions: Tensor, layout: Layout, logit_index: Tensor) -> ModelOutput:
        """Run the LLM's body; return its last hidden states at `logit_index`."""
        if self.packable:
            self._check_length(layout)
            inputs = {"position_ids": positions, "layout": layout}
            return head.states(self.llm, logit_index, inputs_embeds=embeddings, **inputs)
        if len(layout.segments) > 1:
            raise ValueError(
                f"this row holds {len(layout.segments)} segments, but the LLM runs one sample at a time "
                f"({self.why_packable}); give rows of one sample"
            )
        return head.states(self.llm, logit_index, inputs_embeds=embeddings)
