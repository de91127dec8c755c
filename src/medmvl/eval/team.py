"""The processes that share an evaluation: who this one is, and waiting for the others."""

import os
from dataclasses import dataclass
from datetime import timedelta

_PATIENCE = timedelta(days=7)  # the slowest process may ask a large model for hours


@dataclass(frozen=True)
class Team:
    """This process among `size` ones; 0 is the first, which scores and writes."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this process scores and writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.size > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()

    def share(self, total: int) -> slice:
        """Return which of `total` things, side by side, this process does."""
        return slice(total * self.rank // self.size, total * (self.rank + 1) // self.size)

    def device(self, device: str) -> str:
        """Return the device of this process: of several GPUs each takes its own."""
        return f"cuda:{self.local_rank}" if self.size > 1 and device == "cuda" else device


def started() -> bool:
    """Whether something started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def speaks() -> bool:
    """Whether this process tells people what came out."""
    return os.environ.get("RANK", "0") == "0"


def team() -> Team:
    """Return the team that torchrun or `accelerate launch` made of this process; a process alone is one by itself."""
    if not started():
        return Team()
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)
    return Team(state.process_index, state.num_processes, state.local_process_index)
