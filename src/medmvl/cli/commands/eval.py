"""`medmvl eval`: a bundle judged on tasks."""

from pathlib import Path
from typing import Annotated

import typer

from medmvl.cli.opening import AllowCode, Device, device_of
from medmvl.cli.screen import new_app

app = new_app()


@app.command()
def evaluate(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle.")],
    tasks: Annotated[
        list[str], typer.Argument(metavar="TASK...", help="Names (medmvl list tasks), groups, YAML files.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for scores.json, predictions.jsonl and report.html.")] = Path(
        "scores"
    ),
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Folder in which data sources lie; default: those of the bundle's recipe, and data/."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Ask at most so many samples of each task.")] = None,
    prepared: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps prepared volumes, as run.prepared of a recipe; default: none."),
    ] = None,
    device: Device = None,
    allow_code: AllowCode = None,
) -> None:
    """Score a bundle, each task beside its blank-image, shuffled-image and majority controls.

    \b
    medmvl eval runs/demo/2d/bundle brain_atlas --data runs/demo/data --out runs/demo/scores
    medmvl eval my_bundle brain_atlas/side my_task.yaml --limit 200
    """
    from medmvl.cli.screen import console
    from medmvl.eval.run import evaluate
    from medmvl.eval.table import print_table

    scores = evaluate(
        bundle,
        tasks,
        out=out,
        roots=data,
        limit=limit,
        device=device_of(device),
        allow_code=allow_code or (),
        prepared=prepared,
    )
    print_table(scores, console())
    typer.echo(f"report: {out / 'report.html'}")
