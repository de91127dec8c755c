"""Labels of reports: CheXbert's and CT-CLIP's classifier in their checkpoints' real layout, and F1 over labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import accuracy_score, f1_score
from transformers import AutoModel, AutoTokenizer

from medmvl.core.lookup import LookupNameError
from medmvl.eval.metrics.labels import macro_f1, micro_f1, weighted_f1
from medmvl.eval.metrics.metric import Answers
from medmvl.eval.metrics.table import find, measure
from tiny_encoder import WORDS, bert, reports, roberta

FIVE = [1, 4, 5, 7, 9]  # Cardiomegaly, Edema, Consolidation, Atelectasis, Pleural Effusion
CHEXBERT = [
    "chexbert_f1_micro14",
    "chexbert_f1_macro14",
    "chexbert_f1_micro5",
    "chexbert_f1_macro5",
    "chexbert_accuracy5",
    "chexbert_similarity",
]
CT = ["ct_label_f1_micro18", "ct_label_f1_macro18", "ct_label_f1_weighted18"]


def heads(sizes: Sequence[int], width: int = 32) -> list[dict[str, torch.Tensor]]:
    """Return weights of linear heads, large enough that texts differ in their labels."""
    draw = torch.Generator().manual_seed(1)
    return [
        {"weight": torch.randn(n, width, generator=draw), "bias": torch.randn(n, generator=draw) / 4} for n in sizes
    ]


@pytest.fixture(scope="module")
def chexbert(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write a tiny chexbert.pth as DataParallel training with an old transformers left it."""
    folder = bert(tmp_path_factory.mktemp("bert"), positions=512)
    state = {f"module.bert.{name}": value for name, value in AutoModel.from_pretrained(folder).state_dict().items()}
    state["module.bert.embeddings.position_ids"] = torch.arange(512)[None]
    for i, head in enumerate(heads([4] * 13 + [2])):
        state |= {f"module.linear_heads.{i}.{part}": value for part, value in head.items()}
    checkpoint = folder / "chexbert.pth"
    torch.save(
        {"epoch": 3, "model_state_dict": state, "optimizer_state_dict": {"state": {}, "param_groups": []}}, checkpoint
    )
    return {"checkpoint": checkpoint, "bert": folder}


def scored(names: Sequence[str], answers: Answers, options: dict[str, Any]) -> dict[str, float]:
    found, missing = measure(names, answers, dict.fromkeys(names, options))
    assert not missing, missing
    return {name: float(found[name].scores(np.ones((1, len(answers.references))))[0]) for name in names}


