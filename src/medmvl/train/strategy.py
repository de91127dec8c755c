"""How a module is spread over processes: one engine on accelerate for single, DDP, FSDP2 and ZeRO-3."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from torch import nn

STRATEGIES = ("single", "ddp", "fsdp2", "zero3")
_MOMENTS = ("exp_avg", "exp_avg_sq")


class StrategyError(ValueError):
    """The asked-for distribution cannot be had, or is not what the libraries set up."""


def world_size() -> int:
    """Return the number of processes of this run (WORLD_SIZE of torchrun; 1 without it)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def resolve_strategy(strategy: str, world: int) -> str:
    """Return the strategy to use for `world` processes; "auto" is "single" for one and "ddp" for several.

    Raises:
        StrategyError: the strategy does not fit the number of processes, or its library is missing.
    """
    if strategy == "auto":
        return "single" if world == 1 else "ddp"
    if strategy not in STRATEGIES:
        raise StrategyError(f"run.strategy: {strategy!r} is unknown; choose auto, {', '.join(STRATEGIES)}.")
    if strategy == "single" and world > 1:
        raise StrategyError(
            f"run.strategy: single, but {world} processes were started; start one, or choose ddp, fsdp2, zero3."
        )
    if strategy != "single" and world == 1 and "RANK" not in os.environ:
        raise StrategyError(
            f"run.strategy: {strategy} needs a process group, but this is a single process without one; "
            "use run.strategy=single (or auto), or start with `torchrun --nproc-per-node N -m medmvl.train.run RECIPE`."
        )
    if strategy == "zero3" and importlib.util.find_spec("deepspeed") is None:
        raise StrategyError(
            "run.strategy: zero3 needs DeepSpeed; install it with `pip install medmvl[deepspeed]`, or choose fsdp2."
        )
    return strategy


def resolve_precision(precision: str) -> str:
    """Return "bf16" or "fp32"; "auto" is bf16 on a GPU that has it, fp32 elsewhere."""
    if precision == "auto":
        return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"
    return precision


