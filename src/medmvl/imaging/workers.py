"""Work on many files with several processes, where a file that kills its process loses nothing else."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from multiprocessing import connection
from typing import Generic, TypeVar

from medmvl.core.atomic import DiskFullError

Job = TypeVar("Job")
Outcome = TypeVar("Outcome")

_PATIENCE = 5.0  # seconds; a process without work looks so often whether it is still wanted


def work_all(
    begin: Callable[[], Callable[[Job], Outcome]],
    jobs: Iterable[Job],
    died: Callable[[Job, str], Outcome],
    workers: int | None = None,
) -> Iterator[Outcome]:
    """Do jobs, several at a time; yields the outcome of each as it is done, in any order.

    Args:
        begin: called once in every process; returns what does a job. That raises nothing but `DiskFullError`.
        jobs: taken one by one, as processes become free.
        died: makes the outcome of a job whose process died, of the job and how it died.
        workers: processes; default: one per usable core.

    Raises:
        DiskFullError: a job raised it; the others are stopped.
    """
    waiting = iter(jobs)
    count = workers or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    helpers: list[_Helper[Job, Outcome]] = []
    try:
        for job in islice(waiting, count):
            helpers.append(_Helper(begin, job, died))
        while helpers:
            ready = connection.wait([helper.pipe for helper in helpers])
            for helper in [helper for helper in helpers if helper.pipe in ready]:
                answer = helper.answer()
                if isinstance(answer, DiskFullError):
                    raise answer
                yield answer
                helpers.remove(helper)
                for job in islice(waiting, 1):
                    helpers.append(helper.follow(job))
                if helper not in helpers:
                    helper.end()
    finally:
        for helper in helpers:
            helper.end()


class _Helper(Generic[Job, Outcome]):
    """A process that does jobs, one after the other."""

    def __init__(
        self, begin: Callable[[], Callable[[Job], Outcome]], job: Job, died: Callable[[Job, str], Outcome]
    ) -> None:
        context = multiprocessing.get_context("fork")  # a script that calls this needs no __main__ guard
        self._begin, self._died = begin, died
        self.pipe, far = context.Pipe()
        self.process = context.Process(target=_help, args=(far, begin, os.getpid()), daemon=True)
        self.process.start()
        far.close()
        self._give(job)

    def follow(self, job: Job) -> _Helper[Job, Outcome]:
        """Hand over the next job; returns who does it: this process, or a new one where it has died."""
        if not self.process.is_alive():
            return _Helper(self._begin, job, self._died)
        self._give(job)
        return self

    def _give(self, job: Job) -> None:
        self._job = job
        with suppress(BrokenPipeError):  # `answer` tells
            self.pipe.send(job)

    def answer(self) -> Outcome | DiskFullError:
        """Return what became of the job handed over last."""
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            code = self.process.exitcode or 0
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            return self._died(self._job, f"the process that read it died ({how}); out of memory, or a damaged file")

    def end(self) -> None:
        """Stop at once; whatever a job writes appears whole or not at all."""
        self.process.terminate()
        self.process.join()
        self.pipe.close()


def _help(pipe: connection.Connection, begin: Callable[[], Callable[[Job], object]], parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    do = begin()
    while True:
        while not pipe.poll(_PATIENCE):
            if os.getppid() != parent:  # killed; other helpers may hold the far end of this pipe
                return
        try:
            job = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(do(job))
        except DiskFullError as error:
            pipe.send(error)
