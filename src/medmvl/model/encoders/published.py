"""Published weights of encoders in our own code: found, renamed and loaded strictly, with every misfit named."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from medmvl.model.encoders.base import EncoderError
from medmvl.model.source import PICKLED, SAFE_FILES, SourceError, folder

Shapes = Mapping[str, Sequence[int]]

_SHOWN = 5
_ZIP, _PICKLE = b"PK", b"\x80"
"""How files of torch start: since version 1.6, which can be mapped into memory, and before."""


@dataclass(frozen=True)
class Names:
    """How published files call the weights of an encoder.

    Attributes:
        prefixes: what stands in front of the encoder's own names -> pattern of the names that may stand beside them.
        ignored: pattern of names, without prefix, that files hold and nothing needs.
        optional: pattern of our names that a file may lack, because no feature needs them.
        files: what is taken where a folder holds several files, first choice first.
    """

    prefixes: Mapping[str, str] = field(default_factory=lambda: {"": ""})
    ignored: str = ""
    optional: str = ""
    files: Sequence[str] = ("model.safetensors", "pretrained_ViT.bin", "pytorch_model.bin")


def load(model: nn.Module, source: str, names: Names, what: str) -> None:
    """Copy published weights into `model`, in place and in its own precision.

    Args:
        model: on a real device.
        source: a file, a folder, or a hub name; safetensors, in shards too, or pickled tensors, which are read without
            running any code.
        names: how the file calls the weights.
        what: the encoder's name, for errors.

    Raises:
        SourceError: nothing to load there.
        EncoderError: a file that cannot be read, or weights that do not fit; names them.
    """
    files = find(source, f"weights of {what!r}", names.files)
    held = Checkpoint(files)
    own = model.state_dict()
    chosen = match({name: tensor.shape for name, tensor in own.items()}, held.shapes, names, f"{source}, for {what!r}")
    with torch.no_grad():
        for name, key in chosen.items():
            own[name].copy_(held.tensor(key))


def match(wanted: Shapes, found: Shapes, names: Names, where: str) -> dict[str, str]:
    """Return which name in a file stands for which of ours.

    Args:
        wanted: our names and shapes.
        found: the file's names and shapes.
        names: how the file calls the weights.
        where: names the file, for errors.

    Raises:
        EncoderError: missing, unexpected or misshapen weights, each by name.
    """
    counts = {prefix: sum(prefix + name in found for name in wanted) for prefix in names.prefixes}
    prefix = max(counts, key=lambda one: counts[one])
    if not counts[prefix]:
        raise EncoderError(
            f"{where}: none of its {len(found)} weights has a known name ({_some(list(found))}); "
            f"wanted are {_some(list(wanted))}, with one of the prefixes {', '.join(map(repr, names.prefixes))}"
        )
    chosen = {name: prefix + name for name in wanted if prefix + name in found}
    missing = [name for name in wanted if name not in chosen and not _matches(names.optional, name)]
    unexpected = [key for key in found if not _expected(key, prefix, wanted, names)]
    misshapen = [
        f"{key} is {_shape(found[key])} instead of {_shape(wanted[name])}"
        for name, key in chosen.items()
        if tuple(found[key]) != tuple(wanted[name])
    ]
    lists = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    if any(lists.values()):
        told = "; ".join(f"{len(some)} {word}: {_some(some)}" for word, some in lists.items() if some)
        raise EncoderError(f"{where}: its weights do not fit the options; {told}")
    return chosen


def find(source: str, where: str, first: Sequence[str]) -> list[Path]:
    """Return the files that hold the weights of a file, folder or hub name.

    Args:
        source: the file, folder or hub name.
        where: what is being loaded, for errors.
        first: names of the files to take where a folder holds several, first choice first.

    Raises:
        SourceError: there are none, or several that may be meant.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix not in (".safetensors", *PICKLED):
            raise SourceError(f"{where}: {source} is no weights file; they end in .safetensors, {', '.join(PICKLED)}")
        return [path]
    if path.suffix in (".safetensors", *PICKLED) and not path.is_dir():
        raise SourceError(f"{where}: there is no file {source}; give the path of your copy")
    held = folder(source, where)
    if held != path and not any(held.glob("*.safetensors")):
        held = folder(source, where, [*SAFE_FILES, *(f"*{suffix}" for suffix in PICKLED)])
    for suffixes in ((".safetensors",), PICKLED):
        index = sorted(one for suffix in suffixes for one in held.glob(f"*{suffix}.index.json"))
        if index:
            return _shards(index[0])
        files = sorted(one for one in held.iterdir() if one.suffix in suffixes and one.name != "training_args.bin")
        known = [held / name for name in first if held / name in files]
        if known or len(files) == 1:
            return (known or files)[:1]
        if files:
            raise SourceError(
                f"{where}: {source} holds {', '.join(one.name for one in files)}; name one of them with its path"
            )
    raise SourceError(f"{where}: {source} holds no weights (*.safetensors, {', '.join(f'*{one}' for one in PICKLED)})")


