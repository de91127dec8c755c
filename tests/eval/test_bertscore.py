"""BERTScore against the package bert-score, and against its formula written out."""

from pathlib import Path

import bert_score
import numpy as np
import pytest
import torch
from bert_score import BERTScorer
from transformers import AutoConfig, AutoModel, AutoTokenizer, BertModel

from medmvl.eval.metrics import bertscore
from medmvl.eval.metrics.metric import Answers
from medmvl.eval.metrics.table import measure
from medmvl.eval.scoring import check_options
from medmvl.eval.task import load_tasks
from tiny_encoder import LONGEST, WORDS, bert, reports, roberta

NAMES = ["bertscore_precision", "bertscore_recall", "bertscore_f1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert(tmp_path_factory.mktemp("bert"))


def scores(predictions: list[str | None], references: list[str], **options: object) -> np.ndarray:
    """Return precision, recall and F1 of each pair, [n, 3]."""
    found, missing = measure(NAMES, Answers(predictions, references), dict.fromkeys(NAMES, options))
    assert not missing, missing
    return np.stack([found[name].values for name in NAMES], axis=1)


@pytest.mark.parametrize("layer", [0, 2, 3])
@pytest.mark.parametrize("idf", [False, True])
def test_equals_the_package(folder: Path, layer: int, idf: bool) -> None:
    predictions, references = reports(60, seed=1), reports(60, seed=2)
    predictions[0] = " ".join(WORDS * 3)  # longer than the model reads
    package = BERTScorer(
        str(folder), num_layers=layer, idf=idf, idf_sents=references if idf else None, nthreads=0, device="cpu"
    )
    # One pair at a time: in a batch the package lets padding win over negative cosines.
    expected = torch.stack(package.score(predictions, references, batch_size=1), dim=1).numpy()
    assert expected.std(axis=0).min() > 0.05  # the pairs differ, so equal means something
    got = scores(predictions, references, model=folder, layer=layer, idf=idf)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_rescaling_equals_the_package(folder: Path) -> None:
    baseline = Path(bert_score.__file__).parent / "rescale_baseline" / "en" / "distilroberta-base.tsv"
    predictions, references = reports(10, seed=1), reports(10, seed=2)
    package = BERTScorer(
        str(folder), num_layers=2, lang="en", rescale_with_baseline=True, baseline_path=str(baseline), device="cpu"
    )
    expected = torch.stack(package.score(predictions, references, batch_size=1), dim=1).numpy()
    np.testing.assert_allclose(
        scores(predictions, references, model=folder, layer=2, baseline=baseline), expected, atol=1e-5
    )


def plain(folder: Path, prediction: str, reference: str, layer: int) -> tuple[float, float, float]:
    """BERTScore of a pair, without idf, from the formula; the model runs whole."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    vectors = []
    for text in (prediction, reference):
        ids = tokenizer(f" {text}", truncation=True, max_length=LONGEST, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            hidden = model(ids, output_hidden_states=True).hidden_states[layer][0]
        vectors.append(hidden / hidden.norm(dim=1, keepdim=True))
    cosines = vectors[0] @ vectors[1].T
    precision = cosines[1:-1].max(dim=1).values.mean().item()
    recall = cosines[:, 1:-1].max(dim=0).values.mean().item()
    return precision, recall, 2 * precision * recall / (precision + recall)


def test_roberta_reads_the_first_word_as_any_other(tmp_path: Path) -> None:
    """The published scores put a blank before a text; bert-score itself does so no more with transformers 5."""
    folder = roberta(tmp_path)
    pairs = [
        ("no effusion", "no acute effusion"),
        ("heart size normal", "a small heart"),
        (" ".join(WORDS), "no edema"),
    ]
    got = scores([p for p, _ in pairs], [r for _, r in pairs], model=folder, layer=2)
    np.testing.assert_allclose(got, [plain(folder, *pair, layer=2) for pair in pairs], atol=1e-5)


def test_empty_answers_score_nothing_and_equal_ones_all(folder: Path) -> None:
    got = scores(["", None, " \n", "no effusion", "no effusion "], ["edema"] * 3 + ["", "no  effusion"], model=folder)
    np.testing.assert_allclose(got, [[0] * 3] * 4 + [[1] * 3], atol=1e-6)
    assert (scores(["[SEP] [CLS]"], ["[SEP]"], model=folder) > 0).all()  # control tokens in a text are text


def test_batches_change_nothing_and_a_text_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictions, references = reports(50, seed=3), reports(50, seed=4)
    one = scores(predictions, references, model=folder, batch_size=1)
    read: list[int] = []
    forward = BertModel.forward

    def counting(self: BertModel, input_ids: torch.Tensor, **rest: object) -> object:
        read.append(len(input_ids))
        return forward(self, input_ids=input_ids, **rest)

    monkeypatch.setattr(BertModel, "forward", counting)
    np.testing.assert_allclose(scores(predictions, references, model=folder, batch_size=7), one, atol=1e-6)
    assert sum(read) == len({*predictions, *references}) < 100


def test_the_layer_is_the_published_one_of_known_encoders(folder: Path) -> None:
    known = {
        "roberta-large": ("roberta", 24, 1024, 50265),
        "distilroberta-base": ("roberta", 6, 768, 50265),
        "bert-base-uncased": ("bert", 12, 768, 30522),
    }
    assert [bertscore._BEST_LAYER[known[name]] for name in known] == [
        bert_score.utils.model2layers[name] for name in known
    ]
    pair = (["no effusion"], ["mild edema"])
    np.testing.assert_array_equal(scores(*pair, model=folder), scores(*pair, model=folder, layer=3))  # unknown: all
    assert AutoConfig.from_pretrained(folder).num_hidden_layers == 3


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "--metric-option bertscore_f1.model=PATH"),
        ({"model": "/nowhere"}, "/nowhere does not exist"),
        ({"layer": 9}, "layers 0 (its embeddings) to 3"),
        ({"layer": "last"}, "layers 0 (its embeddings) to 3"),
        ({"baseline": "/nowhere.tsv"}, "LAYER,P,R,F"),
        ({"baseline": __file__}, "no row of layer 3"),
    ],
)
def test_what_is_missing_is_told(folder: Path, options: dict[str, object], told: str) -> None:
    given = {**({"model": folder} if options and "model" not in options else {}), **options}
    _, missing = measure(["bertscore_f1"], Answers(["a"], ["b"]), {"bertscore_f1": given})
    assert told in missing["bertscore_f1"]


def test_a_folder_that_holds_no_encoder_is_told(folder: Path, tmp_path: Path) -> None:
    def told(path: Path) -> str:
        return measure(["bertscore_f1"], Answers(["a"], ["b"]), {"bertscore_f1": {"model": path}})[1]["bertscore_f1"]

    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'} cannot be read" in told(tmp_path / "empty")
    other = bert(tmp_path / "other", layers=1)
    config = AutoConfig.from_pretrained(other)
    config.num_hidden_layers = 2  # a layer more than there are weights of
    config.save_pretrained(other)
    assert "lacks 16 weights" in told(other)
    with pytest.raises(ValueError, match="unknown option 'layr'; did you mean 'layer'"):
        measure(["bertscore_f1"], Answers(["a"], ["b"]), {"bertscore_f1": {"layr": 1}})


def test_a_wrong_option_is_refused_before_anything_is_asked() -> None:
    (task,) = load_tasks("brain_atlas/report")
    with pytest.raises(ValueError, match="metric 'rouge_l': unknown option 'model'"):
        check_options({"rouge_l": {"model": "x"}}, [task])
