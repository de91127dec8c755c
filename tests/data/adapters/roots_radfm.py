"""A tiny RadFM: lists with the columns its loaders read, and the media they name."""

import csv
import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from PIL import Image as Picture

from adapter_root import Root

AUTHORS = "/gpfs/home/cs/leijiayu/data"
LISTS = {
    "pmcoa_image_caption_train": [("Figure_path", "Caption"), ("PMC1_fig1_a.jpg", "A brain"), ("PMC1_fig1_a.jpg", "")],
    "mimic_caption_train": [("image_path", "label"), (f"{AUTHORS}/mimic/p10/a.jpg", "No acute process.")],
    "chestxray_balance_train_new": [
        ("image_path", "disease", "label"),
        (f"{AUTHORS}/mimic/p10/a.jpg", "Cardiomegaly", "1"),
        (f"{AUTHORS}/mimic/p10/a.jpg", "Edema", "0"),
        (f"{AUTHORS}/mimic/p10/a.jpg", "Edema", "2"),
        ("/somewhere/else/a.jpg", "Edema", "0"),
    ],
    "pcxr_train_new": [("image_path", "label"), (f"{AUTHORS}/mimic/p10/a.jpg", "Pneumonia,Bronchitis")],
    "pmcvqa_train": [
        ("img_root_dir", "Figure_path", "Question", "Answer"),
        (f"{AUTHORS}/PMC-VQA/", "PMC1_fig1_a.jpg", "What is shown?", "A brain"),
        (f"{AUTHORS}/PMC-VQA/", "../../../outside.png", "What is outside?", "nothing"),
    ],
    "filtered_case_report_train": [
        ("PMC_id", "img_ref", "context", "question", "answer"),
        ("PMC2", "['fig1', 'fig2']", "A man of 60.", "Q: What does the CT show?", "A: A mass."),
        ("PMC2", "__import__('os')", "A man of 60.", "Q: What?", "A: That."),
    ],
    "MedPix_single_train": [("name", "context", "type"), ("synpic1.png", "CT", "modality")],
    "radiology_vqa_train": [
        ("image_path", "question", "answer"),
        ("processed_images/0/7.npy", "Is there a mass?", "Yes, in the left lobe."),
        ("processed_images/0/9.npy", "Where is this file?", "nowhere"),
    ],
    "radio_modality_train": [("image_path", "answer"), ("npys/12/1/CT_0.nii.gz", "CT")],
    "mimic_caption_test": [("image_path", "label"), (f"{AUTHORS}/mimic/p10/b.jpg", "Effusion.")],
}
REPORTS = [
    {
        "npy_path": "processed_images/0/7.npy",
        "image_path": ["npys/12/1/CT_0.nii.gz", "npys/12/1/CT_1.nii.gz"],
        "finding": "A mass in the left lobe.",
        "impression": "Glioma.",
        "pre": "Headache.",
        "pat": "Age: 60.",
        "title": "Glioma",
        "articles": ["Glioma", "Brain tumour"],
        "radiographic_features": ["Gliomas enhance.", None],
        "qa_list": [],
    },
    {"npy_path": "processed_images/0/7.npy", "finding": "", "impression": None, "pre": "", "pat": "", "title": "x"},
]


def scans() -> np.ndarray:
    """Return a case of two scans, [scan, channel, row, column, slice]; the slices tell themselves apart."""
    one = np.zeros((6, 6, 5), np.float64)
    one += np.arange(5)  # the slice
    one[:, 0] += 10  # the first column
    return np.repeat(np.stack([one, one + 100])[:, None], 3, axis=1)


def write(folder: Path) -> Path:
    """Write the lists, and every file they name but one."""
    for name, rows in LISTS.items():
        (folder / "data_csv").mkdir(parents=True, exist_ok=True)
        with (folder / "data_csv" / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
    (folder / "data_csv/radiology_article_npy_train.json").write_text(json.dumps(REPORTS, indent=4))
    pictures = (
        "pmc_oa/PMC1_fig1_a.jpg",
        "local/mimic/p10/a.jpg",
        "local/mimic/p10/b.jpg",
        "local/PMC-VQA/PMC1_fig1_a.jpg",
    )
    for name in (*pictures, "figures/PMC2_fig1.jpg", "figures/PMC2_fig2.jpg", "images/synpic1.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Picture.new("L", (20, 20), 90).save(folder / name)
    (folder / "processed_images/0").mkdir(parents=True)
    np.save(folder / "processed_images/0/7.npy", scans())
    (folder / "npys/12/1").mkdir(parents=True)
    stored = (scans()[0, 0] * 10).astype(np.uint8)  # [row, column, slice], as if it were [z, y, x]
    sitk.WriteImage(sitk.GetImageFromArray(stored), str(folder / "npys/12/1/CT_0.nii.gz"))
    return folder


def build(folder: Path) -> Root:
    """All lists; seven rows are wrong."""
    counts = {("train", "radfm/medmd"): 1, ("train", "radfm/radmd"): 11, ("test", "radfm/radmd"): 1}
    return Root(write(folder), counts, {"train": 7}, {"prefixes": {AUTHORS: "local"}})
