"""Does a 3D model gain from a 2D one? The recipe demo_3d with `init_from` and from random weights, three seeds each.

    medmvl demo --out runs/demo
    python bench/bench_init_from_2d.py runs/demo

Both ways have the same model, data, steps and seeds. Prints accuracy on closed and multiple-choice questions about
unseen patients, beside the blank-volume control, one line per run, then the means.
"""

import argparse
import json
import statistics
from pathlib import Path

from medmvl.eval.run import evaluate
from medmvl.eval.table import pooled
from medmvl.train.run import train

TASKS = ["brain_atlas_3d"]
LESION = ("present", "bright", "size", "side")


def main() -> None:
    """Train and score every run that is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="folder of `medmvl demo`")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=["2d", "scratch"], help="one of the two ways")
    given = parser.parse_args()
    print(f"{'start':8}{'seed':>6}{'closed + choice':>18}{'blank volume':>14}{'lesion questions':>18}")
    found: dict[str, list[float]] = {}
    for seed in given.seeds:
        for way in ("2d", "scratch") if given.only is None else (given.only,):
            overall, lesion = run(given.demo, way, seed)
            found.setdefault(way, []).append(overall["score"])
            print(f"{way:8}{seed:6}{overall['score']:18.1%}{overall['blank_image']:14.1%}{lesion:18.1%}", flush=True)
    for way, scores in found.items():
        print(f"{way:8}  mean{statistics.mean(scores):18.1%}")


def run(demo: Path, way: str, seed: int) -> tuple[dict[str, float], float]:
    """Return the pooled scores of one run, and its mean accuracy on questions about lesions."""
    folder = demo / "init" / f"{way}-{seed}"
    start = str(demo / "2d") if way == "2d" else None
    settings = [
        f"init_from={json.dumps(start)}",
        f"run.output={json.dumps(str(folder))}",
        f"run.data_roots={json.dumps([str(demo / 'data')])}",
        f"run.prepared={json.dumps(str(demo / 'prepared'))}",
        f"run.seed={seed}",
        f"model.llm.tokenizer={json.dumps(str(demo / 'tokenizer'))}",
    ]
    if not (folder / "bundle").is_dir():
        train("demo_3d", overrides=settings, resume=(folder / "checkpoints").is_dir())
    scores = evaluate(
        folder / "bundle", TASKS, folder / "eval", roots=[demo / "data"], seed=seed, prepared=demo / "prepared"
    )
    closed = [scores["tasks"][f"brain_atlas_3d/{name}"]["metrics"]["accuracy_strict"]["value"] for name in LESION]
    return pooled(scores)["brain_atlas_3d"], statistics.mean(closed)


if __name__ == "__main__":
    main()
