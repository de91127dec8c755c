"""How commands open a bundle: on which device, and whose code it may run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from medmvl.bundle import Bundle

Device = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1, mps; default: the GPU where there is one.")
]
AllowCode = Annotated[
    list[str] | None,
    typer.Option("--allow-code", metavar="PACKAGE", help="A package of yours whose code the bundle may run."),
]


def open_bundle(folder: Path, device: str | None, allow_code: list[str] | None) -> "Bundle":
    """Load a bundle onto the device asked for.

    Raises:
        ValueError: no such device, or no bundle that can be loaded.
    """
    from medmvl.bundle import load

    return load(folder, device=device_of(device), allow_code=allow_code or ())


def device_of(name: str | None) -> str:
    """Return the device to use: `name`, or the GPU where there is one.

    Raises:
        ValueError: this machine has no such device.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: {str(error).splitlines()[0]}") from error
    return name
