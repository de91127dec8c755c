"""Text metrics against the packages they are named after, on 1,000 random pairs."""

import json
import random
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nltk.corpus.reader.wordnet import WordNetCorpusReader
from nltk.translate.bleu_score import sentence_bleu
from nltk.translate.meteor_score import single_meteor_score
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge as CocoRouge
from rouge import Rouge
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from medmvl.eval.metrics.metric import Answers, Floats, Statistics
from medmvl.eval.metrics.ptb import words_ptb
from medmvl.eval.metrics.table import measure
from medmvl.eval.metrics.text import first_words, normalise_vqa, words_13a

VOCABULARY = """
the a an no none one two ten lung lungs left right Left lobe, lobe. effusion effusions (small) 3.5 1,000 mm x-ray
T2-weighted isnt patient's yes no. yes, normal abnormal and/or <5 >3 e.g. lesion; lesion seen was is CT MRI 50%
hyperintense hyperintensity Findings: Impression: 2. - -- &amp; & “clear” α ± cannot don't . ,
"""
WORDS = VOCABULARY.split()


@cache
def pairs() -> tuple[list[str], list[str]]:
    """Return 1,000 predictions and references: alike, changed, shuffled, foreign, repeated, empty, long."""
    draw = random.Random(0)
    predictions, references = [], []
    for number in range(1000):
        reference = [draw.choice(WORDS) for _ in range(draw.choice((1, 2, 4, 8, 20, 70)))]
        kept = [draw.choice(WORDS) if draw.random() < 0.3 else word for word in reference if draw.random() < 0.9]
        other = [draw.choice(WORDS) for _ in range(draw.randint(1, 12))]
        prediction = (kept, kept, reference, draw.sample(kept, len(kept)), other, kept + kept, [])[number % 7]
        predictions.append(draw.choice((" ", " ", "  ", "\n")).join(prediction))
        references.append(" ".join(reference) if number % 97 else "")
    return predictions, references


def found(*names: str) -> dict[str, Statistics]:
    statistics, missing = measure(names, Answers(*pairs()))
    assert not missing
    return statistics


def total(statistics: Statistics) -> float:
    return float(statistics.scores(np.ones((1, 1000)))[0])


def assert_same(statistics: Statistics, values: list[float] | Floats, score: float | None = None) -> None:
    assert statistics.values is not None
    np.testing.assert_allclose(statistics.values, values, atol=1e-6, rtol=0)
    assert total(statistics) == pytest.approx(np.mean(values) if score is None else score, abs=1e-6)
    assert np.std(values) > 0.1, "the pairs are too alike to tell"


def each(function: Callable[[str, str], float]) -> list[float]:
    return [function(p, r) for p, r in zip(*pairs(), strict=True)]


def coco(change: Callable[[str], str]) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    predictions, references = pairs()
    return tuple({place: [change(text)] for place, text in enumerate(side)} for side in (references, predictions))


def joined(text: str) -> str:
    return " ".join(words_ptb(text))


def test_bleu_of_the_corpus() -> None:
    scores, alone = Bleu(4).compute_score(*coco(joined), verbose=0)
    statistics = found(*(f"bleu{order}_corpus" for order in range(1, 5)))
    for order in range(1, 5):
        assert_same(statistics[f"bleu{order}_corpus"], alone[order - 1], scores[order - 1])


def test_texts_no_tokenizer_has_seen() -> None:
    references, predictions = coco(str)
    predictions = {key: [text.replace("\n", "")] for key, (text,) in predictions.items()}
    statistics = found("bleu1_ctchat", "rouge_l_ctchat", "cider_ctchat")
    (score, *_), (alone, *_) = Bleu(4).compute_score(references, predictions, verbose=0)
    assert_same(statistics["bleu1_ctchat"], alone, score)
    assert_same(statistics["rouge_l_ctchat"], CocoRouge().compute_score(references, predictions)[1])
    assert_same(statistics["cider_ctchat"], Cider().compute_score(references, predictions)[1])
    marked, _ = measure(["bleu1_ctchat"], Answers(["<s>no\n lesion</s><|eot_id|>"], ["no lesion"]))
    assert marked["bleu1_ctchat"].values == pytest.approx([1], abs=1e-6)


def test_rouge_and_cider_of_coco() -> None:
    statistics = found("rouge_l_coco", "cider")
    assert_same(statistics["rouge_l_coco"], CocoRouge().compute_score(*coco(joined))[1])
    assert_same(statistics["cider"], Cider().compute_score(*coco(joined))[1])


