"""The training loop of one stage: forward, backward, clip, step; then log, validate, save."""

from __future__ import annotations

import hashlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from medmvl.core.log import get_logger
from medmvl.core.schema import SampleError
from medmvl.data.mixture import Position
from medmvl.model import tune
from medmvl.train.checkpoint import Best, Checkpoints, Progress
from medmvl.train.feed import Feed, ModelBatch, Prepared, loader
from medmvl.train.objectives import Objective
from medmvl.train.optim import schedule, set_learning_rates
from medmvl.train.profile import FORWARD, Profile, Stopwatch
from medmvl.train.recipe import Run, Stage
from medmvl.train.strategy import Engine
from medmvl.train.track import Tracker, memory_gib

_LOG = get_logger(__name__)
TERMINATED = 128 + signal.SIGTERM
"""Exit code of a run that saved and left because it was asked to: 143."""


class NonFiniteError(ValueError):
    """The loss or the gradient became infinite or not a number."""


class RefusedError(ValueError):
    """More samples had to be refused than the recipe allows, or all that a validation was to judge."""


class Terminated(SystemExit):
    """The run was asked to leave (SIGTERM, Ctrl-C), has saved, and leaves with exit code 143."""

    def __init__(self) -> None:
        super().__init__(TERMINATED)


class Stop:
    """Remembers that SIGTERM or Ctrl-C came; a context that restores the former handlers. A second Ctrl-C interrupts.

    Args:
        pass_on: called when one comes.
    """

    def __init__(self, pass_on: Callable[[], object] | None = None) -> None:
        self.asked = False
        self._pass_on = pass_on
        self._pressed = False
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self._former = {one: signal.signal(one, self._ask) for one in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for one, handler in self._former.items():
            signal.signal(one, handler)

    def _ask(self, number: int, _: object) -> None:
        if number == signal.SIGINT:
            if self._pressed:
                raise KeyboardInterrupt
            self._pressed = True
            _LOG.info("stopping after this step, with a checkpoint; press Ctrl-C again to leave at once")
        self.asked = True
        if self._pass_on is not None:
            self._pass_on()


@dataclass
class _Window:
    """What happened since the last line of the log, on this rank unless said otherwise."""

    loss: float = 0.0
    terms: float = 0.0
    samples: float = 0.0
    tokens: float = 0.0
    slots: float = 0.0
    waited: float = 0.0
    right: list[float] = field(default_factory=list)
    judged: list[float] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)


