"""From a recipe to what a loop needs: the bundle to start from, the data of a stage, the module that learns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medmvl.bundle import PROCESSOR, STATE, Bundle, packages
from medmvl.core.log import get_logger
from medmvl.core.schema import Sample
from medmvl.data.mixture import Mixture
from medmvl.data.store import SampleStore, StoreError
from medmvl.imaging.cache import PreparedStore
from medmvl.model import tune
from medmvl.model.build import build
from medmvl.model.config import ModelConfig
from medmvl.model.encoders import base
from medmvl.model.vlm import VLM
from medmvl.processing.processor import Processor
from medmvl.train import mix
from medmvl.train.feed import ChatPreparer, Refusal, held_out, without_media
from medmvl.train.images import Picture, PicturePreparer, Shuffled, gather_pictures, once
from medmvl.train.inherit import inherit
from medmvl.train.mix import Portion, look, num_steps, portions
from medmvl.train.objectives import BOX, Contrast, ContrastTargets, Heads, HeadTargets, Objective, find_classes
from medmvl.train.recipe import LEFT_RANDOM, Data, Recipe, Run, Stage
from medmvl.train.sources import status

_LOG = get_logger(__name__)
EXTRA = "objective."
"""Prefix, in checkpoints, of weights that serve one stage only and are no part of the bundle."""


@dataclass(frozen=True)
class Place:
    """This process among all, and how the model is spread.

    Attributes:
        rank, world: this process among all.
        sharded: whether every rank must call every module equally often, frozen ones too (FSDP2, ZeRO-3).
    """

    rank: int
    world: int
    sharded: bool


@dataclass(frozen=True)
class Plan:
    """A stage made ready, on the CPU, nothing spread yet.

    Attributes:
        objective: module and data.
        groups: for the optimizer: {"part", "lr", "params"}.
        names: parameter or buffer of the module -> its name in checkpoints: the bundle's, or EXTRA and its own.
    """

    objective: Objective
    groups: tuple[dict[str, Any], ...]
    names: Mapping[str, str]


def start_bundle(recipe: Recipe) -> Bundle:
    """Return the bundle a run starts from: built, or read from `init_from`, or built with the parts of `init_from`.

    Raises:
        ValueError: `init_from` leads to no bundle, shares no part with the model, or was trained on other tokens.
    """
    trusted = list(packages(recipe.model)) if recipe.model else []
    folder = None if recipe.init_from is None else find_bundle(recipe.init_from)
    source = None if folder is None else Bundle.load(folder, allow_code=trusted)
    if recipe.model is None and source is not None:
        source.model.check_max_tokens(recipe.run.max_tokens)
        source.processor = stage_processor(source.processor, None, recipe.run.max_tokens)
        return source
    bundle = Bundle.build(recipe.model or ModelConfig.model_validate({}), max_tokens=recipe.run.max_tokens)
    if source is not None:
        if _words(bundle) != _words(source):
            raise ValueError(
                f"init_from: the LLM of {recipe.init_from} was trained with another tokenizer than the one that "
                f"model.llm names; set model.llm.tokenizer to {folder}/{PROCESSOR}"
            )
        taken = inherit(bundle.model, source.model, str(recipe.init_from))
        _LOG.info("init_from %s: %s", recipe.init_from, taken)
    for part in recipe.left_random(taken.filled if source is not None else ()):
        _LOG.warning(LEFT_RANDOM, part)
    return bundle


def _words(bundle: Bundle) -> dict[str, int]:
    """Return the vocabulary of a bundle's tokenizer, without what was added to it (placeholders)."""
    return bundle.processor.tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)


def find_bundle(name: str) -> Path:
    """Return the folder of a bundle, given itself or its run.

    Raises:
        ValueError: there is none.
    """
    for folder in (Path(name), Path(name) / "bundle", Path("runs") / name / "bundle"):
        if (folder / STATE).is_file():
            return folder
    raise ValueError(
        f"init_from: {name!r} is no bundle, nor a run with one; looked in {name}, {name}/bundle, runs/{name}/bundle"
    )


def rebuild(bundle: Bundle, adapters: Mapping[str, Any]) -> VLM:
    """Return a model like the bundle's on the CPU, with random weights: what a sharded stage's weights return to."""
    model = build(bundle.config, tokenizer=bundle.processor.tokenizer).model
    tune.restore(model, adapters)
    return model


def stage_processor(
    processor: Processor, template: str | None, max_tokens: int, store: PreparedStore | None = None
) -> Processor:
    """Return a processor with another template (None: the same), length and store."""
    return Processor(
        processor.tokenizer,
        template or processor.template,
        processor.towers,
        max_tokens=max_tokens,
        box_format=processor.box_format,
        shorten=processor.shorten,
        store=store,
    )


