"""The Penn Treebank tokens that COCO's caption scores are made of."""

import re

_TOKEN = re.compile(
    r"""
      </?[A-Za-z][^<>\s]*>                                              # a tag
    | (?:[^\W\d_]\.){2,}(?!\w)                                          # i.v.  e.g.
    | [-+]?(?:\d+(?:[.,:]\d+)+|\.\d+(?:[.,:]\d+)*)(?:-\w+)*             # 3.5  -.5  1,000  10:30  2.5-cm
    | [-+]\d+                                                           # -50
    | [nN]'[tT]\b                                                       # n't
    | \w+(?:[-/]\w+|(?<=[^\W\d_])\.(?=[^\W\d_])\w+)*(?:\.(?!\w))?       # lung  5-10  L4/L5  lung.The  cm.
    | '(?:[sSmMdD]|ll|LL|re|RE|ve|VE)\b                                 # 's
    | [?!]{2,} | \*+ | \#+ | \.{2,} | -{2,}
    | \S
    """,
    re.VERBOSE,
)
_SPLIT = re.compile(r"(?i)\b(can)(not)\b|(?<=\w)(n't)\b")
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_DROPPED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";", *'"“”‘’„…–—'])
_ABBREVIATIONS = """
jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri conn fla ala ariz calif colo ct dak
ga ind kan kans ky md mich minn mo mont neb nev okla penn tenn va vt wis wisc wyo inc co cos corp pty ltd plc rt
dept assn univ intl sys tel est ext sq mr mrs ms dr drs prof profs sen sens rep reps atty lt col gen gov adm rev maj
sgt cpl pvt capt st ste ave pres lieut hon brig cmdr pfc spc supt det mt ft adj adv asst assoc ens insp jr sr bros
blvd rd esq vs alex wm jos cie cf etc al seq ph ph.d
"""
_KEEP_PERIOD = frozenset(_ABBREVIATIONS.split())
_KEEP_PERIOD_CAPITAL = frozenset({"Mass", "Ill", "Ark", "Del", "La", "Miss", "Ore", "Pa", "Tex", "Wash"})
_KEEP_PERIOD_NUMBERED = frozenset({"fig", "figs", "no", "nos", "pp", "ca", "art"})


def words_ptb(text: str) -> list[str]:
    """Return the tokens pycocoevalcap compares: Penn Treebank tokens in lower case without punctuation.

    Written after what Stanford's tokenizer (CoreNLP 3.4.1 with -lowerCase, the one pycocoevalcap runs in Java) makes
    of a text. Its habits matter: brackets stay as tokens ("-lrb-"), since they are filtered by their upper-case names;
    "/", "<", "%" and "?!" stay; a period stays on abbreviations ("vs.", but also "CT." and "col."), single letters and
    before another mark; "cannot" is two words and so is "can't" ("ca", "n't").
    Left out: addresses of pages and mail, and rare spellings ('tis, y'all, gonna, fractions in one sign).
    """
    text = text.replace("’", "'")
    if "'" in text or "annot" in text or "ANNOT" in text:
        text = _SPLIT.sub(lambda match: " ".join(["", *filter(None, match.groups())]), text)
    found = _TOKEN.findall(text)
    tokens = []
    for place, token in enumerate(found):
        if token in _DROPPED or token[:2] in ("--", ".."):
            continue
        if token[-1] == "." and not _keeps_period(token[:-1], found[place + 1 : place + 2]):
            token = token[:-1]
        tokens.append(_BRACKETS.get(token) or token.lower())
    return tokens


def _keeps_period(word: str, following: list[str]) -> bool:
    if word in _KEEP_PERIOD_CAPITAL or word.lower() in _KEEP_PERIOD:
        return True
    if following and following[0] in (",", ";", ":"):
        return True
    if following and following[0][0].isdigit() and word.lower() in _KEEP_PERIOD_NUMBERED:
        return True
    return all(len(part) == 1 and part.isalpha() for part in word.split("."))
