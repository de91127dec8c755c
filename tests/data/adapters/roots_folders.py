"""A tree of DICOM series and pictures with a table of reports; all patients are made up."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from pydicom.uid import generate_uid

from adapter_root import Root
from dicom_files import dataset, save, slices, write_series

CASES = ("ONE", "TWO", "THREE")


def study(case):
    return f"1.2.826.0.1.3680043.8.498.{CASES.index(case) + 1}"


def build(folder: Path) -> Root:
    volume = sitk.GetImageFromArray(np.arange(60, dtype=np.int16).reshape(3, 4, 5))
    for case in CASES[:2]:
        elements = {"PatientID": f"SECRET-{case}", "StudyInstanceUID": study(case), "AccessionNumber": f"ACC-{case}"}
        write_series(folder / f"scans/{case.lower()}", slices(volume, **elements))
    view = {"PatientID": "SECRET-TWO", "StudyInstanceUID": study("TWO"), "Modality": "DX"}
    save(
        folder / "scans/two/view.dcm",
        dataset(np.arange(20, dtype=np.uint16).reshape(4, 5), SeriesInstanceUID=generate_uid(), **view),
    )
    (folder / "scans/broken.dcm").write_bytes(b"no DICOM")
    rows = [
        "id,StudyInstanceUID,report,set",
        f"SECRET-ONE,{study('ONE')},No nodule.,train",
        f"SECRET-TWO,{study('TWO')},A nodule.,test",
        f"SECRET-THREE,{study('THREE')},Never scanned.,train",
        f"SECRET-ONE,{study('ONE')},,test",
        "SECRET-ONE,,No study.,test",
    ]
    (folder / "reports.csv").write_text("\n".join(rows) + "\n")
    (folder.parent / "secret.key").write_bytes(b"k" * 32)
    options = {
        "answer": "report",
        "ask": "Describe the findings.",
        "split": "set",
        "key_file": str(folder.parent / "secret.key"),
    }
    counts = {("train", "folders/report"): 1, ("test", "folders/report"): 1}
    return Root(folder, counts, {"train": 2, "test": 2}, options, names_paths=False)
