"""Answers a second beside transformers: the same weights, questions and answers.

    python bench/bench_infer.py speed slake                  # 22 questions an image
    python bench/bench_infer.py speed slake --size wide
    python bench/bench_infer.py speed ct_rate                # a volume of 32 slices, 30 questions
    python bench/bench_infer.py speed captions               # one question an image
    python bench/bench_infer.py options slake                # options ranked by likelihood, four a question
    python bench/bench_infer.py growth questions             # time and memory, a process for each size
    python bench/bench_infer.py growth image_tokens
    python bench/bench_infer.py growth answered
    python bench/bench_infer.py growth media

Ours goes the road that an evaluation goes: samples, processor, files, engine, text. The peer is transformers'
LlavaForConditionalGeneration.generate on batches padded on the left; it gets questions that are tokenized, and pixels
that are prepared, before the clock starts, and the best of several batch sizes; to rank options it gets a row for each
question and option. Weights are random and would never stop by themselves, so both are told where each answer ends:
after a number of tokens drawn from the shape. All answers are compared. Ways alternate within one process and one
number of threads, and medians are printed. Times are those of the processor, which others on the machine disturb least;
wall time stands beside.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList

from measure import Clock, forget_peak, memory_mib, record
from medmvl.bundle import Bundle
from medmvl.core.schema import Sample
from medmvl.infer import engine
from peers import Line, Transformers
from shapes import SHAPES, VOCABULARIES, Shape, build_bundle, write_samples

BATCHES = (4, 8, 16, 32)
"""Sizes of which the peer gets the one that suits it best."""


class Lengths:
    """After how many tokens each answer ends, drawn evenly from the shape; ours and the peer's choice obey it."""

    def __init__(self, shape: Shape, samples: Sequence[Sample], end: int, seed: int = 0) -> None:
        low, high = shape.answered
        self.end, self.longest = end, high
        self.number = {sample.id: number for number, sample in enumerate(samples)}
        self.of = np.random.default_rng(seed).integers(low, high + 1, len(samples))  # the end mark counts

    @contextmanager
    def obeyed(self) -> Iterator[None]:
        """Let our engine obey."""
        chooser, lengths = engine.Chooser, self

        class Forced(chooser):
            """Ends an answer where it is to end; a prompt's stream of draws is its number and how much it said."""

            def stream(self, name: str) -> list[int]:
                return [lengths.number[name], 0]

            def __call__(self, logits: Tensor, streams: Sequence[list[int]]) -> list[int]:
                chosen = super().__call__(logits, streams)
                for stream in streams:
                    stream[1] += 1
                over = [said == lengths.of[number] for number, said in streams]
                return [lengths.end if ends else token for ends, token in zip(over, chosen, strict=True)]

        engine.Chooser = Forced
        try:
            yield
        finally:
            engine.Chooser = chooser


class _Ends(LogitsProcessor):
    """Lets the peer obey, and choose among the tokens that ours chooses among."""

    def __init__(self, ends: Sequence[int], end: int, banned: Sequence[int]) -> None:
        self.ends, self.end, self.banned, self.said = torch.tensor(ends), end, list(banned), 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.said += 1
        scores[:, self.banned] = -torch.inf
        over = self.ends == self.said
        scores[over] = -torch.inf
        scores[over, self.end] = 0.0
        return scores


class Peer:
    """transformers' own generation."""

    def __init__(self, bundle: Bundle, lengths: Lengths, folder: Path) -> None:
        self.decode = bundle.processor.decode
        self.model: nn.Module = Transformers(bundle, 1, str(folder / "trainer")).model.eval().requires_grad_(False)
        self.lengths = lengths
        self.pad, self.stops = bundle.processor.tokenizer.pad_token_id, list(bundle.processor.stop_ids)
        self.banned = sorted(bundle.processor.placeholder_ids.values())

    @torch.no_grad()
    def answer(self, rows: Sequence[Line], batch: int) -> list[str]:
        """Return every answer."""
        found: list[str] = []
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            ends = _Ends(self.lengths.of[start : start + batch], self.lengths.end, self.banned)
            inputs = self._padded(part)
            ids = self.model.generate(
                **inputs,
                max_new_tokens=self.lengths.longest,
                do_sample=False,
                eos_token_id=self.stops,
                pad_token_id=self.pad,
                logits_processor=LogitsProcessorList([ends]),
            )[:, inputs["input_ids"].shape[1] :].tolist()
            found += [self.decode(_until(answer, self.stops)) for answer in ids]
        return found

    @torch.no_grad()
    def rank(self, rows: Sequence[Line], options: Sequence[Sequence[Tensor]], batch: int) -> list[list[float]]:
        """Return the log-likelihood of every option of each row, logits at every token, as harnesses compute it."""
        flat = [
            (Line(torch.cat([row.ids, ids]), ids, row.pixels))
            for row, own in zip(rows, options, strict=True)
            for ids in own
        ]
        scores = []
        for start in range(0, len(flat), batch):
            part = flat[start : start + batch]
            logits = self.model(**self._padded(part)).logits
            for line, row in zip(logits, part, strict=True):
                said = line[-len(row.labels) - 1 : -1].float()
                scores.append(-float(nn.functional.cross_entropy(said, row.labels, reduction="sum")))
        left = iter(scores)
        return [[next(left) for _ in own] for own in options]

    def _padded(self, rows: Sequence[Line]) -> dict[str, Tensor]:
        longest = max(len(row.ids) for row in rows)
        inputs = {
            "input_ids": torch.stack(
                [nn.functional.pad(r.ids, (longest - len(r.ids), 0), value=self.pad) for r in rows]
            ),
            "attention_mask": torch.stack(
                [nn.functional.pad(torch.ones_like(r.ids), (longest - len(r.ids), 0)) for r in rows]
            ),
        }
        if rows[0].pixels is not None:
            pixels = torch.stack([row.pixels for row in rows])
            if pixels.ndim == 5:  # a volume goes in as its slices, grey as three channels
                pixels = pixels.transpose(1, 2).flatten(0, 1).expand(-1, 3, -1, -1)
            inputs["pixel_values"] = pixels
        return inputs


