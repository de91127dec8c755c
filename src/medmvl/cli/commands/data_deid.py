"""`medmvl data deid`: DICOM files without what tells who the patient is."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from medmvl.imaging.deid_files import Outcome

_NOTED = "holds a comment inside its pixel data: look at it"
_TOLD = 20  # files that are named one by one on the screen
_STATES = {
    "written": "written",
    "there": "were there",
    "left_out": "without a picture, or no DICOM",
    "refused": "refused",
    "broken": "broken",
}


def deid(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A DICOM file, or a folder of them with its folders.")],
    out: Annotated[
        Path, typer.Argument(help="Folder of the new files: PATIENT/STUDY/SERIES/FILE.dcm, pseudonyms all.")
    ],
    key_file: Annotated[
        Path | None,
        typer.Option(help="Secret key of the pseudonyms; made where it is missing. Default: one that is thrown away."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="JSON of what was done to each file; no values, no names.")
    ] = None,
    report_names: Annotated[
        bool, typer.Option("--report-names", help="Name the files in the report and here; file names can identify.")
    ] = False,
    keep_burned_in: Annotated[
        bool, typer.Option("--keep-burned-in", help="Write files that say their pixels show who it is, too.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes, each with one file in memory; default: one per core.")
    ] = None,
) -> None:
    """De-identify DICOM files after the standard's Basic Application Confidentiality Profile (PS3.15 Annex E).

    Names, ids, dates, descriptions and private elements go, at any depth; UIDs are remapped alike in all files; pixels
    stay byte for byte. With the same key a further run gives the same pseudonyms. Text burned into pixels stays: files
    that admit it are refused, files that may hold it are listed, and so are those with a comment inside their
    compressed pixels. Faces in head scans are not removed.

    \b
    medmvl data deid export/ data/dicom --key-file ~/keys/study.key --report deid.json
    """
    from medmvl.cli.screen import progress
    from medmvl.imaging.deid_files import deidentify_files, files_of
    from medmvl.imaging.pseudonym import new_key, open_key

    _check_places(source, out, key_file, report if report_names else None)
    files = files_of(source)
    made = key_file is not None and not key_file.exists()
    key = new_key() if key_file is None else open_key(key_file)
    if made:
        typer.echo(f"new key: {key_file}. Keep it secret and safe; who has it can recompute pseudonyms from ids.")
    elif key_file is None:
        typer.echo("a key for this run only, which is not kept: a later run gives other pseudonyms (see --key-file)")
    outcomes, same = [], {}
    with progress("files", len(files)) as advance:
        for outcome in deidentify_files(files, out, key, keep_burned_in, workers):
            treated = same.setdefault(json.dumps(outcome.treated), outcome.treated)  # alike in most files: kept once
            outcomes.append(replace(outcome, treated=treated))
            advance(1)
    outcomes.sort(key=lambda outcome: outcome.index)
    names = [str(path) for path in files] if report_names else [f"file {index}" for index in range(len(files))]
    if report is not None:
        _write_report(report, outcomes, names if report_names else None)
    _tell(outcomes, names, out)
    if any(outcome.status in ("refused", "broken") for outcome in outcomes):
        raise typer.Exit(1)


def _check_places(source: Path, out: Path, key_file: Path | None, named_report: Path | None) -> None:
    """Refuse places where the run would read its own files, or give away what it hides.

    Raises:
        ValueError: says which place to change.
    """
    inside, outside = out.resolve(), source.resolve()
    if inside == outside or inside.is_relative_to(outside) or outside.is_relative_to(inside):
        raise ValueError(f"{out}: lies inside {source}, or the other way round; name a folder beside it")
    for path, what in ((key_file, "the key"), (named_report, "a report with file names")):
        if path is not None and path.resolve().is_relative_to(inside):
            raise ValueError(f"{path}: {what} must not lie in {out}, which will be passed on; name another place")
    if key_file is None and out.is_dir() and any(out.iterdir()):
        raise ValueError(
            f"{out}: holds files already, and without the key of the run that wrote them the same patients would get "
            "other pseudonyms; give that key with --key-file, or an empty folder"
        )


def _write_report(path: Path, outcomes: "Sequence[Outcome]", names: Sequence[str] | None) -> None:
    from medmvl.core.atomic import atomic_file
    from medmvl.imaging.confidentiality import METHOD, edition

    content = {
        "method": METHOD,
        "edition": edition(),
        "files": dict(Counter(outcome.status for outcome in outcomes)),
        "attributes": _sums(outcomes),
        "instances_given_more_than_once": _doubled(outcomes),
        "outcomes": [_row(outcome, names) for outcome in outcomes],
    }
    with atomic_file(path) as file:
        json.dump(content, file, indent=1)


def _row(outcome: "Outcome", names: Sequence[str] | None) -> dict[str, Any]:
    row: dict[str, Any] = {"file": outcome.index, "status": outcome.status}
    if names is not None:
        row["path"] = names[outcome.index]
    told = {
        "reason": outcome.reason,
        "written": outcome.written,
        "look_at_pixels": outcome.doubt,
        "comment_inside_pixels": outcome.noted,
        "attributes": outcome.treated,
    }
    return row | {name: value for name, value in told.items() if value}


def _sums(outcomes: "Sequence[Outcome]") -> dict[str, dict[str, int]]:
    sums: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        for what, counts in outcome.treated.items():
            sums.setdefault(what, Counter()).update(counts)
    return {what: dict(sorted(counts.items())) for what, counts in sorted(sums.items())}


def _doubled(outcomes: "Sequence[Outcome]") -> int:
    """Return how many SOPInstanceUIDs belong to files of different content."""
    written = {outcome.written: outcome.instance for outcome in outcomes if outcome.written}
    return sum(count > 1 for count in Counter(written.values()).values())


def _tell(outcomes: "Sequence[Outcome]", names: Sequence[str], out: Path) -> None:
    counts = Counter(outcome.status for outcome in outcomes)
    typer.echo(", ".join(f"{counts[state]:,} {text}" for state, text in _STATES.items() if counts[state]) + f": {out}")
    patients = {outcome.written.split("/")[0] for outcome in outcomes if outcome.written}
    for what, sums in _sums(outcomes).items():
        typer.echo(f"  {what}: {sum(sums.values()):,} elements of {len(sums)} attributes")
    typer.echo(f"  {len(patients):,} patients")
    if _doubled(outcomes):
        typer.echo(f"  {_doubled(outcomes):,} SOPInstanceUIDs belong to files of different content; all were kept")
    noted = [replace(o, reason=_NOTED) for o in outcomes if o.noted]
    if noted:
        typer.echo(f"  {len(noted):,} files with a comment inside their pixel data")
    _list("look at their pixels, which may show text", [o for o in outcomes if o.doubt], names)
    _list("look at the comments in their pixel data, which was not changed", noted, names)
    for state in ("left_out", "refused", "broken"):
        _list(_STATES[state], [outcome for outcome in outcomes if outcome.status == state], names)


def _list(title: str, outcomes: "Sequence[Outcome]", names: Sequence[str]) -> None:
    if not outcomes:
        return
    lines = [f"{names[outcome.index]}: {outcome.reason or outcome.doubt}" for outcome in outcomes[:_TOLD]]
    more = [f"and {len(outcomes) - _TOLD:,} more; --report lists them all"] if len(outcomes) > _TOLD else []
    typer.echo("\n  ".join([f"{title} ({len(outcomes):,}):", *lines, *more]), err=True)
