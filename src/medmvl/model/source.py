"""Where weights come from: a local folder, or a hub name fetched into one; safetensors only."""

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
    if local.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
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