def test_rouge_score() -> None:
    package = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
    scores = [package.score(r, p) for p, r in zip(*pairs(), strict=True)]
    for name, theirs in (("rouge1", "rouge1"), ("rouge2", "rouge2"), ("rouge_l", "rougeL")):
        assert_same(found(name)[name], [score[theirs].fmeasure for score in scores])


def package_rouge(prediction: str, reference: str, kind: str) -> float:
    empty = not prediction.strip(".") or not reference.strip(".")
    return 0.0 if empty else Rouge().get_scores(prediction, reference)[0][kind]["f"]


def test_package_rouge() -> None:
    kinds = {"rouge1_pkg": "rouge-1", "rouge2_pkg": "rouge-2", "rouge_l_pkg": "rouge-l"}
    statistics = found(*kinds)
    for name, kind in kinds.items():
        assert_same(statistics[name], each(lambda p, r, kind=kind: package_rouge(p, r, kind)))


def test_chrf() -> None:
    predictions, references = pairs()
    statistics = found("chrf_corpus", "chrf_sentence")
    alone = each(lambda p, r: CHRF().sentence_score(p, [r]).score / 100)
    score = CHRF().corpus_score(predictions, [references]).score / 100
    assert_same(statistics["chrf_corpus"], alone, score)
    assert_same(statistics["chrf_sentence"], alone)


