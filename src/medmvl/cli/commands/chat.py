"""`medmvl chat`: a conversation about pictures, in the terminal."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medmvl.cli.opening import AllowCode, Device, open_bundle
from medmvl.cli.screen import new_app
from medmvl.core.schema import Image, Message, Part, Sample, SampleError, Text

if TYPE_CHECKING:
    from medmvl.bundle import Bundle

app = new_app()
_HELP = "/image PATH adds a picture to your next question, /new starts over, /quit (or Ctrl-D) leaves"


@app.command()
def chat(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle.")],
    image: Annotated[list[Path] | None, typer.Option(help="PNG, JPEG, TIFF, DICOM or npy; may be repeated.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 256,
    device: Device = None,
    allow_code: AllowCode = None,
) -> None:
    """Ask questions about pictures; answers appear as they are written.

    \b
    medmvl chat runs/demo/2d/bundle --image scan.dcm
    """
    waiting: list[Part] = [_image(path) for path in image or []]
    model = open_bundle(bundle, device, allow_code)
    typer.echo(_HELP)
    messages: list[Message] = []
    while True:
        try:
            line = _asked()
        except EOFError:
            return
        if line == "/quit":
            return
        if line == "/new":
            messages, waiting = [], []
        elif line.startswith("/image "):
            _add_image(waiting, line.removeprefix("/image ").strip())
        elif line.startswith("/"):
            typer.echo(f"unknown command {line.split()[0]!r}: {_HELP}")
        elif line:
            turn = Message(role="user", content=(*waiting, Text(text=line)))
            try:
                answer = _answer(model, [*messages, turn], max_new_tokens)
            except SampleError as error:
                typer.echo(f"{error.path}: {error.message}" if error.path else error.message)
                # A picture that cannot be used would spoil every question to come.
                waiting = [part for part in waiting if not (isinstance(part, Image) and part.path == error.path)]
                continue
            messages += [turn, Message(role="assistant", content=(Text(text=answer),))]
            waiting = []


def _asked() -> str:
    """Read a line; one from a file or a pipe is shown, as a terminal shows what is typed."""
    line = input("you: ").strip()
    if not sys.stdin.isatty():
        typer.echo(line)
    return line


def _image(path: Path) -> Image:
    if not path.is_file():
        raise ValueError(f"no file {str(path)!r}")
    return Image(path=str(path.absolute()))


def _add_image(waiting: list[Part], path: str) -> None:
    try:
        waiting.append(_image(Path(path).expanduser()))
    except ValueError as error:
        typer.echo(str(error))


def _answer(model: "Bundle", messages: list[Message], max_new_tokens: int) -> str:
    """Print the answer as it comes and return it."""
    pieces: list[str] = []
    for piece in model.stream(Sample(id="chat", messages=tuple(messages)), max_new_tokens=max_new_tokens):
        pieces.append(piece)
        typer.echo(piece, nl=False)
    typer.echo()
    return "".join(pieces)
