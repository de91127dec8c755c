"""What follows an LLM's body: logits where asked for, and losses of which never more than a chunk of logits exists.

It is the LLM's own code, scales and soft caps included: its `forward` is called with a body that answers with states
computed before.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

_CHUNK_BYTES = 2**27
"""Of fp32 logits at a time: 1,048 tokens of a vocabulary of 32,000, or 220 of 152,000. Matrix products stay large."""


def states(llm: PreTrainedModel, at: Tensor, **inputs: Any) -> ModelOutput:
    """Run an LLM's body on a row; return what it gives, of its hidden states [1, S, width] only those at `at`."""
    output = body(llm)(**inputs, use_cache=False)
    return _with_states(output, output.last_hidden_state[:, at])


def body(llm: PreTrainedModel) -> nn.Module:
    """Return the part of an LLM that turns embeddings into hidden states."""
    return getattr(llm, _body(llm))


def logits(llm: PreTrainedModel, found: ModelOutput) -> Tensor:
    """Return the logits [S, vocabulary] of what `states` gave."""
    return _after(llm, found, llm.get_output_embeddings())[0]


def losses(
    llm: PreTrainedModel, found: ModelOutput, targets: Tensor, normalizer: float | Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the negative log-likelihoods of targets [S]: their sum over the normalizer, and each one, both fp32.

    The first is differentiable, once. Its gradient is taken along the way, for the logits of a chunk are gone when the
    next one begins.
    """
    head = llm.get_output_embeddings()
    factor = 1.0 if normalizer is None else 1.0 / normalizer
    hidden = found.last_hidden_state
    return _Losses.apply(llm, found, targets, factor, torch.is_grad_enabled(), hidden, head.weight, head.bias)


def chunk_tokens(vocabulary: int) -> int:
    """Return at how many tokens at most logits exist at a time."""
    return max(1, _CHUNK_BYTES // (4 * vocabulary))


class _Losses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        llm: PreTrainedModel,
        found: ModelOutput,
        targets: Tensor,
        factor: float | Tensor,
        learns: bool,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        each = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        gradients = _Gradients(hidden, weight, bias, ctx.needs_input_grad[5:]) if learns else None
        size = chunk_tokens(len(weight))
        head_parts = _at_work(weight), None if bias is None else _at_work(bias)
        for start in range(0, len(targets), size):
            part = slice(start, start + size)
            with torch.set_grad_enabled(learns):
                states = hidden[:, part].detach().requires_grad_(learns)
                head = _Head(*head_parts)
                made = _after(llm, _with_states(found, states), head)
            wanted = targets[part, None]
            table = F.log_softmax(made.detach()[0].float(), dim=-1)
            each[part] = -table.gather(1, wanted)[:, 0]
            if gradients is not None:
                table.exp_().scatter_add_(1, wanted, torch.full_like(table[:, :1], -1.0))
                gradients.add(part, states, head, made, table)
        ctx.mark_non_differentiable(each)
        ctx.gradients, ctx.factor = gradients, factor
        return each.sum() * factor, each

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("this loss has been differentiated before; compute it anew")
        return None, None, None, None, None, *gradients.times(gradient * ctx.factor)


class _Gradients:
    """Gradients of the summed losses for hidden states, the head's weight and its bias, as far as they are needed."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, needed: tuple[bool, ...]) -> None:
        inputs = (hidden, weight, bias)
        self.hidden, self.weight, self.bias = (
            torch.zeros_like(one) if need else None for one, need in zip(inputs, needed, strict=True)
        )

    def add(self, part: slice, states: Tensor, head: "_Head", made: Tensor, gradient: Tensor) -> None:
        """Add a chunk's, given the gradient [c, vocabulary] for its final logits."""
        gradient = gradient.to(made.dtype)[None]
        if made is not head.made:
            (gradient,) = torch.autograd.grad(made, head.made, gradient)
        flat, given = gradient[0], head.given.detach()[0]
        if self.hidden is not None:
            below = (flat @ head.weight.to(flat.dtype))[None].to(head.given.dtype)
            (self.hidden[:, part],) = torch.autograd.grad(head.given, states, below)
        if self.weight is not None:
            _add_product(self.weight, flat.T, given.to(flat.dtype))
        if self.bias is not None:
            self.bias += flat.sum(0)

    def times(self, factor: Tensor) -> tuple[Tensor | None, ...]:
        """Return all, times a factor, which they are multiplied with in place."""
        found = (self.hidden, self.weight, self.bias)
        if float(factor) != 1.0:
            for one in found:
                if one is not None:
                    one.mul_(factor)
        return found


def _add_product(total: Tensor, first: Tensor, second: Tensor) -> None:
    """Add a matrix product, without a copy of its size where the precision is the same."""
    if first.dtype == total.dtype:
        total.addmm_(first, second)
    else:
        total += first @ second


def _at_work(weight: Tensor) -> Tensor:
    """Return a weight in the precision that it is multiplied in; cast once, for autocast would do so in every chunk."""
    device = weight.device.type
    return weight.detach().to(torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype)


class _Head:
    """Stands in for the head, and remembers what it was given and what it made of it."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, given: Tensor) -> Tensor:
        self.given = given
        with torch.no_grad():
            made = F.linear(given, self.weight, self.bias)
        self.made = made.requires_grad_(given.requires_grad)
        return self.made


class _Body:
    """Stands in for the body (and for a decoder inside it): answers with what it is made with."""

    def __init__(self, found: ModelOutput) -> None:
        self._found = found

    def __call__(self, *_: Any, **__: Any) -> ModelOutput:
        return self._found

    def __getattr__(self, _: str) -> "_Body":
        return self


class _Ready:
    """Stands in for an LLM, which it is but for its body and head."""

    def __init__(self, llm: PreTrainedModel, parts: dict[str, Any]) -> None:
        self._llm, self._parts = llm, parts

    def __getattr__(self, name: str) -> Any:
        return self._parts[name] if name in self._parts else getattr(self._llm, name)


def _after(llm: PreTrainedModel, found: ModelOutput, head: Any) -> Tensor:
    """Return what an LLM's own `forward` makes of its body's output with this head: logits [1, S, vocabulary]."""
    parts = {_body(llm): _Body(found), _name(llm, llm.get_output_embeddings()): head}
    return type(llm).forward(_Ready(llm, parts), inputs_embeds=found.last_hidden_state).logits


def _body(llm: PreTrainedModel) -> str:
    """Return the name of an LLM's body: the part with the words in it."""
    words = llm.get_input_embeddings()
    return next(name for name, part in llm.named_children() if any(one is words for one in part.modules()))


def _name(llm: PreTrainedModel, module: nn.Module) -> str:
    return next(name for name, part in llm.named_children() if part is module)


def _with_states(found: ModelOutput, hidden: Tensor) -> ModelOutput:
    return type(found)(**{**found, "last_hidden_state": hidden})