def _until(ids: list[int], stops: Sequence[int]) -> list[int]:
    return ids[: next((place for place, token in enumerate(ids) if token in stops), len(ids))]


def asked(bundle: Bundle, samples: Sequence[Sample]) -> list[Line]:
    """Return questions as the peer sees them."""
    found, pool = [], {}
    for sample in samples:
        prompt = bundle.processor.prompt(sample, pool=pool)
        (branch,) = prompt.branches
        pixels = [torch.from_numpy(medium.view.pixels) for medium in prompt.media]
        ids = torch.from_numpy(branch.ids.astype("int64"))
        found.append(Line(ids, torch.empty(0), pixels[0] if pixels else None))
    return found


def speed(chosen: argparse.Namespace, folder: Path) -> None:
    """Let ours and the peer answer all questions in turn; print answers a second and ratios."""
    shape, samples, bundle = _made(chosen, folder)
    lengths = Lengths(shape, samples, bundle.processor.template.end_mark)
    rows, peer = asked(bundle, samples), Peer(bundle, lengths, folder)
    batch = chosen.batch or _best(peer, rows)
    some = rows[: chosen.rows or len(rows)]

    def ours() -> list[str]:
        with lengths.obeyed():
            return bundle.generate(samples, lengths.longest)

    ways: dict[str, tuple[int, Callable[[], list[str]]]] = {
        "ours": (len(samples), ours),
        f"transformers, {batch}": (len(some), lambda: peer.answer(some, batch)),
        "transformers, 1": (min(4, len(some)), lambda: peer.answer(some[:4], 1)),
    }
    print(f"{chosen.case}, {chosen.size}: {len(samples)} questions about {shape.media} media, {lengths.of.mean():.1f} "
          f"tokens an answer")  # fmt: skip
    record(chosen.record, f"answer {chosen.case}, {chosen.size}", _compare(ways, chosen.repeats, lambda a, b: a == b))


