"""What commands print with: typer apps that look alike, and a console that keeps tables whole in files and pipes."""

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

_PIPE_WIDTH = 140


def new_app() -> typer.Typer:
    r"""Return an empty typer app; in a command's docstring a line of "\b" keeps the lines below it as they are."""
    return typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    )


def console() -> "Console":
    """Return a console on standard output; outside a terminal it is wide, so that no column is cut."""
    from rich.console import Console

    terminal = Console(highlight=False)
    return terminal if terminal.is_terminal else Console(width=_PIPE_WIDTH, highlight=False)
