"""How fast a million LLaVA rows become a store, and in how much memory: rows a second and peak, as list and as lines.

Pin it to one core: taskset -c 1 python bench/bench_convert.py
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROWS = 1_000_000
QUESTION = "<image>\nPlease describe the findings in this image, with special attention to the region that was marked."
ANSWER = (
    "The image shows a large lesion in the left lower lobe with spiculated margins and pleural retraction; there is no "
    "effusion nor any enlarged lymph node."
)
RUN = """
import resource, sys, time
from medmvl.cli.main import main
start = time.perf_counter()
code = main(["data", "convert", "llava", *sys.argv[1:]])
seconds, use = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
print(code, seconds, use.ru_utime + use.ru_stime, use.ru_maxrss / 1024)
"""


def write(path: Path, rows: int) -> None:
    """Write rows of about 400 bytes; a .json file is one list. The images do not exist."""
    is_list = path.suffix == ".json"
    with path.open("w") as file:
        file.write("[\n" if is_list else "")
        for number in range(rows):
            turns = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]
            row = {"id": f"{number:09d}", "image": f"{number // 1000:05d}/{number:09d}.jpg", "conversations": turns}
            end = ",\n" if is_list and number < rows - 1 else "\n"
            file.write(json.dumps(row) + end)
        file.write("]\n" if is_list else "")


def main() -> None:
    """Print a line per form of the input and of the store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="?", type=int, default=ROWS, help="of the file (%(default)s)")
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for form, suffix in (("jsonl", "jsonl"), ("jsonl", "json"), ("parquet", "jsonl")):
            source = folder / f"train.{suffix}"
            write(source, rows)
            command = [sys.executable, "-c", RUN, str(source), str(folder / f"{suffix}_{form}"), "--form", form]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            code, seconds, cpu, memory = done.stdout.splitlines()[-1].split()
            assert code == "0", done.stderr
            speed = f"{rows / float(seconds):8,.0f} rows/s ({rows / float(cpu):,.0f} per CPU second)"
            print(f"{suffix:5} -> {form:7} {speed}, peak {float(memory):.0f} MB")
            source.unlink()


if __name__ == "__main__":
    main()
