"""Adapter files as stock Olive makes them."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path


def convert_with_olive(folder: Path, target: Path) -> Path:
    """Runs `olive convert-adapters` on a PEFT folder; the ending of `target` chooses the format."""
    from olive.cli.convert_adapters import ConvertAdaptersCommand

    parser = ArgumentParser()
    ConvertAdaptersCommand.register_subcommand(parser.add_subparsers())
    options = ["-a", str(folder), "-o", str(target), "--adapter_format", target.suffix.removeprefix(".")]
    ConvertAdaptersCommand(parser, parser.parse_args(["convert-adapters", *options]), []).run()
    return target
