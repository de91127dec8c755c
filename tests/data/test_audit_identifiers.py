"""Identifiers in free text: what is one, what only looks like one, and that none of it is shown."""

from itertools import pairwise
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medmvl.data.audit.identifiers import identifiers, masked

FOUND = {
    "date": [
        "Compared with 03/14/2019.",
        "on 14.03.2019 and",
        "2019-03-14",
        "dated 3/14/19",
        "since March 14, 2019",
        "14 March 2019",
        "the 3rd of May 2020",
        "CT of January 2005",
        "20190314",
        "2019年3月14日",
        "on May 17 and",
        "17 May",
        "the 3rd of March",
        "Aug. 9, in the morning",
    ],
    "phone number": ["call (555) 123-4567", "555-123-4567 please", "+49 89 1234567"],
    "web address": [
        "see https://pacs.example.org/study/12345",
        "www.example.org/?mrn=77",
        "sent from 192.168.10.24",
        "node 10.0.0.7.",
    ],
    "e-mail": ["write to j.doe@clinic.example.org"],
    "number": ["MRN: 445566", "accession number A1234567", "NHS number 943 476 5919", "NHS 943 476 5919",
               "no. 12 34 56 78", "ID: 445566", "hospital number 99812", "case no. 4711", "SSN 123 45 6789",
               "accession CT-20391", "A1234567 was compared", "Patient ID 9923", "SSN 123-45-6789", "film 12345678",
               "住院号：20391"],
    "name": [
        "Dr. Smith was told",
        "seen by Mr Miller",
        "Mrs. Mary O'Neil",
        "discussed with Prof. J. Smith",
        "Patient name: John Smith",
        "NAME: Smith, John",
        "Dictated by John A. Smith",
        "DOE^JANE",
        "of MÜLLER^ÉLODIE",
        "Dr. Öztürk was told",
        "姓名：王小明",
        "Signed: Gregory House, M.D.",
        "Gregory House, M.D.",
        "by the radiologist: Mary A. O'Neil, MD",
        "Attending: Jane Smith",
        "Herr Müller",
        "Frau Dr. Schmidt",
        "mit Herrn von Bülow gesehen",
        "Mme Dupont",
        "la Sra. García",
        "Monsieur Lefèvre",
        "Dra. María López",
    ],
    "age above 89": ["a 93-year-old woman", "95 y/o male", "aged 101", "Age: 92", "93岁"],
}  # fmt: skip

HARMLESS = [
    "T1 and T2 weighted images, FLAIR, DWI b=1000",
    "disc herniation at L4-L5, L5/S1",
    "a nodule of 12/15 mm, 3.5 x 2.1 x 4 cm",
    "Grade 2/3 steatosis, BI-RADS 4, TNM T2N1M0, Gleason 3+4=7",
    "at 3:15 o'clock, 5/10 cases, ratio 1/2",
    "Dr. ___ was notified on ___ at ___, comparison: ___",
    "The MR of the MS plaques; MR Angiography; Ms patient; the right PICA",
    "an 89-year-old man with 90% stenosis of 95 mmHg, HU of 93",
    "may be May or March; the index of 2019; in 2020 the guideline",
    "C3/4, C5-6, C6/7/8; 1/2/3 lobes",
    "lesions up to 1000000 and 12.1234567 or 0.12345678",
    "name the organ; what is the name of this structure? Reviewed by two readers.",
    "signal 120-130-140, range 0.5-1.5, 10-20-30 mm",
    "图像中有右肺异常吗？ 诊断：肺炎",
    "p < 0.0001, 95% CI 1.2-3.4, n = 12345",
    "the Mr. and Mrs.",
    "converted by version v1.0.20190902 of the program",
    "volume 1234567 mm3, 1,234,567 mm3, 2345678 mm^3 and 7654321 mL",
    "HU 1200000, HU 1234567, values of 1234567 HU",
    "12345678 voxels of 512 512 300, matrix 512 x 512 x 300",
    "a shape of 512 512 128, number of slices 40 40 40 mm",
    "May 5 mm nodules be followed? March 3 x 4 cm",
    "Mean Diffusivity, MD and Fractional Anisotropy, FA; Muscular Dystrophy, MD",
    "M. Pectoralis und M. Iliopsoas; der Herr; die Frau ist 45 Jahre alt",
    "Signed: yes. Physician: unknown. Radiologist: Normal.",
    "section 1.2.3.4 of guideline 1.10.2; UID-like 1.2.840.10008.1.2",
    "see www.example.org and https://example.org/atlas for anatomy",
    "No. 3 of 5 lesions, the number 12; ID of the vessel; the IDs are 3 and 4",
    "IMPRESSION: 1. No acute cardiopulmonary process. 2. Stable 4-5 mm nodule in the RUL (series 3, image 112).",
    "Impression: Status post CABG. ET tube 3.5 cm above the carina. IJ line, PICC. WBC 12000, PLT 1234567 per mm3",
    "DLP 1234.5 mGy cm, CTDIvol 12.3 mGy; TR/TE 2500/90 ms; 120 kVp; 3.0 T; 5-10 year-old; 88-year-old",
    "Hepatic segments II-IV, Couinaud VIII; T12-L1; grade 3-4 VUR; Lung-RADS 4A; PI-RADS 3; 2-3 cm; C1 2 3",
    "Lesion 1: 12 14 16 mm; Lesion 2: 22 24 26 mm. Marked oedema, Juxtaphrenic peak, Decreased volume, Sepsis",
]


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in FOUND.items() for text in texts])
def test_identifiers_are_found(kind: str, text: str) -> None:
    found = identifiers(text)
    assert [one.kind for one in found] == [kind]
    hidden = masked(text)
    assert text[found[0].start : found[0].end] not in hidden
    assert not any(digit in found[0].masked for digit in "0123456789")


@pytest.mark.parametrize("text", HARMLESS)
def test_ordinary_words_are_none(text: str) -> None:
    assert [(one.kind, text[one.start : one.end]) for one in identifiers(text)] == []
    assert masked(text) == text


def test_masks() -> None:
    assert masked("Read by Jane Smith, 03/14/2019.") == "R*** b* J*** S***, ##/##/####."
    assert masked("姓名：王小明") == "**：***"


@given(st.text(max_size=200))
def test_any_text_is_taken(text: str) -> None:
    found = identifiers(text)
    assert all(one.end <= other.start for one, other in pairwise(found))
    assert len(masked(text)) <= len(text)


LONG = ["1-" * 50_000, "A" * 100_000, "Dr. " * 25_000, "1.2/3-" * 20_000, "a.b-" * 20_000 + "@", "A'" * 50_000 + "^A"]


@pytest.mark.parametrize("text", LONG, ids=[text[:6] for text in LONG])
def test_long_texts_take_no_time(text: str) -> None:
    start = process_time()
    assert len(masked(text)) == len(text)
    assert process_time() - start < 4
