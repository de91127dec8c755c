"""What a stage needs per device, in bytes: an estimate from shapes (the meta device will do) before it starts."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from medmvl.model.encoders.base import recomputable
from medmvl.model.head import chunk_tokens
from medmvl.model.tune import parts
from medmvl.model.vlm import VLM

STRATEGIES = ("single", "ddp", "fsdp2", "zero3")
_MASTER, _MOMENTS, _HALF = 4, 8, 2  # bytes per value: fp32 weight or gradient, both moments of Adam, bf16
_SUPERVISED = 4  # one token in so many carries a label
_PROMPT = 64  # tokens of text that go with a medium


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, by what they hold."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """Bytes in all, without the CUDA context (about half a GiB) and fragmentation."""
        return self.weights + self.gradients + self.optimizer + self.activations


def memory(
    model: VLM,
    trainable: Mapping[str, bool],
    row_tokens: int,
    bf16: bool,
    checkpointing: Sequence[str] = (),
    devices: int = 1,
    running: Collection[str] | None = None,
    halved: Collection[str] | None = None,
) -> dict[str, Memory]:
    """Return the memory per device of one stage under every strategy.

    Weights that learn, their gradients and both moments of AdamW are fp32; bf16 is autocast, which keeps a bf16 copy of
    each weight in use; parts that never learn in full are stored in bf16. DDP holds the gradients twice (its buckets).
    FSDP2 and ZeRO-3 share all of it among the devices and gather a block at a time. Activations are those of one full
    row: what is kept for the backward pass, or what an encoder holds at once while it runs, if that is more; the
    encoder `slices` holds `chunk` slices of every volume in the row.

    Args:
        model: on any device, tuning applied.
        trainable: part ("llm", "image.encoder") -> whether anything of it learns.
        row_tokens: tokens per micro-step.
        bf16: precision bf16 (else fp32).
        checkpointing: patterns over the parts that recompute their activations.
        devices: how many share the run.
        running: parts that the stage's objective uses at all; None for all.
        halved: parts that no stage trains in full, stored in bf16; None for those that this stage does not train.
    """
    modules = {part: module for part, module in parts(model).items() if running is None or part in running}
    halved = [part for part, learns in trainable.items() if not learns] if halved is None else halved
    learns = stored = 0
    for part, module in modules.items():
        learning = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
        fixed = sum(parameter.numel() for parameter in module.parameters()) - learning
        learns += learning
        stored += learning * _MASTER + fixed * (_HALF if bf16 and part in halved else _MASTER)
    copies = learns * _HALF if bf16 else 0
    in_use = 2 * _largest_unit(modules.values()) * (_HALF if bf16 else _MASTER)
    gradients, moments = learns * _MASTER, learns * _MOMENTS
    activations = sum(
        _kept_by(part, model, trainable, row_tokens, _HALF if bf16 else _MASTER, checkpointing) for part in modules
    )
    towers = [model.towers[part.removesuffix(".encoder")] for part in modules if part.endswith(".encoder")]
    held = [_held(tower.encoder, _media(tower, row_tokens), _HALF if bf16 else _MASTER) for tower in towers]
    activations = max([activations, *held])
    single = Memory(stored + copies, gradients, moments, activations)
    ddp = Memory(stored + copies, 2 * gradients, moments, activations)
    sharded = Memory(stored // devices + in_use, gradients // devices, moments // devices, activations)
    return {"single": single, "ddp": ddp, "fsdp2": sharded, "zero3": sharded}


def _kept_by(
    part: str, model: VLM, trainable: Mapping[str, bool], row_tokens: int, value: int, checkpointing: Sequence[str]
) -> int:
    """Bytes that a part keeps between forward and backward of one row; with the LLM, those of a chunk of logits."""
    recomputed = any(fnmatchcase(part, pattern) for pattern in checkpointing)
    if part == "llm":
        words = model.llm.get_output_embeddings().weight
        # The logits, their fp32 copy and its gradient; then the gradient of the head, made before that of the body.
        chunk = min(row_tokens // _SUPERVISED, chunk_tokens(len(words)))
        head = chunk * len(words) * (value + 2 * _MASTER) + words.requires_grad * words.numel() * _MASTER
        return head + _kept(model.llm, row_tokens, value, trainable[part], recomputed)
    name, _, kind = part.partition(".")
    tower = model.towers[name]
    encoder = getattr(tower.encoder, "shares", None) or f"{name}.encoder"
    if not trainable[f"{name}.encoder"] and not trainable[encoder] and not (kind == "connector" and trainable[part]):
        return 0  # below the lowest part that learns, nothing is kept
    media = _media(tower, row_tokens)
    tokens, learns = media * tower.encoder.num_tokens, trainable[part]
    kept = sum(
        _kept(module, media * each, value, learns, recomputed)
        for module, each in _branches(parts(model)[part], tower.encoder.num_tokens)
    )
    if kind == "encoder" and encoder != part:
        kept += _kept(parts(model)[encoder], tokens, value, trainable[encoder], recomputed)
    return kept


def _media(tower: nn.Module, row_tokens: int) -> int:
    """Return how many pictures or volumes a full row shows."""
    return max(1, row_tokens // (tower.num_tokens + _PROMPT))


def _held(encoder: nn.Module, media: int, value: int) -> int:
    """Bytes that an encoder needs while it runs, kept or not: input and output of its widest layer."""
    branches = (encoder.volume, encoder.slices) if getattr(encoder, "reads_text", False) else (encoder,)
    return max(media * int(one.num_tokens * _share(one)) * _widest(one) * value for one in branches)


def _widest(encoder: nn.Module) -> int:
    sizes = [
        _per_token(layer, 1, learns=True)
        for layer in getattr(encoder, "slice_encoder", encoder).modules()
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.Conv3d)
    ]
    return max(sizes, default=0)


def _share(module: nn.Module) -> float:
    """Return the share of every volume that an encoder of slices takes at once; 1 for other modules."""
    chunk = getattr(module, "chunk", None)
    return 1.0 if chunk is None else min(1.0, chunk / module.spec.size[0])


def _branches(module: nn.Module, tokens: int) -> list[tuple[nn.Module, int]]:
    """Return what a part runs, and on how many tokens of each medium; frozen branches of an encoder keep nothing."""
    if not getattr(module, "reads_text", False):
        return [(module, tokens)]
    branches = [(branch, branch.num_tokens) for branch in (module.volume, module.slices)] + [(module.text, _PROMPT)]
    return [one for one in branches if any(parameter.requires_grad for parameter in one[0].parameters())]


def _kept(module: nn.Module, tokens: int, value: int, learns: bool, recomputed: bool) -> int:
    """Bytes that a module keeps for `tokens` tokens.

    A linear layer or convolution that learns keeps its input, and what comes after keeps its output; a norm keeps its
    input in fp32 and its output. Recomputing keeps the input of each block, and one block as if it were not recomputed,
    of as many slices as are taken at once; where no block can, chunks of slices are recomputed whole.
    The LLM's head is left out: it sees few tokens. A convolutional encoder counts as if all its layers had the final
    grid, so it needs more than this says.
    """
    head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None

    def inside(part: nn.Module) -> int:
        return tokens * sum(_per_token(one, value, learns) for one in part.modules() if one is not head)

    if recomputed and _share(module) < 1 and not recomputable(module):
        return int(inside(module) * _share(module)) + tokens * module.width * value
    blocks = _blocks(module)
    if not recomputed or not blocks:
        return inside(module)
    widths = [one.in_features for one in blocks[0].modules() if isinstance(one, nn.Linear)]
    inputs = len(blocks) * (widths[0] if widths else 0) * _MASTER * tokens
    return inside(module) - sum(map(inside, blocks)) + int(max(map(inside, blocks)) * _share(module)) + inputs


def _per_token(module: nn.Module, value: int, learns: bool) -> int:
    if isinstance(module, nn.Linear):
        return (module.in_features * learns + module.out_features) * value
    if isinstance(module, nn.Conv2d | nn.Conv3d):
        return (module.in_channels * learns + module.out_channels) * value
    weight = next(module.parameters(recurse=False), None)
    if "norm" in type(module).__name__.lower() and weight is not None:
        return weight.numel() * (_MASTER + value)
    return 0


def _blocks(module: nn.Module) -> list[nn.Module]:
    """Return the blocks that can recompute; of a module without any, its longest list of modules."""
    lists = [list(part) for part in module.modules() if isinstance(part, nn.ModuleList)]
    return recomputable(module) or max(lists, key=len, default=[])


def _largest_unit(modules: Iterable[nn.Module]) -> int:
    """Parameters of the largest block, or of an embedding table, which are gathered whole."""
    units = [unit for module in modules for unit in (*_blocks(module), *_tables(module))]
    return max((sum(parameter.numel() for parameter in unit.parameters()) for unit in units), default=0)


def _tables(module: nn.Module) -> list[nn.Module]:
    return [part for part in module.modules() if isinstance(part, nn.Embedding)]
