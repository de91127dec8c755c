"""Is the answer right? One function for each way in which medical VQA has been scored, from strict to generous."""

import re

import numpy as np

from medmvl.eval.metrics.metric import Answers, Family, Mean, Statistics, Sums, mean_of
from medmvl.eval.metrics.text import normalise, normalise_vqa


def accuracy_strict(prediction: str, reference: str) -> float:
    """1 if the whole answer is the reference after `normalise`, else 0: no credit for a reference contained in it."""
    return float(normalise(prediction) == normalise(reference))


_CTRATE_LETTER = re.compile(r"\s*(\([A-Za-z]\))")
_M3D_LETTER = re.compile(r"\s*([A-Za-z])\s*(?:\.|$)")


def accuracy_letter_ctrate(prediction: str, reference: str) -> float:
    """1 if the "(x)" that the reference begins with occurs in the answer; 0 too if the reference has none.

    Source: Med-2E3's scoring of CT-RATE choices. An answer that lists all options is right.
    """
    letter = _CTRATE_LETTER.match(reference)
    return float(letter is not None and letter[1] in prediction)


def accuracy_letter_m3d(prediction: str, reference: str) -> float:
    """1 if the reference's letter with a period ("B." of "B. liver", or of "B") occurs in the answer, in the same case.

    Source: M3D Bench/eval/eval_vqa.py, closed questions. "in area A." is right where the answer is A.
    """
    letter = _M3D_LETTER.match(reference)
    return float(letter is not None and f"{letter[1]}." in prediction)


def accuracy_yesno_medevalkit(prediction: str, reference: str) -> float:
    """1 if exactly one of "yes" and "no" occurs in the answer and the reference occurs in it, letters compared.

    Before that the answer is cut to what stands in its last \\boxed{}, else between <answer> tags, and after the last
    "answer is", "answer:" or the like. Source: MedEvalKit utils/utils.py, judge_judgement. "normal" contains a "no".
    """
    answer = _medevalkit_answer(prediction.lower()).replace("\n", "").replace(".", "")
    return float((("yes" in answer) != ("no" in answer)) and reference.lower() in answer)


_MEDEVALKIT_MARKS = (
    "**answer**:",
    "**answer**",
    "*answer*:",
    "**answer:**",
    "answer is",
    "answer:",
    "答案:",
    "final answer",
    "final answer is",
)


def _medevalkit_answer(text: str) -> str:
    if "boxed" in text:
        text = _boxed(text)
    elif tagged := re.findall(r"<answer>(.*?)</answer>", text, re.DOTALL):
        text = " ".join(tagged).strip() or text
    for mark in _MEDEVALKIT_MARKS:
        text = text.split(mark)[-1]
    return text


def _boxed(text: str) -> str:
    """Return what stands in the last \\boxed{} with all its inner braces, or "None", as package mathruler does."""
    start = text.rfind("\\boxed{")
    depth, rest = 0, text[start + len("\\boxed{") :] if start >= 0 else ""
    for place, sign in enumerate(rest):
        depth += (sign == "{") - (sign == "}")
        if depth < 0:
            return rest[:place].strip()
    return "None"


def _normalised(answers: Answers) -> dict[str, Statistics]:
    """Accuracies on texts after `normalise_vqa`."""
    predictions, references = answers.texts()
    pairs = [(normalise_vqa(p), normalise_vqa(r)) for p, r in zip(predictions, references, strict=True)]
    contained = np.array([r in p for p, r in pairs], dtype=np.float64)
    decided = np.array(["yes" in p or "no" in p for p, _ in pairs], dtype=np.float64)
    return {
        "accuracy_normalised": Mean(np.array([p == r for p, r in pairs], dtype=np.float64)),
        "accuracy_substring_unimed": Mean(contained),
        "accuracy_yesno_strict": Mean(np.array([_first_is(p, r) for p, r in pairs], dtype=np.float64)),
        "accuracy_yesno_llavamed": Mean(contained * decided),
        # The script counts a wrong yes or no nowhere: neither as a hit nor as a question.
        "accuracy_yesno_llavamed_printed": mean_of(contained * decided, np.maximum(contained, 1 - decided)),
        **_multimedeval(pairs),
    }


def _first_is(prediction: str, reference: str) -> bool:
    return reference in ("yes", "no") and prediction.split()[:1] == [reference]


def _multimedeval(pairs: list[tuple[str, str]]) -> dict[str, Sums]:
    """Closed questions, whose answer is yes or no, and the others: right if enough of the reference's words occur."""
    closed = np.array([r in ("yes", "no") for _, r in pairs], dtype=np.float64)
    right = np.array([_recalled(set(p.split()), set(r.split())) for p, r in pairs], dtype=np.float64)
    return {
        "accuracy_closed_multimedeval": mean_of(right, closed),
        "accuracy_open_multimedeval": mean_of(right, 1 - closed),
    }


def _recalled(given: set[str], wanted: set[str]) -> bool:
    if wanted == {"no"}:
        return bool(given & {"no", "not"})  # half of the two words is enough: their bar is 0.4
    return bool(wanted) and len(given & wanted) / len(wanted) >= (0.4 if wanted == {"yes"} else 0.75)


NORMALISED = Family(_normalised)
