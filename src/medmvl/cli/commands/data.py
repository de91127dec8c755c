"""`medmvl data`: build the benchmark, convert data sets, look at samples, prepare volumes."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from medmvl.cli.commands.data_audit import audit
from medmvl.cli.commands.data_deid import deid
from medmvl.cli.screen import new_app
from medmvl.core.schema import SampleError

if TYPE_CHECKING:
    from medmvl.data.adapters.base import Adapter
    from medmvl.data.convert import Conversion
    from medmvl.data.store import SampleStore
    from medmvl.imaging.spec import VisionSpec

_OVERRIDE = re.compile(r"[A-Za-z_][\w.-]*=")

app = new_app()
build = new_app()
app.add_typer(build, name="build", help="Build a benchmark: medmvl data build brain_atlas data/brain_atlas")
app.command()(audit)
app.command()(deid)


@app.callback()
def data() -> None:
    """Build, convert, inspect and prepare data.

    \b
    medmvl data build brain_atlas data/brain_atlas
    medmvl data convert slake Slake1.0 data/slake
    medmvl data convert annotations train.json data/mine
    medmvl data inspect data/mine
    medmvl data prepare --recipe my_recipe.yaml
    """


@build.callback()
def _build() -> None:
    """Build a benchmark; brain_atlas and brain_atlas_3d are made from a real MRI template, with every answer known."""


@build.command("brain_atlas")
def brain_atlas(
    out: Annotated[Path, typer.Argument(help="Folder of the new store.")] = Path("data/brain_atlas"),
    patients: Annotated[int, typer.Option(help="Virtual patients, 20 or more.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of everything random; the same seed gives the same bytes.")] = 0,
    size: Annotated[int, typer.Option(help="Pixels along each side of a picture.")] = 64,
) -> None:
    """Build Brain-Atlas-VQA: pictures, questions, reports and boxes, split by virtual patient. Not clinical data.

    \b
    medmvl data build brain_atlas data/brain_atlas --patients 2000
    """
    from medmvl.data.benchmarks.brain_atlas import build as build_benchmark
    from medmvl.data.store import SampleStore

    build_benchmark(out, patients=patients, seed=seed, size=size)
    _print_manifest(SampleStore(out).manifest, out)


@build.command("brain_atlas_3d")
def brain_atlas_3d(
    out: Annotated[Path, typer.Argument(help="Folder of the new store.")] = Path("data/brain_atlas_3d"),
    patients: Annotated[int, typer.Option(help="Virtual patients, 20 or more.")] = 1200,
    seed: Annotated[int, typer.Option(help="Of everything random; with that of the pictures, the same patients.")] = 0,
    studies: Annotated[int, typer.Option(help="Volumes per patient.")] = 1,
) -> None:
    """Build Brain-Atlas-VQA as volumes: NIfTI in all orientations, questions, reports, 3D boxes. Not clinical data.

    \b
    medmvl data build brain_atlas_3d data/brain_atlas_3d --patients 1200
    """
    from medmvl.data.benchmarks.brain_atlas_3d import build as build_benchmark
    from medmvl.data.store import SampleStore

    build_benchmark(out, patients=patients, seed=seed, studies=studies)
    _print_manifest(SampleStore(out).manifest, out)


@app.command()
def convert(
    name: Annotated[
        str | None, typer.Argument(help="Data set (`medmvl list datasets`), or your.package.module:Adapter.")
    ] = None,
    root: Annotated[Path | None, typer.Argument(help="The data set as published; its page draws the folder.")] = None,
    out: Annotated[Path | None, typer.Argument(help="Folder of the new store; recipes name it as a source.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be repeated.")] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="Only this split, by its name here or in the data set; may be repeated.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A setting of this data set (see its page), in YAML.")
    ] = None,
    form: Annotated[Literal["jsonl", "parquet"], typer.Option(help="Lines of JSON, or Parquet shards.")] = "jsonl",
    embed: Annotated[
        bool, typer.Option("--embed", help="Keep the media inside the shards: the store then needs nothing else.")
    ] = False,
    missing: Annotated[
        Literal["keep", "refuse"], typer.Option(help="Samples whose media are not there; --embed refuses them.")
    ] = "keep",
) -> None:
    """Make a store of a data set: its official files in, samples that recipes can name out.

    Without NAME all data sets are listed; with NAME alone, its page is printed: the folder that is expected, tasks,
    splits, options, licence and how to get it. Rows that cannot be used are refused with their place, counted and
    listed in OUT/refused.jsonl; the others go on. The store at OUT is replaced once the new one is whole; with --split
    only those splits are, and the others stay.

    \b
    medmvl data convert
    medmvl data convert slake
    medmvl data convert slake downloads/Slake1.0 data/slake
    medmvl data convert slake downloads/Slake1.0 data/slake --task vqa --split train --split validate
    medmvl data convert ct_rate downloads/CT-RATE data/ct_rate --form parquet --embed
    medmvl data convert annotations train.json data/mine --option media_root=images
    """
    from medmvl.data.adapters.table import adapter
    from medmvl.data.convert import convert as run

    if name is None:
        _print_datasets()
        return
    if root is None:
        _print_page(adapter(name))
        return
    if out is None:
        raise ValueError(f"name the folder of the new store: medmvl data convert {name} {root} OUT")
    with _progress("samples") as advance:
        done = run(
            name, root, out, tasks=task or (), splits=split or (), options=_settings(option or ()),
            form=form, embed=embed, missing=missing, advance=advance,
        )  # fmt: skip
    _print_conversion(done, out)


def _progress(what: str) -> Any:
    from medmvl.cli.screen import progress

    return progress(what, None)


def _settings(options: Sequence[str]) -> dict[str, Any]:
    """Return the settings that "key=value" texts spell out, values in YAML."""
    from medmvl.core.config import load_yaml

    settings = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or not key:
            raise ValueError(f"--option {option!r} must look like key=value")
        settings[key] = load_yaml(value)
    return settings


def _print_datasets() -> None:
    from medmvl.data.adapters.table import ADAPTERS, adapter

    width = max(map(len, ADAPTERS))
    rows = [f"  {name:{width}}  {adapter(name).title}" for name in ADAPTERS]
    usage = "medmvl data convert NAME prints the page of a data set; medmvl data convert NAME ROOT OUT converts it"
    typer.echo("\n".join(["data sets:", *rows, "", usage]))


def _print_page(kind: "type[Adapter]") -> None:
    """Print what there is to know before converting."""
    options = {
        name: f"{field.description or ''} (default {field.default!r})"
        for name, field in kind.Options.model_fields.items()
    }
    parts = [
        f"{kind.name} {kind.version}: {kind.title}",
        "expected:\n" + "\n".join(f"  {line}" for line in kind.layout.strip("\n").splitlines()),
        _rows("tasks", kind.tasks),
        _rows("splits", kind.splits),
        _rows("options", options or {"none": ""}),
        f"licence: {kind.licence}",
        f"access: {kind.access}"
        + ("\ncredentialed: its contents must not leave the machine" if kind.credentialed else ""),
        f"medmvl data convert {kind.name} ROOT data/{kind.name}",
    ]
    typer.echo("\n\n".join(parts))


def _rows(title: str, table: Mapping[str, str]) -> str:
    width = max(map(len, table), default=0)
    return "\n".join([f"{title}:", *(f"  {name:{width}}  {text}".rstrip() for name, text in table.items())])


def _print_conversion(done: "Conversion", out: Path) -> None:
    _print_manifest(done.manifest, out)
    if done.refused:
        more = [f"and more: {out / 'refused.jsonl'} lists all"] if done.refused > len(done.told) else []
        typer.echo("\n  ".join([f"{done.refused:,} rows were refused:", *done.told, *more]), err=True)
    if done.missing:
        head = f"the media of {done.missing:,} samples are missing; the first:"
        typer.echo("\n  ".join([head, *done.absent]), err=True)
    if done.media_root is not None:
        folders = dict.fromkeys([out.absolute().parent, done.media_root])
        roots = f"run.data_roots='[{', '.join(map(str, folders))}]'"
        typer.echo(f"the media stay in {done.media_root}: name it in the recipe, {roots}")


@app.command()
def inspect(
    source: Annotated[str, typer.Argument(help="A store's folder, or its name in data/.")],
    split: Annotated[str | None, typer.Option(help="Which split; default: train, or what there is.")] = None,
    out: Annotated[Path, typer.Option(help="Contact sheet to write (PNG).")] = Path("contact_sheet.png"),
    samples: Annotated[int, typer.Option("-n", help="Images on the sheet.")] = 12,
    root: Annotated[list[Path] | None, typer.Option(help="Further folder that images may lie in.")] = None,
) -> None:
    """Show what a store holds: counts per task, and a contact sheet of pictures with their text and boxes.

    \b
    medmvl data inspect data/brain_atlas --split test --out sheet.png -n 20
    """
    from medmvl.data.inspect import contact_sheet
    from medmvl.data.store import SampleStore, find_source, split_names

    found = find_source(source, ["data"])
    there = split_names(found.folder)
    split = split or ("train" if "train" in there or not there else there[0])
    store = SampleStore(found.folder, split, found.tasks, roots=root or [])
    contact_sheet(store, out, samples)
    if store.manifest:
        _print_manifest(store.manifest, store.folder)
    else:
        typer.echo(f"{store.path}: {len(store):,} samples, no manifest")
        for task, count in sorted(Counter(store.task_names[number] for number in store.tasks).items()):
            typer.echo(f"  {task or '(no task)'}: {count:,}")
    typer.echo(f"contact sheet: {out}")


@app.command()
def prepare(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SOURCE]... [KEY=VALUE]...",
            help="Stores, all of their splits; default: what the recipe shows. Keys of the recipe.",
        ),
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="Prepare for the volume encoder of this recipe.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="Or for that of this bundle; name sources, too.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the cache; default: run.prepared of the recipe, runs/prepared.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes, each with one volume in memory; default: one per core.")
    ] = None,
) -> None:
    """Prepare volumes ahead of training: read, window, crop and resample each once, into a cache that all runs share.

    Training fills the cache by itself; this does it with all cores, and tells which volumes are broken. What is there
    is passed over, so a call that was stopped is made again. The cache can be deleted at any time.

    \b
    medmvl data prepare --recipe my_recipe.yaml
    medmvl data prepare data/ct --bundle runs/ct/bundle --out /fast_disk/prepared
    """
    if (recipe is None) == (bundle is None):
        raise ValueError(
            "give either --recipe RECIPE or --bundle BUNDLE: how volumes are prepared depends on the model"
        )
    overrides = [one for one in sources or [] if _OVERRIDE.match(one)]
    names = [one for one in sources or [] if one not in overrides]
    spec, stores, folder = _wanted(names, recipe, bundle, overrides)
    _fill(out or folder, spec, stores, workers)


def _wanted(
    names: Sequence[str], recipe: str | None, bundle: Path | None, overrides: Sequence[str]
) -> "tuple[VisionSpec, list[SampleStore], Path]":
    """Return how to prepare, the samples whose volumes are meant, and the default folder of the cache."""
    from medmvl.train.prepared import spec_of_bundle, spec_of_recipe, stores_of_recipe
    from medmvl.train.recipe import Recipe, Run

    if bundle is not None and overrides:
        raise ValueError(f"{overrides[0]}: keys belong to --recipe; a bundle's model is what it is")
    if bundle is not None and not names:
        raise ValueError("name the stores whose volumes to prepare: medmvl data prepare SOURCE... --bundle BUNDLE")
    settings = None if recipe is None else Recipe.load(recipe, overrides)
    run = Run() if settings is None else settings.run
    folder = Path(run.prepared or str(Run.model_fields["prepared"].default))
    if settings is None:
        return spec_of_bundle(Path(str(bundle))), _stores(names, run.data_roots), folder
    stores = _stores(names, run.data_roots) if names else stores_of_recipe(settings)
    return spec_of_recipe(settings), stores, folder


def _stores(names: Iterable[str], roots: Sequence[str]) -> "list[SampleStore]":
    """Open all splits of some sources; of a task, those that have it."""
    from medmvl.data.store import SampleStore, find_source, split_names

    found = []
    for source in [find_source(name, roots) for name in names]:
        splits = [source.folder.stem] if source.folder.is_file() else split_names(source.folder)
        for store in [SampleStore(source.folder, split, roots=roots) for split in splits]:
            tasks = [task for task in source.tasks or store.task_names if task in store.task_names]
            if tasks:
                found.append(SampleStore(source.folder, store.split, tasks, roots=roots))
    return found


def _fill(folder: Path, spec: "VisionSpec", stores: "Sequence[SampleStore]", workers: int | None) -> None:
    """Fill the cache with the volumes of some samples.

    Raises:
        typer.Exit: 1, after the others are done, when volumes or samples cannot be used; each is printed.
    """
    from time import monotonic

    from medmvl.cli.screen import progress
    from medmvl.core.log import bytes_text
    from medmvl.imaging.cache import entry_bytes
    from medmvl.imaging.fill import prepare_all
    from medmvl.train.prepared import volumes

    found = list(volumes(stores))
    paths = [one for one in found if isinstance(one, str)]
    broken = [str(one) for one in found if isinstance(one, SampleError)]
    if not found:
        raise ValueError(f"no sample of {', '.join(str(store.path) for store in stores)} shows a volume")
    size = entry_bytes(spec)
    typer.echo(f"{len(paths):,} volumes, {bytes_text(size)} each, {bytes_text(size * len(paths))} in all: {folder}")
    start, new, there, stored = monotonic(), 0, 0, 0
    with progress("volumes", len(paths)) as advance:
        for outcome in prepare_all(folder, [(path, spec) for path in paths], workers):
            advance(1)
            stored += outcome.stored
            if outcome.error is None:
                new, there = new + (outcome.stored > 0), there + (outcome.stored == 0)
            else:
                broken.append(f"{outcome.path}: {outcome.error}")
    seconds = monotonic() - start
    typer.echo(
        f"{new:,} prepared, {there:,} were there, {len(broken):,} cannot be used; {bytes_text(stored)} written in "
        f"{seconds:.1f} s, {new / max(seconds, 1e-9):.1f} volumes/s"
    )
    if broken:
        typer.echo("\n  ".join(["cannot be used:", *sorted(broken)]), err=True)
        raise typer.Exit(1)


def _print_manifest(manifest: Mapping[str, Any], folder: Path) -> None:
    from rich.table import Table

    from medmvl.cli.screen import console

    splits = manifest["splits"]
    table = Table()
    table.add_column("task")
    for split in splits:
        table.add_column(split, justify="right")
    for task in sorted({task for split in splits.values() for task in split["tasks"]}):
        table.add_row(task or "(no task)", *(f"{split['tasks'].get(task, 0):,}" for split in splits.values()))
    table.add_section()
    for key in ("samples", "media", "patients"):
        table.add_row(f"[bold]{key}[/bold]", *(f"{split[key]:,}" for split in splits.values()))
    screen = console()
    screen.print(f"{manifest['name']} {manifest['version']} in {folder}", markup=False, soft_wrap=True)
    screen.print(table)
    screen.print(f"licence: {manifest['licence']}", markup=False)
