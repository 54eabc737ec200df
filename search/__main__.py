"""`python -m search run|status|report|best SPACE`: searches, and shows what a search has found."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from runtime.errors import OlivalError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Returns:
        0; 1 where something is wrong, with the reasons on stderr; 130 when interrupted.
    """
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except OlivalError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        again = f"python -m search {options.name} {options.space}"
        print(f"stopped; `{again}` goes on from here, `python -m search status {options.space}` shows what there is",
              file=sys.stderr)  # fmt: skip
        return 130


def _run(options: argparse.Namespace) -> int:
    from search.space_file import read_space
    from search.status import print_status
    from search.study_record import read_study
    from search.worker import work

    space = read_space(options.space)
    work(space)
    study = read_study(space)
    print_status(study)
    return 0


def _status(options: argparse.Namespace) -> int:
    from search.space_file import read_space
    from search.status import print_status
    from search.study_record import read_study

    print_status(read_study(read_space(options.space)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m search", description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="name", required=True)
    for name, command, words in (
        ("run", _run, "runs trials until the study is complete; the same command on more machines makes more workers"),
        ("status", _status, "what there is so far"),
    ):
        sub = commands.add_parser(name, help=words, description=words)
        sub.add_argument("space", type=Path, metavar="SPACE", help="space file, such as search/spaces/X.json")
        sub.set_defaults(command=command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
