"""Several processes of one machine that work together: started with what torch.distributed wants to know.

Not torchrun, which kills its processes 30 s after SIGTERM: a large checkpoint takes longer.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Sequence

Process = subprocess.Popen[bytes]


def start_ranks(command: Sequence[str], count: int) -> list[Process]:
    """Start `command` in `count` processes, each of which knows its rank and where to meet the others."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(count)}
    shared |= {"LOCAL_WORLD_SIZE": str(count), "MEDMVL_LAUNCHED": "1"}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    return [subprocess.Popen(list(command), env={**os.environ, **shared, **rank}) for rank in ranks]


def run_ranks(command: Sequence[str], count: int) -> int:
    """Start `command` in `count` processes, wait for them, and return their exit code.

    They end with this process: when it is interrupted or asked to end (SIGTERM), so are they.
    """
    former = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    processes = start_ranks(command, count)
    try:
        return wait_for_ranks(processes)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
        signal.signal(signal.SIGTERM, former)


def wait_for_ranks(processes: Sequence[Process], good: Collection[int] = (0,)) -> int:
    """Wait until all have ended well or one has not, end the others, and return the first exit code that is not good.

    Args:
        processes: what `start_ranks` returned.
        good: exit codes of processes that ended as they should.
    """
    while True:
        codes = [process.poll() for process in processes]
        failed = [code for code in codes if code is not None and code not in good]
        if failed:
            for process in processes:
                process.kill()  # they wait for the failed one in a collective operation, and would for ever
            return abs(failed[0])
        if None not in codes:
            return max(code for code in codes if code is not None)
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
