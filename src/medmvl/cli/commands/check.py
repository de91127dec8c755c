"""`medmvl check`: a recipe run dry."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medmvl.cli.screen import console, new_app
from medmvl.core.schema import SampleError

if TYPE_CHECKING:
    from rich.console import Console

    from medmvl.core.schema import Sample
    from medmvl.data.store import SampleStore
    from medmvl.model.build import Built
    from medmvl.processing.processor import Processor
    from medmvl.processing.template import Template
    from medmvl.train.mix import Looked, Portion
    from medmvl.train.recipe import Data, Recipe, Stage
    from medmvl.train.sources import Status

app = new_app()
_GIB = 2**30
_LOOKED_AT = 500  # media of a store whose kind is looked at, to count its volumes


@app.command()
def check(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A shipped name (medmvl list recipes) or a YAML file.")
    ],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys of the recipe.")] = None,
    devices: Annotated[int | None, typer.Option(min=1, help="Devices to estimate for; default: those visible.")] = None,
) -> None:
    """Run a recipe dry: find its data, build its shapes, print what learns, tokens, steps, memory. Starts nothing.

    Needs no weights and no network for models whose dimensions ship (medmvl list encoders). Ends with an error when the
    run could not start; data sets that shipped recipes name may be fetched later.

    \b
    medmvl check medm_vl_2d --devices 2
    medmvl check my_recipe.yaml stages.align.global_batch=64
    """
    from medmvl.train.recipe import LEFT_RANDOM, Recipe
    from medmvl.train.sources import status

    settings = Recipe.load(recipe, overrides or [])
    screen = console()
    found = [[status(data, settings.run.data_roots) for data in stage.data] for stage in settings.stages]
    _print_data(screen, settings, found)
    held_out = [status(d, settings.run.data_roots) for s in settings.stages if s.validation for d in s.validation.data]
    start, first = start_of(settings)
    built, template = shapes_of(settings, start)
    _print_model(screen, settings, built)
    carried: Sequence[str] = ()
    if settings.init_from is not None and settings.model is not None:
        carried = _print_start(screen, settings, built, start, first)
    for part in settings.left_random(carried):
        screen.print(f"[yellow]warning: {LEFT_RANDOM % part}", soft_wrap=True)
    every = [*(one for sources in found for one in sources), *held_out]
    _print_prepared(screen, settings, built, every, recipe)
    fatal = [f"{one.data.source} ({one.data.split}): {one.note}" for one in every if one.fatal]
    for stage, sources in zip(settings.stages, found, strict=True):
        fatal += _print_stage(screen, settings, stage, sources, built, template, devices)
    if fatal:
        raise ValueError("\n  ".join([f"{recipe} cannot run on this machine as it is", *fatal]))
    missing = sorted({one.data.source for sources in found for one in sources if one.store is None})
    missing += [f"weights of {name}" for name in _absent(settings)]
    todo = [f"train: {first}"] * bool(first) + [f"fetch: {', '.join(missing)}"] * bool(missing)
    verdict = f"valid; before it can run, {'; '.join(todo)}" if todo else "valid, and its data is here"
    screen.print(f"{recipe}: {verdict}", soft_wrap=True)


def _absent(recipe: "Recipe") -> list[str]:
    """Return the hub names and files whose weights are not on this machine."""
    from medmvl.model.source import at_hand

    names = recipe.model.weights if recipe.model is not None else []
    return [name for name in names if not at_hand(name)]


def _print_data(screen: "Console", recipe: "Recipe", found: Sequence[Sequence["Status"]]) -> None:
    table = _table("stage", "source", "split", ">samples", ">an epoch takes", "where")
    for stage, sources in zip(recipe.stages, found, strict=True):
        for one, taken in zip(sources, _taken(stage, sources), strict=True):
            count = f"{len(one.store):,}" if one.store else "-"
            name = one.data.source + (f": {', '.join(one.data.tasks)}" if one.data.tasks else "")
            text = " (text only)" if one.data.media == "drop" else ""
            where = _short(one.store.path) if one.store else f"[red]{one.note}"
            table.add_row(stage.name, name + text, one.data.split, count, taken, where)
    screen.print("[bold]data[/bold]", f"(looked in {', '.join(recipe.run.data_roots)})")
    screen.print(table)


def _short(path: Path) -> str:
    """Return a path as seen from here, when it lies below."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _lengths(sources: Sequence["Status"]) -> list[int] | None:
    """Return the samples of every source, or None when one is not at hand."""
    stores = [one.store for one in sources]
    return None if any(store is None for store in stores) else [len(store) for store in stores if store is not None]


