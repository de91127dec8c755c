"""GREEN (Ostmeier et al. 2024): a language model counts the errors of a report against the true one.

Prompt, chat form, greedy decoding within 2048 tokens and the reading of the judgement are those of the repository
Stanford-AIMI/GREEN (package green_score), for which the published judges were tuned; the prompt below is its wording.
A report's score is matched findings / (matched findings + clinically significant errors), 0 without a matched finding.
As there, a judgement that cannot be read counts as 0; `green_unparsed` says how often that was. An empty answer
scores 0 and is not shown to the judge.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from medmvl.eval.metrics.local import batches, device_of, given, reading
from medmvl.eval.metrics.metric import Answers, Family, Mean, MetricUnavailable, Statistics

PROMPT = """\
Objective: Evaluate the accuracy of a candidate radiology report in comparison to a reference radiology report \
composed by expert radiologists.

    Process Overview: You will be presented with:

    1. The criteria for making a judgment.
    2. The reference radiology report.
    3. The candidate radiology report.
    4. The desired format for your assessment.

    1. Criteria for Judgment:

    For each candidate report, determine:

    The count of clinically significant errors.
    The count of clinically insignificant errors.

    Errors can fall into one of these categories:

    a) False report of a finding in the candidate.
    b) Missing a finding present in the reference.
    c) Misidentification of a finding's anatomic location/position.
    d) Misassessment of the severity of a finding.
    e) Mentioning a comparison that isn't in the reference.
    f) Omitting a comparison detailing a change from a prior study.
    Note: Concentrate on the clinical findings rather than the report's writing style. Evaluate only the findings \
that appear in both reports.

    2. Reference Report:
    {reference}

    3. Candidate Report:
    {candidate}

    4. Reporting Your Assessment:

    Follow this specific format for your output, even if no errors are found:
    ```
    [Explanation]:
    <Explanation>

    [Clinically Significant Errors]:
    (a) <Error Type>: <The number of errors>. <Error 1>; <Error 2>; ...; <Error n>
    ....
    (f) <Error Type>: <The number of errors>. <Error 1>; <Error 2>; ...; <Error n>

    [Clinically Insignificant Errors]:
    (a) <Error Type>: <The number of errors>. <Error 1>; <Error 2>; ...; <Error n>
    ....
    (f) <Error Type>: <The number of errors>. <Error 1>; <Error 2>; ...; <Error n>

    [Matched Findings]:
    <The number of matched findings>. <Finding 1>; <Finding 2>; ...; <Finding n>
    ```
"""

_ROOM = 2048  # tokens of prompt and judgement together
_ERRORS, _MATCHED = "Clinically Significant Errors", "Matched Findings"
_FAMILIES = ("llama", "mistral")  # whose tokenizers put <s> first and, asked for it as here, </s> last


@dataclass(frozen=True)
class Judgement:
    """What a judge said of a report.

    Attributes:
        matched: findings that the report shares with the true one.
        errors: clinically significant errors of the six kinds (a) to (f).
        complete: both counts were stated.
    """

    matched: int
    errors: tuple[int, ...]
    complete: bool

    @property
    def score(self) -> float:
        """GREEN of the report."""
        return self.matched / (self.matched + sum(self.errors)) if self.matched else 0.0


def parse(text: str) -> Judgement:
    """Read a judge's text as the package does: the last count of each kind of error, the first of matched findings."""
    text = text.rpartition("<|assistant|>")[2]
    parts = text.split("[Explanation]:")
    text = parts[1] if "[Explanation]:\n    <Explanation>\n" in text else parts[-1]
    errors, matched = (_section(text, name) for name in (_ERRORS, _MATCHED))
    return Judgement(
        _matched(matched or ""), _errors(errors or ""), complete=errors is not None and matched is not None
    )


def _section(text: str, name: str) -> str | None:
    """Return what follows "[name]:" up to an empty line; "" if it starts with "No", None if there is no such part."""
    found = re.search(rf"\[{name}\]:\s*(.*?)(?:\n\s*\n|\Z)", text, re.DOTALL)
    if not found:
        return None
    return "" if found[1].startswith("No") else found[1]


def _matched(section: str) -> int:
    number = re.match(r"\d+\b(?=\.)", section)
    return int(number[0]) if number else 0


