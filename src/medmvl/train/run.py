"""A whole run: its folder, stages one after the other, resuming, every visible GPU, the bundle at the end."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from medmvl.bundle import Bundle
from medmvl.core.atomic import atomic_file
from medmvl.core.log import get_logger
from medmvl.core.processes import start_ranks, wait_for_ranks
from medmvl.data.mixture import Position
from medmvl.model import head, tune
from medmvl.model.compiled import compile_blocks
from medmvl.train import assemble
from medmvl.train.assemble import EXTRA, Place, Plan
from medmvl.train.checkpoint import CheckpointError, Checkpoints, Progress, fingerprint, read_progress, read_tensors
from medmvl.train.features import Features
from medmvl.train.feed import Refusal
from medmvl.train.loop import TERMINATED, Loop, Stop, Terminated, seed_of
from medmvl.train.optim import build_optimizer, hold_masters
from medmvl.train.profile import Profile, Stopwatch
from medmvl.train.recipe import Recipe, Stage
from medmvl.train.strategy import Engine, end_processes, resolve_precision, resolve_strategy, world_size
from medmvl.train.track import Tracker, require_trackers

_LOG = get_logger(__name__)
Judge = Callable[[Bundle, int], dict[str, float]]
"""(bundle being trained, optimizer step) -> numbers for the log."""

_MAY_DIFFER = (
    "output",
    "workers",
    "log_every",
    "save_every",
    "keep_last",
    "trackers",
    "data_roots",
    "prepared",
    "features",
    "max_refused",
    "profile",
    "strategy",
    "compile",
)
"""Keys of `run` that a resumed run may set otherwise: none changes what is learned (the last two but for rounding)."""


class RunError(ValueError):
    """A run's folder that is taken, or belongs to another recipe."""


def train(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    overrides: Sequence[str] = (),
    resume: bool = False,
    judge: Judge | None = None,
) -> Path:
    """Train a bundle and save it; returns the run's folder, with the bundle in its folder `bundle`.

    With several GPUs visible and no torchrun around, it starts one process for each.

    Args:
        recipe: YAML file, name of a shipped recipe, decoded mapping, or a `Recipe`.
        overrides: "a.b=value" keys of the recipe.
        resume: go on from the run's newest checkpoint; from the start if there is none yet.
        judge: further validation beside the loss, called on rank 0 whenever a stage validates. Only where rank 0 holds
            the whole model (single, ddp). With several processes it must be a function that can be imported.

    Raises:
        ValueError: a recipe, data, a model or a strategy that does not fit; says where and what to do.
        DiskFullError: a checkpoint or the bundle could not be written; what was saved before is intact.
        Terminated: SIGTERM or Ctrl-C came (a SystemExit with code 143); a checkpoint was saved.
    """
    source = recipe.model_dump(mode="json") if isinstance(recipe, Recipe) else recipe
    settings = Recipe.load(source, overrides)
    require_trackers(settings.run.trackers)
    folder = Path(settings.run.output or "runs/recipe")
    if _should_launch(settings):
        _open_folder(folder, settings, resume)
        _launch(folder, judge)
        return folder
    strategy = resolve_strategy(settings.run.strategy, world_size())
    if judge is not None and strategy not in ("single", "ddp"):
        raise RunError(f"a further validation needs the whole model on one device, which {strategy} does not have")
    if settings.run.compile and strategy not in ("single", "ddp"):
        raise RunError(f"run.compile does not go with {strategy}, which gathers the weights of blocks; leave it out")
    torch.manual_seed(settings.run.seed)
    try:
        with Stop() as stop:
            _Run(settings, folder, strategy, resume, judge, stop).go()
    finally:
        end_processes()
    return folder


