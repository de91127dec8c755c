"""Generation and scoring: shared prompts are computed once, answers side by side, the same ones at any batch size.

The engine takes encoded prompts and returns ids. It knows no bundle, no tasks and no server. An LLM that cannot be
packed runs its prompts one by one through its own `generate`.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList

from medmvl.core.layout import Segment
from medmvl.model.attention import DecodeLayout, gather_cache, join_caches
from medmvl.model.vlm import VLM
from medmvl.processing.collate import collate
from medmvl.processing.encoded import IGNORE, Branch, Encoded
from medmvl.processing.pack import Row, arrange
from medmvl.processing.processor import Processor


@torch.no_grad()
def generate(
    model: VLM,
    processor: Processor,
    prompts: Sequence[Encoded],
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[list[int]]:
    """Return the ids that follow each prompt, without the mark that ends an answer. All prompts are decoded together.

    Args:
        model: the model; runs in eval mode, whatever mode it is in.
        processor: says which ids end an answer, and which never belong in one.
        prompts: what `processor.prompt` returned; those about the same media share their common prefix.
        max_new_tokens: longest answer. It ends earlier where the LLM has no more positions.
        temperature: 0 takes the likeliest token; above 0 samples.
        top_p: when sampling, only from the likeliest tokens that hold this much probability together.
        seed: of the sampling. Each prompt draws from its own stream, made from the seed and its id.

    Raises:
        ValueError: a setting out of range.
        SampleError: a file of a prompt cannot be read.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    chooser = _Chooser(model, processor, [prompt.id for prompt in prompts], temperature, top_p, seed)
    with _evaluating(model):
        for index, token in _tokens(model, processor, prompts, chooser, max_new_tokens):
            answers[index].append(token)
    return answers


@torch.no_grad()
def stream(
    model: VLM,
    processor: Processor,
    prompt: Encoded,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[int]:
    """Yield the ids of one answer as they are chosen; together they are what `generate` returns.

    An LLM that cannot be packed yields them all at the end.
    """
    chooser = _Chooser(model, processor, [prompt.id], temperature, top_p, seed)
    with _evaluating(model):
        for _, token in _tokens(model, processor, [prompt], chooser, max_new_tokens):
            yield token


@torch.no_grad()
def score(
    model: VLM, processor: Processor, prompts: Sequence[Encoded], options: Sequence[Sequence[Sequence[int]]]
) -> list[list[float]]:
    """Return the log-likelihood of each option as what follows its prompt, summed over its tokens.

    Args:
        prompts: what `processor.prompt` returned; what those about the same media have in common is computed once.
        options: for each prompt the ids of every continuation, the end mark included if it is to count.

    Raises:
        ValueError: an option without tokens.
    """
    answered = []
    for prompt, continuations in zip(prompts, options, strict=True):
        if not all(continuations):
            empty = [len(ids) for ids in continuations].index(0)
            raise ValueError(f"option {empty} of prompt {prompt.id!r} has no tokens")
        answered += [_answered(prompt, ids) for ids in continuations]
    scores = [0.0] * len(answered)
    with _evaluating(model):
        for row in (row for rows in _batches(model, processor, answered, room=0) for row in rows):
            batch = collate(row).to(_device(model))
            losses = model(**batch.model_inputs()).token_losses.double().cpu()
            for owner, loss in zip(batch.owner.tolist(), losses.tolist(), strict=True):
                scores[int(batch.sample_ids[owner])] -= loss
    left = iter(scores)
    return [[next(left) for _ in continuations] for continuations in options]


def _answered(prompt: Encoded, ids: Sequence[int]) -> Encoded:
    """Return a prompt with a continuation, of which every token is to be predicted."""
    (asked,) = prompt.branches
    said = np.asarray(ids, np.int32)
    silent = np.full(len(asked.ids), IGNORE, np.int32)
    branch = Branch(np.concatenate([asked.ids, said]), np.concatenate([silent, said]), asked.num_media)
    return replace(prompt, branches=(branch,))


class _Chooser:
    """Chooses the next token of each prompt; what it chooses depends on that prompt alone."""

    def __init__(
        self, model: VLM, processor: Processor, ids: Sequence[str], temperature: float, top_p: float, seed: int
    ) -> None:
        if temperature < 0 or not 0 < top_p <= 1:
            raise ValueError(f"temperature must be at least 0 and top_p in (0, 1], got {temperature} and {top_p}")
        self.temperature, self.top_p = temperature, top_p
        self.streams = [np.random.default_rng(_digest(seed, name)) for name in ids]
        # Placeholders stand for media, and rows beyond the tokenizer (tables are padded) stand for nothing.
        self.placeholders = sorted(processor.placeholder_ids.values())
        self.known = len(processor.tokenizer)

    def __call__(self, logits: Tensor, prompts: Sequence[int]) -> list[int]:
        """Return the token chosen for each row of logits [B, vocabulary], which belong to these prompts."""
        logits = logits[:, : self.known].float()
        logits[:, [token for token in self.placeholders if token < logits.shape[1]]] = -torch.inf
        if self.temperature == 0:
            return logits.argmax(dim=-1).tolist()
        chances, order = torch.softmax(logits.double() / self.temperature, dim=-1).sort(
            dim=-1, descending=True, stable=True
        )
        mass = chances.cumsum(dim=-1)
        kept = (mass - chances < self.top_p).sum(dim=-1, keepdim=True)
        draws = torch.tensor([self.streams[prompt].random() for prompt in prompts], dtype=mass.dtype)
        targets = draws[:, None].to(mass.device) * mass.gather(1, kept - 1)
        place = torch.searchsorted(mass, targets, right=True).minimum(kept - 1)
        return order.gather(1, place)[:, 0].tolist()


def _digest(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16], "big")


