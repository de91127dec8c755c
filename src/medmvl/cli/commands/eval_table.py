"""`medmvl eval table`: several evaluations in one table, beside what was published."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Format(StrEnum):
    """What a table can be written as."""

    md = "md"
    latex = "latex"
    csv = "csv"


_SUFFIX = {Format.md: "md", Format.latex: "tex", Format.csv: "csv"}


def table(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN]...", help="Folders of evaluations; NAME=FOLDER says what the system is called."),
    ] = None,
    suite: Annotated[
        str | None, typer.Option(help="Name or YAML file of a suite (medmvl list suites); default: what all share.")
    ] = None,
    reported: Annotated[
        bool, typer.Option("--reported", help="Published numbers below, marked as such; for a suite.")
    ] = False,
    controls: Annotated[bool, typer.Option("--controls", help="Every system's controls beside it.")] = False,
    form: Annotated[
        Format | None, typer.Option("--format", help="Default: by the suffix of --out, else for the screen.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File that receives the table: .md, .tex or .csv.")] = None,
) -> None:
    """Put evaluations side by side: with a suite one row for each system, without one row for each task they share.

    \b
    medmvl eval table scores/ours scores/llava_med
    medmvl eval table ours=scores/a theirs=scores/b --suite medm_vl_2d --reported --out table2.tex
    medmvl eval table --suite m3d_bench --reported                          what was published, alone
    """
    from medmvl.core.atomic import atomic_file
    from medmvl.core.lookup import choices_text
    from medmvl.eval.formats import FORMATS, print_grid
    from medmvl.eval.suite import load_suite, suite_names
    from medmvl.eval.summary import read_runs, suite_grid, task_grid

    if reported and suite is None:
        raise ValueError(f"--reported: published numbers are those of a suite; add --suite. {_suites(suite_names())}")
    if not runs and not reported:
        raise ValueError("no evaluation given: name folders that `medmvl eval ... --out` wrote")
    suffix = out.suffix.removeprefix(".") if out is not None and form is None else _SUFFIX.get(form or "")
    if out is not None and suffix not in FORMATS:
        raise ValueError(f"--out {out}: no table is written as {suffix!r}; {choices_text(suffix or '', FORMATS)}")
    found = read_runs(runs or [])
    if suite is None:
        grid = task_grid(found, controls=controls)
    else:
        grid = suite_grid(found, load_suite(suite), reported=reported, controls=controls)
    if suffix is None:
        from medmvl.cli.screen import console

        print_grid(grid, console())
    elif out is None:
        typer.echo(FORMATS[suffix](grid), nl=False)
    else:
        with atomic_file(out) as file:
            file.write(FORMATS[suffix](grid))
        typer.echo(f"table: {out}")


def _suites(names: list[str]) -> str:
    return f"Suites: {', '.join(names)}"
