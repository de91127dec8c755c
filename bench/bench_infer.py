"""Answers a second beside transformers: the same weights, questions and answers.

    python bench/bench_infer.py speed slake                  # 22 questions an image
    python bench/bench_infer.py speed slake --size wide
    python bench/bench_infer.py speed ct_rate                # a volume of 32 slices, 30 questions
    python bench/bench_infer.py speed captions               # one question an image
    python bench/bench_infer.py options slake                # options ranked by likelihood
    python bench/bench_infer.py growth                       # time and memory against what may grow

Ours goes the road that an evaluation goes: samples, processor, files, engine, text. The peer is transformers'
LlavaForConditionalGeneration.generate on batches padded on the left; it gets questions that are tokenized, and pixels
that are prepared, before the clock starts, and the best of several batch sizes. Weights are random and would never stop
by themselves, so both are told where each answer ends: after a number of tokens drawn from the shape. All answers are
compared. Ways alternate within one process and one number of threads, and medians are printed. Times are those of the
processor, which others on the machine disturb least; wall time stands beside.
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList

from medmvl.bundle import Bundle
from medmvl.core.schema import Sample
from medmvl.infer import engine
from peers import Clock, Line, Transformers
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
    shape = replace(SHAPES[chosen.case], media=chosen.media or SHAPES[chosen.case].media)
    samples = [sample for group in write_samples(shape, folder) for sample in group]
    bundle = build_bundle(chosen.size, shape, folder)
    bundle.model.eval()
    lengths = Lengths(shape, samples, bundle.processor.template.end_mark)
    rows, peer = asked(bundle, samples), Peer(bundle, lengths, folder)
    batch = chosen.batch or _best(peer, rows[: 2 * max(BATCHES)])
    some = rows[: chosen.rows or len(rows)]

    def ours() -> list[str]:
        with lengths.obeyed():
            return bundle.generate(samples, lengths.longest)

    ways: dict[str, tuple[int, Callable[[], list[str]]]] = {
        "ours": (len(samples), ours),
        f"transformers, {batch}": (len(some), lambda: peer.answer(some, batch)),
        "transformers, 1": (min(8, len(some)), lambda: peer.answer(some[:8], 1)),
    }
    times: dict[str, list[list[float]]] = {name: [] for name in ways}
    for repeat in range(chosen.repeats + 1):
        answers = []
        for name, (count, run) in ways.items():
            clock = Clock()
            answers.append(run())
            spent = clock()
            if repeat:  # the first one warms up
                times[name].append([one / count for one in spent])
        same = [sum(a == b for a, b in zip(answers[0], other, strict=False)) / len(other) for other in answers[1:]]
        assert min(same) == 1, f"share of equal answers: {same}"
    print(f"{chosen.case}, {chosen.size}: {len(samples)} questions, {lengths.of.mean():.1f} tokens an answer, "
          f"medians of {chosen.repeats}, {torch.get_num_threads()} thread(s); all answers equal")  # fmt: skip
    print(f"{'':20}{'CPU ms':>9}{'wall ms':>9}{'answers/s':>11}{'ours, x':>9}{'wall, x':>9}{'range of x':>16}")
    middle = {name: [statistics.median(column) for column in zip(*found, strict=True)] for name, found in times.items()}
    for name, (processor, wall) in middle.items():
        each = [other[0] / own[0] for other, own in zip(times[name], times["ours"], strict=True)]
        print(f"{name:20}{processor * 1e3:9.1f}{wall * 1e3:9.1f}{1 / processor:11.2f}"
              f"{processor / middle['ours'][0]:9.2f}{wall / middle['ours'][1]:9.2f}"
              f"{f'{min(each):.2f} - {max(each):.2f}':>16}")  # fmt: skip


def _best(peer: Peer, rows: Sequence[Line]) -> int:
    """Return the batch size at which the peer answers fastest."""
    took = {}
    for batch in BATCHES:
        clock, some = Clock(), rows[: max(batch, 8)]
        peer.answer(some, batch)
        took[batch] = clock()[0] / len(some)
    return min(took, key=took.get)


def main() -> None:
    """Run one bench."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", choices=["speed"])
    parser.add_argument("case", nargs="?", choices=SHAPES, default="slake")
    parser.add_argument("--size", choices=VOCABULARIES, default="small")
    parser.add_argument("--media", type=int, default=0, help="how many, instead of the shape's")
    parser.add_argument("--batch", type=int, default=0, help="of the peer; default: the best one")
    parser.add_argument("--rows", type=int, default=32, help="questions that the peer answers; 0: all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    with tempfile.TemporaryDirectory() as folder:
        globals()[chosen.bench](chosen, Path(folder))


if __name__ == "__main__":
    main()
