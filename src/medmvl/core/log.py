"""A log that knows its rank: rank 0 speaks, the other processes only warn and say who they are."""

import logging
import os
import sys

_ROOT = "medmvl"


class _Console(logging.Handler):
    """Writes to stderr; pays for rich at the first line, and only on a terminal."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self._rank = rank
        self._target: logging.Handler | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if self._target is None:
            self._target = self._open()
        self._target.emit(record)

    def _open(self) -> logging.Handler:
        if self._rank == 0 and sys.stderr.isatty():
            from rich.console import Console
            from rich.logging import RichHandler

            return RichHandler(console=Console(stderr=True), show_path=False, markup=False)
        handler = logging.StreamHandler()
        who = f"[rank {self._rank}] " if self._rank else ""
        handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {who}%(message)s", "%H:%M:%S"))
        return handler


def get_logger(name: str = _ROOT) -> logging.Logger:
    """Return the logger `name` under "medmvl"; the first call sets up the console.

    The rank is read from the environment variable RANK that torchrun and accelerate set. Rank 0 shows INFO and
    above, every other rank WARNING and above with its number in front.
    """
    root = logging.getLogger(_ROOT)
    if not any(isinstance(handler, _Console) for handler in root.handlers):
        rank = int(os.environ.get("RANK", "0"))
        root.addHandler(_Console(rank))
        root.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    return root if name == _ROOT else logging.getLogger(name if name.startswith(f"{_ROOT}.") else f"{_ROOT}.{name}")


def bytes_text(count: float) -> str:
    """Return a number of bytes for reading: 4194304 -> "4.2 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.1f} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    return f"{count:,.1f} TB"
