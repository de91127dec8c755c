"""`medmvl data audit`: what is wrong with data, before anything learns from it."""

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from medmvl.data.audit.checks import Use
    from medmvl.data.audit.run import Audit
    from medmvl.data.store import SampleStore
    from medmvl.processing.processor import Processor
    from medmvl.train.recipe import Data, Recipe, Stage


def audit(
    stores: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[STORE]...", help="Stores, all of their splits, by folder or by name; default: the recipe's."
        ),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Count tokens and look for mirrored sides as this recipe would.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for audit.json and audit.html.")] = Path("audit"),
    block: Annotated[
        list[str] | None,
        typer.Option(help="Findings that end the command with an error: kinds (corrupt), groups (leak), error, all."),
    ] = None,
    root: Annotated[list[Path] | None, typer.Option(help="Further folder that media may lie in.")] = None,
    names: Annotated[
        Literal["none", "ids", "all"],
        typer.Option(
            help="What to show: ids and paths, identifiers masked; all: quoted texts too; none: rows alone, to pass on."
        ),
    ] = "ids",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes, each with one file in memory; default: one per core.")
    ] = None,
) -> None:
    """Look for leaks between splits, broken files, repeated samples, identifiers, odd balance, too long samples.

    Every picture and volume is read once. Several stores are also compared with each other. The exit code is 1 when a
    finding is of a kind that --block names; by default nothing blocks. Samples are told by store, split, row (line), id
    and path, never by what they say; with --names none by their row alone. The page shows pictures of look-alikes.

    \b
    medmvl data audit data/slake
    medmvl data audit data/slake data/vqa_rad --block leak,corrupt --out runs/audit
    medmvl data audit --recipe my_recipe.yaml --block error
    """
    from medmvl.cli.screen import progress
    from medmvl.data.audit.findings import blocking
    from medmvl.data.audit.report import write_audit
    from medmvl.data.audit.run import audit as run
    from medmvl.data.store import find_source
    from medmvl.train.recipe import Recipe

    if not stores and recipe is None:
        raise ValueError("name stores to look at, or a recipe: medmvl data audit STORE... or --recipe RECIPE")
    marked = blocking(block or [])
    settings = None if recipe is None else Recipe.load(recipe)
    roots = [*(root or []), *(map(Path, settings.run.data_roots) if settings else [])]
    folders = [find_source(name, [*roots, "data"]).folder for name in stores or []]
    uses, skipped, absent = ([], [], []) if settings is None else _uses(settings, folders)
    folders = folders or list(dict.fromkeys(use.folder for use in uses))
    if not folders:
        raise ValueError("\n  ".join([f"{recipe}: none of its data is here", *skipped, *absent]))
    if absent and names == "none":
        absent = [f"{len(absent)} sources of the recipe, which are not here (--names ids names them)"]
    out.mkdir(parents=True, exist_ok=True)
    result = run(
        folders, roots=roots, uses=uses, skipped=[*skipped, *absent], blocking=marked, names=names,
        workers=workers, scratch=out, progress=progress,
    )  # fmt: skip
    written = write_audit(result, out)
    _print(result)
    typer.echo(f"written: {', '.join(map(str, written))}")
    if result.blocks:
        kinds = ", ".join(finding.kind for finding in result.findings if finding.blocking)
        print(f"medmvl data audit: blocked by {kinds}", file=sys.stderr)
        raise typer.Exit(1)


def _uses(settings: "Recipe", folders: "Sequence[Path]") -> "tuple[list[Use], list[str], list[str]]":
    """Return what a recipe does with its data, or would do with other stores; what cannot be told; absent sources."""
    from medmvl.cli.commands.check import processor_of, shapes_of, start_of
    from medmvl.train.sources import status

    built, template = shapes_of(settings, start_of(settings)[0])
    skipped = ["lengths in tokens: the tokenizer is not on this machine"] if built.tokenizer is None else []
    read = {stage.name: processor_of(stage, built, template, sys.maxsize) for stage in settings.stages}
    uses: list[Use] = []
    absent: list[str] = []
    for stage, data, training in _sources(settings):
        found = status(data, settings.run.data_roots)
        if found.store is not None:
            uses.append(_use(settings, stage, data, training, found.store, read[stage.name]))
        elif not folders:
            absent.append(f"{data.source} ({data.split}): {found.note}")
    known = {use.folder for use in uses}
    for stage, data in _others(settings, [folder for folder in folders if not {folder, folder.parent} & known]):
        found = status(data, settings.run.data_roots)
        if found.store is not None:  # else the audit tells what is wrong with it
            uses.append(_use(settings, stage, data, True, found.store, read[stage.name]))
    return uses, skipped, list(dict.fromkeys(absent))


def _sources(settings: "Recipe") -> "Iterator[tuple[Stage, Data, bool]]":
    """Yield the sources of all stages, and whether the stage learns from them."""
    for stage in settings.stages:
        yield from ((stage, data, True) for data in stage.data)
        if stage.validation is not None:
            yield from ((stage, data, False) for data in stage.validation.data)


def _others(settings: "Recipe", folders: "Sequence[Path]") -> "Iterator[tuple[Stage, Data]]":
    """Yield stores that no stage names, as sources of the last stage that reads text."""
    from medmvl.data.store import split_names
    from medmvl.train.recipe import Data

    stage = next((one for one in reversed(settings.stages) if one.objective == "chat"), settings.stages[-1])
    for folder in folders:
        for split in split_names(folder) or ["train"]:  # of a JSONL file there is one split, whatever it is called
            yield stage, Data(source=str(folder), split=split)


def _use(
    settings: "Recipe",
    stage: "Stage",
    data: "Data",
    training: bool,
    store: "SampleStore",
    processor: "Processor | None",
) -> "Use":
    """Return what a stage does with one source."""
    from medmvl.data.audit.checks import Tokens, Use
    from medmvl.data.store import find_source
    from medmvl.train.assemble import count_tokens

    tokens = None
    if processor is not None:
        fingerprint = f"{processor.fingerprint()} media {data.media}"
        tokens = Tokens(settings.run.max_tokens, partial(count_tokens, processor, data=data), fingerprint)
    tasks = data.tasks if data.tasks is not None else find_source(data.source, settings.run.data_roots).tasks
    mirrors = training and data.media == "keep" and stage.augmentation is not None and stage.augmentation.mirror
    return Use(store.folder, store.split, None if tasks is None else tuple(tasks), stage.name, mirrors, tokens)


def _print(result: "Audit") -> None:
    from rich.table import Table

    from medmvl.cli.screen import console
    from medmvl.data.audit.findings import KINDS

    screen = console()
    for why in result.skipped:
        screen.print(f"not looked at: {why}", markup=False, soft_wrap=True)
    total = sum(split["samples"] for split in result.splits)
    names = ", ".join(f"{split['store']}/{split['split']}" for split in result.splits)
    screen.print(f"{total:,} samples: {names}", markup=False, soft_wrap=True)
    if not result.findings:
        screen.print("nothing was found")
        return
    table = Table("severity", "kind", "what", box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("count", justify="right")
    for finding in result.findings:
        mark = " (blocks)" if finding.blocking else ""
        table.add_row(
            KINDS[finding.kind].severity + mark, finding.kind, KINDS[finding.kind].title, f"{finding.count:,}"
        )
    screen.print(table)
    if not result.settings["blocking"]:
        screen.print("nothing blocks; --block error, or kinds such as --block leak,corrupt, makes the exit code 1")
