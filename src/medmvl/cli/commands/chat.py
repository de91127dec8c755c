"""`medmvl chat`: a conversation about pictures and volumes, in the terminal."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medmvl.cli.opening import AllowCode, Device, open_bundle
from medmvl.cli.screen import new_app
from medmvl.core.schema import Image, Message, Part, Sample, SampleError, Text, Volume, split_fragment

if TYPE_CHECKING:
    from medmvl.bundle import Bundle

app = new_app()
_HELP = "/image PATH or /volume PATH adds one to your next question, /new starts over, /quit (or Ctrl-D) leaves"
_KINDS = {"image": Image, "volume": Volume}


@app.command()
def chat(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle.")],
    image: Annotated[list[str] | None, typer.Option(help="PNG, JPEG, TIFF, DICOM or npy; may be repeated.")] = None,
    volume: Annotated[
        list[str] | None, typer.Option(help="NIfTI, NRRD, MHA, or the folder of a DICOM series; may be repeated.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 256,
    device: Device = None,
    allow_code: AllowCode = None,
) -> None:
    """Ask questions about pictures and volumes; answers appear as they are written.

    \b
    medmvl chat runs/demo/2d/bundle --image scan.dcm
    medmvl chat runs/demo/3d/bundle --volume brain.nii.gz
    """
    waiting: list[Part] = [
        _media(kind, path) for kind, given in (("image", image), ("volume", volume)) for path in given or []
    ]
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
        elif line.startswith(("/image ", "/volume ")):
            kind, _, path = line.removeprefix("/").partition(" ")
            try:
                waiting.append(_media(kind, path.strip()))
            except ValueError as error:
                typer.echo(str(error))
        elif line.startswith("/"):
            typer.echo(f"unknown command {line.split()[0]!r}: {_HELP}")
        elif line:
            turn = Message(role="user", content=(*waiting, Text(text=line)))
            try:
                answer = _answer(model, [*messages, turn], max_new_tokens)
            except SampleError as error:
                typer.echo(f"{error.path}: {error.message}" if error.path else error.message)
                # A file that cannot be used would spoil every question to come.
                waiting = [part for part in waiting if getattr(part, "path", None) != error.path]
                continue
            messages += [turn, Message(role="assistant", content=(Text(text=answer),))]
            waiting = []


def _asked() -> str:
    """Read a line; one from a file or a pipe is shown, as a terminal shows what is typed."""
    line = input("you: ").strip()
    if not sys.stdin.isatty():
        typer.echo(line)
    return line


def _media(kind: str, path: str) -> Part:
    """Return an image or volume to show; a fragment such as "#series=3" stays with the path."""
    file, fragment = (path, "") if Path(path).expanduser().exists() else split_fragment(path)
    place = Path(file).expanduser().absolute()
    if not place.exists():
        raise ValueError(f"no file {file!r}")
    return _KINDS[kind](path=f"{place}#{fragment}" if fragment else str(place))


def _answer(model: "Bundle", messages: list[Message], max_new_tokens: int) -> str:
    """Print the answer as it comes and return it."""
    pieces: list[str] = []
    for piece in model.stream(Sample(id="chat", messages=tuple(messages)), max_new_tokens=max_new_tokens):
        pieces.append(piece)
        typer.echo(piece, nl=False)
    typer.echo()
    return "".join(pieces)
