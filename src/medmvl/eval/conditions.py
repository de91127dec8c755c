"""Under which conditions a task is asked: as it is, under controls that take the picture away, under probes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from medmvl.core.schema import Sample
from medmvl.eval import probes
from medmvl.eval.answers import Parsed
from medmvl.eval.controls import NotAsked, blank, question_only, shuffle
from medmvl.eval.task import Control, Probe, Task

ASKED = ("", *(control for control in get_args(Control) if control != "majority"), *get_args(Probe))
"""All conditions under which a model is asked, in this order; "" is the question as it is."""


@dataclass(frozen=True)
class Asked:
    """A question under a condition.

    Attributes:
        shown: the sample as it is asked, in its own words; with choices as they stand in the question.
        expected: the true answer under the condition, in parsed form.
        template: what the question is put in, "{question}" standing for its words; "" leaves that to the task.
    """

    shown: Sample
    expected: Parsed
    template: str = ""


def asked(
    task: Task, condition: str, samples: Sequence[Sample], truths: Sequence[Parsed], seed: int
) -> list[list[Asked] | NotAsked]:
    """Return what is asked of each sample under a condition, or why nothing is.

    Args:
        task: says how answers are read, and which paraphrases there are.
        condition: one of `ASKED`.
        samples: of the task.
        truths: their true answers in parsed form.
        seed: of shuffles.
    """
    pairs = list(zip(samples, truths, strict=True))
    if condition == "shuffled_image":
        others = zip(shuffle(samples, seed), pairs, strict=True)
        return [_nobody(pair[0]) if other is None else [Asked(other, pair[1])] for other, pair in others]
    return [_one(task, condition, sample, truth, seed) for sample, truth in pairs]


def _one(task: Task, condition: str, sample: Sample, truth: Parsed, seed: int) -> list[Asked] | NotAsked:
    if condition == "":
        return [Asked(sample, truth)]
    if condition == "blank_image":
        return [Asked(blank(sample), truth)]
    if condition == "question_only":
        alone = question_only(sample)
        return alone if isinstance(alone, NotAsked) else [Asked(alone, truth)]
    if condition == "mirrored":
        return _probed(probes.mirrored(sample, task.answer, truth))
    if condition == "options_shuffled":
        return _probed(probes.options_shuffled(sample, task.answer, truth, seed))
    return _probed(probes.paraphrased(sample, task.answer, truth, task.paraphrases))


def _probed(found: probes.Probed | list[probes.Probed] | NotAsked) -> list[Asked] | NotAsked:
    if isinstance(found, NotAsked):
        return found
    several = found if isinstance(found, list) else [found]
    return [Asked(one.asked, one.expected, one.template) for one in several]


def _nobody(sample: Sample) -> NotAsked:
    what = " and ".join(dict.fromkeys(media.type for media in sample.media))
    return NotAsked(f"no other patient has {what} of modality {sample.meta.modality!r}")
