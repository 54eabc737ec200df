"""Turns the adapter benchmark's samples into rows with targets, for a terminal, a JSON file or docs/performance.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmark.interleaved import Ratio, paired_ratio

Samples = Mapping[str, Sequence[float]]


class Row(NamedTuple):
    """One line: a ratio, what it should be, and where its two sides come from."""

    what: str
    ratio: Ratio
    at_least: float | None = None
    at_most: float | None = None

    @property
    def target(self) -> str:
        """The target in words; empty for a row that only informs."""
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return "" if self.at_most is None else f"<= {self.at_most:g}"

    @property
    def met(self) -> bool | None:
        """Whether the median meets the target; None without one."""
        if self.at_least is not None:
            return self.ratio.median >= self.at_least
        return None if self.at_most is None else self.ratio.median <= self.at_most


def speed_rows(decode: Samples, batch: Samples, prefill: Samples, classify: Samples) -> list[Row]:
    """Rows of the timed loads; every argument is {load: seconds of each round}."""
    base = decode["base"]

    def against_base(what: str, load: str, at_least: float | None = None) -> Row:
        return Row(what, paired_ratio(base, decode[load]), at_least)

    rows = [
        against_base("decode: the base once more (noise of this run)", "base again"),
        against_base("decode: slots, none active", "none active", 0.97),
        against_base("decode: rank 8", "rank 8", 0.90),
        against_base("decode: rank 16", "rank 16", 0.84),
        against_base("decode: rank 64", "rank 64"),
        against_base("decode: 8-bit slots, none active", "int8 none active"),
        against_base("decode: 8-bit slots, rank 8", "int8 rank 8"),
        against_base("decode: 8-bit slots, rank 16", "int8 rank 16"),
        against_base("decode: 8-bit slots, rank 64", "int8 rank 64", 0.72),
    ]
    if "stock" in decode:
        rows.append(against_base("decode: stock Olive int4, rank 16", "stock"))
        rows.append(Row("decode: rank 16 / stock Olive int4", paired_ratio(decode["stock"], decode["rank 16"]), 1.5))
    mixed = batch["8 adapters"]
    one_by_one = [8 * seconds for seconds in batch["rank 16"]]
    rows += [
        Row("batch of 8 adapters / the base's batch of 8", paired_ratio(batch["base"], mixed), 0.75),
        Row("batch of 8 adapters / one after the other", paired_ratio(one_by_one, mixed), 2.5),
    ]
    rows += [
        Row("prompt: time with rank 16 / base", paired_ratio(prefill["rank 16"], prefill["base"]), at_most=1.05),
        Row("prompt: the same, base without vocabulary too", paired_ratio(prefill["rank 16"], prefill["pruned base"])),
        Row("classify: speed / graph with vocabulary", paired_ratio(classify["with"], classify["without"]), 1.19),
    ]
    return rows


def memory_row(base: Mapping[str, float], with_adapters: Mapping[str, float]) -> Row:
    """Peak memory with adapters over peak memory of the base; one measurement each, so the interval is the ratio."""
    ratio = with_adapters["peak_rss_bytes"] / base["peak_rss_bytes"]
    return Row("peak memory with 8 adapters / base", Ratio(ratio, ratio, ratio), at_most=1.5)


def error_row(errors: Mapping[str, Mapping[str, float]]) -> Row:
    """Mean error of 8-bit adapters over the mean error of the base's own quantization."""
    ratio = errors["adapter_int8"]["mean"] / errors["base_int4"]["mean"]
    return Row("error of 8-bit rank 64 / error of the int4 base", Ratio(ratio, ratio, ratio), at_most=1.0)


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as plain values."""
    return [{"what": row.what, **row.ratio._asdict(), "target": row.target or None, "met": row.met} for row in rows]


def as_markdown(results: Mapping[str, Any]) -> str:
    """The table and what it was measured on, from the content of a results file."""
    lines = ["| | ratio | 95 % interval | target | |", "| --- | --- | --- | --- | --- |"]
    for row in results["rows"]:
        verdict = {True: "met", False: "**missed**", None: ""}[row["met"]]
        interval = f"{row['low']:.3f} to {row['high']:.3f}" if row["low"] != row["high"] else ""
        lines.append(f"| {row['what']} | {row['median']:.3f} | {interval} | {row['target'] or ''} | {verdict} |")
    return "\n".join([*lines, "", about(results)]) + "\n"


def about(results: Mapping[str, Any]) -> str:
    """Machine, versions, vocabulary and absolute numbers of a results file, as one paragraph."""
    speeds = ", ".join(f"{name} {value:.1f}" for name, value in results["tokens_per_second"].items())
    memory = ", ".join(f"{name} {value['peak_rss_bytes'] / 1e6:.0f}" for name, value in results["memory"].items())
    loads = ", ".join(f"{name} {value['load_seconds']:.2f}" for name, value in results["memory"].items())
    seconds = ", ".join(f"{name} {value:.3g}" for name, value in results["seconds"].items())
    errors = "; ".join(
        f"{name} mean {value['mean']:.4f}, largest {value['max']:.4f}" for name, value in results["errors"].items()
    )
    versions = ", ".join(f"{name} {value}" for name, value in results["versions"].items())
    return (
        f"{results['shape']}, {results['layers']} layers, vocabulary {results['vocabulary']}, int4 "
        f"({', '.join(f'{k} {v}' for k, v in results['quantization'].items())}), {results['threads']} threads, "
        f"{results['rounds']} rounds, prompt of {results['prompt_tokens']} tokens. "
        f"Median tokens per second: {speeds}. Median seconds: {seconds}. Peak memory in MB: {memory}. "
        f"Seconds to load: {loads}. Difference of logits: {errors}. "
        f"{results['machine']['processor']}, {results['machine']['cores']} cores, load average before the run "
        f"{results['machine']['load_average']}; {versions}; {results['date']}, commit {results['commit']}."
    )
