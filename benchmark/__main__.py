"""`python -m benchmark PACKAGE...` measures packages on every target that is here; `compare` compares two results."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime.errors import ConfigError, OlivalError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Returns:
        0; 1 where nothing could be measured or something is wrong, with the reasons on stderr; of `compare` see
        `benchmark.compare.main`; 130 when interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["compare"]:
        from benchmark.compare import main as compare

        return compare(given[1:])
    options = _parser().parse_args(given)
    try:
        return _measure(options)
    except OlivalError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from what is measured", file=sys.stderr)
        return 130


def _measure(options: argparse.Namespace) -> int:
    from benchmark.html_report import html_report
    from benchmark.measuring import measure
    from benchmark.output_folder import REPORT, RESULTS, OutputFolder
    from benchmark.results import write_json
    from benchmark.table import print_results
    from benchmark.targets import parse_targets
    from benchmark.worker import read_numbers
    from runtime.atomic_file import write_text

    numbers, problems = read_numbers(options)
    if problems:
        raise ConfigError(problems)
    targets = parse_targets(options.targets)
    output = OutputFolder(options.output)
    several = ("batch_sizes", "prompt_tokens")
    given: dict[str, Any] = {name: found if name in several else found[0] for name, found in numbers.items() if found}
    if options.adapters:
        given["adapters"] = [name.strip() for name in options.adapters.split(",")]
    results, files = measure(options.packages, targets, given, output)
    print_results(results)
    if not results["measurements"]:
        print("error: nothing could be measured, nothing is written; the reasons stand above", file=sys.stderr)
        return 1
    write_json(output.folder / RESULTS, results)
    write_text(output.folder / REPORT, html_report(results))
    output.finish(files)
    print(f"Written to {output.folder / RESULTS} and {REPORT} beside it")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmark",
        allow_abbrev=False,
        description="Measures packages on every target that this machine has, each in a process of its own: a table, "
        "results.json and report.html. `python -m benchmark compare A.json B.json` tells what got better or worse.",
    )
    parser.add_argument("packages", nargs="+", type=Path, metavar="PACKAGE", help="folder that a workflow has written")
    parser.add_argument("--targets", default="all", help="all (default), or names: cpu, cuda, dml")
    parser.add_argument("--output", type=Path, default=Path("benchmark-results"), metavar="DIR")
    parser.add_argument("--adapters", metavar="A,B", help="these only; base is the base alone")
    parser.add_argument("--batch-sizes", metavar="N,N", default="1,4", help="rows computed together (default: 1,4)")
    parser.add_argument("--prompt-tokens", metavar="N,N", default="32", help="length of the prompts (default: 32)")
    parser.add_argument("--new-tokens", metavar="N", default="64", help="written after each prompt (default: 64)")
    parser.add_argument("--runs", metavar="N", default="20", help="counted, after the warm-up (default: 20)")
    parser.add_argument("--threads", metavar="N", help="default: what the package says")
    return parser


if __name__ == "__main__":
    sys.exit(main())