def _taken(stage: "Stage", sources: Sequence["Status"]) -> list[str]:
    from medmvl.train.recipe import passes

    lengths = _lengths(sources)
    if lengths is not None:
        amounts = passes(stage.data, lengths, stage.temperature)
        return [f"{round(n * p):,}" for n, p in zip(lengths, amounts, strict=True)]
    if stage.temperature is not None:
        return ["-"] * len(stage.data)
    if stage.data[0].share is not None:
        total = sum(data.share or 0 for data in stage.data)
        return [f"{(data.share or 0) / total:.0%}" for data in stage.data]
    return [f"{data.weight:g} x all" for data in stage.data]


def start_of(recipe: "Recipe") -> tuple[Path | None, str]:
    """Return the bundle that `init_from` names; else the shipped recipe by that name or output, which was not run yet.

    Raises:
        ValueError: `init_from` is neither.
    """
    from medmvl.core import shipped
    from medmvl.train.assemble import find_bundle
    from medmvl.train.recipe import Recipe

    if recipe.init_from is None:
        return None, ""
    try:
        return find_bundle(recipe.init_from), ""
    except ValueError:
        for name in shipped.names("recipes", ".yaml") if recipe.model else ():
            if recipe.init_from in (name, Recipe.load(name).run.output):
                return None, name
        raise


def shapes_of(recipe: "Recipe", start: Path | None) -> "tuple[Built, Template | str | None]":
    """Return the model's shapes, and the chat template that its stages use unless they name one."""
    from medmvl.bundle import PROCESSOR, read_config
    from medmvl.model.build import build
    from medmvl.processing.processor import Processor
    from medmvl.train.assemble import recompute

    model, processor = recipe.model, None
    if model is None and start is not None:
        model = read_config(start)  # refuses a bundle that would run code of its own
        processor = Processor.load(start / PROCESSOR)
    if model is None:
        raise ValueError("the recipe names neither 'model' nor 'init_from'")
    built = build(model, device="meta", tokenizer=processor.tokenizer if processor else None)
    built.model.check_max_tokens(recipe.run.max_tokens)
    recompute(built.model, recipe.run.activation_checkpointing)  # tells of a part that cannot
    return built, processor.template if processor else built.config.template


def _print_start(screen: "Console", recipe: "Recipe", built: "Built", start: Path | None, first: str) -> list[str]:
    """Print what the model takes over from `init_from`: a bundle, or the shapes its recipe gives; return where to."""
    from medmvl.bundle import packages, read_config
    from medmvl.model.build import build
    from medmvl.train.inherit import inherit
    from medmvl.train.recipe import Recipe

    if start is not None:
        source = read_config(start, allow_code=list(packages(recipe.model)) if recipe.model else [])
    else:
        source = Recipe.load(first).model
    if source is None:
        return []
    taken = inherit(built.model, build(source, device="meta").model, str(recipe.init_from))
    screen.print(f"init_from {recipe.init_from}: {taken}", markup=False, soft_wrap=True)
    return taken.filled


def _print_model(screen: "Console", recipe: "Recipe", built: "Built") -> None:
    from medmvl.model.tune import parts

    table = _table("part", ">parameters", "is")
    for part, module in parts(built.model).items():
        table.add_row(part, f"{sum(p.numel() for p in module.parameters()):,}", _about(part, recipe, built))
    total = sum(parameter.numel() for parameter in built.model.parameters())
    table.add_row("[bold]total", f"[bold]{total:,}", "")
    screen.print("\n[bold]model[/bold]")
    screen.print(table)
    screen.print(built.model.why_packable, soft_wrap=True)


