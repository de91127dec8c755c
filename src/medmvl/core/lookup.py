"""Tables of names: `name -> "module:attribute"`, resolved on use, with a hint for a wrong name."""

import difflib
import importlib
from collections.abc import Iterable, Mapping


class LookupNameError(ValueError):
    """A name that no table knows, or a dotted path that leads nowhere."""


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """Return the choice that `name` most likely meant, or None when nothing is close."""
    names = list(choices)
    folded = {choice.casefold().replace("-", "_"): choice for choice in names}
    key = name.casefold().replace("-", "_")
    found = difflib.get_close_matches(key, folded, n=1, cutoff=0.6)
    if found:
        return folded[found[0]]
    related = [fold for fold in folded if min(len(key), len(fold)) > 2 and (key in fold or fold in key)]
    return folded[min(related, key=len)] if related else None


def choices_text(name: str, choices: Iterable[str], noun: str = "choices") -> str:
    """Return "did you mean 'x'? Choices: a, b, c" for an error message."""
    names = sorted(choices)
    near = nearest(name, names)
    hint = f"did you mean {near!r}? " if near else ""
    listing = ", ".join(names) if names else "none"
    return f"{hint}{noun.capitalize()}: {listing}"


def resolve(table: Mapping[str, str], name: str, where: str) -> object:
    """Return the object that `name` stands for, importing its module on use.

    Args:
        table: rows `name -> "package.module:attribute"`.
        name: a name of the table, or a dotted path "package.module:attribute" of the user's own package.
        where: what is being looked up, for the error ("connector of tower 'image'").

    Raises:
        LookupNameError: `name` is in no row and is no dotted path, or the path leads nowhere.
    """
    target = table.get(name, name if ":" in name else None)
    if target is None:
        raise LookupNameError(
            f"{where}: unknown name {name!r}; {choices_text(name, table)}. "
            "A dotted path 'package.module:attribute' of your own works too."
        )
    module_name, _, attribute = target.partition(":")
    try:
        found: object = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        if name in table:
            raise
        raise LookupNameError(f"{where}: {name!r} leads nowhere: {error}") from error
    return found
