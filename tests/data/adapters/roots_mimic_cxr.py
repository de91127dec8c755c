"""A tiny MIMIC-CXR: five made-up patients, nine images, PhysioNet's tables and reports, or R2Gen's annotation.json."""

import csv
import gzip
import io
import json
from pathlib import Path

from PIL import Image as Picture

from adapter_root import Root

LABELS = [
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture", "Lung Lesion",
    "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia", "Pneumothorax", "Support Devices",
]  # fmt: skip

REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)
\x20
 INDICATION:  ___ year old person with cough.
\x20
 FINDINGS:
\x20
 {findings}  Heart size
 is normal.
\x20
 IMPRESSION:
\x20
 {impression}
"""

# subject, study, image, view, split
IMAGES = [
    ("10000001", "50000001", "a1", "LATERAL", "train"),
    ("10000001", "50000001", "a2", "PA", "train"),
    ("10000001", "50000002", "b1", "AP", "train"),
    ("10000002", "50000003", "c1", "", "train"),
    ("10000003", "50000004", "d1", "PA", "validate"),
    ("11000004", "50000005", "e1", "AP", "test"),
    ("11000004", "50000005", "e2", "LL", "test"),
    ("11000005", "50000006", "f1", "PA", "test"),
]


def dicom_id(name: str) -> str:
    """Return a name such as the official ones: five groups of eight digits."""
    return "-".join([f"{name:0>8}"] * 5)


def place(subject: str, study: str) -> str:
    return f"p{subject[:2]}/p{subject}/s{study}"


def table(path: Path, header: list[str], rows: list[list]) -> None:
    """Write a table, gzipped where its name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    content = text.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def pictures(folder: Path, suffix: str = ".jpg") -> None:
    for subject, study, name, _, _ in IMAGES:
        path = folder / place(subject, study) / f"{dicom_id(name)}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Picture.new("L", (40, 50), 30 * (ord(name[0]) - 97)).save(path, "JPEG")


def labels(**states: str) -> list[str]:
    return [states.get(label.replace(" ", "_"), "") for label in LABELS]


def write(folder: Path, suffix: str = ".jpg", reports: str = "mimic-cxr-reports/files") -> Path:
    """Write the official tree."""
    pictures(folder / "files", suffix)
    rows = [[dicom_id(name), study, subject, split] for subject, study, name, _, split in IMAGES]
    rows.insert(3, [dicom_id("x1"), "50000009", "", "train"])
    rows.insert(4, ["../../../../../../outside", "50000001", "10000001", "train"])
    table(folder / "mimic-cxr-2.0.0-split.csv.gz", ["dicom_id", "study_id", "subject_id", "split"], rows)
    header = ["dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows"]
    rows = [
        [dicom_id(name), subject, study, "CHEST (PA AND LAT)", view, 50] for subject, study, name, view, _ in IMAGES
    ]
    table(folder / "mimic-cxr-2.0.0-metadata.csv.gz", header, rows)
    rows = [
        ["10000001", "50000001", *labels(No_Finding="1.0")],
        ["10000001", "50000002", *labels(Cardiomegaly="1.0", Edema="-1.0", Pneumothorax="0.0", Support_Devices="1.0")],
        ["10000002", "50000003", *labels(Pneumonia="-1.0")],
        ["10000003", "50000004", *labels(Atelectasis="1.0")],
        ["11000004", "50000005", *labels(Atelectasis="yes")],
        ["11000005", "50000006", *labels(Pleural_Effusion="1.0", Atelectasis="1.0")],
    ]
    table(folder / "mimic-cxr-2.0.0-chexpert.csv.gz", ["subject_id", "study_id", *LABELS], rows)
    table(folder / "mimic-cxr-2.0.0-negbio.csv", ["subject_id", "study_id", *LABELS], rows[2:3])
    for subject, study, _, _, _ in IMAGES:
        path = folder / reports / f"{place(subject, study)}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(REPORT.format(findings=f"Lungs of {study} are clear.", impression="No acute disease."))
    (folder / reports / f"{place('10000002', '50000003')}.txt").write_text(
        " FINAL REPORT\n INDICATION:  Cough.\n \n Lungs are clear.\n \n Heart is normal.\n"
    )
    return folder


def write_r2gen(folder: Path) -> Path:
    """Write R2Gen's form: one file of annotations, reports that are findings already."""
    pictures(folder / "files")
    data: dict[str, list[dict]] = {"train": [], "val": [], "test": []}
    for subject, study, name, _, split in IMAGES:
        data["val" if split == "validate" else split].append(
            {
                "id": dicom_id(name),
                "study_id": int(study),
                "subject_id": int(subject),
                "report": f"Lungs of {study}\nare clear.",
                "image_path": [f"{place(subject, study)}/{dicom_id(name)}.jpg"],
                "split": split,
            }
        )
    data["train"][0]["image_path"] = ["../../../outside.jpg"]
    del data["train"][1]["report"]
    (folder / "annotation.json").write_text(json.dumps(data))
    return folder


def build(folder: Path) -> Root:
    """Official form. Train: no subject, a path outside, a report without findings; test: labels that are no numbers."""
    counts = {
        ("train", "mimic_cxr/report"): 3,
        ("train", "mimic_cxr/classification"): 4,
        ("val", "mimic_cxr/report"): 1,
        ("val", "mimic_cxr/classification"): 1,
        ("test", "mimic_cxr/report"): 3,
        ("test", "mimic_cxr/classification"): 1,
    }
    return Root(write(folder), counts, {"train": 3, "test": 2})
