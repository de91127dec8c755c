"""The table of metrics, and the one way to apply them."""

from collections.abc import Iterable, Mapping
from typing import Any

from medmvl.core.lookup import LookupNameError, choices_text, resolve
from medmvl.eval.metrics.metric import Answers, Family, MetricUnavailable, Statistics, each

METRICS = {
    "accuracy_strict": "medmvl.eval.metrics.accuracy:accuracy_strict",
    "accuracy_normalised": "medmvl.eval.metrics.accuracy:NORMALISED",
    "accuracy_substring_unimed": "medmvl.eval.metrics.accuracy:NORMALISED",
    "accuracy_yesno_strict": "medmvl.eval.metrics.accuracy:NORMALISED",
    "accuracy_yesno_llavamed": "medmvl.eval.metrics.accuracy:NORMALISED",
    "accuracy_yesno_llavamed_printed": "medmvl.eval.metrics.accuracy:NORMALISED",
    "accuracy_closed_multimedeval": "medmvl.eval.metrics.accuracy:NORMALISED",
    "accuracy_open_multimedeval": "medmvl.eval.metrics.accuracy:NORMALISED",
    "accuracy_yesno_medevalkit": "medmvl.eval.metrics.accuracy:accuracy_yesno_medevalkit",
    "accuracy_letter_ctrate": "medmvl.eval.metrics.accuracy:accuracy_letter_ctrate",
    "accuracy_letter_m3d": "medmvl.eval.metrics.accuracy:accuracy_letter_m3d",
    "token_precision": "medmvl.eval.metrics.overlap:PLAIN",
    "token_recall": "medmvl.eval.metrics.overlap:PLAIN",
    "token_f1": "medmvl.eval.metrics.overlap:PLAIN",
    "token_f1_unimed": "medmvl.eval.metrics.overlap:VQA",
    "token_recall_multimedeval": "medmvl.eval.metrics.overlap:VQA",
    "token_f1_multimedeval": "medmvl.eval.metrics.overlap:VQA",
    "token_precision_llavamed": "medmvl.eval.metrics.overlap:LLAVAMED",
    "token_recall_llavamed": "medmvl.eval.metrics.overlap:LLAVAMED",
    "token_f1_llavamed": "medmvl.eval.metrics.overlap:LLAVAMED",
    "token_exact_llavamed": "medmvl.eval.metrics.overlap:LLAVAMED",
    "bleu1_sentence": "medmvl.eval.metrics.bleu:SENTENCE",
    "bleu2_sentence": "medmvl.eval.metrics.bleu:SENTENCE",
    "bleu3_sentence": "medmvl.eval.metrics.bleu:SENTENCE",
    "bleu4_sentence": "medmvl.eval.metrics.bleu:SENTENCE",
    "bleu2_onehot": "medmvl.eval.metrics.bleu:SENTENCE",
    "bleu3_onehot": "medmvl.eval.metrics.bleu:SENTENCE",
    "bleu1_hf": "medmvl.eval.metrics.bleu:HF",
    "bleu1_corpus": "medmvl.eval.metrics.bleu:CORPUS",
    "bleu2_corpus": "medmvl.eval.metrics.bleu:CORPUS",
    "bleu3_corpus": "medmvl.eval.metrics.bleu:CORPUS",
    "bleu4_corpus": "medmvl.eval.metrics.bleu:CORPUS",
    "bleu1_ctchat": "medmvl.eval.metrics.bleu:CTCHAT",
    "rouge1": "medmvl.eval.metrics.rouge:ROUGE_SCORE",
    "rouge2": "medmvl.eval.metrics.rouge:ROUGE_SCORE",
    "rouge_l": "medmvl.eval.metrics.rouge:ROUGE_SCORE",
    "rouge_l_coco": "medmvl.eval.metrics.rouge:COCO",
    "rouge_l_ctchat": "medmvl.eval.metrics.rouge:CTCHAT",
    "rouge1_pkg": "medmvl.eval.metrics.rouge:PACKAGE",
    "rouge2_pkg": "medmvl.eval.metrics.rouge:PACKAGE",
    "rouge_l_pkg": "medmvl.eval.metrics.rouge:PACKAGE",
    "meteor_stem": "medmvl.eval.metrics.meteor:STEM",
    "meteor_wordnet": "medmvl.eval.metrics.meteor:WORDNET",
    "meteor_hf": "medmvl.eval.metrics.meteor:HF",
    "cider": "medmvl.eval.metrics.cider:COCO",
    "cider_ctchat": "medmvl.eval.metrics.cider:CTCHAT",
    "chrf_corpus": "medmvl.eval.metrics.chrf:CHRF",
    "chrf_sentence": "medmvl.eval.metrics.chrf:CHRF",
    "bleu1_caption_unimed": "medmvl.eval.metrics.captions:UNIMED",
    "bleu2_caption_unimed": "medmvl.eval.metrics.captions:UNIMED",
    "bleu3_caption_unimed": "medmvl.eval.metrics.captions:UNIMED",
    "bleu4_caption_unimed": "medmvl.eval.metrics.captions:UNIMED",
    "rouge1_caption_unimed": "medmvl.eval.metrics.captions:UNIMED",
    "rouge2_caption_unimed": "medmvl.eval.metrics.captions:UNIMED",
    "rouge_l_caption_unimed": "medmvl.eval.metrics.captions:UNIMED",
    "token_f1_caption_unimed": "medmvl.eval.metrics.captions:UNIMED",
    "balanced_accuracy": "medmvl.eval.metrics.classes:CLASSES",
    "macro_f1": "medmvl.eval.metrics.classes:CLASSES",
    "micro_f1": "medmvl.eval.metrics.classes:CLASSES",
    "weighted_f1": "medmvl.eval.metrics.classes:CLASSES",
    "listed_f1_micro": "medmvl.eval.metrics.listed:LISTED",
    "listed_f1_macro": "medmvl.eval.metrics.listed:LISTED",
    "listed_exact": "medmvl.eval.metrics.listed:LISTED",
    "accuracy_options": "medmvl.eval.metrics.likelihoods:OPTIONS",
    "options_ranked": "medmvl.eval.metrics.likelihoods:OPTIONS",
    "calibration_error": "medmvl.eval.metrics.likelihoods:OPTIONS",
    "brier_score": "medmvl.eval.metrics.likelihoods:OPTIONS",
    "log_loss": "medmvl.eval.metrics.likelihoods:OPTIONS",
    "auc": "medmvl.eval.metrics.likelihoods:AUC",
    "auc_per_question": "medmvl.eval.metrics.likelihoods:AUC_PER_QUESTION",
    "brain_atlas_facts": "medmvl.eval.metrics.facts:brain_atlas_facts",
    "brain_atlas_3d_facts": "medmvl.eval.metrics.facts:brain_atlas_3d_facts",
    "iou_mean": "medmvl.eval.metrics.boxes:iou_mean",
    "acc_iou10": "medmvl.eval.metrics.boxes:acc_iou10",
    "acc_iou30": "medmvl.eval.metrics.boxes:acc_iou30",
    "acc_iou50": "medmvl.eval.metrics.boxes:acc_iou50",
    "acc_iou70": "medmvl.eval.metrics.boxes:acc_iou70",
    "acc_iou90": "medmvl.eval.metrics.boxes:acc_iou90",
    "acc_centre": "medmvl.eval.metrics.boxes:acc_centre",
    "iou_mean_unimed": "medmvl.eval.metrics.boxes:iou_mean_unimed",
    "acc_iou50_unimed": "medmvl.eval.metrics.boxes:acc_iou50_unimed",
    "iou_mean_m3d": "medmvl.eval.metrics.boxes:iou_mean_m3d",
    "box_valid": "medmvl.eval.metrics.boxes:box_valid",
    "bertscore_precision": "medmvl.eval.metrics.bertscore:BERTSCORE",
    "bertscore_recall": "medmvl.eval.metrics.bertscore:BERTSCORE",
    "bertscore_f1": "medmvl.eval.metrics.bertscore:BERTSCORE",
    "chexbert_f1_micro14": "medmvl.eval.metrics.chexbert:CHEXBERT",
    "chexbert_f1_macro14": "medmvl.eval.metrics.chexbert:CHEXBERT",
    "chexbert_f1_micro5": "medmvl.eval.metrics.chexbert:CHEXBERT",
    "chexbert_f1_macro5": "medmvl.eval.metrics.chexbert:CHEXBERT",
    "chexbert_accuracy5": "medmvl.eval.metrics.chexbert:CHEXBERT",
    "chexbert_similarity": "medmvl.eval.metrics.chexbert:CHEXBERT",
    "ct_label_f1_micro18": "medmvl.eval.metrics.radbert:CT_LABELS",
    "ct_label_f1_macro18": "medmvl.eval.metrics.radbert:CT_LABELS",
    "ct_label_f1_weighted18": "medmvl.eval.metrics.radbert:CT_LABELS",
    "green": "medmvl.eval.metrics.green:GREEN",
    "green_unparsed": "medmvl.eval.metrics.green:GREEN",
    "judge_score": "medmvl.eval.metrics.judge:JUDGE",
    "judge_unparsed": "medmvl.eval.metrics.judge:JUDGE",
    "judge_agreement_exact": "medmvl.eval.metrics.judge:JUDGE",
    "judge_kappa_quadratic": "medmvl.eval.metrics.judge:JUDGE",
    "judge_alpha_interval": "medmvl.eval.metrics.judge:JUDGE",
}
"""`name -> "module:attribute"` of a function (prediction, reference) -> float for one sample, or of a `Family`."""

