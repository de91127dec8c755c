"""De-identifies a DICOM data set after the standard's Basic Application Level Confidentiality Profile."""

from medmvl.imaging.confidentiality import identifying

__all__ = ["identifying"]