def test_bleu_of_sentences() -> None:
    weights = {
        **{f"bleu{order}_sentence": (1 / order,) * order + (0,) * (4 - order) for order in range(1, 5)},
        "bleu2_onehot": (0, 1, 0, 0),
        "bleu3_onehot": (0, 0, 1, 0),
    }
    statistics = found(*weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, orders in weights.items():
            values = each(
                lambda p, r, orders=orders: sentence_bleu([normalise_vqa(r).split()], normalise_vqa(p).split(), orders)
            )
            assert_same(statistics[name], values)


def test_bleu_of_hugging_face_is_that_of_sacrebleu_for_one_sample_and_words() -> None:
    package = BLEU(max_ngram_order=1, smooth_method="none", effective_order=True)
    assert_same(
        found("bleu1_hf")["bleu1_hf"], each(lambda p, r: package.sentence_score(p.strip(), [r.strip()]).score / 100)
    )
    tokenizer = Tokenizer13a()
    for text in [*pairs()[0], *pairs()[1], "a-\nb <skipped>c", "&quot;x&lt;y&gt;&quot; 1-2 3.4,5,a.b"]:
        assert " ".join(words_13a(text)) == tokenizer(text)


class Nothing:
    """A WordNet without words."""

    def synsets(self, word: str) -> list[Any]:
        return []


def test_meteor_by_stem() -> None:
    def score(prediction: str, reference: str) -> float:
        return single_meteor_score(words_ptb(reference), words_ptb(prediction), wordnet=Nothing())

    assert_same(found("meteor_stem")["meteor_stem"], each(score))


def little_wordnet(folder: Path) -> None:
    """Write a WordNet of three meanings in the layout of the real one."""
    folder.mkdir(parents=True)
    meanings = ["lung pulmonic_organ pneumonic", "lobe lesion", "left leftover"]
    data, index = "", {}
    for meaning in meanings:
        names = meaning.split()
        offset = f"{len(data):08d}"
        for name in names:
            index.setdefault(name, []).append(offset)
        data += f"{offset} 00 n {len(names):02x} {' 0 '.join(names)} 0 000 | a meaning\n"
    lines = [f"{name} n {len(o)} 0 {len(o)} 0 {' '.join(o)} \n" for name, o in sorted(index.items())]
    for part in ("adj", "adv", "noun", "verb"):
        (folder / f"data.{part}").write_text(data if part == "noun" else "")
        (folder / f"index.{part}").write_text("".join(lines) if part == "noun" else "")
        (folder / f"{part}.exc").write_text("")
    (folder / "lexnames").write_text("00\tnoun.all\t1\n")
    (folder / "index.sense").write_text("")
    (folder / "cntlist.rev").write_text("")


def test_meteor_with_synonyms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nltk.data.path", [str(tmp_path)])
    names = ["meteor_wordnet", "meteor_hf", "rouge1"]
    statistics, missing = measure(names, Answers(*pairs()))
    assert statistics.keys() == {"rouge1"}
    assert "nltk.downloader wordnet" in missing["meteor_wordnet"] and "meteor_stem" in missing["meteor_hf"]

    little_wordnet(tmp_path / "corpora" / "wordnet")
    statistics, missing = measure(names, Answers(*pairs()))
    assert missing.keys() == {"meteor_hf"} and "nltk.downloader punkt_tab" in missing["meteor_hf"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wordnet = WordNetCorpusReader(str(tmp_path / "corpora" / "wordnet"), None)
    assert {lemma.name() for lemma in wordnet.synsets("lobe")[0].lemmas()} == {"lobe", "lesion"}

    def score(prediction: str, reference: str) -> float:
        return single_meteor_score(words_ptb(reference), words_ptb(prediction), wordnet=wordnet)

    assert_same(statistics["meteor_wordnet"], each(score))
    assert total(statistics["meteor_wordnet"]) > total(found("meteor_stem")["meteor_stem"])

    punkt = tmp_path / "tokenizers" / "punkt_tab" / "english"
    punkt.mkdir(parents=True)
    for name in ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab"):
        (punkt / name).write_text("")
    from nltk import word_tokenize

    def hugging_face(prediction: str, reference: str) -> float:
        return single_meteor_score(word_tokenize(reference), word_tokenize(prediction), wordnet=wordnet)

    statistics, missing = measure(["meteor_hf"], Answers(*pairs()))
    assert not missing
    assert_same(statistics["meteor_hf"], each(hugging_face))


def test_captions_of_unimed() -> None:
    predictions, references = pairs()
    predictions = [text.lower().replace("<unk>", "").strip() for text in predictions]
    cut = [first_words(text) for text in references]
    kept = [(p, r) for p, r in zip(predictions, cut, strict=True) if p and r]
    assert len(kept) < 900 and any(len(r.split()) > 50 for r in references)
    statistics = found(*(f"{name}_caption_unimed" for name in CAPTIONS))

    gts, res = ({place: [joined(pair[side])] for place, pair in enumerate(kept)} for side in (1, 0))
    scores, _ = Bleu(4).compute_score(gts, res, verbose=0)
    for order in range(1, 5):
        assert total(statistics[f"bleu{order}_caption_unimed"]) == pytest.approx(scores[order - 1], abs=1e-6)

    twice = [tuple(normalise_vqa(normalise_vqa(text)) for text in pair) for pair in kept]
    for name, kind in (("rouge1", "rouge-1"), ("rouge2", "rouge-2"), ("rouge_l", "rouge-l")):
        values = [Rouge().get_scores(p, r)[0][kind]["f"] for p, r in twice if p and r]
        assert total(statistics[f"{name}_caption_unimed"]) == pytest.approx(np.mean(values), abs=1e-6)
    f1 = np.mean([repeated_f1(p.split(), r.split()) for p, r in twice])
    assert total(statistics["token_f1_caption_unimed"]) == pytest.approx(f1, abs=1e-6)


CAPTIONS = ("bleu1", "bleu2", "bleu3", "bleu4", "rouge1", "rouge2", "rouge_l", "token_f1")


def repeated_f1(given: list[str], wanted: list[str]) -> float:
    hits = sum(word in wanted for word in given)
    if not hits:
        return 0.0
    precision, recall = hits / len(given), hits / (hits + sum(word not in given for word in wanted))
    return 2 * precision * recall / (precision + recall)


def test_token_scores_by_plain_loops() -> None:
    def words(text: str, times: int = 1) -> list[str]:
        for _ in range(times):
            text = normalise_vqa(text)
        return text.split()

    def recall_of_sets(given: set[str], wanted: set[str]) -> float:
        return len(given & wanted) / len(wanted) if wanted else 0.0

    statistics = found("token_f1_unimed", "token_f1_llavamed", "token_recall_multimedeval", "token_exact_llavamed")
    assert_same(statistics["token_f1_unimed"], each(lambda p, r: repeated_f1(words(p), words(r))))
    assert_same(statistics["token_f1_llavamed"], each(lambda p, r: repeated_f1(words(p, 2), words(r, 2))))
    assert_same(
        statistics["token_recall_multimedeval"], each(lambda p, r: recall_of_sets(set(words(p)), set(words(r))))
    )
    assert_same(
        statistics["token_exact_llavamed"],
        each(lambda p, r: len(set(words(p)) & set(words(r))) / len(words(p)) if words(p) else 0.0),
    )


# What Stanford's tokenizer (CoreNLP 3.4.1, -preserveLines -lowerCase) made of these lines, less pycocoevalcap's marks.
TOKENS = Path(__file__).with_name("ptb_tokens.jsonl").read_text(encoding="utf-8").splitlines()


def test_penn_treebank_tokens() -> None:
    assert len(TOKENS) > 150
    for line in map(json.loads, TOKENS):
        assert " ".join(words_ptb(line["text"])) == line["tokens"]
