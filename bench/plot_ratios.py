"""How many times longer others take than we do: bars from what the benches recorded.

python bench/bench_train.py speed slake --record bench/results.jsonl
python bench/bench_infer.py speed slake --record bench/results.jsonl
python bench/plot_ratios.py bench/results.jsonl docs/images/performance.svg
"""

import argparse
import json
from pathlib import Path

COLOURS = {"plain": "#b0453a", "transformers": "#d98c3f", "conversations": "#8a8a8a"}


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("out", type=Path)
    chosen = parser.parse_args()
    from matplotlib import pyplot, rcParams

    rcParams["svg.fonttype"] = "none"

    lines = [json.loads(line) for line in chosen.results.read_text(encoding="utf-8").splitlines()]
    found = {line["what"]: line["seconds"] for line in lines}  # the last measurement of each counts
    figure, axis = pyplot.subplots(figsize=(8, 0.3 + 0.62 * len(found)))
    labelled: set[str] = set()
    for row, (what, seconds) in enumerate(reversed(found.items())):
        others = [name for name in seconds if name != "ours" and not name.endswith(", 1")]
        for index, name in enumerate(others):
            kind = name.split(",")[0]
            ratio, place = seconds[name] / seconds["ours"], row + 0.26 * (len(others) / 2 - index - 0.5)
            axis.barh(place, ratio, 0.24, color=COLOURS[kind], label=None if kind in labelled else kind)
            axis.text(ratio + 0.1, place, f"{ratio:.1f}", va="center", fontsize=7)
            labelled.add(kind)
        axis.text(-0.2, row, what, ha="right", va="center", fontsize=9)
    axis.axvline(1, color="#1b6ca8", linewidth=1.5)
    axis.set(yticks=[], xlabel="times the processor time that MedM-VL takes (1: as long)")
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.legend(frameon=False, loc="upper right")
    figure.savefig(chosen.out, bbox_inches="tight")


if __name__ == "__main__":
    main()
