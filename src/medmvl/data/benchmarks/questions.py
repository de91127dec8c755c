"""Questions and answers about one study of Brain-Atlas-VQA, picture or volume, for every task family of the paper.

Both are asked in the same words, so that a model of pictures can go on with volumes; only the first question differs:
a picture has a plane, a volume a contrast. Only what is shown is asked: no side on a sagittal picture, nothing about a
lesion that is not there except whether it is. How often a question is asked keeps its answers balanced, so that
guessing blindly earns about 1/k.
"""

from collections.abc import Iterator

import numpy as np

from medmvl.core.schema import Box, BoxRef, Image, Message, Meta, Part, Sample, Text, Volume
from medmvl.data.benchmarks.atlas import PARTS, REGIONS
from medmvl.data.benchmarks.render import PLANES, SIDES, Study
from medmvl.data.benchmarks.render_3d import CONTRASTS, VolumeStudy

SOURCE, SOURCE_3D = "brain_atlas", "brain_atlas_3d"
FAMILIES = ("plane", "present", "bright", "size", "side", "choice", "open", "report", "rec", "reg")
"""Each is the task brain_atlas/<family>."""
FAMILIES_3D = ("contrast", *FAMILIES[1:])
"""Each is the task brain_atlas_3d/<family>."""

FINDINGS = ("no lesion", "small bright lesion", "small dark lesion", "large bright lesion", "large dark lesion")

_WORDINGS = {
    "plane": ("Which plane is this?", "Is this axial, coronal or sagittal?", "Name the plane of this image."),
    "contrast": ("Which contrast is this?", "Is this T1, T2 or FLAIR?", "Name the contrast of this image."),
    "present": ("Is there a lesion?", "Does this image show a lesion?", "Is a lesion present?"),
    "bright": (
        "Is the lesion bright or dark?",
        "Bright or dark lesion?",
        "How does the lesion appear: bright or dark?",
    ),
    "size": (
        "Is the lesion small or large?",
        "Small or large lesion?",
        "What is the size of the lesion: small or large?",
    ),
    "side": (
        "Is the lesion on the left or right?",
        "Which side is the lesion on: left or right?",
        "Left or right lesion?",
    ),
    "open structure": (
        "Which structure contains the lesion?",
        "What structure is affected?",
        "Name the structure with the lesion.",
    ),
    "open finding": ("What is the finding?", "What abnormality is seen?", "Name the finding."),
    "choice structure": ("Which structure contains the lesion?", "Where does the lesion lie?"),
    "choice finding": ("Which finding is seen?", "What does this image show?"),
    "choice plane": ("Which plane is this?", "Choose the plane of this image."),
    "choice contrast": ("Which contrast is this?", "Choose the contrast of this image."),
    "rec": ("Locate the {}.", "Give the box of the {}.", "Draw a box around the {}."),
    "reg": ("What is in the box {}?", "Name the content of {}.", "What does {} show?"),
}
_CLOSED = {
    "plane": PLANES,
    "contrast": CONTRASTS,
    "present": ("yes", "no"),
    "bright": ("bright", "dark"),
    "size": ("small", "large"),
    "side": SIDES,
}
# Five findings, equally often: a picture without lesion (half of all) is asked a quarter as often as one with.
_FINDING_IF_LESION = 0.4
_FINDING_IF_NONE = _FINDING_IF_LESION / 4
_LOOK_CHOICE = 0.4


def questions(
    study: Study | VolumeStudy, path: str, sample_id: str, patient: str, split: str, rng: np.random.Generator
) -> Iterator[Sample]:
    """Yield the samples of one study: 5 to 7 without lesion, 9 to 11 with one.

    Args:
        study: the truth about the picture or volume.
        path: of its file, as it shall stand in the samples.
        sample_id: of the study; the samples' ids begin with it.
        patient: the virtual patient's id.
        split: "train", "val" or "test".
        rng: draws wordings, options and targets.
    """
    writer = _Writer(study, path, sample_id, patient, split, rng)
    for family, options in _CLOSED.items():
        answer = study.attributes.get(family, "none")
        if answer != "none":
            yield writer.say(family, writer.wording(family), answer, "closed", options)
    yield from _choices(writer)
    yield from _open(writer)
    yield _report(writer)
    yield from _boxes(writer)


class _Writer:
    """Turns question and answer into a sample of one study."""

    def __init__(
        self, study: Study | VolumeStudy, path: str, sample_id: str, patient: str, split: str, rng: np.random.Generator
    ) -> None:
        self.study, self.rng, self.split = study, rng, split
        self._id, self._patient = sample_id, patient
        if isinstance(study, VolumeStudy):
            self._media, self._source = Volume(path=path), SOURCE_3D
            self.look, self.shows, self.technique = "contrast", study.contrast, study.contrast
        else:
            self._media, self._source = Image(path=path), SOURCE
            self.look, self.shows, self.technique = "plane", study.plane, f"{study.plane} T1"
        self._attributes = study.attributes
        lesion = study.boxes.get("lesion")
        self._boxes = () if lesion is None else (Box(media=0, coords=lesion, label="lesion"),)
        self._written: dict[str, int] = {}

    def wording(self, kind: str) -> str:
        pool = _WORDINGS[kind]
        return pool[self.rng.integers(len(pool))]

    def say(
        self,
        family: str,
        question: str | tuple[Part, ...],
        answer: str | tuple[Part, ...],
        answer_type: str,
        choices: tuple[str, ...] = (),
        boxes: tuple[Box, ...] | None = None,
    ) -> Sample:
        """Return the sample; `boxes` default to the lesion's, for reports and for supervision."""
        count = self._written[family] = self._written.get(family, 0) + 1
        asked = (Text(text=question),) if isinstance(question, str) else question
        told = (Text(text=answer),) if isinstance(answer, str) else answer
        return Sample(
            id=f"{self._id}-{family}" + (f"-{count}" if count > 1 else ""),
            messages=(
                Message(role="user", content=(self._media, *asked)),
                Message(role="assistant", content=told),
            ),
            source=self._source,
            task=f"{self._source}/{family}",
            split=self.split,
            meta=Meta(
                patient=self._patient,
                study=self._id,
                modality="MR",
                answer_type=answer_type,
                choices=choices,
                boxes=self._boxes if boxes is None else boxes,
                attributes=self._attributes,
            ),
        )


