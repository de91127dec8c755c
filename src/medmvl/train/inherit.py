"""What a model takes over from the bundle it starts from: part by part, and from image tower to volume tower."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from medmvl.model import tune
from medmvl.model.connectors import Mlp
from medmvl.model.encoders.base import Encoder
from medmvl.model.vlm import VLM

_SAME, _OTHER = "volume", "image"
_HEADS = ("heads", "num_heads", "num_attention_heads", "head_dim")
"""Attributes of attention layers that say how a weight is cut into heads, which its shape does not tell."""


@dataclass
class Inheritance:
    """What was carried and what was not.

    Attributes:
        carried: "llm", or "image.encoder -> volume.encoder.inner": where from and where to.
        new: parts, or modules and parameters of parts, that keep the weights they were built with.
        unused: parts of the source that went nowhere.
    """

    carried: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    @property
    def filled(self) -> list[str]:
        """Parts, or modules of parts, that took weights."""
        return [name.rpartition(" -> ")[2] for name in self.carried]

    def __str__(self) -> str:
        lines = [("carried", self.carried), ("new", self.new), ("not used", self.unused)]
        return "; ".join(f"{word}: {', '.join(names)}" for word, names in lines if names)


def inherit(model: VLM, source: VLM, where: str) -> Inheritance:
    """Copy weights of `source` into `model`, in place.

    LLM and encoders of the same name are copied with their adapters and must be built alike; of a connector what fits
    is taken. Where the source has an image tower, and lacks the model's volume encoder or connector, every 2D encoder
    inside the volume's encoder that is built like the image's takes its weights, and the volume's connector what fits
    of the image's: the same parameters, or the mlp at its end. Adapters are merged on that way.

    Args:
        model: freshly built.
        source: the model to start from; its adapters may be merged.
        where: names the source in errors.

    Raises:
        ValueError: nothing in common, or an LLM or encoder that is built differently.
    """
    have = tune.parts(model)
    # Slices that share the image tower's encoder have nothing to give: the image tower gives it.
    given = {part: module for part, module in tune.parts(source).items() if module.state_dict()}
    state = tune.adapters(source)
    done: dict[str, set[str]] = {part: set() for part in have}
    taken: dict[str, list[str]] = {part: [] for part in given}
    for part in (part for part in given if part in have):
        if part.endswith(".connector"):
            tune.merge(given[part])
            pairs = _fitting(given[part], have[part])
        else:
            tune.restore(model, {part: state[part]} if part in state else {})
            _check_alike(part, given[part], have[part], where)
            pairs = {name: name for name in given[part].state_dict()}
        _copy(given[part], have[part], pairs)
        done[part].update(pairs)
        if pairs:
            taken[part].append(part)
    for part, other, prefix, pairs in _across(have, given):
        _copy(given[other], have[part].get_submodule(prefix), pairs)
        done[part].update(f"{prefix}.{name}".strip(".") for name in pairs)
        taken[other].append(f"{part}.{prefix}".strip("."))
    if not any(taken.values()):
        raise ValueError(
            f"init_from: {where} has the parts {', '.join(given)}, the model {', '.join(have)}: none in common"
        )
    return _report(have, given, done, taken)


def _check_alike(part: str, given: nn.Module, have: nn.Module, where: str) -> None:
    weights, own = given.state_dict(), have.state_dict()
    wrong = sorted(name for name in {*weights, *own} if not _same(weights.get(name), own.get(name)))
    if wrong := wrong or _cut_otherwise(given, have):
        raise ValueError(
            f"init_from: {part} of {where} is built differently ({', '.join(wrong[:3])}); give it the same settings"
        )


def _across(have: dict[str, nn.Module], given: dict[str, nn.Module]) -> Iterator[tuple[str, str, str, dict[str, str]]]:
    """Yield (part, part of the source, module in the part, name in it -> name in the source), image to volume."""
    part, other = f"{_SAME}.encoder", f"{_OTHER}.encoder"
    if part in have and part not in given and other in given:
        tune.merge(given[other])
        weights = given[other].state_dict()
        for prefix, module in have[part].named_modules():
            if not prefix or not isinstance(module, Encoder) or _cut_otherwise(given[other], module):
                continue
            if _alike(weights, module.state_dict()):
                yield part, other, prefix, {name: name for name in weights}
    part, other = f"{_SAME}.connector", f"{_OTHER}.connector"
    if part in have and part not in given and other in given:
        tune.merge(given[other])
        if pairs := _fitting(given[other], have[part]):
            yield part, other, "", pairs


def _fitting(given: nn.Module, have: nn.Module) -> dict[str, str]:
    """Return which parameters of one connector another can take: name in `have` -> name in `given`.

    Connectors of one class share what has the same name and shape, and as many heads; of others, every mlp in `have`
    that is built like the one in `given` takes its weights. An mlp is taken whole or not at all: some layers of it mean
    nothing alone.
    """
    weights, own = given.state_dict(), have.state_dict()
    if type(given) is type(have):
        torn = tuple(prefix for prefix in _mlps(have) if not _alike(_below(prefix, weights), _below(prefix, own)))
        torn += tuple(name[: name.rfind(".") + 1] for name in _cut_otherwise(given, have))
        return {name: name for name in own if _same(weights.get(name), own[name]) and not name.startswith(torn)}
    pairs = {}
    for theirs in _mlps(given)[:1]:
        wanted = _below(theirs, weights)
        for ours in _mlps(have):
            if _alike(wanted, _below(ours, own)):
                pairs.update({ours + name: theirs + name for name in wanted})
    return pairs


def _mlps(connector: nn.Module) -> list[str]:
    """Return the prefixes of the parameters of a connector's mlps."""
    return [f"{name}." if name else "" for name, module in connector.named_modules() if isinstance(module, Mlp)]


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _alike(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)


def _cut_otherwise(given: nn.Module, have: nn.Module) -> list[str]:
    """Return the attributes, each behind its layer's name, that cut both modules' weights into different heads."""
    theirs = _heads(given)
    return sorted(name for name, count in _heads(have).items() if theirs.get(name, count) != count)


def _heads(module: nn.Module) -> dict[str, int]:
    found = (
        (f"{name}.{key}".strip("."), getattr(one, key, None)) for name, one in module.named_modules() for key in _HEADS
    )
    return {name: count for name, count in found if isinstance(count, int)}


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and one.shape == other.shape


def _copy(given: nn.Module, have: nn.Module, pairs: dict[str, str]) -> None:
    weights = given.state_dict()
    have.load_state_dict({here: weights[there] for here, there in pairs.items()}, strict=False)


def _report(
    have: dict[str, nn.Module], given: dict[str, nn.Module], done: dict[str, set[str]], taken: dict[str, list[str]]
) -> Inheritance:
    found = Inheritance()
    for part, places in taken.items():
        found.carried += [part if place == part else f"{part} -> {place}" for place in places]
        if not places:
            found.unused.append(part)
    for part, module in have.items():
        left = [name for name in module.state_dict() if name not in done[part]]
        if left and not done[part]:
            found.new.append(part)
        elif left:
            found.new.append(f"{part} ({', '.join(dict.fromkeys(name.partition('.')[0] for name in left))})")
    return found
