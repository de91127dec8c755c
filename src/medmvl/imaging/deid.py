"""De-identifies a DICOM data set after the standard's Basic Application Level Confidentiality Profile."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import BaseTag
from pydicom.uid import UID

from medmvl.imaging.confidentiality import (
    METHOD,
    Action,
    action_of,
    dummy,
    is_empty,
    is_standard,
    keyword_of,
    vr_of,
)
from medmvl.imaging.pseudonym import pseudonym, pseudonymous_uid

Treated = dict[str, dict[str, int]]
"""What was done -> keyword -> how many times: {"removed": {"PatientComments": 1}, ...}; never a value."""

_BURNING = {"US", "IVUS", "ES", "GM", "XC", "XA", "RF", "OT", "DOC", "HC"}
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_BASIC_PROFILE = {
    "CodeValue": "113100",
    "CodingSchemeDesignator": "DCM",
    "CodeMeaning": "Basic Application Confidentiality Profile",
}


class ElementError(ValueError):
    """An element that cannot be read, and so not be cleaned; names its keyword and never its value."""


def deidentify(dataset: Dataset, key: bytes, identity_removed: bool = True) -> Treated:
    """Clean a data set in place, with its file meta; pixels are not touched.

    See `confidentiality.action_of` for what becomes of each attribute, in sequences of any depth as at the top. Values
    that were empty stay so. UIDs are remapped by the key, alike everywhere, in every file. PatientID becomes the
    pseudonym of `patient_of`. A sequence that needs a dummy keeps its items, with a dummy in every element.

    Args:
        dataset: with SOPClassUID and SOPInstanceUID.
        key: secret of `pseudonym`.
        identity_removed: whether the file may state that it holds no identity, pixels included.

    Raises:
        ElementError: an element is malformed.
    """
    patient = pseudonym(key, patient_of(dataset))
    treated: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for keyword, action in _clean(dataset, key, False):
        treated[action.value][keyword] += 1
    dataset.PatientID = patient
    dataset.PatientIdentityRemoved = "YES" if identity_removed else "NO"
    dataset.DeidentificationMethod = METHOD
    code = Dataset()
    code.update(_BASIC_PROFILE)
    dataset.DeidentificationMethodCodeSequence = [code]
    dataset.LongitudinalTemporalInformationModified = "REMOVED"
    dataset.file_meta = _file_meta(dataset)
    dataset.preamble = bytes(128)
    return {what: dict(sorted(counts.items())) for what, counts in sorted(treated.items())}


def patient_of(dataset: Dataset) -> str:
    """Return what tells this patient from others: PatientID, or else the study, or else the file alone."""
    stated = (dataset.get(keyword) for keyword in ("PatientID", "StudyInstanceUID", "SOPInstanceUID"))
    return next((str(value).strip() for value in stated if value and str(value).strip()), "")


def burned_in(dataset: Dataset) -> str | None:
    """Return why the pixels are known to show who the patient is, or None."""
    for keyword in ("BurnedInAnnotation", "RecognizableVisualFeatures", "SpecimenLabelInImage"):
        if str(dataset.get(keyword) or "").strip().upper() == "YES":
            return f"its {keyword} is YES"
    if "LABEL" in _image_type(dataset):
        return "it shows the label of a slide"
    for group in range(0x6000, 0x6100, 2):
        if (group, 0x0010) in dataset and (group, 0x3000) not in dataset:
            return "an overlay lies in unused bits of its pixels"
    return None


def doubt(dataset: Dataset) -> str | None:
    """Return why text may be burned into the pixels though the file does not say so, or None."""
    if str(dataset.get("BurnedInAnnotation") or "").strip().upper() == "NO":
        return None
    modality = str(dataset.get("Modality") or "")
    if modality in _BURNING:
        return f"pictures of modality {modality} often hold text"
    if str(dataset.get("SOPClassUID") or "").startswith(_SECONDARY_CAPTURE) or dataset.get("ConversionType"):
        return "it was captured from a screen, a film or a document"
    if any("SCREEN" in word for word in _image_type(dataset)):
        return "it was captured from a screen"
    return None


def _image_type(dataset: Dataset) -> list[str]:
    value = dataset.get("ImageType") or []
    return [str(word).upper() for word in ([value] if isinstance(value, str) else value)]


def _clean(dataset: Dataset, key: bytes, deep: bool) -> Iterator[tuple[str, Action]]:
    """Clean the elements of a data set and yield what was done; `deep` leaves no value as it is."""
    for tag in list(dataset.keys()):
        try:
            raw = dataset.get_item(tag)
            vr = vr_of(raw)
            action = action_of(tag, vr)
            if deep and action is Action.KEEP:
                action = Action.DUMMY
            if vr == "SQ" and action not in (Action.REMOVE, Action.EMPTY):
                for item in dataset[tag].value or ():
                    yield from _clean(item, key, deep or action is Action.DUMMY)
            elif _change(dataset, raw, action, key):
                yield keyword_of(tag), action
        except ElementError:
            raise
        except Exception as error:  # pydicom converts elements on use; its messages repeat what they hold
            raise ElementError(f"{keyword_of(tag)} is malformed ({type(error).__name__})") from None


def _change(dataset: Dataset, raw: DataElement | RawDataElement, action: Action, key: bytes) -> bool:
    """Do to an element what is to be done; returns whether it held anything."""
    tag = raw.tag
    if action is Action.KEEP:
        return False
    if action is Action.REMOVE:
        del dataset[tag]
        return raw.tag.element != 0
    if is_empty(raw):
        return False
    dataset[tag] = _emptied(tag) if action is Action.EMPTY else _replaced(dataset, raw, key)
    return True


def _emptied(tag: BaseTag) -> DataElement:
    vr = dictionary_VR(tag)
    return DataElement(tag, vr, [] if vr == "SQ" else None)


def _replaced(dataset: Dataset, raw: DataElement | RawDataElement, key: bytes) -> DataElement:
    """Return an element with a remapped UID where it holds one, else with a dummy."""
    tag = raw.tag
    vr = str(dictionary_VR(tag))
    if vr != "UI":
        vr = vr if " " not in vr else str(dataset[tag].VR)
        return DataElement(tag, vr, dummy(vr))
    element = dataset[tag]
    uids = [str(uid).strip(" \0") for uid in (element.value if element.VM > 1 else [element.value])]
    return DataElement(tag, "UI", [uid if is_standard(uid) else pseudonymous_uid(key, uid) for uid in uids])


def _file_meta(dataset: Dataset) -> FileMetaDataset:
    """Return a file meta of what reading the file needs, and nothing else."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(dataset.SOPClassUID)
    meta.MediaStorageSOPInstanceUID = UID(dataset.SOPInstanceUID)
    meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    return meta