def options(chosen: argparse.Namespace, folder: Path) -> None:
    """Let ours and the peer rank options in turn; print questions a second and ratios."""
    _, samples, bundle = _made(chosen, folder)
    peer = Peer(bundle, Lengths(SHAPES[chosen.case], samples, 0), folder)
    told = [[f"w{10 * number + option}" + " w7" * option for option in range(4)] for number in range(len(samples))]
    rows = asked(bundle, samples)
    answers = [
        [torch.tensor(bundle._answer(sample, bundle.processor.prompt(sample), option)) for option in own]
        for sample, own in zip(samples, told, strict=True)
    ]
    some = min(chosen.rows // 4 or len(rows), len(rows))
    batch = chosen.batch or 8
    ways: dict[str, tuple[int, Callable[[], list[list[float]]]]] = {
        "ours": (len(samples), lambda: bundle.score_options_each(samples, told)),
        f"transformers, {batch}": (some, lambda: peer.rank(rows[:some], answers[:some], batch)),
    }
    print(f"{chosen.case}, {chosen.size}: {len(samples)} questions, four options of 2 to 5 tokens each")
    found = _compare(ways, chosen.repeats, lambda one, other: np.allclose(one, other, rtol=1e-4))
    record(chosen.record, f"rank options {chosen.case}, {chosen.size}", found)


def _made(chosen: argparse.Namespace, folder: Path) -> tuple[Shape, list[Sample], Bundle]:
    """Return the data that was asked for, and a model for them."""
    shape = SHAPES[chosen.case]
    changes = {"media": chosen.media or shape.media, "image_tokens": chosen.image_tokens or shape.image_tokens}
    if chosen.questions:
        changes["questions"] = (chosen.questions,)
    if chosen.answered:
        changes["answered"] = (chosen.answered, chosen.answered)
    shape = replace(shape, **changes)
    samples = [sample for group in write_samples(shape, folder) for sample in group]
    bundle = build_bundle(chosen.size, shape, folder)
    bundle.model.eval()
    return shape, samples, bundle


def _compare(
    ways: dict[str, tuple[int, Callable[[], list[Any]]]], repeats: int, same: Callable[[Any, Any], bool]
) -> dict[str, float]:
    """Run (questions, what answers them) in turn and hold the answers to each other.

    Prints times a question and ratios; returns the processor seconds a question.
    """
    times: dict[str, list[list[float]]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        answers = []
        for name, (count, run) in ways.items():
            clock = Clock()
            answers.append(run())
            spent = clock()
            if repeat:  # the first one warms up
                times[name].append([one / count for one in spent])
        for other in answers[1:]:
            equal = sum(map(same, answers[0], other)) / len(other)
            assert equal == 1, f"share of equal answers: {equal}"
    print(f"medians of {repeats}, {torch.get_num_threads()} thread(s); all answers equal")
    print(f"{'':20}{'CPU ms':>9}{'wall ms':>9}{'answers/s':>11}{'ours, x':>9}{'wall, x':>9}{'range of x':>16}")
    middle = {name: [statistics.median(column) for column in zip(*found, strict=True)] for name, found in times.items()}
    for name, (processor, wall) in middle.items():
        each = [other[0] / own[0] for other, own in zip(times[name], times["ours"], strict=True)]
        print(f"{name:20}{processor * 1e3:9.1f}{wall * 1e3:9.1f}{1 / processor:11.2f}"
              f"{processor / middle['ours'][0]:9.2f}{wall / middle['ours'][1]:9.2f}"
              f"{f'{min(each):.2f} - {max(each):.2f}':>16}")  # fmt: skip
    return {name: processor for name, (processor, _) in middle.items()}


def _best(peer: Peer, rows: Sequence[Line]) -> int:
    """Return the batch size at which the peer answers fastest."""
    took: dict[int, float] = {}
    for batch in BATCHES:
        clock, some = Clock(), rows[:batch]
        peer.answer(some, batch)
        took[batch] = clock()[0] / len(some)
    return min(took, key=lambda batch: took[batch])


GROWTH = {
    "questions": (1, 4, 16, 64, 256),
    "image_tokens": (64, 256, 1024),
    "answered": (8, 32, 128, 512),
    "media": (1, 4, 16, 64),
}
"""What may grow, and the sizes that are measured: questions about one medium, tokens of an image, tokens of an answer,
media with 22 questions each."""


def growth(chosen: argparse.Namespace, _: Path) -> None:
    """Print time and memory against one of what may grow; a process for each size."""
    print(f"{chosen.case}, {chosen.size}: growing {chosen.axis}")
    print(f"{chosen.axis:>14}{'answers':>9}{'CPU s':>9}{'ms an answer':>14}{'MiB beyond one answer':>23}")
    fixed = {"questions": {"media": 1}, "media": {"answered": 4}}.get(chosen.axis, {"media": 1})
    for size in GROWTH[chosen.axis]:
        settings = {**fixed, chosen.axis: size}
        command = [sys.executable, __file__, "point", chosen.case, "--size", chosen.size]
        for name, value in settings.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        count, seconds, memory = json.loads(done.stdout.splitlines()[-1])
        print(f"{size:14}{count:9}{seconds:9.2f}{seconds / count * 1e3:14.1f}{memory:23.0f}", flush=True)


def point(chosen: argparse.Namespace, folder: Path) -> None:
    """Answer once in this process; print answers, processor seconds, and MiB beyond those of a first answer."""
    shape, samples, bundle = _made(chosen, folder)
    lengths = Lengths(shape, samples, bundle.processor.template.end_mark)
    with lengths.obeyed():
        bundle.generate(samples[:1], 2)
        gc.collect()
        forget_peak()
        before, clock = memory_mib("VmRSS"), Clock()
        bundle.generate(samples, lengths.longest)
        print(json.dumps([len(samples), clock()[0], memory_mib("VmHWM") - before]))


def main() -> None:
    """Run one bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", choices=["speed", "options", "growth", "point"])
    parser.add_argument("case", nargs="?", choices=[*SHAPES, *GROWTH], default="slake", help="data, or what grows")
    parser.add_argument("--size", choices=VOCABULARIES, default="small")
    parser.add_argument("--media", type=int, default=0, help="how many, instead of the shape's")
    parser.add_argument("--questions", type=int, default=0, help="about each medium, instead of the shape's")
    parser.add_argument("--image-tokens", type=int, default=0, help="instead of the shape's")
    parser.add_argument("--answered", type=int, default=0, help="tokens of every answer, instead of the shape's")
    parser.add_argument("--batch", type=int, default=0, help="of the peer; default: the best one")
    parser.add_argument("--rows", type=int, default=32, help="rows that the peer works on; 0: all")
    parser.add_argument("--record", type=Path, help="file that gets the medians, for plot_ratios.py")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    if chosen.bench == "growth":
        chosen.axis, chosen.case = chosen.case if chosen.case in GROWTH else "questions", "slake"
    torch.set_num_threads(chosen.threads)
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    with tempfile.TemporaryDirectory() as folder:
        globals()[chosen.bench](chosen, Path(folder))


if __name__ == "__main__":
    main()
