"""Text to token ids such that nothing a user or a report writes can ever become a control token."""

import json
from typing import Any, Literal

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

Place = Literal["start", "segment", "continuation"]
"""Where a run of text stands: at the very start, behind a control token or media, or behind other text."""

_CACHED_RUNS = 8192
_CACHED_LENGTH = 512


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Return id -> spelling of every added token, special (`<|im_end|>`) or not (`<think>`, `<table>`).

    Runs of whitespace, which some tokenizers add to shorten code, control nothing and are left out.

    Raises:
        ValueError: the tokenizer is implemented in Python only.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise ValueError(
            f"tokenizer {type(tokenizer).__name__} has no `tokenizers` backend; "
            "load it as a fast tokenizer (a folder with tokenizer.json)"
        )
    added = backend.get_added_tokens_decoder()
    return {i: t.content for i, t in added.items() if t.special or t.content.replace("▁", " ").strip()}


class TextEncoder:
    """Encodes runs of text with the tokenizer's own rules, its control tokens switched off.

    They are switched off in a copy of the tokenizer in which they are renamed, as added tokens and as entries of the
    vocabulary (a Unigram model would find `</s>` there). That keeps every id and leaves no spelling a text could hit.

    Tokenizers that put a space before a text put it where they would within the whole conversation: at the start or,
    if they always do, behind a control token, but never inside running text, where an answer begins.

    Args:
        tokenizer: any tokenizer of transformers with a `tokenizers` backend.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        controls = control_tokens(tokenizer)
        spec = json.loads(tokenizer.backend_tokenizer.to_str())
        unknown = _unknown_id(spec["model"])
        ends = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
        # Characters outside the vocabulary become the unknown token: it controls nothing, unless it doubles as an end.
        self._forbidden = controls.keys() - ({unknown} - ends)
        # Noncharacters of the last plane: not valid in text interchange, in no vocabulary, untouched by normalizers.
        names = {content: f"\U0010fffe{token_id}\U0010ffff" for token_id, content in controls.items()}
        spec |= {
            "added_tokens": [{**t, "content": names.get(t["content"], t["content"])} for t in spec["added_tokens"]],
            "model": _renamed(spec["model"], names),
            "post_processor": None,
            "truncation": None,
            "padding": None,
        }
        built: dict[str, Tokenizer] = {}
        self._tokenizers: dict[Place, Tokenizer] = {}
        for place in ("start", "segment", "continuation"):
            rules = {key: _placed(spec[key], place) for key in ("normalizer", "pre_tokenizer")}
            # Most tokenizers treat all places alike; a copy with 150,000 entries takes a second to build.
            key = json.dumps(rules)
            if key not in built:
                built[key] = Tokenizer.from_str(json.dumps({**spec, **rules}))
            self._tokenizers[place] = built[key]
        self._cache: dict[tuple[str, Place], list[int]] = {}

    def encode(self, text: str, place: Place) -> list[int]:
        """Return the ids of one run of text, none of them a control token. The list is shared: do not change it.

        Raises:
            ValueError: the tokenizer turns a character of the text into a control token nevertheless.
        """
        key = (text, place)
        ids = self._cache.get(key)
        if ids is not None:
            return ids
        ids = self._tokenizers[place].encode(text, add_special_tokens=False).ids
        if not self._forbidden.isdisjoint(ids):
            tokenizer = self._tokenizers[place]
            found = sorted({tokenizer.id_to_token(i) or str(i) for i in self._forbidden.intersection(ids)})
            raise ValueError(f"the tokenizer turns part of a text into control tokens {found}: {text[:80]!r}...")
        # Questions repeat a thousandfold in medical sets; long reports do not, and would only fill the memory.
        if len(text) <= _CACHED_LENGTH:
            if len(self._cache) >= _CACHED_RUNS:
                self._cache.clear()
            self._cache[key] = ids
        return ids


def _unknown_id(model: dict[str, Any]) -> int | None:
    """Return the id that the model (the "model" part of tokenizer.json) gives to what its vocabulary cannot spell."""
    if model["type"] == "Unigram":
        return model.get("unk_id")
    return model["vocab"].get(model.get("unk_token"))


def _renamed(model: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Return the model with entries of its vocabulary renamed; ids stay, and no merge leads to them any more."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):
        return {**model, "vocab": [[names.get(piece, piece), score] for piece, score in vocabulary]}
    if names.keys().isdisjoint(vocabulary):
        return model
    renamed = {**model, "vocab": {names.get(piece, piece): token_id for piece, token_id in vocabulary.items()}}
    if "unk_token" in model:
        renamed["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"])
        renamed["merges"] = [[a, b] for a, b in pairs if names.keys().isdisjoint((a, b, a + b))]
    return renamed


def _placed(node: Any, place: Place) -> Any:
    """Return a normalizer or pre-tokenizer (JSON) that adds a space in front of the text only where `place` has one."""
    if isinstance(node, list):
        return [_placed(child, place) for child in node]
    if not isinstance(node, dict) or place == "start":
        return node
    if node.get("type") == "Metaspace" and (place == "continuation" or node["prepend_scheme"] == "first"):
        return {**node, "prepend_scheme": "never"}
    if place == "continuation" and node.get("type") == "Prepend":
        return {"type": "Sequence", "normalizers": []}
    if place == "continuation" and node.get("type") == "ByteLevel":
        return {**node, "add_prefix_space": False}
    return {key: _placed(child, place) for key, child in node.items()}
