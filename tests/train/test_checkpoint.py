"""Checkpoints: whole or not at all, the last few and the best one stay."""

import resource

import pytest
import torch

from medmvl.core.atomic import DiskFullError
from medmvl.train import checkpoint
from medmvl.train.checkpoint import (
    Best,
    CheckpointError,
    Checkpoints,
    Progress,
    fingerprint,
    read_progress,
    read_tensors,
)


class OneRank:
    main = True

    def collect(self, value):
        return [value]


def progress(step):
    return Progress(
        step=step, stage=0, stage_step=step, epoch=1, sample=7, data="d", initial="i", samples=8 * step, refused=0
    )


def save(checkpoints, step, size=10):
    weights = [("llm.a", torch.full((size,), float(step))), ("llm.b", torch.arange(3, dtype=torch.bfloat16))]
    moments = [("exp_avg.llm.a", torch.ones(size)), ("exp_avg_sq.llm.a", torch.ones(size))]
    return checkpoints.save(OneRank(), weights, moments, progress(step))


def test_what_was_saved_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_SHARD_BYTES", 30)  # several files
    path = save(Checkpoints(tmp_path / "checkpoints", 2), 3)
    assert read_progress(path) == progress(3)
    weights = read_tensors(path, "weights")
    assert torch.equal(weights["llm.a"], torch.full((10,), 3.0))
    assert weights["llm.b"].dtype == torch.bfloat16
    assert set(read_tensors(path, "optimizer")) == {"exp_avg.llm.a", "exp_avg_sq.llm.a"}
    assert len(list(path.glob("weights-*.safetensors"))) == 2


def test_the_last_ones_and_the_best_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", 2)
    assert checkpoints.latest() is None
    for step in (1, 2, 3, 10):
        save(checkpoints, step)
        if step == 2:
            checkpoints.mark_best(Best(stage=0, step=2, loss=0.5))
    kept = sorted(path.name for path in (tmp_path / "checkpoints").glob("*"))
    assert kept == ["best.json", "step-00000002", "step-00000003", "step-00000010"]
    assert checkpoints.latest() == checkpoints.path(10)
    assert checkpoints.best() == Best(stage=0, step=2, loss=0.5)


def test_what_a_killed_process_left_goes(tmp_path):
    for name in (".step-00000003.k2x9", ".step-00000001.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights-0000.safetensors").write_bytes(b"half")
    save(Checkpoints(tmp_path, keep_last=1), 3)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_full_disk_leaves_the_former_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", 2)
    first = save(checkpoints, 1)
    before = {path.name: path.read_bytes() for path in first.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # the operating system refuses every file above 64 KiB from here on, in the middle of the write
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    try:
        with pytest.raises(DiskFullError, match=r"step-00000002.*free.*intact"):
            save(checkpoints, 2, size=10**6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    assert {path.name: path.read_bytes() for path in first.iterdir()} == before
    assert checkpoints.latest() == first
    save(checkpoints, 2, size=10**6)
    assert checkpoints.latest() == checkpoints.path(2)


def test_other_ranks_take_part_in_gathering_and_learn_of_the_failure(tmp_path):
    class OtherRank:
        main = False

        def collect(self, value):
            return ["disk full", value]

    gathered = []
    weights = ((name, gathered.append(name)) for name in ("a", "b"))
    with pytest.raises(DiskFullError, match="disk full"):
        Checkpoints(tmp_path / "checkpoints", 1).save(OtherRank(), weights, iter([]), progress(1))
    assert gathered == ["a", "b"]
    assert not (tmp_path / "checkpoints").exists()


def test_damaged_checkpoint_is_told(tmp_path):
    path = save(Checkpoints(tmp_path / "checkpoints", 1), 1)
    (path / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        read_progress(path)


def test_fingerprint_sees_names_shapes_and_values():
    torch.manual_seed(0)
    layer = torch.nn.Linear(70, 70)
    first = fingerprint(layer)
    assert fingerprint(layer) == first
    layer.weight.data[0, 0] += 1
    assert fingerprint(layer) != first
