"""Generation and scoring: shared prompts are computed once, answers side by side, the same ones at any batch size.

The engine takes encoded prompts and returns ids. It knows no bundle, no tasks and no server. Prompts are read
(`Reader`) and answers are written (`model/kept.py`) in one continuous batch: who is done leaves, who waits joins.
An LLM that cannot be packed runs its prompts one by one through its own `generate`.
"""

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Integral

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from medmvl.core.schema import SampleError
from medmvl.infer.choose import Chooser
from medmvl.infer.queue import Asked
from medmvl.infer.reader import Read, Reader, forward, rows_of
from medmvl.model.kept import Reading, Writing
from medmvl.model.vlm import VLM
from medmvl.processing.collate import collate
from medmvl.processing.encoded import IGNORE, Branch, Encoded
from medmvl.processing.pack import Row, alone
from medmvl.processing.processor import Processor

BATCH = 256
"""Answers that are written at the same time, if memory allows."""

_JOIN = 0.75
"""Others join when no more than this share of those that began together is left: reading a few at a time is slow."""

_OPTION_TOKENS = 512
"""Tokens of options that are scored in one forward, each of which has logits over the whole vocabulary."""

Event = tuple[int, int | SampleError | None]
"""Number of a prompt, and its next token; None: its answer is complete; or why it has none."""


def generate(
    model: VLM,
    processor: Processor,
    prompts: Iterable[Encoded],
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = BATCH,
) -> list[list[int]]:
    """Return the ids that follow each prompt, without the mark that ends an answer; see `generate_each`.

    Raises:
        ValueError: a setting out of range.
        SampleError: a file of a prompt cannot be read.
    """
    settings = (max_new_tokens, temperature, top_p, seed, batch_size)
    answers: dict[int, list[int]] = {}
    for number, ids in generate_each(model, processor, prompts, *settings):
        if isinstance(ids, SampleError):
            raise ids
        answers[number] = ids
    return [answers[number] for number in range(len(answers))]


