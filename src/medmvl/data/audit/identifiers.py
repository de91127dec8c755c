"""What in a free text could tell who a patient is, found by pattern; and the text with it masked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?|"
    r"Nov(?:ember)?|Dec(?:ember)?)\.?"
)
_YEAR, _DAY, _NUMBER = r"(?:19|20)\d\d", r"(?:0?[1-9]|[12]\d|3[01])", r"(?:0?[1-9]|1[0-2])"
_BIG, _SMALL = "[A-ZÀ-ÖØ-Þ]", "[a-zß-öø-ÿ]"
_WORD = rf"(?:{_BIG}\.\s*)*{_BIG}[\w'’-]*{_SMALL}[\w'’-]*"
_OF = r"(?:(?:von|van|vom|zu|de|del|della|der|den|da|di|du|la|le)\s+){0,3}"
_NAME = rf"{_OF}{_WORD}(?:\s+{_OF}{_WORD}){{0,2}}"
_PERSON = rf"(?:{_BIG}['’])?{_BIG}{_SMALL}[\w'’-]{{0,40}}"
_FULL_NAME = rf"{_PERSON},?\s+(?:{_BIG}\.\s*)?{_OF}{_PERSON}"
_TITLE = (
    r"(?:Drs?|Mr|Mrs|Ms|Prof|Doctor|Professor|Nurse|Herrn?|Frau|Mme|Mlle|Monsieur|Madame|Docteur|Sr|Sra|Srta|Señora?|"
    r"Señorita|Dra|Sig|Signora?|Dott)\b\.?"
)
# "MD" is also mean diffusivity, and some diseases.
_NO_DEGREE = r"(?!\w+\s+(?:Diffus|Anisotrop|Densit|Dystroph|Degenerat|Deviation|Dimension|Disease))"
_DEGREE = r"(?:M\.\s?D\.|Ph\.?\s?D\.?|D\.O\.|R\.N\.|MBBS|MBChB|FRCR|FACR|FRCP|MD\b)"
_UNIT = (
    r"\s*(?:[kcdmnµμ]?m(?:\^?[23]|[²³])?|cc|ccm|[cdmnµμ]?[lL]|[kmnµμ]?g|[kMG]?Hz|HU|[kMGm]?Bq|[mcµμ]?Gy|mSv|[mµμ]?[sS]|min|"
    r"IU|U|voxels?|pixels?|px|cells?|counts?|copies|platelets|leukocytes|images?|slices?|samples?|cases|patients|"
    r"parameters|times|per)\b"
)
_GROUPED = rf"\d{{2,5}}(?:[ -]\d{{2,5}}){{2,4}}(?![\w%]|[.,]\d|{_UNIT})"

# Case counts: "MR" is a modality and "MS" a disease, "Mr" and "Ms" are persons; "MAY" and "may" are no month.
PATTERNS: dict[str, tuple[str, ...]] = {
    "e-mail": (r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+",),
    "date": (
        rf"(?<![\d.\-/]){_YEAR}([-/.]){_NUMBER}\1{_DAY}(?![\d/]|[-.]\d)",
        rf"(?<![\d.\-/])(?:{_NUMBER}([-/.]){_DAY}|{_DAY}([-/.]){_NUMBER})(?:\1|\2){_YEAR}(?![\d/]|[-.]\d)",
        rf"(?<![\d.\-/])(?:{_NUMBER}/{_DAY}|{_DAY}/{_NUMBER})/\d\d(?![\d/]|[-.]\d)",
        rf"(?<![\w]){_MONTH}\s+{_DAY}(?:st|nd|rd|th)?,?\s+{_YEAR}(?!\d)",
        rf"(?<![\d.\-/]){_DAY}(?:st|nd|rd|th)?(?:\s+of)?[\s-]+{_MONTH},?[\s-]+{_YEAR}(?!\d)",
        rf"(?<![\w]){_MONTH},?\s+{_YEAR}(?!\d)",
        rf"(?<![\w]){_MONTH}\s+{_DAY}(?:st|nd|rd|th)?\b(?![.,:/-]\d|\s*[x×%]|{_UNIT})",
        rf"(?<![\d.\-/]){_DAY}(?:st|nd|rd|th)?(?:\s+of)?[\s-]+{_MONTH}(?![\w])(?!\s+(?:be|have|represent|show|also)\b)",
        r"(?<!\d)(?<!\d\.)(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?!\d)",
        rf"{_YEAR}\s*年\s*{_NUMBER}\s*月(?:\s*{_DAY}\s*日)?",
    ),
    "phone number": (
        r"(?<![\d.])\(\d{3}\)\s?\d{3}[-. ]\d{4}(?!\d)",
        r"(?<![\d.-])\d{3}([-.])\d{3}\1\d{4}(?![\d-])",
        r"(?<![\w+])\+\d{1,3}(?:[ -]?\(?\d{1,4}\)?){2,5}(?!\d)",
    ),
    "number": (
        r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])",
        r"(?i:\b(?:MRN|SSN|NHS|medical record|accession|"
        r"(?:patient|hospital|case|record|insurance|chart)(?= (?:id|number|no\.)))"
        r"(?: id| number| no\.?)?)\s*(?:is\b)?\s*[:#]?\s*[A-Z]{0,3}-?\d{4,}",
        rf"(?i:\b(?:MRN|SSN|NHS|ID|number|no\.))\s*(?:is\b)?\s*[:#]?\s*{_GROUPED}",
        r"\bID\s*(?:[:#]|\bis\b|\b[Nn]umber\b|\b[Nn]o\.)\s*[A-Z]{0,3}-?\d{4,}",
        r"(?<![\w.,/+=-])(?<!HU )(?<!HU: )(?<!HU of )(?<!= )(?!\d*0000(?!\d))[A-Z]{0,3}\d{7,}"
        rf"(?![\w/%]|[.,]\d|{_UNIT})",
        r"(?:病历号|住院号|身份证号?|检查号|患者编号)\s*[:：]?\s*\w{4,}",
    ),
    "web address": (
        r"(?i:\b(?:https?://|www\.))[^\s\d]{0,500}\d[^\s]{0,500}",
        # Ten and more in front: "1.2.3.4" is rather the number of a section or of a version.
        r"(?<![\w.])(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]\d)(?:\.(?:25[0-5]|2[0-4]\d|1?\d?\d)){3}(?![\w]|\.\d)",
    ),
    "name": (
        rf"\b(?:{_TITLE}\s+){{1,3}}{_NAME}",
        rf"(?i:\b(?:signed|signature|dictated|transcribed|radiologist|physician|attending|technologist))\s*[:=]\s*"
        rf"{_FULL_NAME}",
        rf"\b{_NO_DEGREE}{_PERSON}\s+(?:{_BIG}\.\s*)?{_OF}{_PERSON},\s*{_DEGREE}",
        rf"(?i:\b(?:patient(?:'s)?\s+name|name of (?:the )?patient|name))\s*[:=]\s*{_FULL_NAME}",
        rf"(?i:\b(?:dictated|signed|reviewed|interpreted|approved|transcribed|referred|reported|read)\s+by)\s*:?\s*"
        rf"{_FULL_NAME}",
        # Up to 64 letters, as DICOM has it: without a limit, to look from every letter on takes quadratic time.
        rf"\b{_BIG}(?:[^\W\d_]|['’-]){{1,63}}\^{_BIG}(?:[^\W\d_]|['’-])+",
        r"(?:姓名|患者姓名)\s*[:：]\s*[一-鿿]{2,4}",
    ),
    "age above 89": (
        r"(?<![\d.-])(?:9\d|1[01]\d)(?:[ -]?(?:years?|yrs?)[ -]?old|\s?-?y/?o\b|\s?岁)",
        r"(?i:\b(?:aged|age)\s*(?:is\b|of\b)?[:=]?\s*)(?:9\d|1[01]\d)(?![\d.%/-])",
    ),
}
"""Kind of identifier -> patterns of it: what the Safe Harbor rule names and a pattern can find."""

_COMPILED = [(kind, re.compile(pattern)) for kind, patterns in PATTERNS.items() for pattern in patterns]
# Most texts hold none of these, and are done with one search.
_TRIGGER = re.compile(
    rf"@|\d{{4}}|\d/\d|\d\d[ -]\d\d|\d\.\d+\.\d|\+\d|\b(?:9\d|1[01]\d)|\^\w|\b{_TITLE}|[号证]|姓名|"
    r"(?i:name|\bby\b|https?:|www\.)|\b(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)|"
    r"(?i:sign|dictat|transcri|radiologist|physician|attend|technol)\w*\s*[:=]|,\s*(?:M\.?\s?D|Ph|D\.O|R\.N|MB|FRC|FACR)"
)


@dataclass(frozen=True)
class Identifier:
    """Where something that could tell who a patient is stands in a text.

    Attributes:
        kind: a key of `PATTERNS`.
        start, end: of it.
        masked: what may be shown: first letters of words, "#" for digits.
    """

    kind: str
    start: int
    end: int
    masked: str


def identifiers(text: str) -> list[Identifier]:
    """Return what in a text could identify a patient, in reading order, none inside another.

    Placeholders such as MIMIC's "___" are none, nor are "T1", "L4-L5", "12/15 mm", "Grade 2/3" or "BI-RADS 4".
    """
    if not _TRIGGER.search(text):
        return []
    kept: list[Identifier] = []
    for one in sorted(_matches(text), key=lambda found: (found.start, -found.end)):
        if not kept or one.start >= kept[-1].end:
            kept.append(one)
    return kept


def masked(text: str) -> str:
    """Return the text with its identifiers masked."""
    for one in reversed(identifiers(text)):
        text = text[: one.start] + one.masked + text[one.end :]
    return text


def _matches(text: str) -> Iterator[Identifier]:
    for kind, pattern in _COMPILED:
        for found in pattern.finditer(text):
            yield Identifier(kind, found.start(), found.end(), _mask(found.group()))


def _mask(text: str) -> str:
    """Return "J*** S***" for a name, "#/##/####" for a date; what leads to it ("MRN: ") is masked with it."""
    hidden = re.sub(r"\d", "#", text)
    return re.sub(r"[^\W\d_]+", lambda word: _mask_word(word.group()), hidden)


def _mask_word(word: str) -> str:
    stars = "*" * min(3, len(word) - 1)
    return word[0] + stars if word[0] < "\u2e80" or not stars else "*" + stars  # a Chinese name starts with all of it