def _print_prepared(
    screen: "Console", recipe: "Recipe", built: "Built", sources: Sequence["Status"], name: str
) -> None:
    """Print what the cache of prepared volumes will take, for a model that takes volumes."""
    import shutil

    from medmvl.core.log import bytes_text
    from medmvl.imaging.cache import entry_bytes

    size = next((entry_bytes(t.encoder.spec) for t in built.model.towers.values() if t.encoder.spec.is_volume), None)
    if size is None:
        return
    if any(one.store is not None and one.data.media == "keep" for one in sources):
        screen.print(
            "volumes: some files were looked for, none was opened; broken ones are told by "
            f"`medmvl data prepare --recipe {name}` or `medmvl data audit`",
            markup=False,
            soft_wrap=True,
        )
    if recipe.run.prepared is None:
        screen.print("prepared volumes: not kept (run.prepared is null), each use reads the file", soft_wrap=True)
        return
    count = _count_media(_stores(sources), "volume")
    folder = Path(recipe.run.prepared).absolute()
    free = shutil.disk_usage(next(one for one in (folder, *folder.parents) if one.exists())).free
    many = f"about {count:,} of them, {bytes_text(count * size)}" if count else "how many, the missing data decides"
    screen.print(
        f"prepared volumes: {bytes_text(size)} each, {many}, in {recipe.run.prepared} ({bytes_text(free)} free there)",
        soft_wrap=True,
    )


def _stores(sources: Sequence["Status"]) -> "list[SampleStore]":
    """Return the stores at hand whose media are shown."""
    return [one.store for one in sources if one.store is not None and one.data.media == "keep"]


def _print_features(
    screen: "Console", recipe: "Recipe", stage: "Stage", sources: Sequence["Status"], built: "Built"
) -> None:
    """Print for each tower whether its features will be kept, and the space they take."""
    from medmvl.core.log import bytes_text
    from medmvl.model.frozen import feature_bytes
    from medmvl.train.features import room, why_computed

    folder = recipe.run.features
    for name, tower in built.model.towers.items():
        count = _count_media(_stores(sources), name)
        if not count and _stores(sources):
            continue
        reason = why_computed(built.model, name, stage) or ("run.features is null" if folder is None else None)
        size = 0 if reason else feature_bytes(tower.encoder, "bf16" if _in_bf16(recipe) else "fp32")
        if reason is None and folder is not None and count * size > room(folder):
            reason = f"about {count:,} times {bytes_text(size)} is more than half of what is free in {folder}"
        many = f"about {count:,}, {bytes_text(count * size)}" if count else "how many, the missing data decides"
        kept = f"kept in {folder} where that saves time, which is measured when the stage begins: "
        told = f"{kept}{bytes_text(size)} each, {many}" if reason is None else f"computed at every use: {reason}"
        screen.print(f"features of the {name} encoder: {told}", markup=False, soft_wrap=True)


def _in_bf16(recipe: "Recipe") -> bool:
    import torch

    precision = recipe.run.precision
    return precision == "bf16" or (precision == "auto" and torch.cuda.is_available())


