"""Filling the cache of prepared volumes ahead of use, with several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from medmvl.core.atomic import DiskFullError
from medmvl.imaging.cache import PreparedStore
from medmvl.imaging.spec import VisionSpec
from medmvl.imaging.workers import work_all

_Job = tuple[str, VisionSpec]


@dataclass(frozen=True)
class Outcome:
    """What became of one volume: bytes that were stored (0: it was there), or why it cannot be used."""

    path: str
    stored: int = 0
    error: str | None = None


def prepare_all(folder: str | Path, jobs: Iterable[_Job], workers: int | None = None) -> Iterator[Outcome]:
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
    return work_all(partial(_begin, folder), jobs, lambda job, how: Outcome(job[0], error=how), workers)


def _begin(folder: str | Path) -> Callable[[_Job], Outcome]:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    return partial(_prepare, PreparedStore(folder, strict=True))


def _prepare(store: PreparedStore, job: _Job) -> Outcome:
    path, spec = job
    try:
        return Outcome(path, store.prepare(path, spec))
    except DiskFullError:
        raise
    except (ValueError, OSError, MemoryError) as error:
        return Outcome(path, error=str(error).removeprefix(f"{path}: ") or type(error).__name__)
