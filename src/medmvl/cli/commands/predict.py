"""`medmvl predict`: answers for a file of samples."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from medmvl.cli.opening import AllowCode, Device, open_bundle
from medmvl.cli.screen import new_app
from medmvl.core.schema import BoxRef, Sample, SampleError

if TYPE_CHECKING:
    from medmvl.bundle import Bundle

app = new_app()
_BATCH = 256  # lines are written in the order of the samples, so many at a time


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle.")],
    samples: Annotated[Path, typer.Argument(help="JSON list or JSONL; canonical samples, or `conversations`.")],
    out: Annotated[Path | None, typer.Option(help="JSONL to write; default: standard output.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder that holds the images; default: the file's folder.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 256,
    device: Device = None,
    allow_code: AllowCode = None,
) -> None:
    """Answer every sample, one JSON line each: id, prediction, and the sample's own answer as reference.

    Where that answer is a box, `boxes` are those of the prediction and `reference_boxes` its own, in the file's frame.
    A sample that cannot be used gets a line with its error; the others are answered.

    \b
    medmvl predict runs/demo/2d/bundle questions.json --root images --out answers.jsonl
    """
    from medmvl.data.store import read_each

    asked = list(read_each(samples, root or samples.parent))
    model = open_bundle(bundle, device, allow_code)
    failed = 0
    file: TextIO = sys.stdout if out is None else _open(out)
    for row in _answers(model, asked, max_new_tokens):
        failed += "error" in row
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()  # a long job that is stopped keeps what it has
    if out is not None:
        file.close()
        typer.echo(f"{len(asked) - failed} answers in {out}")
    if failed:
        typer.echo(f"{failed} of {len(asked)} samples could not be used; their lines hold the error", err=True)
        raise typer.Exit(1)


def _open(out: Path) -> TextIO:
    out.parent.mkdir(parents=True, exist_ok=True)
    return out.open("w", encoding="utf-8")


def _answers(model: "Bundle", asked: Sequence[Sample | SampleError], max_new_tokens: int) -> Iterator[dict[str, Any]]:
    """Yield one row per sample, in order; a broken sample costs the others nothing."""
    for start in range(0, len(asked), _BATCH):
        batch = asked[start : start + _BATCH]
        fine = [sample for sample in batch if isinstance(sample, Sample)]
        said = dict(model.generate_each(fine, max_new_tokens=max_new_tokens))
        answers = (said[place] for place in range(len(fine)))
        for sample in batch:
            answer = sample if isinstance(sample, SampleError) else next(answers)
            if isinstance(answer, SampleError):
                yield {"id": answer.sample_id, "error": str(answer)}
            elif isinstance(sample, Sample):
                row = {"id": sample.id, "prediction": answer, "reference": sample.answer}
                yield row | _boxes(model, sample, answer)


def _boxes(model: "Bundle", sample: Sample, prediction: str) -> dict[str, Any]:
    """Return the boxes of prediction and answer, where the answer has any."""
    said = sample.messages[-1]
    shown = [part.box for part in said.content if isinstance(part, BoxRef)] if said.role == "assistant" else []
    if not shown:
        return {}
    own = [sample.meta.boxes[number] for number in shown]
    return {
        "boxes": model.processor.boxes_from_text(prediction, sample, own[0].media),
        "reference_boxes": [box.coords for box in own],
    }