def _device(model: VLM) -> torch.device:
    return model.llm.get_input_embeddings().weight.device


@contextmanager
def _evaluating(model: VLM) -> Iterator[None]:
    """Run in eval mode, and put every module back into the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _batches(model: VLM, processor: Processor, encoded: Sequence[Encoded], room: int) -> list[list[Row]]:
    """Lay out encoded samples, numbered 0, 1, ... in place of their ids, as rows that may be decoded together.

    A sample that may grow, by `room` tokens, past the length where its LLM's rotary frequencies change stays alone.
    """
    numbered = [replace(one, id=str(number)) for number, one in enumerate(encoded)]
    longest = max((one.num_tokens for one in numbered), default=0)
    together, apart = arrange(numbered, max(processor.max_tokens, longest), model.position_limit, room)
    return [rows for rows in [together, *([row] for row in apart)] if rows]


def _tokens(
    model: VLM, processor: Processor, prompts: Sequence[Encoded], chooser: _Chooser, max_new_tokens: int
) -> Iterator[tuple[int, int]]:
    """Yield (prompt number, token) in the order of their making."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
    decode = _decode if model.packable else _decode_alone
    for rows in _batches(model, processor, prompts, max_new_tokens):
        yield from decode(model, processor, rows, chooser, max_new_tokens)


def _decode(
    model: VLM, processor: Processor, rows: Sequence[Row], chooser: _Chooser, max_new_tokens: int
) -> Iterator[tuple[int, int]]:
    """Compute the rows' prompts, then their answers together, a token at a time; who is done leaves the batch."""
    device = _device(model)
    numbers, logits, cache, lengths = _prefill(model, rows)
    longest = cache.get_seq_length()
    keys = torch.arange(longest, device=device) - (longest - lengths[:, None])  # [B, K] positions, padding below 0
    for step in range(max_new_tokens):
        chosen = chooser(logits, numbers)
        going = [line for line, token in enumerate(chosen) if token not in processor.stop_ids]
        yield from ((numbers[line], chosen[line]) for line in going)
        if model.longest is not None:
            ends = keys[:, -1].tolist()
            going = [line for line in going if ends[line] + 1 < model.longest]
        if not going or step == max_new_tokens - 1:
            return
        if len(going) < len(chosen):
            numbers, kept = [numbers[line] for line in going], torch.tensor(going, device=device)
            keys = keys[kept]
            cache.batch_select_indices(kept)
        keys = torch.cat([keys, keys[:, -1:] + 1], dim=1)
        output = model.llm(
            input_ids=torch.tensor([[chosen[line]] for line in going], device=device),
            position_ids=keys[:, -1:],
            layout=DecodeLayout(keys[:, -1:], keys, keys >= 0),
            past_key_values=cache,
            use_cache=True,
        )
        logits = output.logits[:, -1]


