"""Texts made comparable: what the known scorers do to a text before they compare, each under its own name."""

import re
from collections.abc import Callable

from medmvl.eval.metrics.metric import Answers

_WORD = re.compile(r"[^\W_]+")


def normalise(text: str) -> str:
    """Return the text in lower case, runs of white space as one blank, without outer blanks and one final period."""
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


def words(text: str) -> list[str]:
    """Return the lower-case words of a text; a word is a run of letters and digits."""
    return _WORD.findall(text.casefold())


_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
_VQA_MARKS = re.compile(r'[;/\[\]"{}()=+\\_\-><@`,?!]')
_VQA_GROUPED = re.compile(r"\d,\d")
_VQA_PERIOD = re.compile(r"\.(?!\d)")
_VQA_PERIODS = 32  # the original hands a flag over where the count belongs, so it stops here
_VQA_NUMBERS = {
    "none": "0",
    **{word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())},
}
_VQA_ARTICLES = frozenset({"a", "an", "the"})


def normalise_vqa(text: str) -> str:
    """Return a text as VQA scorers compare it: `normalize_word` of LLaVA-Med and Uni-Med, MultiMedEval's `clean_str`.

    A punctuation mark is deleted if it touches a blank anywhere in the text, or if the text has a comma between
    digits; otherwise it becomes a blank. Then periods go (the first 32 that no digit follows), letters become small,
    number words to ten become digits, articles go, and contractions get their apostrophe back.
    Source: LLaVA-Med (b9a98a7) llava/eval/eval_metrics/glossary.py; the original also remembers words between calls,
    which changes nothing.
    """
    changed = text
    if marks := set(_VQA_MARKS.findall(text)):
        grouped = _VQA_GROUPED.search(text) is not None
        for mark in marks:
            deleted = grouped or mark + " " in text or " " + mark in text
            changed = changed.replace(mark, "" if deleted else " ")
    changed = _VQA_PERIOD.sub("", changed, count=_VQA_PERIODS)
    kept = [_VQA_NUMBERS.get(word, word) for word in changed.lower().split() if word not in _VQA_ARTICLES]
    return " ".join(_CONTRACTIONS.get(word, word) for word in kept)


_SPELLED = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't
it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't
somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's
they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's
where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
# Where only one of two apostrophes was forgotten, the other one says where.
_CONTRACTIONS = {
    **{word.replace("'", ""): word for word in _SPELLED.split()},
    "somebody'd": "somebodyd",
    "ow's'at": "'ow's'at",
    "'ows'at": "'ow's'at",
    "'ow'sat": "'ow's'at",
    "yall'll": "y'all'll",
    "y'allll": "y'all'll",
    "yall'd've": "y'all'd've",
    "y'alld've": "y'all'd've",
    "y'all'dve": "y'all'd've",
    **{
        form: f"{stem}n't've"
        for stem in ("could", "had", "might", "should", "would")
        for form in (f"{stem}n'tve", f"{stem}nt've")
    },
    **{
        form: f"{who}'d've"
        for who in ("he", "it", "she", "somebody", "someone", "something", "there", "they", "we", "who", "you")
        for form in (f"{who}'dve", f"{who}d've")
    },
}


def first_words(text: str, count: int = 50) -> str:
    """Return the first words of a text, as Uni-Med's `blip_caption_new` cuts its reference reports (to 50)."""
    return " ".join(re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ").split(" ")[:count])


_ROUGE = re.compile(r"[a-z0-9]+")


def words_rouge(text: str) -> list[str]:
    """Return the words of rouge-score's default tokenizer without stemmer: runs of a-z and 0-9 in lower case."""
    return _ROUGE.findall(text.lower())


_13A = (
    (re.compile(r"([{-~\[-` -&(-+:-@/])"), r" \1 "),
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)
_13A_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))


def words_13a(text: str) -> list[str]:
    """Return the tokens of mteval-v13a, the default of Hugging Face's BLEU and of sacrebleu; case is kept."""
    text = text.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    if "&" in text:
        for entity, mark in _13A_ENTITIES:
            text = text.replace(entity, mark)
    text = f" {text} "
    for pattern, replacement in _13A:
        text = pattern.sub(replacement, text)
    return text.split()


def split(answers: Answers, tokenise: Callable[[str], list[str]]) -> tuple[list[list[str]], list[list[str]]]:
    """Return the tokens of all predictions, and those of all references."""
    predictions, references = answers.texts()
    return [tokenise(text) for text in predictions], [tokenise(text) for text in references]


def clean_ctchat(answers: Answers) -> tuple[list[str], list[str]]:
    """Return predictions without special tokens and line ends, as CT-CHAT's new_llm_metrics.py, and the references."""
    predictions, references = answers.texts()
    return [re.sub(r"<s>|</s>|<\|eot_id\|>|\n", "", text) for text in predictions], references