class Loop:
    """Trains one stage.

    Args:
        engine: holds module and optimizer.
        objective: what is learned, from which data.
        stage, run: of the recipe.
        total: optimizer steps of the stage.
        frozen: parts that do not learn and stay in evaluation mode.
        tracker: told what happens.
        checkpoints: remembers the best one.
        save: writes a checkpoint; its argument is where the run stands.
        judge: further validation, given the optimizer step; returns numbers to log.
        stop: says whether the run was asked to leave.
        profile: makes what tells where the time goes, given the loop's watch; None tells nothing.
    """

    def __init__(
        self,
        engine: Engine,
        objective: Objective,
        stage: Stage,
        run: Run,
        total: int,
        frozen: Sequence[nn.Module],
        tracker: Tracker,
        checkpoints: Checkpoints,
        save: Callable[[Progress], None],
        judge: Callable[[int], dict[str, float]] | None,
        stop: Stop,
        profile: Callable[[Stopwatch], Profile] | None = None,
    ) -> None:
        self.engine, self.objective, self.stage, self.run = engine, objective, stage, run
        self.total, self.frozen, self.tracker = total, frozen, tracker
        self.checkpoints, self.save, self.judge, self.stop = checkpoints, save, judge, stop
        self._watch = Stopwatch()
        self._profile = profile(self._watch) if profile else None
        self._blank: ModelBatch | None = None
        self._window = _Window()
        self._norm = 0.0
        self._reported = 0
        self._saved = 0

    def train(self, progress: Progress) -> Progress:
        """Train from `progress` to the end of the stage; return where the run then stands.

        Raises:
            NonFiniteError: names the samples; a checkpoint from before this step was saved.
            RefusedError: more than run.max_refused of the stage's samples cannot be used, or no sample of the
                validation; a checkpoint of what was learned was saved.
            Terminated: SIGTERM or Ctrl-C came; a checkpoint was saved.
        """
        self._set_modes()
        self._saved = progress.step
        start = Position(progress.epoch, progress.sample)
        steps = self.objective.order.steps(self.stage.global_batch, start)
        source = iter(loader(Feed(lambda: steps, self.objective.preparer), self.run.workers))
        self.tracker.begin(self.stage.name, self.total, progress.stage_step)
        try:
            self._window, self._reported = _Window(), progress.stage_step
            while progress.stage_step < self.total:
                prepared = self._next(source)
                try:
                    progress, leave = self.step(prepared, progress)
                    self._report(progress)
                    self._validate_if_due(progress)
                except (NonFiniteError, RefusedError):  # on all ranks alike
                    self._save(progress)
                    raise
                if self._profile is not None:
                    self._profile.step_done()
                done = progress.stage_step == self.total
                if done or leave or progress.step % self.run.save_every == 0:
                    self._save(progress)
                if leave:
                    _LOG.info("asked to leave: saved at step %d; --resume goes on from there", progress.step)
                    raise Terminated
        finally:
            self.tracker.end()
            if self._profile is not None:
                self._profile.finish()
        return progress

    def _next(self, source: Iterator[Prepared]) -> Prepared:
        before = self._watch.seconds["waiting for data"]
        with self._watch("waiting for data"):
            prepared = next(source)
        self._window.waited += self._watch.seconds["waiting for data"] - before
        return prepared

    def step(self, prepared: Prepared, progress: Progress) -> tuple[Progress, bool]:
        """Do one optimizer step; return the new progress and whether some rank was asked to leave."""
        engine, watch = self.engine, self._watch
        own = [prepared.supervised, prepared.samples, len(prepared.refused), self.stop.asked]
        terms, samples, refused, leave = engine.total([float(value) for value in own])
        progress = self._count_refused(prepared, progress, int(refused))
        set_learning_rates(engine.optimizer, schedule(progress.stage_step, self.total, self.stage.warmup))
        for number, batch in enumerate(prepared.batches):
            self._seed(progress, number)
            weight = 0.0 if batch is None else 1.0
            batch = (batch or self._filler()).to(engine.device)
            with engine.accumulate(last=number == len(prepared.batches) - 1):
                with engine.autocast(), watch(FORWARD):
                    output = engine.module(**batch.model_inputs())
                self._check_finite(output, batch, progress)
                # Gradients are averaged over ranks; `world` turns that into the mean over all terms of the step.
                with watch("backward"):
                    engine.backward(output.loss * (weight * engine.world / max(terms, 1.0)))
            self._note(output, weight)
        with watch("clipping"):
            norm = engine.clip_gradients()
        if not math.isfinite(norm):
            raise NonFiniteError(f"{self._where(progress)}: the gradient's norm is {norm}; {_ADVICE}")
        with watch("optimizer"):
            engine.step()
        self._norm = norm
        window = self._window
        window.terms += prepared.supervised
        window.samples, window.tokens = window.samples + prepared.samples, window.tokens + prepared.tokens
        window.slots += prepared.slots
        after = replace(
            progress,
            step=progress.step + 1,
            stage_step=progress.stage_step + 1,
            epoch=prepared.after.epoch,
            sample=prepared.after.sample,
            samples=progress.samples + int(samples),
        )
        return after, leave > 0

    def _filler(self) -> ModelBatch:
        if self._blank is None:
            self._blank = self.objective.preparer.filler()
        return self._blank

    def _seed(self, progress: Progress, number: int) -> None:
        """Make dropout a function of the row and of where the run stands: a resumed run repeats it exactly.

        Rows are dealt out in turn, so a row's number in the step tells its rank and micro-step, and is the same for
        every number of ranks that makes the same rows.
        """
        row = number * self.engine.world + self.engine.rank
        torch.manual_seed(seed_of(self.run.seed, progress.stage, progress.stage_step, row))

    def _check_finite(self, output: Any, batch: ModelBatch, progress: Progress) -> None:
        """Stop all ranks before any gradient is touched if one rank's loss is not finite."""
        bad = not bool(torch.isfinite(output.loss.detach()))
        if not self.engine.total([float(bad)])[0]:
            return
        named = self.objective.culprits(output.token_losses, batch) if bad else []
        names = [name for names in self.engine.collect(named) for name in names]
        raise NonFiniteError(
            f"{self._where(progress)}: the loss is not finite, in samples {', '.join(names)}; {_ADVICE}"
        )

    def _count_refused(self, prepared: Prepared, progress: Progress, refused: int) -> Progress:
        if not refused:
            return progress
        everyone = [one for rank in self.engine.collect(prepared.refused) for one in rank]
        self.tracker.refuse(progress.step + 1, self.stage.name, everyone)
        progress = replace(progress, refused=progress.refused + refused)
        allowed = int(self.run.max_refused * self.total * self.stage.global_batch)
        if progress.refused > allowed:
            shown = "; ".join(str(SampleError(one.reason, one.sample_id, one.path)) for one in everyone[:3])
            raise RefusedError(
                f"{self._where(progress)}: {progress.refused} samples could not be used, more than run.max_refused "
                f"{self.run.max_refused:g} of the stage's {self.total * self.stage.global_batch} allows ({allowed}); "
                f"refused.jsonl lists all. The last ones: {shown}"
            )
        return progress

    def _note(self, output: Any, weight: float) -> None:
        window = self._window
        if not weight:
            return
        window.loss += float(output.loss.detach())
        scores = self.objective.scores(output)
        if not window.right:
            window.right, window.judged = [0.0] * len(scores), [0.0] * len(scores)
        for index, (right, judged) in enumerate(scores.values()):
            window.right[index] += right
            window.judged[index] += judged

    def _report(self, progress: Progress) -> None:
        """Write a line of the log when one is due."""
        done = progress.stage_step
        if done == self._reported or (done % self.run.log_every and done not in (1, self.total)):
            return
        window, engine = self._window, self.engine
        names = list(self.objective.score_names)
        right, judged = window.right or [0.0] * len(names), window.judged or [0.0] * len(names)
        sums = engine.total([window.loss, window.terms, window.samples, window.tokens, *right, *judged])
        loss, terms, samples, tokens = sums[:4]
        if not terms:
            return  # every sample since the last line was refused: there is no loss to tell
        seconds = time.perf_counter() - window.started
        per_step, self._reported = seconds / (done - self._reported), done
        values = {
            "stage": self.stage.name,
            "stage_step": done,
            "loss": loss / terms,
            "lr": {group["part"]: group["lr"] for group in engine.optimizer.param_groups},
            "grad_norm": self._norm,
            "samples_per_s": samples / seconds,
            "tokens_per_s": tokens / seconds,
            "padding": 1.0 - tokens / window.slots if window.slots else 0.0,
            "data_wait": window.waited / seconds,
            "memory_gib": memory_gib(engine.device),
            **_accuracies(names, sums[4:]),
        }
        self.tracker.log("train", progress.step, values)
        values["eta_s"] = per_step * (self.total - done)
        self.tracker.advance(self.stage.name, done, self.total, values, announce=True)
        self._window = _Window()

    def _validate_if_due(self, progress: Progress) -> None:
        validation = self.stage.validation
        if validation is None or (progress.stage_step % validation.every and progress.stage_step != self.total):
            return
        values = self._validate(progress)
        if self.judge is not None:
            values |= self.judge(progress.step)
        self.tracker.log("validation", progress.step, {"stage": self.stage.name, **values})
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        _LOG.info("%s step %d  validation: %s", self.stage.name, progress.stage_step, shown)
        self._set_modes()
        self._keep_best(progress, values["loss"])
        self._window, self._reported = _Window(), progress.stage_step

    def _keep_best(self, progress: Progress, loss: float) -> None:
        """Save and mark a checkpoint whose validation loss is the lowest of this stage so far."""
        best = self.checkpoints.best()
        better = best is None or best.stage != progress.stage or loss < best.loss
        if self.engine.collect(better)[0]:  # rank 0 decides: it alone writes the mark
            self._save(progress)
            if self.engine.main:
                self.checkpoints.mark_best(Best(progress.stage, progress.step, loss))

    @torch.no_grad()
    def _validate(self, progress: Progress) -> dict[str, float]:
        engine, objective = self.engine, self.objective
        engine.module.eval()
        loss, names = 0.0, list(objective.score_names)
        counts = [0.0] * (1 + 2 * len(names))
        feed = Feed(objective.held_out, objective.held_out_preparer)
        for prepared in loader(feed, self.run.workers):
            self.tracker.refuse(progress.step, f"{self.stage.name}/validation", _flat(engine.collect(prepared.refused)))
            counts[0] += prepared.supervised
            for batch in prepared.batches:
                inputs = (batch or self._filler()).to(engine.device).model_inputs()
                with engine.autocast():
                    output = engine.module(**inputs)
                if batch is None:
                    continue
                loss += float(output.loss)
                for index, (right, judged) in enumerate(objective.scores(output).values()):
                    counts[1 + index] += right
                    counts[1 + len(names) + index] += judged
        sums = engine.total([loss, *counts])
        if not sums[1]:
            raise RefusedError(f"stage {self.stage.name}: no validation sample can be used; see refused.jsonl")
        return {"loss": sums[0] / sums[1], **_accuracies(names, sums[2:])}

    def _save(self, progress: Progress) -> None:
        if self._saved != progress.step:
            self.save(progress)
            self._saved = progress.step

    def _set_modes(self) -> None:
        self.engine.module.train()
        for part in self.frozen:
            tune.rest(part)

    def _where(self, progress: Progress) -> str:
        return f"stage {self.stage.name}, step {progress.stage_step + 1} of {self.total}"


_ADVICE = "no weight was changed by this step. Lower the learning rate, raise warmup, or look at these samples"


def seed_of(*numbers: int) -> int:
    """Return 63 well-mixed bits of the numbers."""
    text = ",".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8]) >> 1


def _accuracies(names: Sequence[str], sums: Sequence[float]) -> dict[str, float]:
    right, judged = sums[: len(names)], sums[len(names) :]
    return {f"accuracy/{name}": right[i] / judged[i] for i, name in enumerate(names) if judged[i]}


def _flat(lists: Iterable[Iterable[Any]]) -> list[Any]:
    return [one for part in lists for one in part]
