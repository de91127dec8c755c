"""`medmvl data`: build the benchmark, convert annotations, look at samples, prepare volumes."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medmvl.cli.screen import new_app
from medmvl.core.schema import Sample, SampleError

if TYPE_CHECKING:
    from medmvl.data.store import SampleStore
    from medmvl.imaging.spec import VisionSpec

_TOLD = 10  # wrong samples of a file that an error spells out
_OVERRIDE = re.compile(r"[A-Za-z_][\w.-]*=")

app = new_app()
build = new_app()
convert = new_app()
app.add_typer(build, name="build", help="Build a benchmark: medmvl data build brain_atlas data/brain_atlas")
app.add_typer(convert, name="convert", help="Make a store of your own annotations: medmvl data convert annotations ...")


@app.callback()
def data() -> None:
    """Build, convert, inspect and prepare data.

    \b
    medmvl data build brain_atlas data/brain_atlas
    medmvl data convert annotations train.json data/mine --root images
    medmvl data inspect data/mine
    medmvl data prepare --recipe my_recipe.yaml
    """


@build.callback()
def _build() -> None:
    """Build a benchmark; brain_atlas and brain_atlas_3d are made from a real MRI template, with every answer known."""


@convert.callback()
def _convert() -> None:
    """Turn annotations into a store that recipes can name."""


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


@convert.command()
def annotations(
    file: Annotated[
        Path, typer.Argument(help="JSON list or JSONL; canonical samples, or `conversations` with <image>.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder of the new store; recipes name it as a source.")],
    root: Annotated[Path | None, typer.Option(help="Folder that holds the images; default: the file's folder.")] = None,
    split: Annotated[str, typer.Option(help="Split of samples that name none.")] = "train",
) -> None:
    """Make a store of an annotation file; paths are checked to stay inside the root, every mistake names its sample.

    \b
    medmvl data convert annotations train.json data/mine --root images
    """
    from medmvl.data.store import read_each, write_samples

    root = root or file.parent
    samples = _usable(file, read_each(file, root, split))
    text = f"from {file.name}"
    manifest = write_samples(out, samples, name=out.name, version="1.0", licence="as its source", description=text)
    _print_manifest(manifest, out)
    if not root.resolve().is_relative_to(out.resolve()):
        typer.echo(f"the images stay in {root}: name it in the recipe, run.data_roots='[{out.parent}, {root}]'")


def _usable(file: Path, rows: Iterable[Sample | SampleError]) -> Iterator[Sample]:
    """Yield the samples up to the first wrong one.

    Raises:
        ValueError: at the end, when any was wrong; names all of them, or the first ones.
    """
    total, wrong = 0, []
    for row in rows:
        total += 1
        if isinstance(row, SampleError):
            wrong.append(str(row))
        elif not wrong:  # after a wrong one nothing will be written
            yield row
    if wrong:
        more = [f"and {len(wrong) - _TOLD:,} more"] if len(wrong) > _TOLD else []
        head = f"{file}: {len(wrong):,} of {total:,} samples are wrong, nothing was written"
        raise ValueError("\n  ".join([head, *wrong[:_TOLD], *more]))


@app.command()
def inspect(
    source: Annotated[str, typer.Argument(help="A store's folder, or its name in data/.")],
    split: Annotated[str, typer.Option(help="Which split.")] = "train",
    out: Annotated[Path, typer.Option(help="Contact sheet to write (PNG).")] = Path("contact_sheet.png"),
    samples: Annotated[int, typer.Option("-n", help="Images on the sheet.")] = 12,
    root: Annotated[list[Path] | None, typer.Option(help="Further folder that images may lie in.")] = None,
) -> None:
    """Show what a store holds: counts per task, and a contact sheet of pictures with their text and boxes.

    \b
    medmvl data inspect data/brain_atlas --split test --out sheet.png -n 20
    """
    from medmvl.data.inspect import contact_sheet
    from medmvl.data.store import SampleStore, find_source

    found = find_source(source, ["data"])
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
    from medmvl.data.store import SampleStore, find_source

    found = []
    for source in [find_source(name, roots) for name in names]:
        files = [source.folder] if source.folder.is_file() else sorted(source.folder.glob("*.jsonl"))
        for store in [SampleStore(file, roots=roots) for file in files]:
            tasks = [task for task in source.tasks or store.task_names if task in store.task_names]
            if tasks:
                found.append(SampleStore(store.path, tasks=tasks, roots=roots))
    return found


def _fill(folder: Path, spec: "VisionSpec", stores: "Sequence[SampleStore]", workers: int | None) -> None:
    """Fill the cache with the volumes of some samples.

    Raises:
        typer.Exit: 1, after the others are done, when volumes or samples cannot be used; each is printed.
    """
    from time import monotonic

    from medmvl.cli.screen import bytes_text, progress
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
