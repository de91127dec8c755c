"""What commands print with: typer apps that look alike, and a console that keeps tables whole in files and pipes."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

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


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Yield a function that moves a progress bar on standard error on; without a terminal there is no bar.

    Args:
        what: is counted.
        total: None where nobody knows it: then the count and its speed are shown.
    """
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Speed(ProgressColumn):
        """So many a second."""

        def render(self, task: Any) -> Text:
            return Text(f"{task.speed:,.0f}/s" if task.speed else "")

    known = (MofNCompleteColumn(), TimeRemainingColumn())
    counted = (TextColumn("{task.completed:,.0f}"), Speed())
    columns = (TextColumn("{task.description}"), BarColumn(), *(counted if total is None else known))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task(what, total=total)
        yield lambda count: bars.advance(bar, count)