def read_plainly(texts: Sequence[str], folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return CheXbert's labels [n, 14] and first token's vectors [n, 32], one text at a time."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    labels, vectors = [], []
    for text in texts:
        ids = tokenizer.encode(text.strip().replace("\n", " "))
        if len(ids) > 512:
            ids = [*ids[:511], tokenizer.sep_token_id]
        with torch.no_grad():
            first = model(torch.tensor([ids])).last_hidden_state[0, 0]
        classes = [int((head["weight"] @ first + head["bias"]).argmax()) for head in heads([4] * 13 + [2])]
        labels.append([c in (1, 3) for c in classes])
        vectors.append(first.numpy())
    return np.array(labels), np.array(vectors)


def test_chexbert_end_to_end(chexbert: dict[str, Path]) -> None:
    predictions, references = reports(40, seed=1), reports(40, seed=2)
    predictions[0] = " ".join(WORDS * 30)  # more than 512 tokens
    predictions[1] = f"\n{predictions[2]}\n \nedema "
    (said, saw), (true, seen) = (read_plainly(texts, chexbert["bert"]) for texts in (predictions, references))
    assert 0.1 < said.mean() < 0.9 and 0 < (said != true).mean() < 0.9
    expected = {
        "chexbert_f1_micro14": f1_score(true, said, average="micro", zero_division=0),
        "chexbert_f1_macro14": f1_score(true, said, average="macro", zero_division=0),
        "chexbert_f1_micro5": f1_score(true[:, FIVE], said[:, FIVE], average="micro", zero_division=0),
        "chexbert_f1_macro5": f1_score(true[:, FIVE], said[:, FIVE], average="macro", zero_division=0),
        "chexbert_accuracy5": accuracy_score(true[:, FIVE], said[:, FIVE]),
        "chexbert_similarity": np.mean(
            (saw * seen).sum(1) / (np.linalg.norm(saw, axis=1) * np.linalg.norm(seen, axis=1))
        ),
    }
    for batch_size in (1, 32):
        got = scored(CHEXBERT, Answers(predictions, references), {**chexbert, "batch_size": batch_size})
        assert got == pytest.approx(expected, abs=1e-6)


def test_an_empty_answer_states_nothing(chexbert: dict[str, Path]) -> None:
    references = [text for text in reports(40, seed=2) if read_plainly([text], chexbert["bert"])[0].any()][:6]
    assert scored(CHEXBERT, Answers(["", None, " \n"] * 2, references), chexbert) == dict.fromkeys(CHEXBERT, 0.0)
    got = scored(CHEXBERT, Answers(references, references), chexbert)
    assert got["chexbert_f1_micro14"] == got["chexbert_accuracy5"] == 1
    assert got["chexbert_similarity"] == pytest.approx(1)


@pytest.fixture(scope="module")
def radbert(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write a tiny RadBertClassifier.pth: a bare state dict of an encoder with its pooler, and one head."""
    folder = roberta(tmp_path_factory.mktemp("roberta"), positions=512)
    model = AutoModel.from_pretrained(folder)
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    state["model.embeddings.token_type_ids"] = torch.zeros(1, 514, dtype=torch.long)
    state |= {f"classifier.{part}": value for part, value in heads([18])[0].items()}
    torch.save(state, folder / "RadBertClassifier.pth")
    return {"checkpoint": folder / "RadBertClassifier.pth", "bert": folder}


def test_ct_labels_end_to_end(radbert: dict[str, Path]) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(radbert["bert"]), AutoModel.from_pretrained(radbert["bert"]).eval()
    (head,) = heads([18])

    def labels(text: str) -> np.ndarray:
        with torch.no_grad():
            pooled = model(tokenizer(text, return_tensors="pt")["input_ids"]).pooler_output[0]
        return (torch.sigmoid(head["weight"] @ pooled + head["bias"]) >= 0.5).numpy()

    predictions, references = reports(30, seed=5), reports(30, seed=6)
    said, true = (np.array([labels(text) for text in texts]) for texts in (predictions, references))
    assert 0 < (said != true).mean() < 0.9
    got = scored(CT, Answers(predictions, references), radbert)
    for name in CT:
        average = name.removeprefix("ct_label_f1_").removesuffix("18")
        assert got[name] == pytest.approx(f1_score(true, said, average=average, zero_division=0), abs=1e-9)
    assert scored(CT, Answers(["", None], references[:2]), radbert) == dict.fromkeys(CT, 0.0)


masks = arrays(np.bool_, st.tuples(st.integers(1, 12), st.just(5)))


@given(masks, st.integers(0, 2**32 - 1))
def test_f1_of_any_resample_is_scikit_learns(true: np.ndarray, seed: int) -> None:
    draw = np.random.default_rng(seed)
    said = draw.random(true.shape) < 0.5
    resample = draw.integers(0, len(true), len(true))
    weights = np.bincount(resample, minlength=len(true))[None].astype(float)
    for average, make in (("micro", micro_f1), ("macro", macro_f1), ("weighted", weighted_f1)):
        expected = f1_score(true[resample], said[resample], average=average, zero_division=0)
        assert make(said, true).scores(weights)[0] == pytest.approx(expected, abs=1e-12)


def test_what_is_missing_or_wrong_is_told(chexbert: dict[str, Path], radbert: dict[str, Path], tmp_path: Path) -> None:
    def told(name: str, **options: object) -> str:
        return measure([name], Answers(["a"], ["b"]), {name: options})[1][name]

    assert "--metric-option chexbert_f1_micro14.checkpoint=PATH" in told("chexbert_accuracy5")
    assert "bert-base-uncased" in told("chexbert_accuracy5", checkpoint=chexbert["checkpoint"])
    assert "RadBertClassifier.pth" in told("ct_label_f1_macro18")
    # one classifier's checkpoint given to the other
    assert "its heads are not those" in told("chexbert_accuracy5", **radbert)
    assert "its heads are not those" in told("ct_label_f1_macro18", **chexbert)
    other = bert(tmp_path / "other", layers=2)
    assert "do not belong together" in told("chexbert_accuracy5", checkpoint=chexbert["checkpoint"], bert=other)
    (tmp_path / "text.pth").write_text("no weights")
    assert "cannot be read as weights" in told("chexbert_accuracy5", checkpoint=tmp_path / "text.pth", bert=other)
    torch.save([1, 2], tmp_path / "list.pth")
    assert "holds no state dict" in told("chexbert_accuracy5", checkpoint=tmp_path / "list.pth", bert=other)


class Harmful:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('code of a checkpoint was run')",))


def test_a_checkpoint_runs_no_code(chexbert: dict[str, Path], tmp_path: Path) -> None:
    torch.save({"model_state_dict": Harmful()}, tmp_path / "harmful.pth")
    options = {"checkpoint": tmp_path / "harmful.pth", "bert": chexbert["bert"]}
    _, missing = measure(["chexbert_accuracy5"], Answers(["a"], ["b"]), {"chexbert_accuracy5": options})
    assert "cannot be read as weights" in missing["chexbert_accuracy5"]


@pytest.mark.parametrize(
    "name", ["radgraph_f1", "RadGraph", "f1_radgraph_partial", "radcliq_v1", "ratescore", "RaTE_score"]
)
def test_what_was_left_out_says_why(name: str) -> None:
    with pytest.raises(LookupNameError, match=r"left out: .*(transformers 5|medspacy).*docs/metrics.md"):
        find(name)
