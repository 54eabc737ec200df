"""Which targets there are: names, reasons and commands for those that are not, and providers that do not start."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from benchmark import targets
from benchmark.targets import find_targets, install_command, parse_targets, start
from runtime.errors import ConfigError, ProviderError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("all", ["cpu", "cuda", "dml"]),
        (" all ", ["cpu", "cuda", "dml"]),
        ("cpu", ["cpu"]),
        ("dml,cpu", ["cpu", "dml"]),
        ("cuda, cuda", ["cuda"]),
    ],
)
def test_names_of_targets(text: str, names: list[str]) -> None:
    assert parse_targets(text) == names


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("cda", ["--targets: 'cda' is no target; did you mean 'cuda'? Valid: all, cpu, cuda, dml"]),
        ("", ["--targets: '' is no target; Valid: all, cpu, cuda, dml"]),
        ("CPU,npu,cuda", ["--targets: 'CPU' is no target", "--targets: 'npu' is no target; did you mean 'cpu'?"]),
        ("cpu,all", ["--targets: 'all' is no target"]),
    ],
)
def test_what_is_no_target(text: str, problems: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        parse_targets(text)
    assert len(error.value.problems) == len(problems)
    for found, expected in zip(error.value.problems, problems, strict=True):
        assert found.startswith(expected)


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What onnxruntime says that it has; a test may add to it."""
    names = ["CPUExecutionProvider"]
    monkeypatch.setattr(targets.onnxruntime, "get_available_providers", lambda: list(names))
    return names


def test_the_cpu_starts(listed: list[str]) -> None:
    entry = {"execution_provider": "cpu", "available": True, "reason": None, "install": None}
    assert find_targets(["cpu"]) == [entry]


@pytest.mark.parametrize(
    ("name", "platform", "driver", "reason", "command"),
    [
        ("cuda", "linux", "/bin/nvidia-smi", "onnxruntime 1.2.3 has no CUDAExecutionProvider", "cuda"),
        (
            "cuda",
            "linux",
            None,
            "onnxruntime 1.2.3 has no CUDAExecutionProvider, and nvidia-smi is not on the PATH: there may be no NVIDIA "
            "GPU or no driver",
            "cuda",
        ),
        ("dml", "win32", None, "onnxruntime 1.2.3 has no DmlExecutionProvider", "directml"),
        ("dml", "linux", None, "DirectML is for Windows only, this is linux", "directml"),
    ],
)
def test_a_target_that_is_not_here(
    monkeypatch: pytest.MonkeyPatch,
    listed: list[str],
    name: str,
    platform: str,
    driver: str | None,
    reason: str,
    command: str,
) -> None:
    monkeypatch.setattr(targets, "check_wheels", lambda: None)
    monkeypatch.setattr(targets.importlib.metadata, "version", lambda wheel: "1.2.3")
    monkeypatch.setattr(targets.sys, "platform", platform)
    monkeypatch.setattr(targets.shutil, "which", lambda tool: driver)
    assert find_targets([name]) == [
        {
            "execution_provider": name,
            "available": False,
            "reason": reason,
            "install": f'pip install -c constraints.txt -e ".[{command}]"',
        }
    ]


def test_the_commands_are_those_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert install_command("cpu") in readme
    for name in ("cuda", "dml"):
        extra = install_command(name).removeprefix('pip install -c constraints.txt -e "').removesuffix('"')
        assert f"`{extra}`" in readme and extra.strip(".[]") in extras


@pytest.mark.parametrize(
    ("code", "stderr", "reason"),
    [
        (1, "W: libcublas.so.12 not found\nerror: CUDA did not start\n\n", "CUDA did not start"),
        (1, "Traceback\nImportError:  no   x\n", "ImportError: no x"),
        (-11, "", "exit code -11"),
        (None, "", "CUDAExecutionProvider did not start within 120 s"),
    ],
)
def test_a_provider_that_is_listed_but_does_not_start(
    monkeypatch: pytest.MonkeyPatch, listed: list[str], code: int | None, stderr: str, reason: str
) -> None:
    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert command == [sys.executable, "-m", "benchmark.targets", "cuda"]
        if code is None:
            raise subprocess.TimeoutExpired(command, options["timeout"])
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(targets.subprocess, "run", run)
    listed.append("CUDAExecutionProvider")
    entry = {"execution_provider": "cuda", "available": False, "reason": reason, "install": None}
    assert find_targets(["cuda"]) == [entry]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows may have DirectML")
def test_the_real_process_says_why_it_does_not_start(listed: list[str]) -> None:
    listed.append("DmlExecutionProvider")
    (entry,) = find_targets(["dml"])
    assert not entry["available"] and entry["install"] is None
    assert entry["reason"].startswith("this onnxruntime has no DmlExecutionProvider")


def test_onnxruntime_falls_back_without_a_word(monkeypatch: pytest.MonkeyPatch, listed: list[str]) -> None:
    """Where CUDA's libraries are missing onnxruntime makes a session on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession
    monkeypatch.setattr(
        "runtime.session.onnxruntime.InferenceSession",
        lambda path, options, providers: session(path, options, providers=["CPUExecutionProvider"]),
    )
    listed.append("CUDAExecutionProvider")
    with pytest.raises(ProviderError, match="CUDAExecutionProvider did not start on this machine"):
        start("cuda")
