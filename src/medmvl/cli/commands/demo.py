"""`medmvl demo`: from nothing to a trained, scored model and its report, on this machine."""

import json
from pathlib import Path
from typing import Annotated

import typer

from medmvl.cli.screen import new_app

app = new_app()

VOCABULARY = 512


@app.command(no_args_is_help=False)
def demo(
    out: Annotated[Path, typer.Option(help="Folder that receives everything.")] = Path("runs/demo"),
    patients: Annotated[int, typer.Option(help="Virtual patients of the benchmark.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of the benchmark and the training.")] = 0,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys of demo_2d.")] = None,
) -> None:
    """Build Brain-Atlas-VQA, train the recipe demo_2d on it, score the model on unseen patients, write the report.

    Takes about ten minutes on two CPU cores. What is already there is used again; a run that was stopped goes on where
    it was.

    \b
    medmvl demo --out runs/demo
    medmvl demo --out runs/short stages.instruct.steps=100
    """
    from time import monotonic

    from medmvl.cli.screen import console
    from medmvl.core.schema import Text
    from medmvl.data.benchmarks.brain_atlas import build
    from medmvl.data.store import SampleStore

    start = monotonic()
    screen = console()

    def step(text: str) -> None:
        screen.print(f"[bold]{text}[/bold]  [dim]{monotonic() - start:.0f} s[/dim]")

    step("1/4  building Brain-Atlas-VQA")
    data = build(out / "data" / "brain_atlas", patients=patients, seed=seed)
    store = SampleStore(data, "train")

    step("2/4  training a tokenizer on its text")
    from medmvl.processing.tokenizer import train_tokenizer

    said = (part for sample in store for message in sample.messages for part in message.content)
    train_tokenizer((part.text for part in said if isinstance(part, Text)), VOCABULARY, out / "tokenizer")

    step("3/4  training demo_2d")
    from medmvl.train.run import train

    settings = [
        f"run.output={json.dumps(str(out / '2d'))}",
        f"run.data_roots={json.dumps([str(out / 'data')])}",
        f"run.seed={seed}",
        f"model.llm.tokenizer={json.dumps(str(out / 'tokenizer'))}",
    ]
    run = train("demo_2d", overrides=[*settings, *(overrides or [])], resume=(out / "2d" / "checkpoints").is_dir())

    step("4/4  asking it about patients it has never seen")
    from medmvl.eval.run import evaluate
    from medmvl.eval.table import print_table

    bundle = run / "bundle"
    scores = evaluate(bundle, ["brain_atlas"], out=out, roots=[out / "data"], seed=seed, logs=[run / "log.jsonl"])
    print_table(scores, screen)
    step("done")
    screen.print(f"scores: {out / 'scores.json'}\nbundle: {bundle}\nreport: {out / 'report.html'}", soft_wrap=True)