def finding(study: Study | VolumeStudy) -> str:
    """Return the finding in words, one of FINDINGS."""
    return FINDINGS[0] if study.present == "no" else f"{study.size} {study.bright} lesion"


def _choices(writer: _Writer) -> Iterator[Sample]:
    """Yield at most one multiple-choice question: about the structure, the finding, or the plane or contrast."""
    study, draw = writer.study, writer.rng.random()
    finding_share = _FINDING_IF_NONE if study.present == "no" else _FINDING_IF_LESION
    if draw < finding_share:
        yield _choice(writer, "choice finding", finding(study), FINDINGS)
    elif draw > 1 - _LOOK_CHOICE:
        yield _choice(writer, f"choice {writer.look}", writer.shows, _CLOSED[writer.look])
    elif study.present == "yes":
        yield _choice(writer, "choice structure", study.structure, REGIONS)


def _choice(writer: _Writer, kind: str, truth: str, pool: tuple[str, ...]) -> Sample:
    others = [name for name in pool if name != truth]
    picked = [others[index] for index in writer.rng.permutation(len(others))[:3]]
    options = [truth, *picked]
    options = [options[index] for index in writer.rng.permutation(len(options))]
    letters = "ABCD"[: len(options)]
    listed = " ".join(f"({letter}) {option}" for letter, option in zip(letters, options, strict=True))
    # The answer is the option's words, not its letter: a model of a million weights, trained for minutes, does not
    # learn to look up a letter in the question (it stays at chance), and the benchmark is to measure what it sees.
    return writer.say("choice", f"{writer.wording(kind)} {listed}", truth, "choice", tuple(options))


def _open(writer: _Writer) -> Iterator[Sample]:
    study, draw = writer.study, writer.rng.random()
    if draw < (_FINDING_IF_NONE if study.present == "no" else _FINDING_IF_LESION):
        yield writer.say("open", writer.wording("open finding"), finding(study), "open")
    elif study.present == "yes":
        yield writer.say("open", writer.wording("open structure"), study.structure, "open")


def _report(writer: _Writer) -> Sample:
    """Return a report in the style that the question asks for."""
    study, technique = writer.study, writer.technique
    opening = f"{technique[0].upper()}{technique[1:]} image."
    place = study.structure if study.side == "none" else f"{study.side} {study.structure}"
    if study.present == "no":
        styles = (
            ("Write the findings.", f"{opening} No lesion is seen."),
            ("Write a report.", f"Technique: {technique}. Findings: normal brain. Impression: no lesion."),
            ("Describe this image.", f"This {writer.shows} image shows no lesion."),
        )
    else:
        what = finding(study)
        styles = (
            ("Write the findings.", f"{opening} There is a {what} in the {place}."),
            (
                "Write a report.",
                f"Technique: {technique}. Findings: {what} in the {place}. Impression: {study.size} lesion.",
            ),
            ("Describe this image.", f"This {writer.shows} image shows a {what} in the {place}."),
        )
    question, report = styles[writer.rng.integers(len(styles))]
    return writer.say("report", question, report, "report")


def _boxes(writer: _Writer) -> Iterator[Sample]:
    """Yield text -> box for the lesion and for one part; box -> text for one target, each name about equally often."""
    study = writer.study
    parts = [part for part in PARTS if part in study.boxes]
    targets = ["lesion"] if study.present == "yes" else []
    if parts:
        targets.append(parts[writer.rng.integers(len(parts))])
    for target in targets:
        before, after = writer.wording("rec").split("{}")
        box = Box(media=0, coords=study.boxes[target], label=target)
        yield writer.say("rec", f"{before}{target}{after}", (BoxRef(box=0),), "box", boxes=(box,))
    if not targets:
        return
    # A lesion is the answer to a sixth of these questions, which makes it about as frequent as each part.
    lesion = study.present == "yes" and (len(targets) == 1 or writer.rng.random() < 1 / 3)
    target = "lesion" if lesion else parts[writer.rng.integers(len(parts))]
    before, after = writer.wording("reg").split("{}")
    box = Box(media=0, coords=study.boxes[target], label=target)
    asked = (Text(text=before), BoxRef(box=0), Text(text=after))
    answer = f"{study.bright} lesion" if target == "lesion" else target
    yield writer.say("reg", asked, answer, "open", boxes=(box,))
