"""`medmvl eval`: a model judged on tasks; two evaluations compared; several in one table."""

import sys
from pathlib import Path
from typing import Annotated, Any

import click
import typer
import typer.core

from medmvl.cli.commands.eval_compare import compare
from medmvl.cli.commands.eval_table import table
from medmvl.cli.opening import AllowCode, Device, device_of
from medmvl.cli.screen import new_app


class _TargetFirst(typer.core.TyperGroup):
    """What is no command is a target: `medmvl eval TARGET TASK...` is `medmvl eval run TARGET TASK...`."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        known = args[0] in self.commands or args[0].startswith("-")
        return super().resolve_command(ctx, args if known else ["run", *args])

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "TARGET TASK... [OPTIONS] | compare A B | table RUN...")


app = new_app()
app.info.cls = _TargetFirst


@app.callback()
def _eval() -> None:
    """Score a model on tasks, each beside its controls, with intervals; compare evaluations; put them in one table.

    \b
    medmvl eval runs/demo/2d/bundle brain_atlas --data runs/demo/data --out runs/demo/scores
    medmvl eval transformers:/models/llava slake/vqa --out scores/llava     another framework's checkpoint
    medmvl eval run --help                                                  all options
    medmvl eval compare scores/a scores/b                                   which one is better, and how sure is that
    medmvl eval table scores/a scores/b --suite medm_vl_2d --reported       one table, published numbers beside
    """


@app.command("run")
def evaluate(
    target: Annotated[
        str,
        typer.Argument(
            help="A bundle's folder; transformers:FOLDER; openai:URL#MODEL; predictions:FILE (JSONL of id, prediction)."
        ),
    ],
    tasks: Annotated[
        list[str], typer.Argument(metavar="TASK...", help="Names (medmvl list tasks), groups, suites, YAML files.")
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for scores, answers, tables and report; goes on where it was stopped.")
    ] = Path("scores"),
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Folder in which data sources lie; default: those of the bundle's recipe, and data/."),
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option(help="Samples (JSON list or JSONL) asked in place of the tasks' own; media in --data, or beside."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask at most so many samples of each task.")] = None,
    shots: Annotated[int | None, typer.Option(min=0, help="Answered examples before each question.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions handed to the model at once.")] = 4096,
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap draws per interval.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of limits, shuffles, shots and bootstrap draws.")] = 0,
    metric_option: Annotated[
        list[str] | None,
        typer.Option(metavar="METRIC.KEY=VALUE", help="Option of a metric: bertscore_f1.model=/models/roberta-large."),
    ] = None,
    engine_option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="Setting of an engine (docs/engines.md): boxes=qwen, slices=16, rows=4."
        ),
    ] = None,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Let an endpoint on another machine see questions and pictures.")
    ] = False,
    processes: Annotated[int, typer.Option(min=1, help="Processes on this machine that share the questions.")] = 1,
    prepared: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps prepared volumes, as run.prepared of a recipe; default: none."),
    ] = None,
    device: Device = None,
    allow_code: AllowCode = None,
) -> None:
    """Score a model, each task beside its blank-image, shuffled-image, question-only and majority controls.

    \b
    medmvl eval runs/demo/2d/bundle brain_atlas --data runs/demo/data --out runs/demo/scores
    medmvl eval my_bundle brain_atlas/side my_task.yaml --limit 200
    medmvl eval predictions:answers.jsonl slake/vqa --data data --out scores/other_system
    """
    from medmvl.core.processes import run_ranks
    from medmvl.eval.run import evaluate
    from medmvl.eval.table import print_table
    from medmvl.eval.team import speaks, started

    if processes > 1 and not started():
        raise typer.Exit(run_ranks([sys.executable, "-m", "medmvl", *sys.argv[1:]], processes))
    scores = evaluate(
        target,
        tasks,
        out=out,
        roots=data,
        samples=samples,
        limit=limit,
        shots=shots,
        batch_size=batch_size,
        resamples=resamples,
        seed=seed,
        metric_options=_metric_options(metric_option or []),
        device=device_of(device),
        allow_code=allow_code or (),
        allow_remote=allow_remote,
        prepared=prepared,
        **_engine_options(engine_option or []),
    )
    if speaks():
        from medmvl.cli.screen import console
        from medmvl.eval.formats import print_grid
        from medmvl.eval.summary import completed

        print_table(scores, console())
        for grid in completed(scores).values():
            typer.echo()
            print_grid(grid, console())
        typer.echo(f"report: {out / 'report.html'}")


app.command("compare")(compare)
app.command("table")(table)


def _engine_options(given: list[str]) -> dict[str, Any]:
    """Return "key=value" as key -> value, read as YAML.

    Raises:
        ValueError: not of that form.
    """
    options = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not (equals and key):
            raise ValueError(f"--engine-option {text!r}: write KEY=VALUE, as slices=16")
        options[key] = _value(value)
    return options


def _value(text: str) -> Any:
    from medmvl.core.config import load_yaml

    return load_yaml(f"value: {text}")["value"]


def _metric_options(given: list[str]) -> dict[str, dict[str, Any]]:
    """Return "metric.key=value" as metric -> key -> value; values are read as YAML, so that 3 is a number.

    Raises:
        ValueError: not of that form.
    """
    options: dict[str, dict[str, Any]] = {}
    for text in given:
        name, equals, value = text.partition("=")
        metric, dot, key = name.rpartition(".")
        if not (equals and dot and metric and key):
            raise ValueError(f"--metric-option {text!r}: write METRIC.KEY=VALUE, as bertscore_f1.model=/models/roberta")
        options.setdefault(metric, {})[key] = _value(value)
    return options