class Checkpoint:
    """Tensors by name, read when they are asked for.

    Attributes:
        shapes: of all of them.

    Raises:
        EncoderError: a file that cannot be read.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._held: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for file in files:
            held = _open_safe(file) if file.suffix == ".safetensors" else _open_pickled(file)
            for key in held.keys():  # noqa: SIM118 - a safetensors file is no mapping
                self._held[key] = held
                self.shapes[key] = tuple(held[key].shape if isinstance(held, dict) else held.get_slice(key).get_shape())

    def tensor(self, key: str) -> Tensor:
        """Read one tensor."""
        held = self._held[key]
        return held[key] if isinstance(held, dict) else held.get_tensor(key)


def _open_safe(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise EncoderError(f"{file}: cannot be read ({error}); copy it again") from error


def _open_pickled(file: Path) -> dict[str, Tensor]:
    """Read pickled tensors; torch refuses everything that would run code."""
    with file.open("rb") as opened:
        start = opened.read(2)
    if start != _ZIP and start[:1] != _PICKLE:
        raise EncoderError(f"{file}: is no file of torch's (a pointer of Git LFS?); copy it again")
    try:
        held = torch.load(file, map_location="cpu", weights_only=True, mmap=start == _ZIP)
    except pickle.UnpicklingError as error:
        raise EncoderError(
            f"{file}: holds more than tensors, and reading that can run code ({str(error).splitlines()[0]}). Convert "
            "it once, where you trust it: load it with torch, weights_only off, save its tensors with "
            "safetensors.torch.save_file, and give the new file"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise EncoderError(f"{file}: cannot be read ({str(error).splitlines()[0]}); copy it again") from error
    if not isinstance(held, dict) or not all(isinstance(value, Tensor) for value in held.values()):
        inside = ", ".join(map(repr, held)) if isinstance(held, dict) else type(held).__name__
        raise EncoderError(
            f"{file}: holds no tensors by name at its top, but {inside[:200]}; save its state dict alone"
        )
    return held


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EncoderError(f"{index}: damaged ({error}); copy it again") from error
    outside = [name for name in names if Path(name).name != name]
    lacking = [name for name in names if not (index.parent / name).is_file()]
    if outside or lacking:
        raise EncoderError(f"{index}: names {_some(outside or lacking)}, which is not beside it; copy the files again")
    return [index.parent / name for name in names]


def _expected(key: str, prefix: str, wanted: Shapes, names: Names) -> bool:
    """Whether a name in a file is one of ours, or one that may be there."""
    if not key.startswith(prefix):
        return _matches(names.prefixes[prefix], key)
    name = key.removeprefix(prefix)
    return name in wanted or _matches(names.ignored, name)


def _matches(pattern: str, name: str) -> bool:
    return bool(pattern) and re.match(pattern, name) is not None


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "a number"
