"""Reports as Uni-Med scores its captions (MIMIC-CXR, MPx-Single), with its habits: for numbers comparable to its own.

Source: Uni-Med eval_caption.py. References are cut to 50 words, so text beyond them counts as wrong. Pairs in which
either side is empty are dropped: silence costs nothing. BLEU sees the texts as they are; the others see them
normalised twice, for METEOR's turn changes them for all that follow. Its METEOR is left out: it needs Java.
"""

import numpy as np

from medmvl.eval.metrics.bleu import corpus, match
from medmvl.eval.metrics.metric import Answers, Family, Sums, mean_of
from medmvl.eval.metrics.ngrams import count
from medmvl.eval.metrics.overlap import repeated
from medmvl.eval.metrics.ptb import words_ptb
from medmvl.eval.metrics.rouge import package
from medmvl.eval.metrics.text import first_words, normalise_vqa


def _captions(answers: Answers) -> dict[str, Sums]:
    predictions, references = answers.texts()
    predictions = [text.lower().replace("<unk>", "").strip() for text in predictions]
    references = [first_words(text) for text in references]
    kept = np.array([bool(p and r) for p, r in zip(predictions, references, strict=True)], dtype=np.float64)
    statistics = match([words_ptb(p) for p in predictions], [words_ptb(r) for r in references], orders=4)
    scores = {f"bleu{n}_caption_unimed": corpus(statistics * kept[:, None], n) for n in range(1, 5)}

    given, wanted = ([normalise_vqa(normalise_vqa(text)) for text in side] for side in (predictions, references))
    left = kept * np.array([bool(p and r) for p, r in zip(given, wanted, strict=True)], dtype=np.float64)
    for name, values in package(given, wanted).items():
        scores[f"{name}_caption_unimed"] = mean_of(values, left)
    (table,) = count([p.split() for p in given], [r.split() for r in wanted], orders=1)
    return {**scores, "token_f1_caption_unimed": mean_of(repeated(table)["f1"], kept)}


UNIMED = Family(_captions)