def _prefill(model: VLM, rows: Sequence[Row]) -> tuple[list[int], Tensor, DynamicCache, Tensor]:
    """Compute every prompt, shared beginnings once.

    Returns:
        the prompts' numbers; logits [B, vocabulary] of each one's next token; a cache of B lines, padded on the left;
        lengths [B] of the prompts.
    """
    device = _device(model)
    owned = [_branches(row) for row in rows]
    lengths = [s.prefix_length + s.length for branches in owned for _, s in branches]
    caches, logits = [], []
    for row, branches in zip(rows, owned, strict=True):
        batch = collate(row).to(device)
        cache = DynamicCache()  # without a config: its layers keep every key, windows are counted by the attention
        output = model.llm(
            inputs_embeds=model.embed(batch.ids, batch.pixels, batch.media_positions, batch.questions),
            position_ids=batch.positions,
            layout=batch.layout,
            logits_to_keep=torch.tensor([segment.end - 1 for _, segment in branches], device=device),
            past_key_values=cache,
            use_cache=True,
        )
        logits.append(output.logits[0])
        tokens = torch.zeros(len(branches), max(lengths), dtype=torch.long)
        for line, (_, s) in enumerate(branches):
            own = torch.cat([torch.arange(s.prefix_start, s.prefix_end), torch.arange(s.start, s.end)])
            tokens[line, -len(own) :] = own
        caches.append(gather_cache(cache, tokens.to(device)))
    numbers = [number for branches in owned for number, _ in branches]
    return numbers, torch.cat(logits), join_caches(caches), torch.tensor(lengths, device=device)


def _branches(row: Row) -> list[tuple[int, Segment]]:
    """Return the number of each prompt in a row, and the segment it ends with."""
    segments = iter(row.layout.segments)
    found = []
    for group in row.groups:
        if len(group.prefix):
            next(segments)
        found += [(int(number), next(segments)) for number in group.sample_ids]
    return found


def _decode_alone(
    model: VLM, processor: Processor, rows: Sequence[Row], chooser: _Chooser, max_new_tokens: int
) -> Iterator[tuple[int, int]]:
    """Answer one prompt with the LLM's own `generate` and cache, our choice of tokens put in its place."""
    ((number, _),) = _branches(rows[0])
    batch = collate(rows[0]).to(_device(model))
    embeddings = model.embed(batch.ids, batch.pixels, batch.media_positions, batch.questions)
    stops = list(processor.stop_ids)
    if model.longest is not None:
        max_new_tokens = min(max_new_tokens, model.longest - embeddings.shape[1] + 1)
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, eos_token_id=stops, pad_token_id=0
    )
    # What `settings` leaves open, `generate` takes from the checkpoint; its penalties and bans are not asked for here.
    checkpoint, model.llm.generation_config = model.llm.generation_config, GenerationConfig()
    try:
        ids = model.llm.generate(
            inputs_embeds=embeddings,
            attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device),
            generation_config=settings,
            logits_processor=LogitsProcessorList([_Forced(chooser, number)]),
        )
    finally:
        model.llm.generation_config = checkpoint
    yield from ((number, token) for token in ids[0].tolist() if token not in stops)


class _Forced(LogitsProcessor):
    """Leaves `generate` one token to take: the one our chooser takes."""

    def __init__(self, chooser: _Chooser, number: int) -> None:
        self.chooser, self.number = chooser, number

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.chooser(scores, [self.number])] = 0.0
        return forced