class _Run:
    """The stages of one run in this process."""

    def __init__(
        self, recipe: Recipe, folder: Path, strategy: str, resume: bool, judge: Judge | None, stop: Stop
    ) -> None:
        self.recipe, self.folder, self.strategy, self.judge, self.stop = recipe, folder, strategy, judge, stop
        self.precision = resolve_precision(recipe.run.precision)
        self.rank, self.world = int(os.environ.get("RANK", "0")), world_size()
        self.main = self.rank == 0
        self.checkpoints = Checkpoints(folder / "checkpoints", recipe.run.keep_last)
        self.resumed = self.checkpoints.latest() if resume else None
        if self.main and "MEDMVL_LAUNCHED" not in os.environ:
            _open_folder(folder, recipe, resume)
        if resume and self.resumed is None:
            _LOG.info("%s has no checkpoint yet: starting from the beginning", folder)

    def go(self) -> None:
        """Train every stage that is not done, then save the bundle."""
        recipe = self.recipe
        # Data that is missing, in any stage, is told before a model is built.
        named = [[*stage.data, *(stage.validation.data if stage.validation else [])] for stage in recipe.stages]
        assemble.open_stores([one for stage in named for one in stage], recipe.run)
        bundle = assemble.start_bundle(recipe)
        initial = fingerprint(bundle.model)
        progress = self._progress(initial)
        if self.main:
            _write_provenance(self.folder, recipe, self.strategy, self.precision, self.world)
        tracker = Tracker(self.folder, recipe.run.trackers, self.main, progress.step)
        trained: set[str] = set()
        try:
            for index, stage in enumerate(recipe.stages):
                torch.manual_seed(seed_of(recipe.run.seed, index))  # fresh adapters and heads, equal on every rank
                table = tune.apply(bundle.model, stage.tune)
                trained |= {name for group in table.groups for name in group["names"]}
                if index < progress.stage:
                    continue
                progress = self._stage(bundle, stage, index, table, trained, tracker, progress)
            self._finish(bundle, tracker)
        finally:
            tracker.finish()

    def _progress(self, initial: str) -> Progress:
        """Return where to start.

        Raises:
            CheckpointError: the starting weights are not those the checkpoint goes on from.
        """
        if self.resumed is None:
            return Progress(
                step=0, stage=0, stage_step=0, epoch=0, sample=0, data="", initial=initial, samples=0, refused=0
            )
        progress = read_progress(self.resumed)
        if progress.initial != initial:
            raise CheckpointError(
                f"{self.resumed}: this run started from other weights than the recipe now gives (another LLM, "
                "encoder, bundle or library version); restore them, or start anew in another folder"
            )
        _LOG.info("resuming from %s (stage %d, step %d)", self.resumed, progress.stage + 1, progress.stage_step)
        return progress

    def _stage(
        self,
        bundle: Bundle,
        stage: Stage,
        index: int,
        table: tune.TuningTable,
        trained: set[str],
        tracker: Tracker,
        progress: Progress,
    ) -> Progress:
        run = self.recipe.run
        place = Place(self.rank, self.world, self.strategy in ("fsdp2", "zero3"))
        fresh = self.resumed is None

        def refuse(one: Refusal) -> None:
            if fresh:  # a resumed stage has told before; what it told goes with a step that was done by then
                tracker.refuse(progress.step + 1, stage.name, [one])

        plan = assemble.plan_stage(stage, index, bundle, run, table, place, refuse)
        total = plan.objective.steps
        _check_data(progress, index, plan)
        self._announce(stage, index, table, total, plan)
        moments = None if fresh else self._restore(bundle, plan, trained)
        if self.precision == "bf16" and torch.cuda.is_available():
            assemble.store_frozen_small(bundle.model, self.recipe.stages, trained)
        hold_masters(plan.objective.module)
        assemble.recompute(bundle.model, run.activation_checkpointing)
        if run.compile:
            compile_blocks(bundle.model)
        adapters = tune.adapters(bundle.model)
        frozen = tune.frozen(bundle.model)
        engine = Engine(self.strategy, self.precision, stage.clip)
        if moments is None:
            progress = _begin_stage(progress, index, plan)
        features = Features(plan.objective, bundle, stage, run, self.precision, engine)
        before = None if moments is None else progress.kept
        if features.keep(Position(progress.epoch, progress.sample), total - progress.stage_step, self.stop, before):
            raise Terminated
        progress = replace(progress, kept=features.kept)
        engine.prepare(plan.objective.module, build_optimizer(plan.groups, stage.weight_decay))
        if moments is not None:
            engine.load_moments(moments, progress.stage_step)
        self.resumed = None  # the stages that follow start afresh
        names = {name: known for name, known in plan.names.items() if _has_learned(known, trained)}

        def save(now: Progress) -> None:
            weights = _weights(engine, names, bundle, trained)
            moments = ((_renamed(name, plan.names), tensor) for name, tensor in engine.moments())
            self.checkpoints.save(engine, weights, moments, now)

        loop = Loop(
            engine, plan.objective, stage, run, total, frozen, tracker, self.checkpoints, save,
            self._judge_in(bundle, engine), self.stop, self._profile_of(stage, bundle, engine),
        )  # fmt: skip
        progress = loop.train(progress)
        if place.sharded:
            _collect_model(bundle, engine, plan, adapters)
        engine.close()
        bundle.model.to("cpu" if not torch.cuda.is_available() else engine.device)
        return progress

    def _restore(self, bundle: Bundle, plan: Plan, trained: set[str]) -> dict[str, torch.Tensor]:
        """Load the checkpoint's weights; return the optimizer's moments, by the module's names.

        Raises:
            CheckpointError: it lacks weights that were trained before it was written.
        """
        model = dict(bundle.model.named_parameters())
        module = {known: name for name, known in plan.names.items()}
        own = dict(plan.objective.module.named_parameters())
        weights = read_tensors(self.resumed, "weights")
        learned = {name for name in (*model, *map(plan.names.get, own)) if _has_learned(name, trained)}
        missing = sorted(learned - weights.keys())
        if missing:
            raise CheckpointError(
                f"{self.resumed}: {len(missing)} trained weights are missing, the first is {missing[0]}; it is damaged "
                "or of an older version: start anew in another folder"
            )
        for known, tensor in weights.items():
            target = own[module[known]] if known.startswith(EXTRA) else model[known]
            target.data.copy_(tensor)
        moments = read_tensors(self.resumed, "optimizer")
        return {f"{kind}.{module[known]}": tensor for (kind, known), tensor in _split(moments)}

    def _announce(self, stage: Stage, index: int, table: tune.TuningTable, total: int, plan: Plan) -> None:
        if not self.main:
            return
        head = (
            f"stage {index + 1}/{len(self.recipe.stages)}: {stage.name} ({stage.objective})  "
            f"{total} steps of {stage.global_batch} samples, {len(plan.objective.order)} in an epoch  "
            f"{self.strategy} x {self.world}, {self.precision}"
        )
        _LOG.info("%s\n%s\n%s\n%s", "=" * len(head), head, plan.objective.plan, table)

    def _profile_of(self, stage: Stage, bundle: Bundle, engine: Engine) -> Callable[[Stopwatch], Profile] | None:
        if not (self.recipe.run.profile and self.main):
            return None
        parts = {**tune.parts(bundle.model), "llm": head.body(bundle.model.llm)}
        return lambda watch: Profile(watch, parts, engine.device, self.folder / "profile", stage.name)

    def _judge_in(self, bundle: Bundle, engine: Engine) -> Callable[[int], dict[str, float]] | None:
        if self.judge is None:
            return None

        def judge(step: int) -> dict[str, float]:
            values = self.judge(bundle, step) if engine.main and self.judge else {}
            return engine.collect(values)[0]

        return judge

    def _finish(self, bundle: Bundle, tracker: Tracker) -> None:
        if not self.main:
            return
        bundle.recipe = self.recipe.to_yaml()
        bundle.provenance = json.loads((self.folder / "provenance.json").read_text(encoding="utf-8"))
        bundle.model.eval()
        path = bundle.save(self.folder / "bundle")
        _LOG.info("done; the bundle is in %s", path)


