"""What questions about one image cost a model when they share an optimizer step: scores at equal samples seen.

    python bench/bench_groups.py runs/demo                        # 3 seeds, about an hour on one core
    python bench/bench_groups.py runs/demo --seeds 0 --steps 100  # a first look

Shared images make training cheaper, but steps then show fewer images. For every seed the first stages of demo_2d are
trained once; from there its last stage is trained with at most 1, 8 or all questions of an image in a step, over the
same number of samples. The model is judged on patients of the validation split. Needs the data of `medmvl demo`.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from medmvl.eval.run import evaluate
from medmvl.eval.task import load_tasks
from medmvl.train.recipe import Recipe
from medmvl.train.run import train

ALL = 10_000
CLOSED = ("plane", "present", "bright", "size", "side", "choice")


def start(root: Path, seed: int) -> Path:
    """Train all stages but the last one; return the run's folder."""
    folder = root / "groups" / f"seed-{seed}"
    recipe = _recipe(root, seed, folder)
    recipe["stages"].pop()
    return folder if (folder / "bundle").is_dir() else train(recipe)


def instruct(root: Path, begun: Path, seed: int, group: int, steps: int) -> dict[str, float]:
    """Train the last stage and judge it."""
    folder = begun / f"group-{group}-{steps}"
    recipe = _recipe(root, seed, folder)
    stage = recipe["stages"].pop()
    stage |= {"steps": steps, "questions_per_image": group}
    stage["validation"] = {"data": [{"source": "brain_atlas", "split": "val"}], "every": steps, "samples": 4_000}
    recipe |= {"init_from": str(begun), "stages": [stage]}
    recipe.pop("model")
    begun_at = time.process_time()
    if not (folder / "bundle").is_dir():
        train(recipe)
    spent = time.process_time() - begun_at
    tasks = [
        task.model_copy(update={"split": "val", "controls": [], "probes": []}) for task in load_tasks("brain_atlas")
    ]
    scores = evaluate(folder / "bundle", tasks, roots=[root / "data"], resamples=1)["tasks"]
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    main = {name.split("/")[1]: entry["metrics"][entry["primary"]]["value"] for name, entry in scores.items()}
    asked = {name.split("/")[1]: entry["n"] for name, entry in scores.items()}
    return {
        "loss": next(line["loss"] for line in reversed(lines) if line["kind"] == "validation"),
        "closed": sum(main[name] * asked[name] for name in CLOSED) / sum(asked[name] for name in CLOSED),
        "mean": statistics.mean(main.values()),
        "cpu": spent,
    }


def _recipe(root: Path, seed: int, folder: Path) -> dict:
    settings = {
        "run.output": str(folder),
        "run.data_roots": [str(root / "data")],
        "run.features": str(root / "features"),
        "run.seed": seed,
        "model.llm.tokenizer": str(root / "tokenizer"),
    }
    recipe = Recipe.load("demo_2d", [f"{key}={json.dumps(value)}" for key, value in settings.items()])
    return recipe.model_dump(mode="json", exclude_unset=True)


def main() -> None:
    """Train, judge, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="what `medmvl demo` left")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 8, ALL])
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    found: dict[int, list[dict[str, float]]] = {group: [] for group in chosen.groups}
    for seed in chosen.seeds:
        begun = start(chosen.root.absolute(), seed)
        for group in chosen.groups:
            one = instruct(chosen.root.absolute(), begun, seed, group, chosen.steps)
            found[group].append(one)
            print(f"seed {seed}, at most {group} together: {json.dumps(one)}", flush=True)
    print(f"\n{'questions together':20}{'loss':>9}{'closed, %':>12}{'all tasks, %':>14}{'CPU s':>8}   (mean, range)")
    for group, ones in found.items():
        told = f"{'all' if group >= ALL else group!s:20}"
        for key, scale, width, digits in (("loss", 1, 9, 4), ("closed", 100, 12, 1), ("mean", 100, 14, 1)):
            values = [scale * one[key] for one in ones]
            told += f"{statistics.mean(values):{width}.{digits}f} ({min(values):.{digits}f} - {max(values):.{digits}f})"
        print(told + f"{statistics.median(one['cpu'] for one in ones):8.0f}")


if __name__ == "__main__":
    main()