def open_stores(data: Sequence[Data], run: Run) -> list[SampleStore]:
    """Open the sources of a mixture.

    Raises:
        StoreError: sources, splits or tasks that do not exist, with all known names, or where a known data set is from.
    """
    found = [status(one, run.data_roots) for one in data]
    lacking = [
        one.note if one.fatal else f"source {one.data.source!r}: {one.note} (looked in {', '.join(run.data_roots)})"
        for one in found
        if one.store is None
    ]
    if lacking:
        raise StoreError("\n  ".join(dict.fromkeys(lacking)))
    return [one.store for one in found if one.store is not None]


def plan_stage(
    stage: Stage,
    index: int,
    bundle: Bundle,
    run: Run,
    table: tune.TuningTable,
    place: Place,
    refuse: Callable[[Refusal], None],
) -> Plan:
    """Make a stage ready.

    Args:
        stage, index: what it does, and which one it is.
        bundle: its model has been tuned for this stage.
        run: of the recipe.
        table: what learns.
        place: this process among all.
        refuse: told of samples that cannot be read while pictures are gathered.

    Raises:
        ValueError: data or model do not fit the objective.
    """
    if stage.objective == "chat":
        objective: Objective = _chat(stage, index, bundle, run, place)
    else:
        objective = _pictures(stage, index, bundle, run, table, place, refuse)
    known = {id(tensor): name for name, tensor in _named(bundle.model)}
    names = {name: known.get(id(tensor), EXTRA + name) for name, tensor in _named(objective.module)}
    inside = {id(parameter) for parameter in objective.module.parameters()}
    outside = [group["part"] for group in table.groups if any(id(one) not in inside for one in group["params"])]
    if outside:
        raise ValueError(
            f"stage {stage.name}: objective {stage.objective} does not train {', '.join(outside)}; leave it out"
        )
    extra = [parameter for name, parameter in objective.module.named_parameters() if names[name].startswith(EXTRA)]
    groups = [dict(group) for group in table.groups]
    if extra:
        groups.append({"part": stage.objective, "lr": max(group["lr"] for group in groups), "params": extra})
    return Plan(objective, tuple(groups), names)


