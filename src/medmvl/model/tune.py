"""Which parts of a model learn, how, and at which rate: frozen, full or LoRA.

Rules map patterns to `TuneRule`s. A pattern is a part ("llm", "image.encoder", "image.connector", "volume.encoder",
"volume.connector"), a module or parameter below one ("llm.model.layers.0"), or a glob over either ("image.*",
"llm.model.layers.*.mlp"). Where several match, the longest wins; what none matches is frozen.

Stages follow each other on one model. LoRA adapters stay adapters: a later `lora` (of the same rank and alpha) trains
them on, a later `frozen` keeps them in the forward pass. A later `full` first merges them into the weights they sit
on, which changes nothing but rounding. A `lora` with `targets` trains these layers' adapters alone: what other layers
carry already stays as it is, in the forward pass.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from medmvl.core.lookup import choices_text
from medmvl.model.config import TuneRule

ADAPTER = "default"
LINEAR = (nn.Linear, Conv1D)
"""Layers that an adapter can sit on (Conv1D is GPT-2's linear layer)."""
_ADAPTER_WEIGHT = re.compile(r"\.lora_[AB]\.[^.]+\.weight$")


class TuneError(ValueError):
    """Rules that the model cannot follow."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the tuning table.

    Attributes:
        part: the part, or the finer pattern that made a rule of its own.
        mode: "frozen", "full" or "lora"; "as PART" for a part that shares the weights of another.
        lr: learning rate; None when frozen.
        params: scalars held, adapters included.
        trainable: scalars in the optimizer.
        unreached: scalars that the feature never depends on (SigLIP's head, layers above the chosen one).
    """

    part: str
    mode: str
    lr: float | None
    params: int
    trainable: int
    unreached: int


@dataclass(frozen=True)
class TuningTable:
    """What learns: rows to print, and groups for the optimizer.

    Attributes:
        rows: every parameter of the model is counted in exactly one.
        groups: one per row that learns: {"part", "lr", "names", "params"}; names are those of the whole model.
        notes: sentences about the rows; for a LoRA rule without `targets`, the matrices that no adapter can sit on.
    """

    rows: tuple[Row, ...]
    groups: tuple[dict[str, Any], ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        counts = [(row.params, row.trainable, row.unreached) for row in self.rows]
        texts = [(row.part, row.mode, f"{row.lr:g}" if row.lr else "-") for row in self.rows]
        totals = tuple(map(sum, zip(*counts, strict=True)))
        lines = [("part", "mode", "lr", "parameters", "trainable", "never reached")]
        for text, count in zip([*texts, ("total", "", "")], [*counts, totals], strict=True):
            lines.append((*text, *(f"{number:,}" for number in count)))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = [
            "  ".join((*map(str.ljust, line[:2], widths), *map(str.rjust, line[2:], widths[2:]))) for line in lines
        ]
        return "\n".join([*table, *self.notes])


def parts(model: nn.Module) -> dict[str, nn.Module]:
    """Return the parts of a VLM by name: "llm", then encoder and connector of every tower."""
    found: dict[str, nn.Module] = {"llm": model.llm}
    for name, tower in model.towers.items():
        found[f"{name}.encoder"], found[f"{name}.connector"] = tower.encoder, tower.connector
    return found


def apply(model: nn.Module, rules: Mapping[str, TuneRule]) -> TuningTable:
    """Make `model` learn as `rules` say, in place: adapters added or merged, `requires_grad` set everywhere.

    Fresh adapters are drawn from torch's global generator, and change nothing until they learn.

    Args:
        model: a VLM (`.llm`, `.towers`), fresh or left by an earlier stage; not yet wrapped for several devices.
        rules: pattern -> rule.

    Raises:
        TuneError: a pattern or target that matches nothing, a rule that nothing can follow, adapters of another rank.
    """
    _check_patterns(model, rules)
    _check_targets(model, rules)
    for part, module in parts(model).items():
        of_layer = {name: rules.get(_rule_of(part, f"{name}.weight", rules)) for name, _ in _adapted(module)}
        merge(module, [name for name, rule in of_layer.items() if rule and rule.mode == "full"])
        for pattern, rule in rules.items():
            if rule.mode == "lora":
                _adapt(part, module, pattern, rules)
    model.requires_grad_(False)
    whole = {id(parameter): name for name, parameter in model.named_parameters()}
    rows: list[Row] = []
    groups: list[dict[str, Any]] = []
    notes: list[str] = []
    followed: set[str | None] = set()
    for part, module in parts(model).items():
        if getattr(module, "shares", None):
            rows.append(Row(part, f"as {module.shares}", lr=None, params=0, trainable=0, unreached=0))
        for pattern, members in _by_rule(part, module, rules).items():
            row, learning = _row(part, module, pattern, members, rules.get(pattern))
            rows.append(row)
            notes += _note(row.part, module, members, rules.get(pattern))
            if learning:
                followed.add(pattern)
                names = [whole[id(parameter)] for parameter in learning]
                groups.append({"part": row.part, "lr": row.lr, "names": names, "params": learning})
    _check_followed(rules, followed)
    return TuningTable(tuple(rows), tuple(groups), tuple(notes))


def adapters(model: nn.Module) -> dict[str, list[dict[str, Any]]]:
    """Return which layers carry LoRA adapters, as plain JSON: part -> [{rank, alpha, dropout, layers}].

    With `restore` this is all that a fresh model needs to take an adapted state dict.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for part, module in parts(model).items():
        kinds: dict[tuple[int, float, float], list[str]] = {}
        for name, layer in _adapted(module):
            kinds.setdefault(_kind(layer), []).append(name)
        if kinds:
            found[part] = [
                {"rank": rank, "alpha": alpha, "dropout": dropout, "layers": layers}
                for (rank, alpha, dropout), layers in kinds.items()
            ]
    return found


def restore(model: nn.Module, state: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Add fresh adapters to the layers that `adapters` told; their weights come with the state dict.

    Raises:
        TuneError: the model has no such part or layer.
    """
    available = parts(model)
    for part, kinds in state.items():
        if part not in available:
            raise TuneError(
                f"adapters of {part!r}: the model has no such part; {choices_text(part, available, 'parts')}"
            )
        for kind in kinds:
            layers = dict(available[part].named_modules())
            missing = [name for name in kind["layers"] if not isinstance(layers.get(name), LINEAR)]
            if missing:
                raise TuneError(f"adapters of {part!r}: no linear layer is called {missing[0]!r}")
            _inject(available[part], kind["layers"], kind["rank"], kind["alpha"], kind["dropout"])


def merge(module: nn.Module, layers: Sequence[str] | None = None) -> None:
    """Add LoRA adapters to the weights they sit on, and remove them; what the model computes stays the same.

    Args:
        module: any module.
        layers: names of adapted layers in it; None for all.
    """
    for name, layer in _adapted(module):
        if layers is None or name in layers:
            layer.merge()
            owner, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(owner), leaf, layer.get_base_layer())


def reached(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters that a part's output depends on, those of adapters included."""
    reachable = _reachable(module)
    yield from ((name, one) for name, one in module.named_parameters() if _plain(name) in reachable)


def weight_name(name: str) -> str:
    """Return what a parameter is called where no adapter sits upon it; those of adapters keep their names."""
    return name.replace(".base_layer.", ".")


def frozen(model: nn.Module) -> list[nn.Module]:
    """Return the parts of a VLM of which nothing learns."""
    return [part for part in parts(model).values() if not any(one.requires_grad for one in part.parameters())]


def rest(part: nn.Module) -> None:
    """Put a part that does not learn into evaluation mode; what it was told to recompute, it recomputes all the same.

    A frozen LLM passes gradients on to what lies below it, and would keep its activations for that.
    """
    part.eval()
    for layer in part.modules():
        # transformers' layers recompute in training mode only. One that drops something out by itself does not.
        if isinstance(layer, GradientCheckpointingLayer) and layer.gradient_checkpointing:
            layer.training = not any("dropout" in name and value for name, value in vars(layer).items())


def _check_patterns(model: nn.Module, rules: Mapping[str, TuneRule]) -> None:
    names = [
        name
        for part, module in parts(model).items()
        for name in (f"{part}.{_plain(n)}" for n, _ in module.named_parameters())
    ]
    lenders = {part: module.shares for part, module in parts(model).items() if getattr(module, "shares", None)}
    for pattern in rules:
        if not any(_matches(name, pattern) for name in names):
            for part, lender in lenders.items():
                if fnmatchcase(part, pattern) or pattern.startswith(f"{part}."):
                    raise TuneError(f"tune: {pattern!r}: {part} shares its weights with {lender}: tune that")
            raise TuneError(
                f"tune: {pattern!r} matches nothing in this model; {choices_text(pattern, parts(model), 'parts')}. "
                "Below a part, modules and parameters can be named too, such as 'llm.model.layers.0' or 'llm.*.mlp'"
            )


def _matches(name: str, pattern: str) -> bool:
    """Whether a pattern means the parameter `name`, or a module or part it lies in."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def _rule_of(part: str, name: str, rules: Mapping[str, TuneRule]) -> str | None:
    """Return the pattern whose rule a parameter follows: the longest that matches."""
    found = [pattern for pattern in rules if _matches(f"{part}.{_plain(name)}", pattern)]
    return max(found, key=len, default=None)


def _plain(name: str) -> str:
    """Return a parameter's name as if there were no adapters; an adapter counts as the weight it sits on."""
    return weight_name(_ADAPTER_WEIGHT.sub(".weight", name))


def _reachable(module: nn.Module) -> frozenset[str]:
    """Plain names of the parameters that a part's output depends on."""
    names = module.reachable() if hasattr(module, "reachable") else (name for name, _ in module.named_parameters())
    return frozenset(_plain(name) for name in names)


def _by_rule(
    part: str, module: nn.Module, rules: Mapping[str, TuneRule]
) -> dict[str | None, list[tuple[str, nn.Parameter]]]:
    """Return the parameters of a part by the rule they follow, in the order of the rules; None: no rule."""
    found: dict[str | None, list[tuple[str, nn.Parameter]]] = {pattern: [] for pattern in (*rules, None)}
    for name, parameter in module.named_parameters():
        found[_rule_of(part, name, rules)].append((name, parameter))
    return {pattern: members for pattern, members in found.items() if members}


def _row(
    part: str, module: nn.Module, pattern: str | None, members: list[tuple[str, nn.Parameter]], rule: TuneRule | None
) -> tuple[Row, list[nn.Parameter]]:
    """Return a row of the table and the parameters that learn, which are marked so."""
    mode = "frozen" if rule is None else rule.mode
    reachable = _reachable(module)
    learning = []
    for name, parameter in members:
        adapter = _ADAPTER_WEIGHT.search(name)
        tuned = rule is not None and adapter is not None and _chosen(name[: adapter.start()], rule)
        if _plain(name) in reachable and (mode == "full" or (mode == "lora" and tuned)):
            learning.append(parameter.requires_grad_(True))
    row = Row(
        part=part if pattern is None or fnmatchcase(part, pattern) else pattern,
        mode=mode,
        lr=rule.lr if rule else None,
        params=sum(parameter.numel() for _, parameter in members),
        trainable=sum(parameter.numel() for parameter in learning),
        unreached=sum(parameter.numel() for name, parameter in members if _plain(name) not in reachable),
    )
    return row, learning


def _note(
    part: str, module: nn.Module, members: Sequence[tuple[str, nn.Parameter]], rule: TuneRule | None
) -> list[str]:
    """Tell which matrices a LoRA rule for whole parts leaves as they are; layers of a kind are told once."""
    if rule is None or rule.mode != "lora" or rule.targets is not None:
        return []
    adapted = {f"{name}.weight" for name, _ in _adapted(module)}
    left = {
        re.sub(r"\.\d+\.", ".*.", _plain(name))
        for name, parameter in members
        if parameter.dim() > 1 and _plain(name) not in adapted and _plain(name) in _reachable(module)
    }
    return [f"{part}: LoRA sits on {len(adapted)} linear layers; it leaves {', '.join(sorted(left))}"] if left else []


def _check_targets(model: nn.Module, rules: Mapping[str, TuneRule]) -> None:
    """Refuse a target that none of the layers under its rule is called, whether they carry adapters or not."""
    for pattern, rule in rules.items():
        if rule.targets is None:
            continue
        layers = [
            name
            for part, module in parts(model).items()
            for name in (*_linear_layers(module), *(name for name, _ in _adapted(module)))
            if _rule_of(part, f"{name}.weight", rules) == pattern
        ]
        for target in rule.targets:
            if layers and not any(_targets(name, target) for name in layers):
                hint = choices_text(target, {name.rpartition(".")[2] for name in layers}, "linear layers")
                raise TuneError(f"tune: {pattern!r}: target {target!r} is no linear layer of it; {hint}")


def _check_followed(rules: Mapping[str, TuneRule], followed: set[str | None]) -> None:
    """Refuse a rule that should teach something and teaches nothing."""
    for pattern, rule in rules.items():
        if rule.mode == "frozen" or pattern in followed:
            continue
        if rule.mode == "lora":
            raise TuneError(
                f"tune: {pattern!r} has no linear layer for an adapter (or a longer pattern takes them all); "
                "choose mode full, or another part"
            )
        raise TuneError(
            f"tune: nothing follows {pattern!r}: its parameters all lie outside of what the chosen feature depends on, "
            "or follow a longer pattern"
        )


def _adapted(module: nn.Module) -> list[tuple[str, LoraLayer]]:
    return [(name, layer) for name, layer in module.named_modules() if isinstance(layer, LoraLayer)]


def _kind(layer: LoraLayer) -> tuple[int, float, float]:
    """Return rank, alpha and dropout of an adapter."""
    return layer.r[ADAPTER], float(layer.lora_alpha[ADAPTER]), getattr(layer.lora_dropout[ADAPTER], "p", 0.0)


def _adapt(part: str, module: nn.Module, pattern: str, rules: Mapping[str, TuneRule]) -> None:
    """Give every layer under a LoRA rule its adapter; layers that have one already must fit the rule."""
    rule = rules[pattern]

    def follows(name: str) -> bool:
        return _rule_of(part, f"{name}.weight", rules) == pattern and _chosen(name, rule)

    for name, layer in _adapted(module):
        if not follows(name):
            continue
        rank, alpha, _ = _kind(layer)
        if (rank, alpha) != (rule.rank, rule.alpha):
            raise TuneError(
                f"tune: {part}.{name} carries an adapter of rank {rank}, alpha {alpha:g} from an earlier stage, and "
                f"{pattern!r} asks for rank {rule.rank}, alpha {rule.alpha:g}; keep the numbers, or merge the adapters "
                "first with a stage of mode full"
            )
        dropout = nn.Dropout(rule.dropout) if rule.dropout else nn.Identity()
        layer.lora_dropout[ADAPTER] = dropout.train(layer.training)
    layers = [name for name in _linear_layers(module) if follows(name)]
    if layers:
        _inject(module, layers, rule.rank, rule.alpha, rule.dropout)


def _chosen(name: str, rule: TuneRule) -> bool:
    """Whether a LoRA rule means the layer `name`."""
    return rule.targets is None or any(_targets(name, target) for target in rule.targets)


def _targets(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}") or fnmatchcase(name, target)


def _linear_layers(module: nn.Module) -> Iterator[str]:
    """Yield the names of linear layers that an adapter can wrap and learn on."""
    head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    reachable = _reachable(module)
    # torch's own attention reads its projection's weight without calling the layer; an adapter there would do nothing.
    inside = [name for name, layer in module.named_modules() if isinstance(layer, (LoraLayer, nn.MultiheadAttention))]
    for name, layer in module.named_modules():
        if not isinstance(layer, LINEAR) or layer is head or f"{name}.weight" not in reachable:
            continue
        if not any(name.startswith(f"{owner}.") for owner in inside):
            yield name


def _inject(module: nn.Module, layers: Sequence[str], rank: int, alpha: float, dropout: float) -> None:
    """Wrap layers with fresh float32 adapters on the device of their weights."""
    # A pattern, not a list: peft would take the names of a list as endings.
    pattern = "|".join(re.escape(name) for name in layers)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=pattern,
        fan_in_fan_out=all(isinstance(module.get_submodule(name), Conv1D) for name in layers),
    )
    inject_adapter_in_model(config, module, ADAPTER)
    # peft leaves its settings on the module and would warn at the next stage; ours are read from the layers.
    del module.peft_config
    for name in layers:
        layer = module.get_submodule(name)
        layer.train(layer.get_base_layer().training)
        layer.lora_A.to(torch.float32)
        layer.lora_B.to(torch.float32)
