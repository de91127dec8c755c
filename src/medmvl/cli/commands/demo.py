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
    volumes: Annotated[bool, typer.Option(help="Go on from the 2D model to one of whole volumes.")] = True,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys of demo_2d.")] = None,
) -> None:
    """Build Brain-Atlas-VQA, train demo_2d and demo_3d on it, score both on unseen patients, write the report.

    First pictures: a model from random weights. Then volumes: a model that starts from the first one. Takes about
    fifteen minutes on two CPU cores. What is already there is used again; a run that was stopped goes on where it was.

    \b
    medmvl demo --out runs/demo
    medmvl demo --out runs/short --no-volumes stages.instruct.steps=100
    """
    from time import monotonic

    from medmvl.cli.screen import console, progress
    from medmvl.core.schema import Text
    from medmvl.data.benchmarks import brain_atlas, brain_atlas_3d
    from medmvl.data.store import SampleStore

    start = monotonic()
    screen = console()
    acts = 8 if volumes else 5
    done = 0

    def step(text: str) -> None:
        nonlocal done
        done += 1
        screen.print(f"[bold]{done}/{acts}  {text}[/bold]  [dim]{monotonic() - start:.0f} s[/dim]")

    step("building Brain-Atlas-VQA, pictures")
    data = brain_atlas.build(out / "data" / "brain_atlas", patients=patients, seed=seed)

    step("auditing it: leaks between splits, look-alikes, broken files, contradictions")
    from medmvl.data.audit.report import write_audit
    from medmvl.data.audit.run import audit

    (out / "audit").mkdir(exist_ok=True)
    audited = audit([data], scratch=out / "audit", progress=progress)
    write_audit(audited, out / "audit")
    screen.print(f"{len(audited.findings)} findings: {out / 'audit' / 'audit.html'}", soft_wrap=True)

    step("training a tokenizer on its text")
    from medmvl.processing.tokenizer import train_tokenizer

    said = (part for sample in SampleStore(data, "train") for message in sample.messages for part in message.content)
    train_tokenizer((part.text for part in said if isinstance(part, Text)), VOCABULARY, out / "tokenizer")

    step("training demo_2d")
    run = _train("demo_2d", out, out / "2d", seed, overrides or [])

    step("asking it about patients it has never seen")
    from medmvl.eval.run import evaluate, join
    from medmvl.eval.table import print_table

    settings = {"roots": [out / "data"], "seed": seed}
    logs = [run / "log.jsonl"]
    where = out / "2d" / "eval" if volumes else out
    scores = evaluate(run / "bundle", ["brain_atlas"], out=where, logs=logs, **settings)
    print_table(scores, screen)

    if volumes:
        step("building Brain-Atlas-VQA, volumes")
        brain_atlas_3d.build(out / "data" / "brain_atlas_3d", patients=max(20, patients * 3 // 5), seed=seed)

        step("training demo_3d, which starts from the 2D model")
        prepared = out / "prepared"
        more = [f"init_from={json.dumps(str(out / '2d'))}", f"run.prepared={json.dumps(str(prepared))}"]
        run = _train("demo_3d", out, out / "3d", seed, more)

        step("asking it about volumes of patients it has never seen")
        logs.append(run / "log.jsonl")
        where = out / "3d" / "eval"
        scores = evaluate(run / "bundle", ["brain_atlas_3d"], out=where, logs=logs[1:], prepared=prepared, **settings)
        print_table(scores, screen)
        scores = join([out / "2d" / "eval", where], out, logs)

    bundles = [out / "2d" / "bundle"] + [out / "3d" / "bundle"] * volumes
    screen.print(f"done  [dim]{monotonic() - start:.0f} s[/dim]")
    for name, place in [("scores", out / "scores.json"), *(("bundle", one) for one in bundles)]:
        screen.print(f"{name}: {place}", soft_wrap=True)
    screen.print(f"report: {out / 'report.html'}", soft_wrap=True)


def _train(recipe: str, out: Path, folder: Path, seed: int, overrides: list[str]) -> Path:
    """Train a recipe of the demo, or go on with it; return the run's folder."""
    from medmvl.train.run import train

    settings = [
        f"run.output={json.dumps(str(folder))}",
        f"run.data_roots={json.dumps([str(out / 'data')])}",
        f"run.seed={seed}",
        f"run.features={json.dumps(str(out / 'features'))}",
        f"model.llm.tokenizer={json.dumps(str(out / 'tokenizer'))}",
    ]
    return train(recipe, overrides=[*settings, *overrides], resume=(folder / "checkpoints").is_dir())
