"""Names of the files that ship inside the package: recipes, templates, tasks, architectures."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent


def names(folder: str, suffix: str) -> list[str]:
    """Return the sorted names in `folder` of the package, such as "recipes", without their suffix.

    Sub-folders become part of a name with "/"; a file whose own name starts with "_" is a shared base and is left out.
    """
    root = PACKAGE / folder
    found = (path.relative_to(root) for path in root.rglob(f"*{suffix}"))
    return sorted(path.as_posix().removesuffix(suffix) for path in found if not path.name.startswith("_"))


def path(folder: str, name: str, suffix: str) -> Path | None:
    """Return the shipped file `name` of `folder`, or None when there is none."""
    root = PACKAGE / folder
    found = (root / f"{name}{suffix}").resolve()
    return found if found.is_file() and found.is_relative_to(root) else None
