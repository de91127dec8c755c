"""What the standard's Basic Application Level Confidentiality Profile does with each DICOM attribute.

The table is data, `confidentiality.json`: tag, keyword and action code of every attribute of PS3.15 Table E.1-1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

METHOD = "medmvl: Basic Application Confidentiality Profile"
"""DeidentificationMethod of files de-identified here."""

PRIVATE = "PrivateAttributes"
"""What stands for all private attributes in lists of keywords."""

_TABLE = Path(__file__).with_name("confidentiality.json")
_OWN_ID = re.compile(r"[a-z2-7]{16}")
_TEXT = "ANONYMIZED"
_DUMMIES: dict[str, Any] = {
    "AS": "000Y", "DA": "19000101", "DT": "19000101000000", "TM": "000000", "UR": "http://anonymized.invalid",
    **dict.fromkeys(("DS", "IS"), "0"),
    **dict.fromkeys(("AT", "SS", "US", "SL", "UL", "SV", "UV"), 0), **dict.fromkeys(("FL", "FD"), 0.0),
    **dict.fromkeys(("OB", "OW", "OF", "OD", "OL", "OV", "UN"), bytes(8)),
}  # fmt: skip
_TELLING = {"PN", "DA", "DT", "TM", "UR"}
# What people write, and dates of birth and death as words.
_FREE = re.compile(r"^CommentsOn|Comments?(?:Trial)?$|DateInAlternativeCalendar$")
_OF_KINDS = re.compile(r"(?:SOPClassUID|SOPClasses\w*|TransferSyntaxUID|CodingSchemeUID|ContextUID|ResourceUID)$")
_CURVES, _OVERLAYS = 0x5000, 0x6000


class Action(Enum):
    """What becomes of an attribute."""

    KEEP = "kept"
    REMOVE = "removed"
    EMPTY = "emptied"
    DUMMY = "replaced"
    REMAP = "remapped"


# Whether an attribute may be absent or empty depends on the kind of object (its IOD). The strictest action that is
# valid in all of them is taken: a dummy is valid where a value is optional, an empty one where it may be missing.
_ACTIONS = {
    "X": Action.REMOVE,
    "Z": Action.EMPTY,
    "D": Action.DUMMY,
    "U": Action.REMAP,
    "X/Z": Action.EMPTY,
    "X/D": Action.DUMMY,
    "Z/D": Action.DUMMY,
    "X/Z/D": Action.DUMMY,
    "X/Z/U*": Action.REMAP,
}


@cache
def profile() -> dict[int, tuple[str, str]]:
    """Return tag -> (keyword, action code) of the table; its three rows of repeating groups stand under group xx00."""
    rows = json.loads(_TABLE.read_text(encoding="utf-8"))["attributes"]
    return {int(tag.replace("x", "0"), 16): (keyword, code) for tag, keyword, code in rows}


def edition() -> str:
    """Return the edition of the standard that the table was taken from."""
    return json.loads(_TABLE.read_text(encoding="utf-8"))["edition"]


def action_of(tag: BaseTag, vr: str | None) -> Action:
    """Return what becomes of an attribute.

    Beyond the table, private attributes, group lengths, curves and overlays as a whole (an overlay plane without its
    data is invalid) and tags that the dictionary does not know are removed. The table grows with the standard, so names
    of persons, dates, times, addresses and comments that it does not list get dummies, and UIDs of instances are
    remapped; those of kinds (of objects, transfer syntaxes, coding schemes) name nobody and stay.

    Args:
        tag: of the attribute.
        vr: value representation that the file states; None where it states none.
    """
    if tag.is_private or tag.element == 0 or tag.group < 8 or tag.group & 0xFF00 in (_CURVES, _OVERLAYS):
        return Action.REMOVE
    known = dictionary_VR(tag) if dictionary_has_tag(tag) else None
    if vr is not None and (known == "SQ") != (vr == "SQ"):
        return Action.REMOVE  # a sequence as bytes, or bytes as a sequence: no one knows what it holds
    if tag in profile():
        return _ACTIONS[profile()[tag][1]]
    if known is None or vr == "UN":
        return Action.REMOVE
    keyword = keyword_for_tag(tag)
    if {known, vr} & _TELLING or (known != "SQ" and _FREE.search(keyword)):
        return Action.DUMMY
    if known == "UI" and not _OF_KINDS.search(keyword):
        return Action.REMAP
    return Action.KEEP


def keyword_of(tag: BaseTag) -> str:
    """Return the keyword of an attribute, `PRIVATE`, or its tag where the standard knows no keyword."""
    if tag.is_private:
        return PRIVATE
    return profile().get(tag, ("",))[0] or keyword_for_tag(tag) or str(tag)


def dummy(vr: str) -> Any:
    """Return the value that stands for one that was removed, valid in its value representation."""
    return _DUMMIES.get(vr, _TEXT)


def is_standard(uid: str) -> bool:
    """Whether a UID is the standard's own, such as that of a transfer syntax: it names no instance."""
    return uid.startswith("1.2.840.10008.")


def vr_of(element: DataElement | RawDataElement) -> str | None:
    """Return the value representation of an element; None where the file states none, or only "unknown"."""
    if element.VR not in (None, "UN"):
        return str(element.VR)
    return str(dictionary_VR(element.tag)) if dictionary_has_tag(element.tag) else element.VR


def is_empty(element: DataElement | RawDataElement) -> bool:
    """Whether an element has no value, or only padding."""
    if isinstance(element, RawDataElement):
        return not (element.value or b"").strip(b" \0")
    return element.is_empty


def identifying(dataset: Dataset) -> list[str]:
    """Return the sorted keywords of what could identify a patient in a data set, at any depth and in its file meta.

    These are the attributes that de-identification would remove, empty, replace or remap and that hold something:
    neither an empty value nor a dummy written here, nor UIDs of a file which says that identities were removed.
    Private attributes appear together, as `PRIVATE`. Values are never returned.

    Raises:
        Exception: whatever pydicom raises for an element that cannot be read.
    """
    cleaned = dataset.get("PatientIdentityRemoved") == "YES" or dataset.get("DeidentificationMethod") == METHOD
    found = set(_identifying(dataset, cleaned, False))
    meta = getattr(dataset, "file_meta", None) or Dataset()
    found.update(
        keyword_of(tag) for tag in list(meta.keys()) if tag.element > 0x13 and not is_empty(meta.get_item(tag))
    )
    return sorted(found)


def _identifying(dataset: Dataset, cleaned: bool, deep: bool) -> Iterator[str]:
    for tag in list(dataset.keys()):
        raw = dataset.get_item(tag)
        vr = vr_of(raw)
        action = action_of(tag, vr)
        if action is Action.REMOVE or (vr == "SQ" and action is Action.EMPTY):
            if tag.element and not is_empty(raw):
                yield keyword_of(tag)
        elif vr == "SQ":
            for item in dataset[tag].value or ():
                yield from _identifying(item, cleaned, deep or action is Action.DUMMY)
        elif (action is not Action.KEEP or deep) and not is_empty(raw) and not _is_ours(dataset[tag], cleaned):
            yield keyword_of(tag)


def _is_ours(element: DataElement, cleaned: bool) -> bool:
    """Whether a value is a dummy, a pseudonym, or a UID that names no original."""
    value = element.value
    if dictionary_VR(element.tag) == "UI":
        uids = value if element.VM > 1 else [value]
        return all(cleaned or is_standard(str(uid)) for uid in uids)
    if element.keyword == "PatientID" and cleaned and _OWN_ID.fullmatch(str(value)):
        return True
    return value == dummy(element.VR) or str(value) == str(dummy(element.VR))
