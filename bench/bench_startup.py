"""How long `medmvl --help` takes beside `import torch`: CPU seconds, medians of alternating repeats."""

import argparse
import resource
import statistics
import subprocess
import sys

REPEATS = 7
COMMANDS = {
    "medmvl --help": [sys.executable, "-m", "medmvl", "--help"],
    "import torch": [sys.executable, "-c", "import torch"],
    "wrong recipe": [sys.executable, "-m", "medmvl", "train", "demo_2d", "run.sed=1", "modl.llm=x"],
}


def cpu_seconds(command: list[str]) -> float:
    """Return user + system time of a command and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print one line per command, and the share of `import torch` it takes."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(REPEATS):
        for name, command in COMMANDS.items():
            times[name].append(cpu_seconds(command))
    torch = statistics.median(times["import torch"])
    for name, values in times.items():
        middle = statistics.median(values)
        print(f"{name:15} {middle:6.3f} s CPU   {middle / torch:5.1%} of `import torch`   (median of {REPEATS})")


if __name__ == "__main__":
    main()