LEFT_OUT = {
    "radgraph": "its package radgraph (0.1.18) does not run with transformers 5",
    "radcliq": "it needs RadGraph F1, whose package radgraph (0.1.18) does not run with transformers 5",
    "ratescore": "its package RaTEScore (0.6.0) needs medspacy, which needs numpy below 2",
}
"""Part of a name -> why metrics of such names are not here. docs/metrics.md says how to get them all the same."""

Options = Mapping[str, Mapping[str, Any]]
"""Metric name -> its options."""


def find(name: str) -> Any:
    """Return the function or `Family` behind a metric's name or dotted path.

    Raises:
        LookupNameError: no such metric; says the nearest and all names, or why it was left out.
    """
    folded = name.casefold().replace("_", "").replace("-", "")
    for part, reason in LEFT_OUT.items():
        if ":" not in name and part in folded:
            raise LookupNameError(
                f"metric {name!r} is left out: {reason}. Run its package elsewhere on predictions.jsonl, or give a "
                "dotted path 'package.module:attribute' of your own; see docs/metrics.md"
            )
    return resolve(METRICS, name, "metric")


def refuse_unknown(options: Options) -> None:
    """Refuse options that their metrics do not take.

    Raises:
        LookupNameError: a name is unknown.
        ValueError: names the nearest option of the metric, and all of them.
    """
    for name, given in options.items():
        metric = find(name)
        taken = metric.options if isinstance(metric, Family) else {}
        for option in given:
            if option not in taken:
                hint = choices_text(option, taken, "options")
                raise ValueError(f"metric {name!r}: unknown option {option!r}; {hint}")


