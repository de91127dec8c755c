"""What metrics that ask a model have in common: it lies on this machine, and reads each text once, in even batches."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medmvl.eval.metrics.metric import MetricUnavailable


def given(path: str | Path | None, option: str, metric: str, what: str) -> Path:
    """Return the file or folder that a metric's option names.

    Args:
        path: the option's value, None where it was not given.
        option: the option's name.
        metric: a metric that takes it, for the message.
        what: what has to lie there, for the message.

    Raises:
        MetricUnavailable: not given, or not there; says what to give.
    """
    if path is None:
        raise MetricUnavailable(
            f"needs {what}: put it on this machine (nothing is downloaded) and name it with "
            f"--metric-option {metric}.{option}=PATH, once for each metric that reads it"
        )
    if not Path(path).exists():
        raise MetricUnavailable(f"option {option}: {path} does not exist; it should be {what}")
    return Path(path)


@contextmanager
def reading(folder: Path, option: str) -> Iterator[None]:
    """Turn what a library says about an unreadable folder into `MetricUnavailable`; keep its load reports quiet."""
    from transformers import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except MetricUnavailable:
        raise
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError, ImportError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise MetricUnavailable(f"option {option}: {folder} cannot be read: {first}") from error
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def checkpoint_state(path: Path, option: str) -> dict[str, Any]:
    """Return the state dict of a .pth file, read as tensors only, without the "module." of DataParallel.

    The file holds the state dict itself, or has it as "model_state_dict".

    Raises:
        MetricUnavailable: the file cannot be read so, or holds no state dict.
    """
    from pickle import UnpicklingError

    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, UnpicklingError, EOFError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise MetricUnavailable(f"option {option}: {path} cannot be read as weights: {first}") from error
    state = found.get("model_state_dict", found) if isinstance(found, dict) else None
    if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise MetricUnavailable(f"option {option}: {path} holds no state dict")
    return {name.removeprefix("module."): value for name, value in state.items()}


def device_of(name: str | None) -> Any:
    """Return the torch device of that name; None is the first GPU if there is one, else the CPU.

    Raises:
        ValueError: torch knows no such device.
    """
    import torch

    try:
        return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ValueError(f"metric option device={name!r}: {str(error).splitlines()[0]}") from error


def token_ids(tokenizer: Any, texts: Sequence[str], longest: int) -> list[list[int]]:
    """Return each text's token ids with the tokenizer's special tokens around them, `longest` at most.

    Special tokens written in a text ("[SEP]") are text.
    """
    if not texts:
        return []
    encoded = tokenizer(list(texts), truncation=True, max_length=longest, split_special_tokens=True)
    return list(encoded["input_ids"])


def batches(
    rows: Sequence[Sequence[int]], size: int, pad: int, left: bool = False
) -> Iterator[tuple[list[int], Any, Any]]:
    """Yield rows of token ids, the longest first, so that rows of one length meet.

    Args:
        rows: token ids.
        size: rows in a batch.
        pad: what fills a short row.
        left: fill on the left, as generation needs it.

    Yields:
        places of the batch's rows, their ids [B, T] and mask [B, T], int64.

    Raises:
        ValueError: `size` is below 1.
    """
    import torch

    if size < 1:
        raise ValueError(f"metric option batch_size={size}: give at least 1")
    order = sorted(range(len(rows)), key=lambda place: -len(rows[place]))
    for start in range(0, len(order), size):
        places = order[start : start + size]
        width = len(rows[places[0]])
        ids = torch.full((len(places), width), pad)
        mask = torch.zeros_like(ids)
        for line, place in enumerate(places):
            length = len(rows[place])
            span = slice(width - length, width) if left else slice(0, length)
            ids[line, span] = torch.tensor(rows[place], dtype=ids.dtype)
            mask[line, span] = 1
        yield places, ids, mask
