"""`medmvl eval compare`: two evaluations on the same questions."""

from pathlib import Path
from typing import Annotated

import typer


def compare(
    a: Annotated[str, typer.Argument(help="Folder of an evaluation; NAME=FOLDER says what the system is called.")],
    b: Annotated[str, typer.Argument(help="Another one; differences are B minus A.")],
    task: Annotated[list[str] | None, typer.Option(help="Compare this task alone; may be repeated.")] = None,
    metric: Annotated[list[str] | None, typer.Option(help="Compare this metric alone; may be repeated.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="File that receives all metrics: .json, or a table: .md, .tex, .csv.")
    ] = None,
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap draws.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
) -> None:
    """Tell which of two evaluated systems is better, and how sure that is: differences with intervals and tests.

    \b
    medmvl eval compare scores/blank scores/ours
    medmvl eval compare old=scores/a new=scores/b --metric accuracy_strict --out comparison.json
    """
    import json

    from medmvl.cli.screen import console
    from medmvl.core.atomic import atomic_file
    from medmvl.core.lookup import choices_text
    from medmvl.eval.compare import compare, comparison_grid
    from medmvl.eval.formats import FORMATS, print_grid

    suffix = "" if out is None else out.suffix.removeprefix(".")
    if out is not None and suffix not in ("json", *FORMATS):
        forms = choices_text(suffix, ["json", *FORMATS])
        raise ValueError(f"--out {out}: no comparison is written as {suffix!r}; {forms}")
    found = compare(a, b, tasks=task or (), metrics=metric or (), resamples=resamples, seed=seed)
    print_grid(comparison_grid(found, every=bool(metric)), console())
    if out is not None:
        with atomic_file(out) as file:
            if suffix == "json":
                json.dump(found, file, indent=2, ensure_ascii=False, allow_nan=False)
            else:
                file.write(FORMATS[suffix](comparison_grid(found)))
        typer.echo(f"comparison: {out}")
