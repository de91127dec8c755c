"""`medmvl data`: build the benchmark, convert annotations, look at samples."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from medmvl.cli.screen import new_app
from medmvl.core.schema import Sample, SampleError

_TOLD = 10  # wrong samples of a file that an error spells out

app = new_app()
build = new_app()
convert = new_app()
app.add_typer(build, name="build", help="Build a benchmark: medmvl data build brain_atlas data/brain_atlas")
app.add_typer(convert, name="convert", help="Make a store of your own annotations: medmvl data convert annotations ...")


@app.callback()
def data() -> None:
    """Build, convert and inspect data.

    \b
    medmvl data build brain_atlas data/brain_atlas
    medmvl data convert annotations train.json data/mine --root images
    medmvl data inspect data/mine
    """


@build.callback()
def _build() -> None:
    """Build a benchmark; brain_atlas is made from a real MRI template, with every answer known."""


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
