"""Shows that every extra of pyproject.toml, with the pins of constraints.txt, resolves to wheels for its platforms.

    python .ci/resolve_extras.py [EXTRA ...]

Needs `uv` (pip install uv) and a package registry. Nothing is installed: uv reads the wheels' metadata, and, unlike
pip, evaluates markers such as sys_platform for the platform that is asked for.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
WINDOWS, LINUX = "x86_64-pc-windows-msvc", "x86_64-manylinux_2_28"
BOTH = (LINUX, WINDOWS)
PLATFORMS = {"cpu": BOTH, "cuda": BOTH, "directml": (WINDOWS,), "harness": BOTH, "search": BOTH}
PYTHON = "3.11"
SOURCE_ONLY = ("rouge-score", "sqlitedict", "word2number")  # pure Python, published without wheels


def resolve(extra: str, platform: str) -> list[str]:
    """The resolved requirements, "name==version" each. Raises RuntimeError with uv's reason when there are none."""
    uv = shutil.which("uv")
    if uv is None:
        raise RuntimeError("there is no uv here; pip install uv")
    command = [uv, "pip", "compile", "pyproject.toml", "--extra", extra, "--constraint", "constraints.txt"]
    command += ["--python-platform", platform, "--python-version", PYTHON, "--only-binary", ":all:"]
    command += [f"--no-binary={name}" for name in SOURCE_ONLY]
    command += ["--no-header", "--no-annotate", "--quiet"]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"[{extra}] for {platform}: {run.stderr.strip()}")
    return [line for line in run.stdout.splitlines() if "==" in line]


def main(extras: list[str]) -> int:
    failed = False
    for extra in extras or PLATFORMS:
        for platform in PLATFORMS[extra]:
            try:
                found = resolve(extra, platform)
            except RuntimeError as error:
                failed = True
                print(f"FAILED  {error}")
                continue
            runtimes = [requirement for requirement in found if requirement.startswith("onnxruntime")]
            print(f"resolves  [{extra}] for {platform}: {len(found)} packages, {', '.join(runtimes)}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
