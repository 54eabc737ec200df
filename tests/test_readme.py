"""What the README tells a newcomer to type and to look at is there."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_the_two_commands() -> None:
    assert 'pip install -c constraints.txt -e ".[cpu]" && olive run --config workflows/quickstart.json\n' in README
    assert 'pip install -c constraints.txt -e ".[cpu,test]" && pytest\n' in README
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"cpu", "test"} <= set(project["optional-dependencies"])


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not (REPOSITORY / link).exists()] == []


def test_every_workflow_is_in_the_table() -> None:
    for file in (REPOSITORY / "workflows").rglob("*.json"):
        assert f"]({file.relative_to(REPOSITORY).as_posix()})" in README


def test_named_folders_exist() -> None:
    tree = README.split("## Where things are")[1]
    names = re.findall(r"^([a-z_/]+(?:\.py)?)\s{2,}", tree, flags=re.MULTILINE)
    assert "runtime/" in names
    assert [name for name in names if not (REPOSITORY / name).exists()] == []


def test_python_examples_compile() -> None:
    examples = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    compile("".join(examples), "README.md", "exec")
    assert len(examples[0].strip().splitlines()) <= 5


def test_every_dependency_is_pinned_with_a_reason() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    needed = [re.split(r"[\[;]", requirement)[0] for requirements in lists for requirement in requirements]
    pins = {}
    for line in (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([\w.-]+)==(\S+)\s+# (.{8,})", line)
            assert match, line
            pins[match[1].lower().replace("_", "-")] = match[2]
    assert [name for name in needed if name.lower().replace("_", "-") not in pins] == []


def test_every_extra_that_users_install_is_resolved_for_its_platforms() -> None:
    """.ci/resolve_extras.py asks the registry; here only that it leaves out none."""
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]
    platforms = runpy.run_path(str(REPOSITORY / ".ci" / "resolve_extras.py"))["PLATFORMS"]
    assert set(platforms) == set(extras) - {"test"}


@pytest.mark.parametrize("package", ["benchmark", "data", "evaluators", "passes", "runtime"])
def test_packages_are_listed(package: str) -> None:
    tools = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    listed = set(tools["setuptools"]["packages"])
    folders = {
        p.parent.relative_to(REPOSITORY).as_posix().replace("/", ".")
        for p in (REPOSITORY / package).rglob("__init__.py")
    }
    assert folders <= listed
