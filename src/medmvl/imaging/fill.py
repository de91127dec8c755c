"""Filling the cache of prepared volumes ahead of use, with several processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing import connection
from pathlib import Path

from medmvl.core.atomic import DiskFullError
from medmvl.imaging.cache import PreparedStore
from medmvl.imaging.spec import VisionSpec

_PATIENCE = 5.0  # seconds; a process without work looks so often whether it is still wanted


@dataclass(frozen=True)
class Outcome:
    """What became of one volume: bytes that were stored (0: it was there), or why it cannot be used."""

    path: str
    stored: int = 0
    error: str | None = None


def prepare_all(
    folder: str | Path, jobs: Iterable[tuple[str, VisionSpec]], workers: int | None = None
) -> Iterator[Outcome]:
    """Put volumes into a cache, several at a time; yields each as it is done, in any order.

    What is there already is passed over, so a call that was stopped is simply made again. A volume whose reading
    kills its process costs that process and is told as broken.

    Args:
        folder: of the cache.
        jobs: addresses and specs.
        workers: processes, each of which holds one volume in memory; default: one per usable core.

    Raises:
        DiskFullError: an entry cannot be written.
    """
    waiting = iter(jobs)
    count = workers or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    helpers: list[_Helper] = []
    try:
        for job in islice(waiting, count):
            helpers.append(_Helper(folder, job))
        while helpers:
            ready = connection.wait([helper.pipe for helper in helpers])
            for helper in [helper for helper in helpers if helper.pipe in ready]:
                answer = helper.answer()
                if isinstance(answer, DiskFullError):
                    raise answer
                yield answer
                helpers.remove(helper)
                job = next(waiting, None)
                if job is None:
                    helper.end()
                elif helper.process.is_alive():
                    helper.give(job)
                    helpers.append(helper)
                else:
                    helper.end()
                    helpers.append(_Helper(folder, job))
    finally:
        for helper in helpers:
            helper.end()


class _Helper:
    """A process that prepares volumes, one after the other."""

    def __init__(self, folder: str | Path, job: tuple[str, VisionSpec]) -> None:
        context = multiprocessing.get_context("fork")  # a script that calls this needs no __main__ guard
        self.pipe, far = context.Pipe()
        self.process = context.Process(target=_help, args=(far, folder, os.getpid()), daemon=True)
        self.process.start()
        far.close()
        self.give(job)

    def give(self, job: tuple[str, VisionSpec]) -> None:
        """Hand over the next volume."""
        self._path = job[0]
        with suppress(BrokenPipeError):  # `answer` tells
            self.pipe.send(job)

    def answer(self) -> Outcome | DiskFullError:
        """Return what became of the volume handed over last."""
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            code = self.process.exitcode or 0
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            return Outcome(self._path, error=f"the process that read it died ({how}); out of memory, or a damaged file")

    def end(self) -> None:
        """Stop at once; what is half written is no entry."""
        self.process.terminate()
        self.process.join()
        self.pipe.close()


def _help(pipe: connection.Connection, folder: str | Path, parent: int) -> None:
    import SimpleITK as sitk

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    store = PreparedStore(folder, strict=True)
    while True:
        while not pipe.poll(_PATIENCE):
            if os.getppid() != parent:  # killed; other helpers may hold the far end of this pipe
                return
        try:
            path, spec = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(Outcome(path, store.prepare(path, spec)))
        except DiskFullError as error:
            pipe.send(error)
        except (ValueError, OSError, MemoryError) as error:
            pipe.send(Outcome(path, error=str(error).removeprefix(f"{path}: ") or type(error).__name__))
