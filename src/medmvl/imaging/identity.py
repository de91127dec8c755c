"""What the DICOM headers of a picture or volume say that could identify a patient; values are never returned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.datadict import dictionary_VR, tag_for_keyword

from medmvl.imaging.address import split_address
from medmvl.imaging.confidentiality import identifying
from medmvl.imaging.deid import burned_in
from medmvl.imaging.dicom_file import clear_errors

_INDIRECT = {"DA", "TM", "DT", "UI"}


@dataclass(frozen=True)
class Identity:
    """What stands in the headers of a file, or of the files of a series.

    Attributes:
        direct: keywords of attributes that name or describe a person, or are private, and hold something.
        indirect: keywords of dates, times and UIDs, which many published sets have replaced already.
        burned_in: why the pixels of a file are known to show who the patient is, as de-identification tells it.
    """

    direct: tuple[str, ...] = ()
    indirect: tuple[str, ...] = ()
    burned_in: str = ""


def identity_of(path: str | Path) -> Identity:
    """Look at the headers of a file, or of every file in a folder; nothing is found in what is no DICOM.

    Raises:
        ImageError: a header is damaged.
    """
    file = split_address(path).file
    keywords: set[str] = set()
    shown = ""
    for one in sorted(file.iterdir()) if file.is_dir() else [file]:
        if one.is_file() and _is_dicom(one):
            with clear_errors(one):
                header = dcmread(one, stop_before_pixels=True, force=True)
                keywords.update(identifying(header))
                shown = shown or burned_in(header) or ""
    indirect = {keyword for keyword in keywords if is_indirect(keyword)}
    return Identity(tuple(sorted(keywords - indirect)), tuple(sorted(indirect)), shown)


def _is_dicom(path: Path) -> bool:
    """Whether a file has DICOM's mark, or its suffix as old files without a mark do."""
    if path.suffix.lower() in (".dcm", ".dicom", ".dic", ".ima"):
        return True
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def is_indirect(keyword: str) -> bool:
    """Whether a keyword is that of a date, time or UID, which many published sets have replaced; no date of birth."""
    tag = tag_for_keyword(keyword)
    return tag is not None and dictionary_VR(tag) in _INDIRECT and "Birth" not in keyword
