"""How a benchmark is built: patients in worker processes, a folder that appears whole, nothing built twice."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from medmvl.core.atomic import atomic_folder
from medmvl.core.log import get_logger
from medmvl.core.schema import Sample
from medmvl.data.store import StoreError, read_manifest, write_samples

LICENCE = (
    "Pictures: MNI152 ICBM 2009c T1 template, (C) 1993-2004 Louis Collins, McConnell Brain Imaging Centre, McGill "
    "University; free to use, copy, modify and distribute with this notice. Labels: Neuromorphometrics, CC BY-NC, "
    "provided by Neuromorphometrics, Inc. (http://neuromorphometrics.com) under academic subscription; scans from "
    "OASIS (http://www.oasis-brains.org)."
)
_SPLIT_OF_TWENTY = ("train",) * 16 + ("val",) + ("test",) * 3  # by patient: 80 / 5 / 15 %
# Streams of random numbers; whoever shares a seed shares the patients' anatomies and splits.
ANATOMY, STUDY, QUESTIONS, _SPLITS, STUDY_3D, QUESTIONS_3D, ORIENTATION = range(7)


def build_store(
    out: Path,
    request: Mapping[str, int],
    patient: Callable[[Path, int], list[Sample]],
    warm_up: Callable[[], object],
    *,
    name: str,
    version: str,
    description: str,
    media: str,
    workers: int | None,
    **extra: Any,
) -> Path:
    """Build a benchmark unless `out` holds it already.

    Args:
        out: the store's folder; a former benchmark of this name there is replaced, any other content refused.
        request: what is asked for ("patients", "studies", "seed", ...); kept in the manifest.
        patient: (folder, number) -> the samples of one patient, whose media it writes; picklable.
        warm_up: called once before processes start, so that they share what it reads.
        name, version, description: for the manifest.
        media: folder and suffix of the media, "images/*.png"; one file per study.
        workers: processes; None: as many as there are cores.
        extra: further fields of the manifest.

    Raises:
        StoreError: `out` holds something else.
        DiskFullError: no space left; a former benchmark stays.
    """
    if _is_built(out, request, name, version, media):
        get_logger(__name__).info("%s already holds this benchmark", out)
        return out
    warm_up()
    with atomic_folder(out) as fresh:
        (fresh / media).parent.mkdir()
        write_samples(
            fresh,
            _samples(fresh, request["patients"], patient, workers or cores()),
            name=name,
            version=version,
            licence=LICENCE,
            description=description,
            seed=request["seed"],
            build=dict(request),
            **extra,
        )
    return out


def check_ranges(benchmark: str, **ranges: tuple[int, int, int]) -> None:
    """Refuse numbers out of range; each is given as (value, lowest, highest)."""
    for name, (value, low, high) in ranges.items():
        if not low <= value <= high:
            raise ValueError(f"{benchmark}: {name}={value} is out of range; choose {low} to {high}")


def cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def generator(seed: int, number: int, *stream: int) -> np.random.Generator:
    """Return the random numbers of one patient and purpose."""
    return np.random.default_rng([seed, number, *stream])


def split_of(seed: int, number: int) -> str:
    """Return the split of a patient: of every twenty in a row, 16 are train, 1 val, 3 test."""
    order = generator(seed, number // len(_SPLIT_OF_TWENTY), _SPLITS).permutation(len(_SPLIT_OF_TWENTY))
    return _SPLIT_OF_TWENTY[order[number % len(_SPLIT_OF_TWENTY)]]


def patient_name(number: int) -> str:
    """Return the virtual patient's id, the same in every benchmark."""
    return f"bp{number:05d}"


def _is_built(out: Path, request: Mapping[str, int], name: str, version: str, media: str) -> bool:
    """Say whether `out` holds what is asked for; refuse a folder that holds anything but a former benchmark."""
    if not out.exists():
        return False
    manifest = read_manifest(out)
    if manifest.get("name") != name and (not out.is_dir() or any(out.iterdir())):
        raise StoreError(
            f"{out} holds something other than Brain-Atlas-VQA ({name}), and is left alone; choose another folder"
        )
    if manifest.get("build") != request or manifest.get("version") != version:
        return False
    # A copy that was cut off may lack pictures or samples.
    return sum(1 for _ in out.glob(media)) == request["patients"] * request["studies"] and all(
        (out / entry["file"]).is_file() for entry in manifest["splits"].values()
    )


def _samples(
    folder: Path, patients: int, patient: Callable[[Path, int], list[Sample]], workers: int
) -> Iterator[Sample]:
    """Yield all samples in order of patients while worker processes write the media."""
    work = partial(patient, folder)
    numbers = range(patients)
    if workers == 1:
        yield from (sample for samples in _progress(map(work, numbers), patients) for sample in samples)
        return
    # Forked workers inherit the atlas; spawned ones (elsewhere than on Linux) read it on their first patient.
    method = "fork" if sys.platform == "linux" else "spawn"
    # An executor, for it reports a worker that was killed; a Pool would wait for it without end.
    with ProcessPoolExecutor(workers, multiprocessing.get_context(method)) as pool:
        results = pool.map(work, numbers, chunksize=8)
        yield from (sample for samples in _progress(results, patients) for sample in samples)


def _progress(results: Iterator[list[Sample]], total: int) -> Iterator[list[Sample]]:
    """Pass results through; on a terminal, rank 0 draws a bar."""
    if not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0":
        return results
    from rich.console import Console
    from rich.progress import track

    return iter(track(results, "Brain-Atlas-VQA", total=total, console=Console(stderr=True)))
