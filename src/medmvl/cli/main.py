"""The command `medmvl`: a table of verbs, each imported on use, and errors as short messages."""

import os
import sys
from collections.abc import Sequence

VERBS = {
    "demo": "data, training, evaluation and report of a small model, on this machine",
    "data": "convert data sets, build the benchmark, look at samples, prepare volumes",
    "check": "run a recipe dry: data, parts, tokens, steps, memory; starts nothing",
    "train": "train a bundle from a recipe, or resume",
    "eval": "score a bundle on tasks, with controls and a report",
    "predict": "answer a file of samples with a bundle",
    "chat": "talk with a bundle about pictures, in the terminal",
    "list": "recipes, templates, connectors, encoders, tasks, suites, data sets, recipe schema",
}
USER_ERROR = 2
_INTERRUPTED = 130
"""What typer makes of Ctrl-C, as shells do: 128 and the number of the signal."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code; a ValueError (or OSError) is a message, not a traceback."""
    # Threads that wait for work give their core away instead of spinning: as fast on an idle machine, and several times
    # faster where other programs run too. Read when torch is loaded, so it is set before.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    verb = arguments[0] if arguments else "--help"
    if verb in ("--help", "-h", "help"):
        print(help_text())
        return 0
    if verb == "--version":
        from medmvl import __version__

        print(f"medmvl {__version__}")
        return 0
    if verb not in VERBS:
        from medmvl.core.lookup import choices_text

        print(f"medmvl: unknown verb {verb!r}; {choices_text(verb, VERBS, 'verbs')}", file=sys.stderr)
        return USER_ERROR
    return _run(verb, arguments[1:], debug)


def help_text() -> str:
    """Return what `medmvl --help` prints; needs no import beyond this table."""
    rows = "\n".join(f"  {verb:9}{text}" for verb, text in VERBS.items())
    return (
        "usage: medmvl VERB [ARGUMENTS]\n\n"
        "Train, evaluate and use medical vision-language models.\n\n"
        f"{rows}\n\n"
        "medmvl VERB --help    teaches the verb, with examples\n"
        "medmvl --version      the version\n"
        "--debug               with any verb: the whole traceback of an error\n\n"
        "Start here: medmvl demo --out runs/demo"
    )


def _run(verb: str, arguments: list[str], debug: bool) -> int:
    from importlib import import_module

    try:
        app = import_module(f"medmvl.cli.commands.{verb}").app
        app(arguments, prog_name=f"medmvl {verb}")
    except SystemExit as leaving:
        if leaving.code == _INTERRUPTED:
            print(f"medmvl {verb}: stopped by Ctrl-C", file=sys.stderr)
        return leaving.code if isinstance(leaving.code, int) else int(bool(leaving.code))
    except (ValueError, OSError) as error:
        if debug:
            raise
        print(f"medmvl {verb}: {error}", file=sys.stderr)
        return USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
