"""The whole benchmark: every package on every provider, each in a fresh process, then agreement between providers."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmark import results
from benchmark.agreement import agreement
from benchmark.fresh_process import WorkerError, run_fresh
from benchmark.output_folder import OutputFolder, read_measurement
from benchmark.results_schema import SCHEMA_VERSION
from benchmark.targets import find_targets
from benchmark.worker import BASE
from runtime.errors import ConfigError, DataError, PackageError, nearest
from runtime.manifest import read_manifest

WORKER = (sys.executable, "-m", "benchmark.worker")
OUTPUTS = (sys.executable, "-m", "benchmark.outputs")
REFERENCE = "cpu"  # the provider that every machine has


def measure(
    packages: Sequence[Path],
    targets: Sequence[str],
    options: Mapping[str, Any],
    output: OutputFolder,
    worker: Sequence[str] = WORKER,
    outputs: Sequence[str] = OUTPUTS,
) -> tuple[dict[str, Any], list[Path]]:
    """Runs the benchmark. Measurements that a killed run left in `output` are taken as they are.

    Args:
        packages: folders; each is measured on each target that this machine has.
        targets: names such as "cpu" and "cuda".
        options: the worker's: {"adapters": [names], "batch_sizes": [ints], "threads": int, ...}; None leaves it out.
        output: where the workers write.
        worker, outputs: the commands, without their arguments.

    Returns:
        The content of results.json, and the workers' files that went into it.

    Raises:
        ConfigError, PackageError: a folder is no package, or an adapter is in none of them.
    """
    names = package_names(packages)
    chosen = _chosen_adapters(names, options.get("adapters"))
    found = find_targets(targets)
    here = [target["execution_provider"] for target in found if target["available"]]
    commit, dirty = results.commit()
    given = {name: value for name, value in options.items() if value is not None}
    conditions = {"options": given, "versions": results.versions(), "commit": commit, "dirty": dirty}
    pairs = [(name, folder, provider) for name, folder in names.items() for provider in here]
    measurements, failures, files = [], [], []
    for number, (name, folder, provider) in enumerate(pairs, 1):
        title = f"{number}/{len(pairs)} {name} on {provider}"
        file = output.file(name, provider, folder, conditions)
        try:
            measurement = _former(file)
            if measurement is None:
                _tell(title)
                command = [*worker, str(folder), "--execution-provider", provider, "--output", str(file)]
                run_fresh([*command, *_flags({**given, **chosen[name]})])
                measurement = read_measurement(file)
            else:
                _tell(f"{title}: measured before this run was interrupted, kept")
        except (DataError, WorkerError) as error:
            _tell(f"{title}: failed: {error}")
            failures.append({"package": name, "execution_provider": provider, "reason": str(error)})
            continue
        measurements.append({**measurement, "package": name, "folder": str(folder)})
        files.append(file)
    agreed, disagreed = _agreements(names, measurements, chosen, outputs)
    content = {
        "schema_version": SCHEMA_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": results.machine(),
        "versions": conditions["versions"],
        "commit": commit,
        "dirty": dirty,
        "options": given,
        "targets": found,
        "measurements": measurements,
        "agreement": agreed,
        "failures": [*failures, *disagreed],
    }
    return content, files


def package_names(packages: Sequence[Path]) -> dict[str, Path]:
    """Packages by the names of their folders, with as much of the path before it as tells them apart.

    Raises:
        ConfigError: a folder stands there twice, or is no package; every one is named.
    """
    folders = [Path(package).resolve() for package in packages]
    problems = [f"{p}: is named twice" for p in dict.fromkeys(folders) if folders.count(p) > 1]
    for folder in dict.fromkeys(folders):
        try:
            read_manifest(folder, verify=False)  # the worker verifies
        except PackageError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(problems)
    depth = 1
    while len({folder.parts[-depth:] for folder in folders}) < len(folders):
        depth += 1
    return {"/".join(folder.parts[-depth:]): folder for folder in folders}


def _chosen_adapters(packages: Mapping[str, Path], wanted: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    """{"adapters": those of the wanted ones that the package has} for each package, {} where all are wanted.

    "base" is the base alone.
    """
    if not wanted:
        return {name: {} for name in packages}
    there = {}
    for name, folder in packages.items():
        manifest = read_manifest(folder, verify=False)
        base = [BASE] if manifest["base"].get("generates", True) else []
        there[name] = [*base, *manifest["adapters"]]
    known = {adapter for adapters in there.values() for adapter in adapters}
    problems = [f"--adapters: no package has '{n}'; {nearest(n, known)}" for n in wanted if n not in known]
    problems += [
        f"--adapters: {name} has none of them; {nearest(wanted[0], adapters)}"
        for name, adapters in there.items()
        if not problems and not set(adapters) & set(wanted)
    ]
    if problems:
        raise ConfigError(problems)
    return {name: {"adapters": [n for n in wanted if n in adapters]} for name, adapters in there.items()}


def _flags(options: Mapping[str, Any]) -> list[str]:
    """{"batch_sizes": [1, 8]} as ["--batch-sizes", "1,8"]."""
    flags = []
    for name, value in options.items():
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        flags += [f"--{name.replace('_', '-')}", text]
    return flags


def _former(file: Path) -> dict[str, Any] | None:
    """What a worker wrote before; None if there is nothing usable, then it is measured again."""
    try:
        return read_measurement(file) if file.exists() else None
    except DataError:
        file.unlink()
        return None


def _agreements(
    packages: Mapping[str, Path],
    measurements: Sequence[Mapping[str, Any]],
    chosen: Mapping[str, Mapping[str, Any]],
    outputs: Sequence[str],
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Entries of "agreement" for every measured provider but the reference, and what failed on the way."""
    agreed: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    for name, folder in packages.items():
        providers = [m["execution_provider"] for m in measurements if m["package"] == name]
        others = [provider for provider in providers if provider != REFERENCE]
        if not others:
            continue
        with tempfile.TemporaryDirectory() as work:
            files = {provider: Path(work) / f"{provider}.npz" for provider in (REFERENCE, *others)}
            for provider in (REFERENCE, *others):
                _tell(f"outputs of {name} on {provider}")
                try:
                    command = [
                        *outputs,
                        str(folder),
                        "--execution-provider",
                        provider,
                        "--output",
                        str(files[provider]),
                    ]
                    run_fresh([*command, *_flags(chosen[name])])
                    if provider != REFERENCE:
                        entry = {"package": name, "reference": REFERENCE, "execution_provider": provider}
                        agreed += [{**entry, **scores} for scores in agreement(files[REFERENCE], files[provider])]
                except (DataError, WorkerError) as error:
                    reason = f"agreement with {REFERENCE}: {error}"
                    failures.append({"package": name, "execution_provider": provider, "reason": reason})
                    if provider == REFERENCE:
                        break
    return agreed, failures


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
