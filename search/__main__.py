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
    from search.space_check import check_before_first_trial
    from search.space_file import read_space
    from search.status import print_status
    from search.study_record import read_study
    from search.worker import work

    space = read_space(options.space)
    check_before_first_trial(space)
    complete = work(space)
    print_status(read_study(space))
    if not complete:
        return 0
    options.target = None
    found = _best(options)
    return max(found, _report(options))


def _status(options: argparse.Namespace) -> int:
    from search.space_file import read_space
    from search.status import print_status
    from search.study_record import read_study

    print_status(read_study(read_space(options.space)))
    return 0


def _report(options: argparse.Namespace) -> int:
    from runtime.atomic_file import write_text
    from search.best import as_json
    from search.html_report import html_report
    from search.importance import importances
    from search.recommend import recommend
    from search.space_file import read_space
    from search.study import open_study
    from search.study_record import measured_again, read_record

    space = read_space(options.space)
    stored = open_study(space)
    study, again = read_record(space, stored), measured_again(stored)
    recommended = {}
    for target in study.measured:
        recommendation = recommend(study, target, again.get(target))
        if recommendation.trial is not None:
            recommended[target] = as_json(study, recommendation)
    file = space.output / "report.html"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, html_report(study, importances(study), recommended))
    print(f"Written to {file}")
    return 0


def _best(options: argparse.Namespace) -> int:
    from search.best import best
    from search.space_file import read_space
    from search.study import open_study
    from search.study_record import keep_measured_again, measured_again, read_record

    space = read_space(options.space)
    stored = open_study(space)
    again = measured_again(stored)
    code = best(read_record(space, stored), options.target, again)
    keep_measured_again(stored, again)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m search", description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="name", required=True)
    for name, command, words in (
        ("run", _run, "run trials until the study is complete; the same command elsewhere makes a further worker"),
        ("status", _status, "show what there is so far"),
        ("report", _report, "write report.html: history, Pareto fronts, importance, every trial"),
        ("best", _best, "recommend a package for each target and copy it to the output folder"),
    ):
        sub = commands.add_parser(name, help=words, description=words[0].upper() + words[1:] + ".")
        sub.add_argument("space", type=Path, metavar="SPACE", help="space file, such as search/spaces/X.json")
        if command is _best:
            sub.add_argument("--target", action="append", metavar="TARGET", help="of the space; default: every one")
        sub.set_defaults(command=command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
