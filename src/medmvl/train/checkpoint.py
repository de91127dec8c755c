"""Checkpoints of a run: written whole or not at all, independent of strategy and number of processes."""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from medmvl.core.atomic import DiskFullError, atomic_file, atomic_folder
from medmvl.train.strategy import Engine

_NAME = re.compile(r"step-(\d+)")
_SHARD_BYTES = 4 * 2**30
_SAMPLED = 4096
_STATE = "state.json"
_BEST = "best.json"


class CheckpointError(ValueError):
    """A checkpoint that does not belong to this run, or cannot be read."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands; with the weights and the optimizer's moments all that resuming needs.

    Random numbers are not part of it: every row is seeded by (run.seed, stage, step, its number).

    Attributes:
        step: optimizer steps of the whole run.
        stage: index of the stage.
        stage_step: optimizer steps of that stage.
        epoch, sample: position in the stage's data.
        data: fingerprint of the stage's data plan.
        initial: fingerprint of the weights the run started from.
        samples: samples trained on in this stage.
        refused: samples refused in this stage.
        kept: towers whose features are kept in this stage, for a resumed run to decide alike.
    """

    step: int
    stage: int
    stage_step: int
    epoch: int
    sample: int
    data: str
    initial: str
    samples: int
    refused: int
    kept: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Best:
    """The checkpoint with the lowest validation loss of its stage."""

    stage: int
    step: int
    loss: float


class Checkpoints:
    """The folder `checkpoints/` of a run.

    Args:
        folder: created on the first save.
        keep_last: how many stay, beside the best one.
    """

    def __init__(self, folder: Path, keep_last: int) -> None:
        self.folder, self.keep_last = folder, keep_last

    def latest(self) -> Path | None:
        """Return the newest checkpoint, None when there is none."""
        found = self._all()
        return found[-1] if found else None

    def path(self, step: int) -> Path:
        """Return the place of the checkpoint after `step` optimizer steps of the run."""
        return self.folder / f"step-{step:08d}"

    def save(
        self,
        engine: Engine,
        weights: Iterable[tuple[str, torch.Tensor]],
        moments: Iterable[tuple[str, torch.Tensor]],
        progress: Progress,
    ) -> Path:
        """Write one checkpoint; every rank must call it, rank 0 writes.

        Args:
            engine: of the running stage.
            weights, moments: (name, whole CPU tensor), gathered as they are iterated.
            progress: where the run stands.

        Raises:
            DiskFullError: it could not be written (on every rank); the checkpoints before it are intact.
        """
        path = self.path(progress.step)
        failure: str | None = None
        if engine.main:
            sources = (iter(weights), iter(moments))
            try:
                with atomic_folder(path) as fresh:
                    for name, source in zip(("weights", "optimizer"), sources, strict=True):
                        _write_shards(fresh, name, source)
                    (fresh / _STATE).write_text(json.dumps(asdict(progress), indent=2) + "\n", encoding="utf-8")
                self._prune()
            except DiskFullError as error:
                failure = str(error)
                for source in sources:  # the other ranks take part in gathering every tensor
                    _exhaust(source)
        else:
            _exhaust(weights)
            _exhaust(moments)
        failure = engine.collect(failure)[0]
        if failure is not None:
            raise DiskFullError(failure)
        return path

    def mark_best(self, best: Best) -> None:
        """Keep the checkpoint of `best.step` until a better one is marked."""
        with atomic_file(self.folder / _BEST) as file:
            json.dump(asdict(best), file)

    def best(self) -> Best | None:
        """Return what was marked as best, if anything was."""
        path = self.folder / _BEST
        return Best(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None

    def _all(self) -> list[Path]:
        found = [path for path in self.folder.glob("step-*") if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))

    def _prune(self) -> None:
        best = self.best()
        kept = {*self._all()[-self.keep_last :], *([self.path(best.step)] if best else [])}
        for path in self._all():
            if path not in kept:
                path.rename(path.with_name(f".{path.name}.old"))
        # Renamed first, so that a half-deleted folder is never taken for a checkpoint. What a killed process left half
        # written or half deleted goes as well: no other process writes here.
        for doomed in self.folder.glob(".step-*"):
            shutil.rmtree(doomed, ignore_errors=True)


def read_progress(path: Path) -> Progress:
    """Return where the run stood at a checkpoint.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        return Progress(**json.loads((path / _STATE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: not a checkpoint of this version ({error}); start the run anew") from error


def read_tensors(path: Path, kind: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint by name; `kind` is "weights" or "optimizer"."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(path.glob(f"{kind}-*.safetensors")):
        with safe_open(file, "pt") as shard:
            tensors.update({name: shard.get_tensor(name) for name in shard.keys()})  # noqa: SIM118
    return tensors


def fingerprint(module: nn.Module) -> str:
    """Return a hash of names, shapes and up to 4096 evenly spread values of every parameter.

    Checkpoints hold only what a run trains; this tells at resuming whether the rest is what it was.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        flat = parameter.detach().flatten()
        sampled = flat[:: max(1, flat.numel() // _SAMPLED)].to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(sampled.numpy().tobytes())
    return digest.hexdigest()


def _write_shards(folder: Path, kind: str, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
    shard: dict[str, torch.Tensor] = {}
    number = size = 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > _SHARD_BYTES:
            _write(folder / f"{kind}-{number:04d}.safetensors", shard)
            shard, number, size = {}, number + 1, 0
        shard[name] = tensor.contiguous()
        size += tensor.nbytes
    _write(folder / f"{kind}-{number:04d}.safetensors", shard)


def _write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        # safetensors hides the operating system's error in a text
        raise OSError(errno.ENOSPC, str(error)) from error


def _exhaust(source: Iterable[object]) -> None:
    for _ in source:
        pass
