"""Whether a recipe's data is at hand: found, a known data set to fetch, or a name that means nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medmvl.core.lookup import nearest
from medmvl.data.store import SampleStore, StoreError, find_source
from medmvl.train.recipe import Data

KNOWN = {
    "brain_atlas": "built here: medmvl data build brain_atlas data/brain_atlas",
    "brain_atlas_3d": "built here: medmvl data build brain_atlas_3d data/brain_atlas_3d",
    "ct_rate": "CT-RATE, gated: huggingface.co/datasets/ibrahimhamamci/CT-RATE",
    "llava_pretrain": "LLaVA-Pretrain, 558K captions: huggingface.co/datasets/liuhaotian/LLaVA-Pretrain",
    "llava_instruct_mix665k": "LLaVA-Instruct mix665k: huggingface.co/datasets/liuhaotian/LLaVA-Instruct-150K",
    "llava_med": "LLaVA-Med alignment 500K and instruct 60K: github.com/microsoft/LLaVA-Med",
    "m3d": "M3D-Cap, M3D-VQA and M3D-Seg: huggingface.co/GoodBaiBai88",
    "medmnist": "DermaMNIST and OrganSMNIST: medmnist.com",
    "medpix": "MPx-Single (RadFM): huggingface.co/datasets/chaoyi-wu/RadFM_data_csv",
    "medqa": "MedQA, text only: github.com/jind11/MedQA",
    "mimic_cxr": "MIMIC-CXR-JPG, credentialed: physionet.org/content/mimic-cxr-jpg",
    "pathvqa": "PathVQA: huggingface.co/datasets/flaviagiammarino/path-vqa",
    "pubmedqa": "PubMedQA, text only: pubmedqa.github.io",
    "radfm": "MedMD and RadMD of RadFM: github.com/chaoyi-wu/RadFM",
    "sa_med2d": "SA-Med2D-20M: huggingface.co/datasets/OpenGVLab/SA-Med2D-20M",
    "slake": "SLAKE: huggingface.co/datasets/BoKelvin/SLAKE",
}
"""Data sets that shipped recipes name, and where they come from."""


@dataclass(frozen=True)
class Status:
    """What is known of one source.

    Attributes:
        data: as the recipe names it.
        store: the samples; None when they are not at hand.
        note: the folder, or what is missing and what to do.
        fatal: True when nothing is known by this name, or what is there cannot be read.
    """

    data: Data
    store: SampleStore | None
    note: str
    fatal: bool = False


def status(data: Data, roots: Sequence[str | Path]) -> Status:
    """Look for one source in `roots`."""
    name = data.source.partition("/")[0]
    try:
        found = find_source(data.source, roots)
    except StoreError as error:
        return _missing(data, name, str(error))
    tasks = list(data.tasks) if data.tasks is not None else found.tasks
    try:
        store = SampleStore(found.folder, data.split, tasks, roots=roots)
    except StoreError as error:
        return Status(data, None, str(error), fatal=True)
    if not len(store):
        return Status(data, None, f"{store.path} has no sample of this kind", fatal=True)
    return Status(data, store, str(store.path))


def _missing(data: Data, name: str, error: str) -> Status:
    if name in KNOWN and not Path(data.source).exists():
        return Status(data, None, f"not here; {KNOWN[name]}")
    near = nearest(name, KNOWN)
    hint = f" Of known data sets, {near!r} is nearest ({KNOWN[near]})." if near else ""
    return Status(data, None, f"{error}{hint}", fatal=True)