def measure(
    names: Iterable[str],
    answers: Answers,
    options: Options | None = None,
    acting: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Statistics], dict[str, str]]:
    """Apply metrics, those of one family together.

    Args:
        names: metric names of `METRICS`, or dotted paths of the user's own functions.
        answers: what was said and what is true.
        options: metric name -> its options.
        acting: what those may do that ask a model behind an endpoint (see `Family.sends_away`).

    Returns:
        name -> statistics, and name -> what is missing for those that cannot be computed here, or how they failed: one
        metric loses no other.

    Raises:
        LookupNameError: a name is unknown.
        ValueError: a metric does not take an option.
    """
    refuse_unknown(options or {})
    found: dict[str, Statistics] = {}
    missing: dict[str, str] = {}
    families: dict[tuple[int, str], Mapping[str, Statistics] | str] = {}
    for name in names:
        metric = find(name)
        if not isinstance(metric, Family):
            try:
                found[name] = each(metric, answers)
            except Exception as error:  # the user's own function, after hours of asking
                missing[name] = f"failed with {type(error).__name__}: {error}"
            continue
        given = dict((options or {}).get(name, {})) | (acting or {} if metric.sends_away else {})
        key = (id(metric), repr(sorted(given.items())))
        if key not in families:
            try:
                families[key] = metric.measure(answers, **given)
            except MetricUnavailable as error:
                families[key] = str(error)
            except Exception as error:
                families[key] = f"failed with {type(error).__name__}: {error}"
        made = families[key]
        if isinstance(made, str):
            missing[name] = made
        else:
            found[name] = made[name]
    return found, missing


def acts(name: str) -> bool:
    """Tell whether a metric asks a model behind an endpoint."""
    metric = find(name)
    return isinstance(metric, Family) and metric.sends_away is not None


def sends_away(name: str, options: Mapping[str, Any]) -> bool:
    """Tell whether a metric shows questions and answers to another machine."""
    metric = find(name)
    return isinstance(metric, Family) and metric.sends_away is not None and metric.sends_away(options)


def lower_is_better(name: str) -> bool:
    """Tell whether a metric is an error."""
    metric = find(name)
    return isinstance(metric, Family) and name in metric.lower_is_better


def is_unbounded(name: str) -> bool:
    """Tell whether a metric's scores are no shares of 1."""
    metric = find(name)
    return isinstance(metric, Family) and name in metric.unbounded