def generate_each(
    model: VLM,
    processor: Processor,
    prompts: Iterable[Encoded | SampleError],
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = BATCH,
) -> Iterator[tuple[int, list[int] | SampleError]]:
    """Yield (number of a prompt, the ids that follow it, without the mark that ends an answer), as they are finished.

    Args:
        model: the model; runs in eval mode, whatever mode it is in.
        processor: says which ids end an answer, and which never belong in one.
        prompts: what `processor.prompt` returned, or why there is none, which is passed on. Neighbours about the same
            media share their common prefix. They are taken bit by bit.
        max_new_tokens: longest answer. It ends earlier where the LLM has no more positions.
        temperature: 0 takes the likeliest token; above 0 samples.
        top_p: when sampling, only from the likeliest tokens that hold this much probability together.
        seed: of the sampling. Each prompt draws from its own stream, made from the seed and its id.
        batch_size: most answers that are written at the same time; fewer where memory has no room for more.

    Raises:
        ValueError: a setting out of range.
    """
    chooser = Chooser(processor, temperature, top_p, seed)
    answers: dict[int, list[int]] = {}
    for number, event in _events(model, processor, prompts, chooser, max_new_tokens, batch_size):
        if isinstance(event, int):
            answers.setdefault(number, []).append(event)
        else:
            yield number, answers.pop(number, []) if event is None else event


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

    Raises:
        ValueError, SampleError: as `generate`.
    """
    chooser = Chooser(processor, temperature, top_p, seed)
    for _, event in _events(model, processor, [prompt], chooser, max_new_tokens, batch_size=1):
        if isinstance(event, SampleError):
            raise event
        if event is not None:
            yield event


@torch.no_grad()
def score(
    model: VLM, asked: Iterable[tuple[Encoded, Sequence[Sequence[int]]]], batch_size: int = BATCH
) -> list[list[float]]:
    """Return the log-likelihood of each option as what follows its prompt, summed over its tokens.

    What prompts about the same media have in common is computed once, and so is each prompt, however many its options.

    Args:
        model: the model; runs in eval mode, whatever mode it is in.
        asked: prompts, as `processor.prompt` returns them, those about the same media next to each other, and the ids
            of every continuation of each, the end mark included if it is to count. They are taken bit by bit.
        batch_size: most prompts that are in work at the same time.

    Raises:
        ValueError: an option without tokens, or a batch size below 1.
        SampleError: a file of a prompt cannot be read.
    """
    _check_whole(batch_size=batch_size)
    options: dict[int, Sequence[Sequence[int]]] = {}
    scores: dict[int, list[float]] = {}
    apart: deque[Asked] = deque()

    def coming() -> Iterator[Asked]:
        for number, (prompt, own) in enumerate(asked):
            if not all(own):
                empty = [len(ids) for ids in own].index(0)
                raise ValueError(f"option {empty} of prompt {prompt.id!r} has no tokens")
            options[number] = own
            yield Asked(number, prompt, max(map(len, own), default=0))

    with _evaluating(model):
        with Reader(model, _together(model, coming(), apart), batch_size) as reader:
            while reader.waiting:
                read, failed = reader.read()
                if failed:
                    raise failed[0][1]
                for one, found in zip(read, _score(model, read, [options[one.number] for one in read]), strict=True):
                    scores[one.number] = found
        while apart:
            one = apart.popleft()  # and with it its pixels
            scores[one.number] = [_score_alone(model, one.prompt, ids) for ids in options[one.number]]
    return [scores[number] for number in range(len(options))]


def _score(model: VLM, read: Sequence[Read], options: Sequence[Sequence[Sequence[int]]]) -> list[list[float]]:
    """Score the options of prompts that were read: first tokens by what follows the prompt, the others behind it."""
    scores = [[0.0] * len(own) for own in options]
    rest = []
    for place, (one, own) in enumerate(zip(read, options, strict=True)):
        first = _likelihoods(one.logits.expand(len(own), -1), [ids[0] for ids in own])
        scores[place] = first.tolist()
        rest += [(place, option) for option, ids in enumerate(own) if len(ids) > 1]
    for row in rows_of(rest, [len(options[place][option]) - 1 for place, option in rest], _OPTION_TOKENS):
        said = [options[place][option] for place, option in row]
        reading = Reading([len(ids) - 1 for ids in said], [read[place].kept for place, _ in row], read[0].logits.device)
        ids = torch.tensor([[token for ids in said for token in ids[:-1]]], device=read[0].logits.device)
        logits = forward(model, model.embed(ids, {}, {}), reading, range(ids.shape[1]))
        found = _likelihoods(logits, [token for ids in said for token in ids[1:]])
        for (place, option), tokens in zip(row, found.split([len(ids) - 1 for ids in said]), strict=True):
            scores[place][option] += float(tokens.sum())
    return scores


def _likelihoods(logits: Tensor, targets: Sequence[int]) -> Tensor:
    """Return the log-likelihood, float64 [S] in main memory, of each target under its logits [S, vocabulary]."""
    wanted = torch.tensor(targets, dtype=torch.long, device=logits.device)
    return -F.cross_entropy(logits.float(), wanted, reduction="none").double().cpu()


def _score_alone(model: VLM, prompt: Encoded, ids: Sequence[int]) -> float:
    """Score one option in a row of its own."""
    (asked,) = prompt.branches
    said, silent = np.asarray(ids, np.int32), np.full(len(asked.ids), IGNORE, np.int32)
    branch = Branch(np.concatenate([asked.ids, said]), np.concatenate([silent, said]), asked.num_media)
    batch = collate(Row(tuple(alone([replace(prompt, branches=(branch,))])))).to(_device(model))
    return -float(model(**batch.model_inputs()).token_losses.double().sum())


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


def _together(model: VLM, asked: Iterable[Asked], apart: deque[Asked]) -> Iterator[Asked]:
    """Yield prompts that may be worked on together; the others are added to `apart`.

    A prompt that may grow past the length where its LLM's rotary frequencies change stays alone, and so does every
    prompt of an LLM that cannot be packed.
    """
    for one in asked:
        fits = isinstance(one.prompt, SampleError) or (
            model.position_limit is None or one.prompt.num_tokens + one.growth <= model.position_limit
        )
        if fits:
            yield one
        else:
            apart.append(one)


def _check_whole(**given: object) -> None:
    for name, value in given.items():
        if not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


@torch.no_grad()
def _events(
    model: VLM,
    processor: Processor,
    prompts: Iterable[Encoded | SampleError],
    chooser: Chooser,
    max_new_tokens: int,
    batch_size: int,
) -> Iterator[Event]:
    """Yield what happens, in the order of its happening."""
    _check_whole(max_new_tokens=max_new_tokens, batch_size=batch_size)
    asked = (Asked(number, prompt, max_new_tokens) for number, prompt in enumerate(prompts))
    apart: deque[Asked] = deque()
    with _evaluating(model):
        with Reader(model, _together(model, asked, apart), batch_size) as reader:
            yield from _write(model, processor, reader, chooser)
        while apart:
            one = apart.popleft()  # and with it its pixels
            if not model.packable:
                yield from _write_alone(model, processor, one, chooser)
                continue
            with Reader(model, [one], batch_size=1) as reader:
                yield from _write(model, processor, reader, chooser)


@dataclass(eq=False)
class _Line:
    """An answer that is being written.

    Attributes:
        number: of its prompt.
        most: own tokens that it may come to, those of the prompt included.
        draws: see `Chooser.stream`.
        left: tokens that may still follow.
        token: the last one.
    """

    number: int
    most: int
    draws: np.random.Generator
    left: int
    token: int = -1


def _write(model: VLM, processor: Processor, reader: Reader, chooser: Chooser) -> Iterator[Event]:
    """Write all answers, a token of each at a time; who is done leaves the batch, and others join in their places."""
    writing, stops = Writing(reader.device), frozenset(processor.stop_ids)
    lines: list[_Line] = []
    joined = 0
    while lines or reader.waiting:
        if len(lines) <= _JOIN * joined:
            while reader.waiting:
                read, failed = reader.read(len(lines), max((line.most for line in lines), default=0))
                yield from failed
                if not read:
                    break
                new = [_line(model, one, chooser) for one in read]
                over = yield from _say(new, torch.stack([one.logits for one in read]), chooser, stops)
                if going := [place for place in range(len(new)) if place not in over]:
                    writing.add([read[place].kept for place in going])
                    lines += [new[place] for place in going]
            joined = len(lines)
        if lines:
            positions = writing.step()
            output = model.llm(
                input_ids=torch.tensor([[line.token] for line in lines], device=reader.device),
                position_ids=positions,
                layout=writing,
                use_cache=False,
            )
            if over := (yield from _say(lines, output.logits[:, -1], chooser, stops)):
                lines = [lines[line] for line in writing.drop(over)]


def _line(model: VLM, read: Read, chooser: Chooser) -> _Line:
    growth = read.most - read.kept.own
    left = growth if model.longest is None else min(growth, model.longest - read.kept.length + 1)
    return _Line(read.number, read.most, chooser.stream(read.id), left)


def _say(
    lines: Sequence[_Line], logits: Tensor, chooser: Chooser, stops: frozenset[int]
) -> Generator[Event, None, list[int]]:
    """Choose the next token of every line [B, vocabulary], and tell of it; return the places of those that are over."""
    over = []
    for place, (line, token) in enumerate(zip(lines, chooser(logits, [one.draws for one in lines]), strict=True)):
        line.token, line.left = token, line.left - 1
        if token not in stops:
            yield line.number, token
        if token in stops or line.left < 1:
            yield line.number, None
            over.append(place)
    return over


def _write_alone(model: VLM, processor: Processor, asked: Asked, chooser: Chooser) -> Iterator[Event]:
    """Answer one prompt with the LLM's own `generate` and cache, our choice of tokens put in its place."""
    try:
        batch = collate(Row(tuple(alone([asked.prompt])))).to(_device(model))
    except SampleError as error:
        yield asked.number, error
        return
    embeddings = model.embed(batch.ids, batch.pixels, batch.media_positions, batch.questions)
    stops, growth = list(processor.stop_ids), asked.growth
    if model.longest is not None:
        growth = min(growth, model.longest - embeddings.shape[1] + 1)
    settings = GenerationConfig(max_new_tokens=growth, do_sample=False, num_beams=1, eos_token_id=stops, pad_token_id=0)
    # What `settings` leaves open, `generate` takes from the checkpoint; its penalties and bans are not asked for here.
    checkpoint, model.llm.generation_config = model.llm.generation_config, GenerationConfig()
    try:
        ids = model.llm.generate(
            inputs_embeds=embeddings,
            attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device),
            generation_config=settings,
            logits_processor=LogitsProcessorList([_Forced(chooser, chooser.stream(asked.prompt.id))]),
        )
    finally:
        model.llm.generation_config = checkpoint
    yield from ((asked.number, token) for token in ids[0].tolist() if token not in stops)
    yield asked.number, None


class _Forced(LogitsProcessor):
    """Leaves `generate` one token to take: the one our chooser takes."""

    def __init__(self, chooser: Chooser, draws: np.random.Generator) -> None:
        self.chooser, self.draws = chooser, draws

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.chooser(scores, [self.draws])] = 0.0
        return forced