class Engine:
    """Spreads one module and its optimizer over the processes, for one stage.

    Weights that train, their gradients and the optimizer's state are float32 under every strategy; bf16 is autocast.
    accelerate falls back to DDP, or to no distribution at all, without a word, so `prepare` checks what it got.

    Args:
        strategy: "single", "ddp", "fsdp2" or "zero3" (see `resolve_strategy`).
        precision: "fp32" or "bf16".
        clip: largest gradient norm, 0 for no clipping (DeepSpeed must know it when it starts).
    """

    def __init__(self, strategy: str, precision: str, clip: float) -> None:
        _reset_accelerate()
        self.strategy, self.precision, self.clip = strategy, precision, clip
        self.accelerator = _accelerator(strategy, precision, clip)
        self.device: torch.device = self.accelerator.device
        self.rank: int = self.accelerator.process_index
        self.world: int = self.accelerator.num_processes
        self.main = self.rank == 0
        self.module: nn.Module
        self.plain: nn.Module
        self.optimizer: torch.optim.Optimizer

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Move `module` to the device and spread it; afterwards call `engine.module`, never `module`.

        Raises:
            StrategyError: the module is not spread as asked.
        """
        self.plain = module
        if self.strategy in ("fsdp2", "zero3"):
            for parameter in module.parameters():  # neither can share out channels-last convolutions
                parameter.data = parameter.data.contiguous()
        if self.strategy == "fsdp2":
            blocks = sorted(_block_names(module))
            self.accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = blocks
        self.module, self.optimizer = self.accelerator.prepare(module, optimizer)
        self._check()

    def _check(self) -> None:
        from torch.distributed.tensor import DTensor

        if self.world != world_size():
            raise StrategyError(
                f"{world_size()} processes were started, but accelerate counts {self.world}; the run stops."
            )
        kind = type(self.module).__name__
        expected = {"single": type(self.plain).__name__, "ddp": "DistributedDataParallel", "zero3": "DeepSpeedEngine"}
        sharded = all(isinstance(parameter, DTensor) for parameter in self.module.parameters())
        stage = self.module.zero_optimization_stage() if kind == "DeepSpeedEngine" else None
        if (
            (self.strategy == "fsdp2" and not sharded)
            or kind != expected.get(self.strategy, kind)
            or (self.strategy == "zero3" and stage != 3)
        ):
            raise StrategyError(
                f"run.strategy: {self.strategy} was asked for, but accelerate set up {kind}; the run stops."
            )

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the context of a forward pass (DeepSpeed enters its own)."""
        enabled = self.precision == "bf16" and self.strategy != "zero3"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def accumulate(self, last: bool) -> contextlib.AbstractContextManager[object]:
        """Return the context of one micro-step: DDP sums gradients over ranks in the last one only.

        FSDP2 and ZeRO-3 reduce in every micro-step, since holding unsharded gradients would cost what sharding saves.
        """
        if self.strategy == "ddp" and not last:
            return self.accelerator.no_sync(self.module)
        self.accelerator.sync_gradients = last or self.strategy != "zero3"
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of `loss`; under DeepSpeed the last micro-step of a step also clips and steps."""
        self.accelerator.backward(loss)

    def clip_gradients(self) -> float:
        """Clip the gradients to the norm `clip` and return the norm before (under DeepSpeed it already happened)."""
        if self.strategy == "zero3" and self.optimizer.step_was_skipped:
            return float("nan")  # DeepSpeed leaves out a step whose gradient is not finite, and keeps the former norm
        limit = self.clip if self.clip > 0 else float("inf")
        return float(self.accelerator.clip_grad_norm_(self.module.parameters(), limit))

    def step(self) -> None:
        """Update the weights and clear the gradients (under DeepSpeed it already happened)."""
        self.optimizer.step()
        self.optimizer.zero_grad()

    def total(self, values: Sequence[float]) -> list[float]:
        """Return the sums over all ranks (float64)."""
        if self.world == 1:
            return list(values)
        kind = torch.float32 if self.device.type == "mps" else torch.float64
        tensor = torch.tensor(values, dtype=kind, device=self.device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def collect(self, value: Any) -> list[Any]:
        """Return the `value` of every rank, in rank order."""
        if self.world == 1:
            return [value]
        everyone: list[Any] = [None] * self.world
        dist.all_gather_object(everyone, value)
        return everyone

    def tensors(self, names: Container[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name in the module, whole tensor on the CPU) of the parameters and saved buffers among `names`.

        Every rank must iterate, with the same names.
        """
        self._share_out()
        for name, tensor in self._named():
            if name not in names:
                continue
            yield name, _whole(tensor, self.strategy).detach().to("cpu", copy=True)

    def moments(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield ("exp_avg.NAME" or "exp_avg_sq.NAME", whole tensor on the CPU); every rank must iterate."""
        self._share_out()
        for name, parameter in self._trainable():
            for moment in _MOMENTS:
                if self.strategy == "zero3":
                    from deepspeed.utils import safe_get_full_optimizer_state

                    tensor = safe_get_full_optimizer_state(parameter, moment)
                else:
                    tensor = _whole(self.optimizer.state[parameter][moment], self.strategy)
                yield f"{moment}.{name}", tensor.detach().to("cpu", copy=True)

    def load_moments(self, moments: Mapping[str, torch.Tensor], steps: int) -> None:
        """Set the optimizer's state from what `moments` yielded after `steps` steps."""
        if self.strategy == "zero3":
            self._load_moments_zero3(moments, steps)
            return
        for name, parameter in self._trainable():
            state: dict[str, torch.Tensor] = {"step": torch.tensor(float(steps), device=parameter.device)}
            for moment in _MOMENTS:
                state[moment] = _like(parameter, moments[f"{moment}.{name}"])
            self.optimizer.state[parameter] = state

    def _load_moments_zero3(self, moments: Mapping[str, torch.Tensor], steps: int) -> None:
        from deepspeed.utils import safe_get_local_optimizer_state, safe_set_local_optimizer_state

        zero = self.module.optimizer
        for flat in zero.fp32_partitioned_groups_flat:
            state = {moment: torch.zeros_like(flat.data) for moment in _MOMENTS}
            zero.optimizer.state[flat] = {"step": torch.tensor(float(steps), device=flat.device), **state}
        for name, parameter in self._trainable():
            for moment in _MOMENTS:
                # DeepSpeed's own setter for whole tensors fails where the last rank's share is padded
                size = safe_get_local_optimizer_state(parameter, moment).numel()
                whole = moments[f"{moment}.{name}"].flatten()
                padded = torch.cat([whole, whole.new_zeros(size * self.world - whole.numel())])
                own = padded[size * self.rank : size * (self.rank + 1)].to(self.device)
                safe_set_local_optimizer_state(parameter, own, moment)

    def _share_out(self) -> None:
        """Let FSDP2 forget what it gathered for a forward pass without a backward pass (validation).

        Until then a module shows the gathered copies, in bf16 under autocast, in place of its float32 weights.
        """
        if self.strategy != "fsdp2":
            return
        from torch.distributed.fsdp import FSDPModule

        for part in self.plain.modules():
            if isinstance(part, FSDPModule):
                part.reshard()

    def _named(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self.plain.named_parameters()
        saved = self.plain.state_dict(keep_vars=True)
        yield from ((name, buffer) for name, buffer in self.plain.named_buffers() if name in saved)

    def _trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from ((name, parameter) for name, parameter in self.plain.named_parameters() if parameter.requires_grad)

    def close(self) -> None:
        """Forget module and optimizer, so that the next stage can start another engine."""
        self.accelerator.free_memory()


def end_processes() -> None:
    """Leave the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _reset_accelerate() -> None:
    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_MIXED_PRECISION"):
        os.environ.pop(name, None)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def _accelerator(strategy: str, precision: str, clip: float) -> Accelerator:
    on_cpu = not torch.cuda.is_available()
    if strategy == "zero3":
        if on_cpu:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # Not cpu=True: with it accelerate ignores DeepSpeed without a word. Without a backend it counts one process.
        backend = [InitProcessGroupKwargs(backend="gloo")] if on_cpu else []
        plugin = DeepSpeedPlugin(hf_ds_config=_zero3_config(precision, clip))
        accelerator = Accelerator(deepspeed_plugin=plugin, kwargs_handlers=backend)
        plugin.dschf = None  # while it lives, transformers builds every model in shares, the one for the bundle too
        return accelerator
    if strategy != "fsdp2":
        return Accelerator(cpu=on_cpu)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        mixed_precision_policy=_fsdp2_precision(precision),
        cpu_ram_efficient_loading=False,
    )
    accelerator = Accelerator(cpu=on_cpu, fsdp_plugin=plugin)
    if on_cpu:
        # accelerate knows FSDP on accelerators only and would fall back to DDP
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin
    return accelerator


def _zero3_config(precision: str, clip: float) -> dict[str, object]:
    return {
        "zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": False},
        "torch_autocast": {"enabled": precision == "bf16", "dtype": "bfloat16"},
        "communication_data_type": "fp32",
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": clip,
        "steps_per_print": 10**9,
    }


def _fsdp2_precision(precision: str) -> object:
    from torch.distributed.fsdp import MixedPrecisionPolicy

    if precision == "fp32":
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)


def _block_names(module: nn.Module) -> set[str]:
    """Return the class names of the repeated blocks that transformers' models declare, as far as they occur."""
    present = {type(part).__name__ for part in module.modules()}
    declared: set[str] = set()
    for part in module.modules():
        declared |= set(getattr(part, "_no_split_modules", None) or ())
    return declared & present


def _whole(tensor: torch.Tensor, strategy: str) -> torch.Tensor:
    if strategy == "fsdp2":
        from torch.distributed.tensor import DTensor

        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    if strategy == "zero3" and hasattr(tensor, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().clone()
    return tensor


def _like(parameter: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """Return `whole` on the device of `parameter`, spread like it."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    whole = whole.to(parameter.device)
    if isinstance(parameter, DTensor):
        return distribute_tensor(whole, parameter.device_mesh, parameter.placements)
    return whole.clone()
