"""The table of adapters: the name that `medmvl data convert` takes, and the class behind it."""

from __future__ import annotations

from medmvl.core.lookup import resolve
from medmvl.data.adapters.base import Adapter

ADAPTERS: dict[str, str] = {
    "medmnist": "medmvl.data.adapters.medmnist:MedMnist",
    "mimic_cxr": "medmvl.data.adapters.mimic_cxr:MimicCxr",
    "medpix": "medmvl.data.adapters.medpix:MedPix",
    "pathvqa": "medmvl.data.adapters.pathvqa:PathVqa",
    "slake": "medmvl.data.adapters.slake:Slake",
    "sa_med2d": "medmvl.data.adapters.sa_med2d:SaMed2d",
    "llava_med": "medmvl.data.adapters.llava_med:LlavaMed",
    "llava_pretrain": "medmvl.data.adapters.llava_pretrain:LlavaPretrain",
    "ct_rate": "medmvl.data.adapters.ct_rate:CtRate",
    "m3d": "medmvl.data.adapters.m3d:M3d",
    "vqa_rad": "medmvl.data.adapters.vqa_rad:VqaRad",
    "radfm": "medmvl.data.adapters.radfm:RadFm",
    "medqa": "medmvl.data.adapters.medqa:MedQa",
    "pubmedqa": "medmvl.data.adapters.pubmedqa:PubMedQa",
    "annotations": "medmvl.data.adapters.annotations:Annotations",
    "llava": "medmvl.data.adapters.annotations:Annotations",
    "table": "medmvl.data.adapters.columns:Columns",
    "hf": "medmvl.data.adapters.hf:HuggingFace",
    "folders": "medmvl.data.adapters.folders:Folders",
}


def adapter(name: str) -> type[Adapter]:
    """Return the adapter of a name or dotted path.

    Raises:
        LookupNameError: no such adapter; says the nearest and all names.
    """
    found = resolve(ADAPTERS, name, "data set")
    if not (isinstance(found, type) and issubclass(found, Adapter)):
        raise ValueError(
            f"data set {name!r}: {found!r} is no adapter; derive it from medmvl.data.adapters.base.Adapter"
        )
    return found
