"""`python -m benchmark PACKAGE...` measures packages on every target; `python -m benchmark compare A.json B.json`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmark import results
from benchmark.compare import compare
from benchmark.measuring import OUTPUTS, WORKER, measure
from benchmark.output_folder import REPORT, RESULTS, OutputFolder
from benchmark.targets import parse_targets
from runtime.errors import ConfigError, OlivalError

_COUNTS = ("batch_sizes", "prompt_tokens", "new_tokens", "runs", "threads")
_LISTS = ("batch_sizes", "prompt_tokens")


def main(
    arguments: Sequence[str] | None = None, worker: Sequence[str] = WORKER, outputs: Sequence[str] = OUTPUTS
) -> int:
    """Runs the command line.

    Args:
        arguments: those of the process unless given.
        worker, outputs: the commands that measure and that write logits, for tests.

    Returns:
        0; 1 on a mistake, when nothing could be measured, or when a comparison finds a regression; 2 when a comparison
        has nothing usable to compare; 130 when interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["compare"]:
        return _compare(given[1:])
    options = _parser().parse_args(given)
    try:
        return _measure(options, worker, outputs)
    except OlivalError as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        left = f"finished measurements are in {options.output}; the same command goes on from there"
        print(f"interrupted: {left}", file=sys.stderr)
        return 130


def _measure(options: argparse.Namespace, worker: Sequence[str], outputs: Sequence[str]) -> int:
    from benchmark.html_report import html_report
    from benchmark.table import print_results

    targets, wanted = _read(options)
    content, output = measure_into(options, targets, wanted, worker, outputs)
    print_results(content)
    results.write_text(output.folder / REPORT, html_report(content))
    print(f"Written to {output.folder / RESULTS} and {output.folder / REPORT}")
    return 0 if content["measurements"] else 1


def measure_into(
    options: argparse.Namespace,
    targets: Sequence[str],
    wanted: dict[str, Any],
    worker: Sequence[str],
    outputs: Sequence[str],
) -> tuple[dict[str, Any], OutputFolder]:
    """Measures and writes results.json."""
    output = OutputFolder(options.output)
    content, files = measure(options.packages, targets, wanted, output, worker, outputs)
    results.write_json(output.folder / RESULTS, content)
    output.finish(files)
    return content, output


def _read(options: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """Targets and the worker's options, from texts; one error with everything that is wrong with them."""
    problems: list[str] = []
    targets: list[str] = []
    try:
        targets = parse_targets(options.targets)
    except ConfigError as error:
        problems += error.problems
    wanted: dict[str, Any] = {"adapters": _names(options.adapters)}
    for name in _COUNTS:
        text = getattr(options, name)
        if text is None:
            continue
        parts = text.split(",") if name in _LISTS else [text]
        if all(part.strip().isdecimal() and int(part) > 0 for part in parts):
            numbers = [int(part) for part in parts]
            wanted[name] = numbers if name in _LISTS else numbers[0]
        else:
            kind = "whole numbers above 0, such as 1,4" if name in _LISTS else "a whole number above 0"
            problems.append(f"--{name.replace('_', '-')}: must be {kind}, but got {text!r}")
    if problems:
        raise ConfigError(problems)
    return targets, wanted


def _names(text: str | None) -> list[str] | None:
    return [name.strip() for name in text.split(",")] if text is not None else None


def _compare(arguments: Sequence[str]) -> int:
    from benchmark.compare_table import print_comparison

    options = _compare_parser().parse_args(arguments)
    try:
        threshold = parse_threshold(options.threshold)
        comparison = compare(results.read_results(options.before), results.read_results(options.after))
        if not comparison.changes and not comparison.broken:
            raise ConfigError([f"{options.before} and {options.after} have no package, provider and option in common"])
    except OlivalError as error:
        return _fail(error, 2)
    print_comparison(comparison, threshold)
    return 1 if comparison.regressions(threshold) or comparison.broken else 0


def parse_threshold(text: str) -> float:
    """``"5%"`` or ``"0.05"`` as 0.05.

    Raises:
        ConfigError: it is no number from 0 on.
    """
    number = text.strip().removesuffix("%")
    try:
        value = float(number) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ConfigError([f"--threshold: must be a share such as 5% or 0.05, but got {text!r}"])
    return value


def _fail(error: OlivalError, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark",
        description="Measures packages on every target that this machine has, each in a process of its own.",
        epilog="`python -m benchmark compare A.json B.json` compares two results; a folder of that name is ./compare.",
    )
    parser.add_argument("packages", metavar="PACKAGE", nargs="+", type=Path, help="folder of a finished package")
    parser.add_argument("--targets", default="all", help="all, or some of cpu,cuda,dml (default: all)")
    parser.add_argument("--output", type=Path, default=Path("benchmark-results"), metavar="DIR",
                        help="folder for results.json and report.html (default: benchmark-results)")  # fmt: skip
    parser.add_argument("--adapters", help="names, separated by commas; base is the base without one (default: all)")
    parser.add_argument("--batch-sizes", help="rows computed together, such as 1,4,16 (default: 1)")
    parser.add_argument("--prompt-tokens", help="lengths of the prompt, such as 32,256 (default: 32)")
    parser.add_argument("--new-tokens", help="tokens that each run writes (default: 64)")
    parser.add_argument("--runs", help="runs of each measurement, after its warm-up (default: 20)")
    parser.add_argument("--threads", help="compute threads (default: those that the package was made for)")
    return parser


def _compare_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark compare",
        description="Says what got better or worse beyond noise; exit code 1 on a regression, 2 on unusable input.",
    )
    parser.add_argument("before", metavar="A.json", type=Path, help="results.json of the earlier run")
    parser.add_argument("after", metavar="B.json", type=Path, help="results.json of the later run")
    parser.add_argument("--threshold", default="5%", help="changes up to this share are no regression (default: 5%%)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
