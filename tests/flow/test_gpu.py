"""The same road on a GPU: bf16 training, and answers as on the CPU."""

import pytest
import torch

import medmvl
import tiny_run
from medmvl.train.run import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_trained_in_bf16_it_answers_alike_on_both_devices(tmp_path):
    samples = [sample for sample in tiny_run.write_data(tmp_path) if sample.split == "val"]
    recipe = tiny_run.recipe(tmp_path, tiny_run.stage(steps=20), strategy="single", precision="bf16")
    folder = train(recipe)
    here = medmvl.load(folder / "bundle")
    there = medmvl.load(folder / "bundle", device="cuda")
    assert all(parameter.dtype == torch.float32 for parameter in there.model.parameters())
    assert there.loss(samples).item() == pytest.approx(here.loss(samples).item(), rel=1e-3)
    for sample in samples[:4]:
        torch.testing.assert_close(there.logits(sample).cpu(), here.logits(sample), rtol=1e-2, atol=1e-2)
    assert there.generate(samples, max_new_tokens=8) == there.generate(samples, max_new_tokens=8, batch_size=3)