def _begin_stage(progress: Progress, index: int, plan: Plan) -> Progress:
    return Progress(
        step=progress.step,
        stage=index,
        stage_step=0,
        epoch=0,
        sample=0,
        data=plan.objective.order.fingerprint,
        initial=progress.initial,
        samples=0,
        refused=0,
    )


def _check_data(progress: Progress, index: int, plan: Plan) -> None:
    if progress.stage == index and progress.data and progress.data != plan.objective.order.fingerprint:
        raise CheckpointError(
            "the data of this stage have changed since the checkpoint was written, so its place in them means nothing; "
            "restore the data, or start anew in another folder"
        )


def _weights(
    engine: Engine, names: Mapping[str, str], bundle: Bundle, trained: set[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what any stage so far trains: from the engine what it holds, from the bundle's model the rest."""
    for name, tensor in engine.tensors(names):
        yield names[name], tensor
    held = set(names.values())
    for name, tensor in bundle.model.named_parameters():
        if _has_learned(name, trained) and name not in held:
            yield name, tensor.detach().to("cpu", copy=True)


def _has_learned(name: str, trained: set[str]) -> bool:
    """Whether any stage so far trains a parameter; a later one may have put an adapter on it."""
    return tune.weight_name(name) in trained or name.startswith(EXTRA)


def _renamed(key: str, names: Mapping[str, str]) -> str:
    kind, _, name = key.partition(".")
    return f"{kind}.{names[name]}"


def _split(moments: Mapping[str, torch.Tensor]) -> Iterator[tuple[tuple[str, str], torch.Tensor]]:
    for key, tensor in moments.items():
        kind, _, known = key.partition(".")
        yield (kind, known), tensor


def _collect_model(bundle: Bundle, engine: Engine, plan: Plan, adapters: Mapping[str, Any]) -> None:
    """Replace the bundle's model, whose weights are spread over the ranks, by a whole one on the CPU."""
    whole = assemble.rebuild(bundle, adapters)
    target = {**dict(whole.named_parameters()), **dict(whole.named_buffers())}
    held = {known for known in plan.names.values() if not known.startswith(EXTRA)}
    for name, tensor in bundle.model.named_parameters():
        if name not in held:
            target[name].data.copy_(tensor.detach())
    for name, tensor in engine.tensors(plan.names):
        if plan.names[name] in target:
            target[plan.names[name]].data.copy_(tensor)
    bundle.model = whole


def _open_folder(folder: Path, recipe: Recipe, resume: bool) -> None:
    """Create the run's folder, or check that a resumed run's recipe is the same.

    A run that left nothing to resume, because something was wrong at its start, may be mended and started again.

    Raises:
        RunError: the folder holds another run, or the recipe has changed.
    """
    written = folder / "recipe.yaml"
    begun = (folder / "bundle").exists() or Checkpoints(folder / "checkpoints", 1).latest() is not None
    if begun and not resume:
        raise RunError(f"{folder} already holds a run; resume it (--resume), or give another run.output")
    if begun and written.exists():
        changed = _changes(Recipe.load(written), recipe)
        if changed:
            raise RunError(
                f"{folder}: the recipe has changed since the run began ({', '.join(changed)}); a resumed run must "
                f"learn the same. Only run.{{{', '.join(_MAY_DIFFER)}}} may differ"
            )
    with atomic_file(written) as file:
        file.write(recipe.to_yaml())


def _changes(before: Recipe, now: Recipe) -> list[str]:
    first, second = (dict(_leaves(recipe.model_dump(mode="json"))) for recipe in (before, now))
    allowed = {f"run.{key}" for key in _MAY_DIFFER} | {"extends"}
    keys = sorted(key for key in {*first, *second} if first.get(key) != second.get(key))
    return [key for key in keys if not any(key == one or key.startswith(f"{one}.") for one in allowed)]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value:
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{path}.{index}")
    else:
        yield path, value


def _write_provenance(folder: Path, recipe: Recipe, strategy: str, precision: str, world: int) -> None:
    data = {}
    for stage in recipe.stages:
        for one in [*stage.data, *(stage.validation.data if stage.validation else [])]:
            (store,) = assemble.open_stores([one], recipe.run)
            manifest = {
                key: store.manifest[key] for key in ("name", "version", "licence", "hash") if key in store.manifest
            }
            data[f"{one.source}:{one.split}"] = {"path": str(store.path), "sha256": store.hash, "manifest": manifest}
    cuda = torch.cuda.is_available()
    content = {
        "git": _git(),
        "versions": {
            name: version(name) for name in ("medmvl", "torch", "transformers", "accelerate", "peft", "numpy")
        },
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "strategy": strategy,
        "precision": precision,
        "processes": world,
        "seed": recipe.run.seed,
        "data": data,
    }
    with atomic_file(folder / "provenance.json") as file:
        json.dump(content, file, indent=2)


def _git() -> str | None:
    """Return the commit this package runs from ("+changes" if it was edited); None outside of a repository."""
    command = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run(
            [*command, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        edited = subprocess.run(
            [*command, "status", "--porcelain", "."], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}+changes" if edited.strip() else commit


def _should_launch(recipe: Recipe) -> bool:
    several = torch.cuda.is_available() and torch.cuda.device_count() > 1
    return several and "RANK" not in os.environ and recipe.run.strategy != "single"


def _launch(folder: Path, judge: Judge | None) -> None:
    """Start one process per GPU and wait for them, passing SIGTERM on.

    Raises:
        SystemExit: with the exit code of the first process that failed; the others are ended.
        RunError: the further validation cannot be imported by them.
    """
    command = [sys.executable, "-m", "medmvl.train.run", str(folder / "recipe.yaml"), "--resume"]
    if judge is not None:
        name = f"{getattr(judge, '__module__', '')}:{getattr(judge, '__qualname__', '')}"
        if _import(name) is not judge:
            raise RunError(
                f"the further validation {name} cannot be imported by the other GPUs' processes; define it in a module"
            )
        command += ["--judge", name]
    count = torch.cuda.device_count()
    _LOG.info("%d GPUs are visible: starting one process for each", count)
    processes = start_ranks(command, count)
    with Stop(lambda: [process.terminate() for process in processes]):
        code = wait_for_ranks(processes, good=(0, TERMINATED))
    if code:
        raise SystemExit(code)


def _import(name: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError):
        return None


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve `torchrun --nproc-per-node 8 -m medmvl.train.run RECIPE [KEY=VALUE]...`."""
    parser = argparse.ArgumentParser(prog="medmvl.train.run")
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--judge", help="module:function of a further validation")
    given = parser.parse_args(arguments)
    train(given.recipe, given.overrides, given.resume, _import(given.judge) if given.judge else None)


if __name__ == "__main__":
    main()
