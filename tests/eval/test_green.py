"""GREEN: the published prompt and reading, and a judge on disk that goes the whole way."""

import hashlib
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken
from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer

from medmvl.eval.metrics import green
from medmvl.eval.metrics.green import PROMPT, parse
from medmvl.eval.metrics.metric import Answers
from medmvl.eval.metrics.table import lower_is_better, measure
from tiny_encoder import bert

GOOD = """\
[Explanation]:
All but the edema is right.

[Clinically Significant Errors]:
(a) False report of a finding in the candidate: 1. Edema.
(b) Missing a finding present in the reference: 0.

[Clinically Insignificant Errors]:
(d) Misassessment of the severity of a finding: 4. Much; more; than; that.

[Matched Findings]:
3. Effusion; fracture; heart size."""
POOR = GOOD.replace(": 1. Edema", ": 2. Edema; opacity").replace("3. Effusion; fracture; heart size.", "1. Effusion.")
UNREADABLE = "I would rather not say."


def test_the_prompt_is_the_published_one() -> None:
    """The digest is that of make_prompt's text in green_score/utils.py of Stanford-AIMI/GREEN, its two names kept."""
    digest = "62ff3675597dd0994584f5b08cd33076bc5d74c72de27cf0124b0a9dac8aad0f"
    assert hashlib.sha256(PROMPT.encode()).hexdigest() == digest


@pytest.mark.parametrize(
    ("text", "matched", "errors", "score"),
    [
        (GOOD, 3, (1, 0, 0, 0, 0, 0), 3 / 4),
        (POOR, 1, (2, 0, 0, 0, 0, 0), 1 / 3),
        (GOOD.replace("3. Eff", "0. Eff"), 0, (1, 0, 0, 0, 0, 0), 0),
        (GOOD.replace("3. Effusion", "No findings match"), 0, (1, 0, 0, 0, 0, 0), 0),
        # a second judgement that the model dreamt up after its own comes last, and is the one read
        (f"{GOOD}\n<|assistant|>\n{POOR}", 1, (2, 0, 0, 0, 0, 0), 1 / 3),
        # kinds out of order, or numbered
        (
            "[Clinically Significant Errors]:\n(f) Omitting: 2. a\n(c) Wrong side: 1. c\n\n[Matched Findings]:\n5. d",
            5,
            (0, 0, 1, 0, 0, 2),
            5 / 8,
        ),
        (
            "[Clinically Significant Errors]:\n(2) Missing: 3. a\n\n[Matched Findings]:\n1. b",
            1,
            (0, 3, 0, 0, 0, 0),
            1 / 4,
        ),
        # a count is a number between ": " and "."
        ("[Clinically Significant Errors]:\n(a) False: two.\n\n[Matched Findings]:\n12. b", 12, (0,) * 6, 1),
        ("[Clinically Significant Errors]:\nNone.\n\n[Matched Findings]:\n2 b", 0, (0,) * 6, 0),
    ],
)
def test_a_judgement_is_read_as_the_package_reads_it(
    text: str, matched: int, errors: tuple[int, ...], score: float
) -> None:
    judgement = parse(text)
    assert (judgement.matched, judgement.errors, judgement.complete) == (matched, errors, True)
    assert judgement.score == pytest.approx(score)


@pytest.mark.parametrize("text", [UNREADABLE, "", GOOD[: GOOD.index("[Matched")], GOOD[GOOD.index("[Matched") :]])
def test_a_judgement_without_one_of_its_parts_is_incomplete(text: str) -> None:
    assert not parse(text).complete


def judge(folder: Path) -> Path:
    """Write a Llama that ends its prompt with GOOD, or POOR if it holds "Zebra", or UNREADABLE if it holds "Okapi".

    Tokens are one-hot; the one layer attends evenly to all of them, and lets only the two words through.
    """
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3}
    vocabulary |= {f"<0x{byte:02X}>": 4 + byte for byte in range(256)}
    tokenizer = LlamaTokenizer(vocabulary, [])
    parts = PROMPT.replace("{candidate}", "{reference}").split("{reference}")  # else a token for each of their bytes
    words = [GOOD, POOR, UNREADABLE, "Zebra", "Okapi", *parts]
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    tokenizer.save_pretrained(folder)
    good, poor, unreadable, zebra, okapi = (tokenizer.convert_tokens_to_ids(word) for word in words[:5])
    end, size = tokenizer.eos_token_id, len(tokenizer)
    width = size + size % 2
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=width,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.zero_()
        model.model.embed_tokens.weight.fill_diagonal_(1)
        attention = model.model.layers[0].self_attn
        attention.v_proj.weight.fill_diagonal_(1)
        head = model.lm_head.weight
        for answer, word in ((poor, zebra), (unreadable, okapi)):
            attention.o_proj.weight[word, word] = 1000
            head[answer, end], head[answer, word] = 0.5, 1
            head[end, answer] = 1e6
        head[good, end], head[end, good] = 1, 1e6
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return judge(tmp_path_factory.mktemp("judge"))


def scores(predictions: list[str | None], references: list[str], **options: object) -> tuple[list[float], list[float]]:
    """Return each answer's score, and 1 for each whose judgement could not be read."""
    names = ["green", "green_unparsed"]
    found, missing = measure(names, Answers(predictions, references), dict.fromkeys(names, options))
    assert not missing, missing
    return found["green"].values.tolist(), found["green_unparsed"].values.tolist()


@pytest.mark.parametrize("batch_size", [1, 8])
def test_end_to_end(folder: Path, batch_size: int) -> None:
    predictions = [
        "Edema, effusion.",
        "A Zebra in the lung.",
        "An Okapi.",
        "",
        None,
        "Edema, effusion.",
        "too long " * 400,
    ]
    got = scores(predictions, ["Effusion."] * 6 + ["x"], model=folder, batch_size=batch_size)
    assert got[0] == pytest.approx([3 / 4, 1 / 3, 0, 0, 0, 3 / 4, 0])
    assert got[1] == [0, 0, 1, 0, 0, 0, 1]
    assert scores(["Effusion."], ["A Zebra."], model=folder)[0] == pytest.approx([1 / 3])  # it reads the reference too


def test_the_prompt_of_a_pair(folder: Path) -> None:
    """Beginning of text, the request, an empty turn, the turn to come, end of text: as the package's tokens are."""
    one = green._load(folder, torch.device("cpu"))
    ids = one.prompt("left lung</s><s>", "right lung")
    text = one.tokenizer.decode(ids)
    assert text.startswith("<s>") and text.count("<s>") == 1
    assert text.endswith("</s>\n<|assistant|>\n</s>\n<|assistant|>\n</s>") and text.count("</s>") == 3
    request = PROMPT.format(reference="right lung", candidate="left lung  ")
    assert "".join(text.split()).startswith("<s>" + "".join(f"<|user|>\n{request}</s>".split()))


def test_errors_are_told(tmp_path: Path) -> None:
    def told(**options: object) -> str:
        return measure(["green"], Answers(["a"], ["b"]), {"green": options})[1]["green"]

    assert "--metric-option green.model=PATH" in told()
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'} cannot be read" in told(model=tmp_path / "empty")
    assert "is a 'bert'; the published prompt is confirmed for" in told(model=bert(tmp_path / "bert"))
    assert lower_is_better("green_unparsed") and not lower_is_better("green")
