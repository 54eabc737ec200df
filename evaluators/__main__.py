"""`python -m evaluators PACKAGE --data FILE`: the quality of a package's adapters on rows, texts, cases and tasks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from evaluators.quality import AnswerOptions
from runtime.errors import OlivalError


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit code, 1 with the reasons on stderr when something is wrong."""
    options = _parser().parse_args(arguments)
    try:
        from evaluators.package_evaluation import evaluate_package
        from evaluators.plan import read_plan
        from evaluators.quality_report import print_quality

        plan = read_plan(options)
        print_quality(evaluate_package(plan), plan.output)
    except OlivalError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from what is finished", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m evaluators",
        description="Measures a package: adapters on rows of their own, perplexity of a text, bias and robustness "
        "cases, tasks of lm-evaluation-harness. Killed, the same command goes on from its finished parts.",
    )
    parser.add_argument("package", type=Path, metavar="PACKAGE", help="folder that a workflow has written")
    parser.add_argument(
        "--output", type=Path, metavar="FILE.json", help="where the result goes (default: PACKAGE's name-quality.json)"
    )
    parser.add_argument(
        "--adapter",
        metavar="NAME",
        help="for --text-file, --cases and --tasks; default: the base",
    )
    parser.add_argument("--batch-size", type=int, default=16, help="rows computed together (default: 16)")
    parser.add_argument("--execution-provider", choices=["cpu", "cuda", "dml"], help="default: the package's own")

    parser.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="first N rows of each --data file and of each task only",
    )

    rows = parser.add_argument_group("rows")
    rows.add_argument(
        "--data", action="append", default=[], metavar="[NAME=]FILE", help="held-out rows of adapter NAME; repeatable"
    )
    rows.add_argument("--text", metavar="COLUMN", help="of the text (default: what the adapter's template names)")
    rows.add_argument("--label", default="label", metavar="COLUMN", help="default: label")
    rows.add_argument("--prompt", metavar="COLUMN", help="default: what the adapter's template names")
    rows.add_argument("--response", default="response", metavar="COLUMN", help="default: response")
    rows.add_argument(
        "--metrics", metavar="A,B", help="default: all that need no written answers; see docs/evaluation.md"
    )
    rows.add_argument("--schema", type=Path, metavar="FILE", help="JSON Schema that answers must keep")
    rows.add_argument(
        "--answer", metavar="COLUMN|JSON", help="with --schema: the expected answer, as in the data type 'structured'"
    )
    rows.add_argument("--constrained", action="store_true", help="hold the package's answers to --schema")
    rows.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help=f"default: {AnswerOptions.max_new_tokens}, with --constrained what --schema permits",
    )
    rows.add_argument(
        "--answer-mark", default=AnswerOptions.answer_mark, metavar="TEXT", help="what stands before a written label"
    )
    rows.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends an answer; repeatable")
    rows.add_argument("--base", type=Path, metavar="FOLDER", help="the base in PyTorch, to compare with")
    rows.add_argument(
        "--peft", action="append", default=[], metavar="NAME=FOLDER", help="a trained adapter in PyTorch; repeatable"
    )

    texts = parser.add_argument_group("perplexity of a text")
    texts.add_argument("--text-file", type=Path, metavar="FILE", help="UTF-8, taken as one text")
    texts.add_argument("--window", type=int, metavar="TOKENS", help="context of each token (default: the base's)")
    texts.add_argument(
        "--stride",
        type=int,
        metavar="TOKENS",
        help="tokens scored by each window (default: all of its tokens)",
    )

    cases = parser.add_argument_group("bias and robustness")
    cases.add_argument(
        "--cases", nargs="?", const="", metavar="FILE", help="cases to answer (default: data/samples/cases.json)"
    )

    tasks = parser.add_argument_group("lm-evaluation-harness (pip install -c constraints.txt -e '.[harness]')")
    tasks.add_argument("--tasks", metavar="A,B", help="names of tasks")
    tasks.add_argument("--include-path", type=Path, metavar="DIR", help="folder of task files of your own")
    tasks.add_argument("--num-fewshot", type=int, metavar="N")
    return parser


if __name__ == "__main__":
    sys.exit(main())