def _errors(section: str) -> tuple[int, ...]:
    kinds = "abcdef"
    lines = sorted(re.findall(r"\([a-f]\) .*", section))
    if not lines:  # some judges number the kinds
        kinds = "123456"
        lines = sorted(re.findall(r"\([1-6]\) .*", section))
    counts = dict.fromkeys(kinds, 0)
    for line in lines:
        if number := re.search(r"(?<=: )\b\d+\b(?=\.)", line):
            counts[line[1]] = int(number[0])
    return tuple(counts.values())


def _measure(
    answers: Answers, model: str | None = None, batch_size: int = 8, device: str | None = None
) -> Mapping[str, Statistics]:
    folder = given(model, "model", "green", "a folder with a GREEN judge, as GREEN-radllama2-7b")
    judge = _load(folder, device_of(device))
    pairs = list(zip(*answers.texts(), strict=True))
    asked = [pair for pair in dict.fromkeys(pairs) if pair[0].strip()]
    found = {pair: Judgement(0, (), complete=True) for pair in pairs}
    found |= {asked[place]: parse(text) for place, text in judge.texts(asked, batch_size)}
    return {
        "green": Mean(np.array([found[pair].score for pair in pairs], dtype=np.float64)),
        "green_unparsed": Mean(np.array([not found[pair].complete for pair in pairs], dtype=np.float64)),
    }


GREEN = Family(
    _measure,
    options={
        "model": "folder with a GREEN judge (a Llama or Mistral causal LM and its tokenizer)",
        "batch_size": "reports judged at once; 8",
        "device": "torch device; the first GPU, else the CPU",
    },
    lower_is_better=frozenset({"green_unparsed"}),
)


@dataclass(frozen=True)
class _Judge:
    """A judge read from disk: float16 on a GPU, as published, else float32."""

    model: Any
    tokenizer: Any

    def prompt(self, candidate: str, reference: str) -> list[int]:
        """Return the ids of the prompt for a pair of reports.

        As the package's chat template renders it, with an assistant's turn that is empty before the one to come; a
        special token written in a report is left out.
        """
        for token in self.tokenizer.all_special_tokens:
            candidate, reference = candidate.replace(token, " "), reference.replace(token, " ")
        end = self.tokenizer.eos_token
        asked = PROMPT.format(reference=reference, candidate=candidate)
        chat = f"<|user|>\n{asked}{end}\n<|assistant|>\n{end}\n<|assistant|>\n"
        ids = self.tokenizer(chat, add_special_tokens=False)["input_ids"]
        return [self.tokenizer.bos_token_id, *ids, self.tokenizer.eos_token_id]

    def texts(self, pairs: Sequence[tuple[str, str]], batch_size: int) -> Iterator[tuple[int, str]]:
        """Yield (place, judgement) of pairs (candidate, reference); "" for reports that leave no room for one."""
        import torch

        prompts = [self.prompt(*pair) for pair in pairs]
        fitting = [place for place, prompt in enumerate(prompts) if len(prompt) < _ROOM]
        yield from ((place, "") for place in range(len(pairs)) if place not in set(fitting))
        rows = [prompts[place] for place in fitting]
        end = self.tokenizer.eos_token_id
        for lines, ids, mask in batches(rows, batch_size, end, left=True):
            with torch.inference_mode():
                out = self.model.generate(
                    input_ids=ids.to(self.model.device),
                    attention_mask=mask.to(self.model.device),
                    max_new_tokens=_ROOM - min(len(rows[line]) for line in lines),
                    do_sample=False,
                    num_beams=1,
                    temperature=None,
                    top_p=None,
                    top_k=None,
                    eos_token_id=end,
                    pad_token_id=end,
                )
            for line, told in zip(lines, out[:, ids.shape[1] :], strict=True):
                own = told[: _ROOM - len(rows[line])]  # a report has the same room in any batch
                yield (
                    fitting[line],
                    self.tokenizer.decode(own, skip_special_tokens=True, clean_up_tokenization_spaces=True),
                )


@lru_cache(maxsize=1)
def _load(folder: Path, device: Any) -> _Judge:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    with reading(folder, "model"):
        kind = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
        if kind not in _FAMILIES:
            raise MetricUnavailable(
                f"option model: {folder} is a {kind!r}; the published prompt is confirmed for judges that are "
                f"{' or '.join(_FAMILIES)} models, as GREEN-radllama2-7b"
            )
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, dtype=dtype, output_loading_info=True
        )
    if lacking := sorted(info["missing_keys"]):
        raise MetricUnavailable(f"option model: {folder} lacks {len(lacking)} weights: {', '.join(lacking[:3])}")
    return _Judge(model.eval().to(device), tokenizer)