def _count_media(stores: "Sequence[SampleStore]", kind: str) -> int:
    """Estimate the distinct media of a kind that stores show; several tasks of one store show the same ones."""
    import numpy as np

    rows: dict[Path, dict[int, tuple[SampleStore, int]]] = {}
    for store in stores:
        keys, first = np.unique(store.media_keys, return_index=True)
        there = rows.setdefault(store.path, {})
        there.update({int(key): (store, int(row)) for key, row in zip(keys, first, strict=True) if key})
    count = 0.0
    for by_key in rows.values():
        looked = list(by_key.values())[:: max(1, len(by_key) // _LOOKED_AT)]
        media: set[str] = set()
        for store, row in looked:
            with suppress(SampleError):
                media.update(part.path for part in store[row].media if part.type == kind)
        count += len(media) * len(by_key) / max(1, len(looked))
    return round(count)


def _about(part: str, recipe: "Recipe", built: "Built") -> str:
    tower, _, kind = part.partition(".")
    settings = recipe.model
    if not kind:
        return settings.llm.label if settings else built.model.llm.config.model_type
    module, config = built.model.towers[tower], built.config.towers[tower]
    if kind == "connector":
        options = "".join(f", {key} {value}" for key, value in config.connector_options.items())
        return f"{config.connector}{options}: {module.num_tokens} tokens in the LLM"
    name = settings.towers[tower].encoder.label if settings else type(module.encoder).__name__
    size = " x ".join(map(str, module.encoder.spec.size))
    return f"{name}, layer {config.layer}: {size} pixels, {module.encoder.num_tokens} tokens x {module.encoder.width}"


def _print_stage(
    screen: "Console",
    recipe: "Recipe",
    stage: "Stage",
    sources: Sequence["Status"],
    built: "Built",
    template: "Template | str | None",
    devices: int | None,
) -> list[str]:
    """Print what a stage trains, reads and needs; return what would stop it."""
    from medmvl.model import tune
    from medmvl.model.config import matches
    from medmvl.train.mix import Looked, look

    table = tune.apply(built.model, stage.tune)
    count = _counter(recipe, stage, built, template)
    parts = _portions(recipe, stage, sources)
    looks = [look(part.data, part.store, count) for part in parts]
    looked = sum(looks, Looked())
    screen.print(f"\n[bold]stage {stage.name}[/bold] ({stage.objective})")
    screen.print(str(table), highlight=False, markup=False)
    screen.print(_tokens(recipe, stage, looked, built), markup=False, soft_wrap=True)
    some = f"{len(looked.refused)} of {len(looked.refused) + len(looked.tokens)} samples looked at"
    if looked.refused:
        screen.print(f"refused: {some}, as {looked.refused[0]}", markup=False, soft_wrap=True)
    _print_steps(screen, stage, parts, [one.mean for one in looks], all(one.store for one in sources))
    learns = {
        part: any(row.trainable for row in table.rows if row.part.startswith(part)) for part in tune.parts(built.model)
    }
    running = None if stage.objective == "chat" else [part for part in learns if part.endswith(".encoder")]
    in_full = [pattern for one in recipe.stages for pattern, rule in one.tune.items() if rule.mode == "full"]
    halved = [part for part in learns if not any(matches([part], pattern) for pattern in in_full)]
    if stage.objective == "chat":
        _print_features(screen, recipe, stage, sources, built)
    _print_memory(screen, recipe, built, learns, devices, running, halved)
    if looked.share_refused <= recipe.run.max_refused:
        return []
    limit = f"more than run.max_refused {recipe.run.max_refused:g} allows"
    return [f"stage {stage.name}: {some} cannot be used, {limit}; the first is {looked.refused[0]}"]


def _tokens(recipe: "Recipe", stage: "Stage", looked: "Looked", built: "Built") -> str:
    media = ", ".join(f"{tower.num_tokens} per {name}" for name, tower in built.model.towers.items()) or "no media"
    head = f"tokens: {media}"
    if stage.objective != "chat":
        return f"{head}; text is not counted for objective {stage.objective}"
    if built.tokenizer is None:
        return f"{head}; text not counted: the tokenizer is not on this machine"
    if not looked.tokens:
        return f"{head}; text not counted: no usable sample at hand"
    mean = sum(looked.tokens) / len(looked.tokens)
    seen = f"{mean:.0f} in all, {max(looked.tokens)} at most, among {len(looked.tokens)} looked at"
    return f"{head}; a sample has {seen} (limit {recipe.run.max_tokens})"


def _counter(
    recipe: "Recipe", stage: "Stage", built: "Built", template: "Template | str | None"
) -> Callable[["Sample", "Data"], int]:
    """Return what counts a sample's tokens, media included; 0 where there is no tokenizer or no chat."""
    from functools import partial

    from medmvl.train.assemble import count_tokens

    processor = processor_of(stage, built, template, recipe.run.max_tokens)
    return partial(count_tokens, processor) if processor else lambda sample, data: 0


def processor_of(
    stage: "Stage", built: "Built", template: "Template | str | None", max_tokens: int
) -> "Processor | None":
    """Return what encodes the samples of a stage; None where there is no tokenizer or no chat."""
    if built.tokenizer is None or stage.objective != "chat":
        return None
    from medmvl.core.boxes import BOX_FORMATS
    from medmvl.processing.processor import Processor, TowerInput

    towers = {
        name: TowerInput(tower.placeholder, name, tower.num_tokens, tower.encoder.spec)
        for name, tower in built.model.towers.items()
    }
    boxes = BOX_FORMATS[built.config.boxes]
    return Processor(built.tokenizer, stage.template or template, towers, max_tokens=max_tokens, box_format=boxes)


def _portions(recipe: "Recipe", stage: "Stage", sources: Sequence["Status"]) -> "list[Portion]":
    """Return the portions of a stage's mixture; without parts of their own while a source is not at hand."""
    from medmvl.train.mix import Portion, portions

    stores = [one.store for one in sources if one.store is not None]
    if len(stores) < len(sources):
        return [Portion(one.data, one.store, 1.0) for one in sources if one.store is not None]
    return portions(stage.data, stores, recipe.run.data_roots, stage.temperature)


def _print_steps(
    screen: "Console", stage: "Stage", parts: "Sequence[Portion]", tokens: Sequence[float], whole: bool
) -> None:
    """Print a stage's steps and what they show of each source."""
    from medmvl.train.mix import Plan

    length = f"{stage.epochs} epochs" if stage.epochs else f"{stage.tokens:,} tokens" if stage.tokens else ""
    if not whole and length:
        screen.print(
            f"steps: {length}, {stage.global_batch} samples a step; how many, the missing data decides", soft_wrap=True
        )
        return
    if stage.tokens and not any(tokens):
        screen.print(f"steps: {length}; how many, the tokens decide, which cannot be counted here", soft_wrap=True)
        return
    if not whole:
        screen.print(f"steps: {stage.steps:,} of {stage.global_batch} samples", soft_wrap=True)
        return
    plan = Plan.of(stage, parts, tokens)
    epoch = sum(part.per_epoch for part in parts)
    shown = f"{plan.samples / epoch:.3g} epochs of {epoch:,}"
    screen.print(f"steps: {plan.steps:,} of {stage.global_batch} samples ({shown})", markup=False, soft_wrap=True)
    heading, *rows = plan.rows()
    table = _table(*(name if place < 2 else f">{name}" for place, name in enumerate(heading)))
    for row in rows:
        table.add_row(*row)
    screen.print(table)


def _print_memory(
    screen: "Console",
    recipe: "Recipe",
    built: "Built",
    learns: Mapping[str, bool],
    devices: int | None,
    running: Sequence[str] | None,
    halved: Sequence[str],
) -> None:
    import torch

    from medmvl.train.estimate import memory

    run = recipe.run
    visible = max(1, torch.cuda.device_count())
    number = devices or visible
    bf16 = _in_bf16(recipe)
    needs = memory(built.model, learns, run.row_tokens, bf16, run.activation_checkpointing, number, running, halved)
    unit, unit_name = (_GIB, "GiB") if max(need.total for need in needs.values()) > _GIB else (_GIB / 1024, "MiB")
    table = _table("strategy", ">weights", ">gradients", ">optimizer", ">activations", f">{unit_name} per device")
    for name, need in needs.items():
        mark = "  <- this recipe" if name == run.strategy else ""
        cells = (need.weights, need.gradients, need.optimizer, need.activations, need.total)
        table.add_row(name + mark, *(f"{value / unit:.2f}" for value in cells))
    many = "1 device" if number == 1 else f"{number} devices"
    screen.print(
        f"memory, estimated for {many}, rows of {run.row_tokens:,} tokens, {'bf16' if bf16 else 'fp32'}"
        + (
            ", activations recomputed in " + ", ".join(run.activation_checkpointing)
            if run.activation_checkpointing
            else ""
        )
    )
    screen.print(table)


def _table(*columns: str) -> Any:
    """Return a plain table; a heading that starts with ">" is flush right."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    return table
