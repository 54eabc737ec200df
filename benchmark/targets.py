"""Which execution providers this machine really has: asked for by onnxruntime's list, then by starting a session."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime

from runtime.errors import ConfigError, OlivalError, nearest
from runtime.session import PROVIDERS, GraphSession, check_wheels

# an extra of pyproject.toml for each provider
_EXTRAS = {"cpu": "cpu", "cuda": "cuda", "dml": "directml"}
ONE_PER_ENVIRONMENT = (
    "An environment holds one flavour of onnxruntime: install another one in a new virtual environment, or first "
    "uninstall the packages onnxruntime* and onnxruntime-genai* that are there."
)
_START_SECONDS = 120  # the first start of CUDA on a cold machine compiles kernels; longer than this it hangs


def parse_targets(text: str) -> list[str]:
    """The providers that ``"all"`` or ``"cpu,cuda"`` means, in the order cpu, cuda, dml.

    Raises:
        ConfigError: names that are no provider, each with the nearest.
    """
    if text.strip() == "all":
        return list(PROVIDERS)
    names = [name.strip() for name in text.split(",")]
    problems = [
        f"--targets: '{n}' is no target; {nearest(n, [*PROVIDERS, 'all'])}" for n in names if n not in PROVIDERS
    ]
    if problems:
        raise ConfigError(problems)
    return [name for name in PROVIDERS if name in names]


def find_targets(names: Sequence[str]) -> list[dict[str, Any]]:
    """One entry for each provider: {"execution_provider", "available", "reason", "install"}.

    `reason` and `install` (the pip command; for DirectML one for Windows) are None where the provider is there;
    `install` is None as well where onnxruntime has the provider, but it does not start.

    Raises:
        PackageError: wheels are installed that overwrite each other's files.
    """
    check_wheels()
    targets = []
    for name in names:
        listed = PROVIDERS[name] in onnxruntime.get_available_providers()
        reason = _start_problem(name) if listed else _absence(name)
        install = None if reason is None or listed else install_command(name)
        entry = {"execution_provider": name, "available": reason is None, "reason": reason, "install": install}
        targets.append(entry)
    return targets


def install_command(execution_provider: str) -> str:
    """The README's command that installs onnxruntime for a provider, run from the repository's root."""
    return f'pip install -c constraints.txt -e ".[{_EXTRAS[execution_provider]}]"'


def start(execution_provider: str) -> None:
    """Starts a session of a graph that copies its input.

    Raises:
        ProviderError: onnxruntime lacks the provider, or falls back to the CPU.
        PackageError: onnxruntime cannot start at all.
    """
    from onnx import TensorProto, helper, save

    # opset and IR version that every onnxruntime reads which the workspace runs with
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder) / "model.onnx")
        session = GraphSession(Path(folder), execution_provider, threads=1)
        del session  # Windows does not delete a folder whose file is open


def _absence(name: str) -> str:
    if name == "dml" and sys.platform != "win32":
        return f"DirectML is for Windows only, this is {sys.platform}"
    reason = f"{_installed_wheel()} has no {PROVIDERS[name]}"
    if name == "cuda" and shutil.which("nvidia-smi") is None:
        return f"{reason}, and nvidia-smi is not on the PATH: there may be no NVIDIA GPU or no driver"
    return reason


def _start_problem(name: str) -> str | None:
    """Why the provider does not start, None if it does; in a process of its own, which frees the GPU and may crash."""
    command = [sys.executable, "-m", "benchmark.targets", name]
    root = Path(__file__).resolve().parents[1]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=_START_SECONDS, cwd=root)
    except subprocess.TimeoutExpired:
        return f"{PROVIDERS[name]} did not start within {_START_SECONDS} s"
    if run.returncode == 0:
        return None
    lines = [line for line in run.stderr.splitlines() if line.strip()]
    return " ".join(lines[-1].removeprefix("error: ").split()) if lines else f"exit code {run.returncode}"


def _installed_wheel() -> str:
    for wheel in ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml"):
        try:
            return f"{wheel} {importlib.metadata.version(wheel)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return f"onnxruntime {onnxruntime.__version__}"


if __name__ == "__main__":
    try:
        start(sys.argv[1])
    except OlivalError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(1)
