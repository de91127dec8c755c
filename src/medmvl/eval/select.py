"""Samples by what is known about them: `meta`, whatever else a data set keeps there, and `meta.attributes`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from medmvl.core.lookup import choices_text, nearest
from medmvl.core.schema import Meta, Sample

_OWN = frozenset(Meta.model_fields) - {"boxes", "attributes"}
_LISTED = 30  # values of a key that an error lists
_REMEMBERED = 10_000  # and among which it looks for the nearest: a key may be an id


def meta_values(sample: Sample, key: str) -> tuple[str, ...]:
    """Return what a sample says under a key, as texts; several for a list, () where it says nothing.

    A field of `meta`, of the data set's own or not, goes before an entry of `meta.attributes`. True is "true", as in
    YAML.
    """
    meta = sample.meta
    value = getattr(meta, key) if key in _OWN else (meta.model_extra or {}).get(key)
    return _texts(value) or _texts(meta.attributes.get(key))


def meta_value(sample: Sample, key: str) -> str:
    """Return what a sample says under a key as one text, "" where it says nothing."""
    return ", ".join(meta_values(sample, key))


def selected(samples: Iterable[Sample], select: Mapping[str, str | Sequence[str]]) -> Iterator[Sample]:
    """Yield the samples that have one of the wanted values under each key; all of them if nothing is asked for.

    Args:
        samples: of one task.
        select: key -> value, or values, compared as they are written (see `meta_values`).

    Raises:
        ValueError: raised after the last sample: none has a key, or a value under it (names the nearest), or none has
            all that is asked for.
    """
    wanted = {key: (value,) if isinstance(value, str) else tuple(value) for key, value in select.items()}
    seen: dict[str, set[str]] = {key: set() for key in wanted}
    missing = {key: set(values) for key, values in wanted.items()}
    keys: set[str] = set()
    found = False
    for sample in samples:
        fits = True
        for key, values in wanted.items():
            said = meta_values(sample, key)
            fits &= not set(values).isdisjoint(said)
            missing[key].difference_update(said)
            if len(seen[key]) < _REMEMBERED:
                seen[key].update(said)
        if not all(seen.values()):
            keys.update(_keys(sample))
        if fits:
            found = True
            yield sample
    for key in wanted:
        if not seen[key]:
            raise ValueError(f"select: no sample says anything under {key!r}; {choices_text(key, keys, 'keys')}")
        for value in sorted(missing[key]):
            raise ValueError(f"select.{key}: no sample has {value!r}; {_values_text(value, seen[key])}")
    if wanted and not found:
        asked = ", ".join(f"{key}: {' or '.join(values)}" for key, values in wanted.items())
        raise ValueError(f"select: no sample has all that is asked for at once ({asked}); ask for less")


def _texts(value: Any) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    if isinstance(value, list | tuple):
        return tuple(text for one in value for text in _texts(one))
    return (str(value).lower() if isinstance(value, bool) else str(value),)


def _keys(sample: Sample) -> Iterator[str]:
    """Yield the keys under which a sample says something."""
    extra = sample.meta.model_extra or {}
    return (key for key in (*_OWN, *extra, *sample.meta.attributes) if meta_values(sample, key))


def _values_text(value: str, values: set[str]) -> str:
    if len(values) <= _LISTED:
        return choices_text(value, values, "values")
    near = nearest(value, values)
    hint = f"did you mean {near!r}? " if near else ""
    return f"{hint}Values: {', '.join(sorted(values)[:_LISTED])} and others"
