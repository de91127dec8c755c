"""Where weights come from: a local folder, or a hub name fetched into one; safetensors only."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

SAFE_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
"""What is fetched from the hub unless more is asked for: no pickled weights; and never code."""
PICKLED = (".bin", ".pt", ".pth", ".ckpt")


class SourceError(ValueError):
    """A name or folder that no weights can be loaded from."""


def folder(name: str, where: str, files: Sequence[str] = SAFE_FILES) -> Path:
    """Return the local folder of `name`, fetching a hub name into the hub's cache first.

    Args:
        name: a folder that holds `config.json`, or a hub name "organisation/model".
        where: what is being loaded, for errors ("encoder of tower 'image'").
        files: patterns of the files to fetch.

    Raises:
        SourceError: neither a folder nor a hub name that can be reached.
    """
    local = Path(name).expanduser()
    if local.is_dir():
        return local
    if not _may_be_hub_name(name):
        raise SourceError(f"{where}: {name!r} is neither a folder nor a hub name like 'organisation/model'")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(files)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise SourceError(
            f"{where}: {name!r} is no local folder, and the hub did not give it ({type(error).__name__}). "
            "Download it where there is a network, and give the folder's path here"
        ) from error


def at_hand(name: str, cache: str | Path | None = None) -> bool:
    """Say whether weights are on this machine: in a local file or folder, or whole in the hub's cache.

    Looks at names of files only, and never at the network.

    Args:
        name: a file, a folder, or a hub name "organisation/model".
        cache: the hub's cache; default: where it is by huggingface_hub's own settings (HF_HUB_CACHE, HF_HOME).
    """
    if Path(name).expanduser().exists():
        return True
    if not _may_be_hub_name(name):
        return False
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return _is_whole(Path(snapshot_download(name, cache_dir=cache, local_files_only=True)))
    except (LocalEntryNotFoundError, HFValidationError):
        return False


def _is_whole(held: Path) -> bool:
    """Whether a folder holds weights, and all shards that an index names."""
    for index in held.glob("*.index.json"):
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False
        if all((held / Path(shard).name).exists() for shard in shards):
            return True
    # a link whose blob is gone does not exist; a shard without its index is a part
    files = [path.name for path in held.iterdir() if path.suffix in (".safetensors", *PICKLED) and path.exists()]
    return any(name != "training_args.bin" and not re.search(r"-\d+-of-\d+\.", name) for name in files)


def _may_be_hub_name(name: str) -> bool:
    return not (Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") != 1)


def check_weights(source: Path, where: str) -> None:
    """Raise SourceError unless `source` holds safetensors weights; tell how to convert pickled ones."""
    if any(source.glob("*.safetensors")):
        return
    pickled = sorted(path.name for path in source.iterdir() if path.suffix in PICKLED)
    if not pickled:
        raise SourceError(f"{where}: {source} holds no *.safetensors weights")
    raise SourceError(
        f"{where}: {source} holds only pickled weights ({', '.join(pickled[:3])}), which can run code when loaded. "
        "Convert them once, where you trust them:\n"
        "  state = torch.load(FILE, weights_only=True, map_location='cpu')\n"
        "  safetensors.torch.save_file({k: v.clone().contiguous() for k, v in state.items()}, 'model.safetensors', "
        "metadata={'format': 'pt'})"
    )