def _named(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _chat(stage: Stage, index: int, bundle: Bundle, run: Run, place: Place) -> Objective:
    model = bundle.model
    processor = stage_processor(bundle.processor, stage.template, run.max_tokens, _prepared(run))
    needed = [
        name
        for name, tower in model.towers.items()
        if place.sharded or any(parameter.requires_grad for parameter in tower.parameters())
    ]
    prepare = partial(
        ChatPreparer,
        processor=processor,
        row_tokens=run.row_tokens,
        position_limit=model.position_limit,
        towers=needed,
        seed=(run.seed, index),
        rank=place.rank,
        world=place.world,
    )
    parts = portions(stage.data, open_stores(stage.data, run), run.data_roots, stage.temperature)
    mixture = _mixture(parts, stage.questions_per_image, (run.seed, index))
    count = partial(count_tokens, processor)
    plan = mix.Plan.of(stage, parts, [look(part.data, part.store, count).mean for part in parts])
    objective = Objective(
        model,
        mixture,
        prepare(read=mixture.__getitem__, drop_media=_dropped(parts), augmentation=stage.augmentation),
        plan.steps,
        str(plan),
    )
    if stage.validation is not None:
        data = stage.validation.data
        held = portions(data, open_stores(data, run), run.data_roots)
        judged = _mixture(held, stage.questions_per_image, (0, 0))
        objective.held_out = partial(held_out, judged, stage.validation.samples, stage.global_batch)
        objective.held_out_preparer = prepare(read=judged.__getitem__, drop_media=_dropped(held), augmentation=None)
    return objective


def _prepared(run: Run) -> PreparedStore | None:
    if run.prepared is None:
        return None
    store = PreparedStore(run.prepared)
    store.refresh()  # the processes that load data inherit it
    return store


def count_tokens(processor: Processor, sample: Sample, data: Data) -> int:
    """Return the tokens of a sample as training encodes it; no pixels are read."""
    return processor.encode(without_media(sample) if data.media == "drop" else sample).num_tokens


def _dropped(parts: Sequence[Portion]) -> list[bool]:
    return [part.data.media == "drop" for part in parts]


def _mixture(parts: Sequence[Portion], questions_per_image: int, seed: tuple[int, int]) -> Mixture:
    weighted = [(part.store, part.passes) for part in parts]
    return Mixture(weighted, questions_per_image=questions_per_image, seed=seed[0] * 1009 + seed[1])


def _pictures(
    stage: Stage,
    index: int,
    bundle: Bundle,
    run: Run,
    table: tune.TuningTable,
    place: Place,
    refuse: Callable[[Refusal], None],
) -> Objective:
    name = _tower_of(stage, table)
    encoder = bundle.model.towers[name].encoder
    if getattr(encoder, "reads_text", False):
        raise ValueError(
            f"stage {stage.name}: objective {stage.objective} shows pictures without a question, which the encoder of "
            f"tower {name!r} reads; train it with objective chat"
        )
    pictures = _gather(stage.data, stage, run, refuse)
    judged = _gather(stage.validation.data, stage, run, refuse) if stage.validation else []
    targets: HeadTargets | ContrastTargets
    if stage.objective == "heads":
        classes = find_classes(pictures)
        box = len(encoder.spec.size) == 2 and any(picture.box is not None for picture in pictures)
        module: nn.Module = Heads(encoder, encoder.width, classes, box)
        targets = HeadTargets(classes, box, encoder.spec)
        score_names: tuple[str, ...] = (*classes, *((BOX,) if box else ()))
    else:
        module = Contrast(encoder, encoder.width, bundle.model.llm.get_input_embeddings())
        targets = ContrastTargets(bundle.processor.tokenizer, run.max_tokens)
        score_names = ("retrieval",)
    micro = None if stage.objective == "contrastive" else max(1, run.row_tokens // encoder.num_tokens)
    prepare = partial(
        PicturePreparer,
        targets=targets,
        tower=name,
        spec=encoder.spec,
        num_tokens=encoder.num_tokens,
        micro_batch=micro,
        rank=place.rank,
        world=place.world,
        seed=(run.seed, index),
        store=_prepared(run),
    )
    order = Shuffled(pictures, (run.seed, index))
    objective = Objective(
        module,
        order,
        prepare(pictures=pictures, augmentation=stage.augmentation),
        num_steps(stage, len(order)),
        f"{len(order):,} pictures in an epoch",
        score_names=score_names,
    )
    if stage.validation is not None:
        count = min(stage.validation.samples, len(judged))
        objective.held_out = partial(once, count, stage.global_batch)
        objective.held_out_preparer = prepare(pictures=judged, augmentation=None)
    return objective


def _tower_of(stage: Stage, table: tune.TuningTable) -> str:
    towers = sorted({group["part"].split(".")[0] for group in table.groups if "." in group["part"]})
    if len(towers) != 1:
        raise ValueError(
            f"stage {stage.name}: objective {stage.objective} trains the encoder of one tower; "
            f"`tune` names {', '.join(group['part'] for group in table.groups)}"
        )
    return towers[0]


def _gather(data: Sequence[Data], stage: Stage, run: Run, refuse: Callable[[Refusal], None]) -> list[Picture]:
    parts = stage.temperature is not None or any(one.by_task or one.share is not None for one in data)
    if parts or any(one.weight != 1 or one.media == "drop" for one in data):
        raise ValueError(
            f"stage {stage.name}: objective {stage.objective} shows every picture once per epoch; `weight`, `share`, "
            "`temperature`, parts of tasks and `media: drop` mean nothing there, leave them out"
        )
    pictures = gather_pictures(open_stores(data, run), refuse)
    if stage.objective == "contrastive":
        pictures = [picture for picture in pictures if picture.texts]
    if not pictures:
        raise ValueError(f"stage {stage.name}: objective {stage.objective} found no sample with exactly one picture")
    return pictures


def store_frozen_small(model: VLM, stages: Sequence[Stage], trained: set[str]) -> None:
    """Store in bf16, in place, what no stage ever trains in full; adapters and weights in `trained` stay float32.

    So do the weights of norms that have buffers beside them (running statistics): buffers are not converted, and
    kernels want both in one precision.
    """
    kept = {id(one) for name, one in model.named_parameters() if tune.weight_name(name) in trained}
    for module in model.modules():
        beside = {buffer.shape for buffer in module.buffers(recurse=False) if buffer.is_floating_point()}
        kept.update(id(parameter) for parameter in module.parameters(recurse=False) if parameter.shape in beside)
    for part, module in tune.parts(model).items():
        rules = [rule for stage in stages for pattern, rule in stage.tune.items() if _touches(part, pattern)]
        if all(rule.mode != "full" for rule in rules):
            for parameter in module.parameters():
                if parameter.is_floating_point() and not parameter.requires_grad and id(parameter) not in kept:
                    parameter.data = parameter.data.to(torch.bfloat16)


def recompute(model: VLM, patterns: Sequence[str]) -> None:
    """Let the parts that match recompute their activations in the backward pass.

    Raises:
        ValueError: one of them cannot.
    """
    for part, module in tune.parts(model).items():
        if not any(fnmatchcase(part, pattern) for pattern in patterns):
            continue
        if not base.recompute(module, {"use_reentrant": False}):
            raise ValueError(
                f"run.activation_checkpointing: {part} ({type(module).__name__}) cannot recompute; leave it out"
            )


def _touches(part: str, pattern: str) -> bool:
    return fnmatchcase(part, pattern) or pattern.startswith(f"{part}.")
