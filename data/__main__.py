"""`python -m data FILE`: statistics of a data file, and the rows that it shares with another."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from data.examples import ClassificationData, GenerationData
from data.loading import load_rows
from data.preparing import prepare_classification, prepare_generation
from data.splits import find_duplicates
from data.statistics import describe, format_statistics
from runtime.errors import DataError, OlivalError


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the statistics; returns the exit code, 1 with one line on stderr when the data is unusable."""
    options = _parser().parse_args(arguments)
    try:
        data = _load(options.file, options)
        tokenizer = None
        if options.tokenizer:
            from transformers import AutoTokenizer

            try:
                tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
            except (OSError, ValueError, KeyError) as error:
                raise DataError(f"--tokenizer {options.tokenizer}: cannot be loaded: {error}") from error
        print(format_statistics(describe(data, tokenizer)))
        if options.against:
            print()
            print(_compare(data, _load(options.against, options)))
    except OlivalError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data", description="Class balance, lengths, duplicates and languages of a data file."
    )
    parser.add_argument("file", metavar="FILE", help="csv, tsv, json, jsonl or parquet")
    parser.add_argument("--text", help="column of the text (default: text)")
    parser.add_argument("--label", help="column of the label; without it the text is taken as plain text")
    parser.add_argument("--prompt", help="column of the prompt, with --response, instead of --text")
    parser.add_argument("--response", help="column of the response")
    parser.add_argument("--against", metavar="OTHER_FILE", help="also report the rows that stand in both files")
    parser.add_argument("--tokenizer", metavar="FOLDER", help="also count the tokens of this tokenizer")
    return parser


def _load(path: str, options: argparse.Namespace) -> ClassificationData | GenerationData:
    pair = options.prompt is not None or options.response is not None
    if pair and (options.text is not None or options.label is not None):
        raise DataError("--prompt and --response exclude --text and --label")
    dataset = load_rows(path)
    if pair:
        return prepare_generation(dataset, options.prompt, options.response)
    if options.label is not None:
        return prepare_classification(dataset, options.text, options.label)
    column = options.text if options.text is not None else "text"
    return prepare_generation(dataset, text_template="{" + column + "}")


def _texts(data: ClassificationData | GenerationData) -> list[str]:
    """What decides whether two rows are the same: the text, or the prompt where there is one."""
    if isinstance(data, ClassificationData):
        return data.texts
    return [prompt or response for prompt, response in zip(data.prompts, data.responses, strict=True)]


def _compare(data: ClassificationData | GenerationData, other: ClassificationData | GenerationData) -> str:
    ours, theirs = _texts(data), _texts(other)
    pairs = find_duplicates(ours, theirs)
    lines = [f"{len(pairs)} of {len(theirs)} rows of {other.source} also stand in {data.source}"]
    lines += [f"  row {first + 1} = row {second + 1}: {ours[first][:60]!r}" for first, second in pairs[:5]]
    if len(pairs) > 5:
        lines.append(f"  and {len(pairs) - 5} more")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
