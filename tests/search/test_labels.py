"""Names and values as people read them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from search.labels import short_names
from search.space import Parameter
from tests.search.fake_runs import make_space


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["passes.spam.rank", "precision"], ["rank", "precision"]),
        (["passes.spam.rank", "passes.intent.rank", "lr"], ["spam.rank", "intent.rank", "lr"]),
        (["rank", "passes.rank"], ["rank", "passes.rank"]),
    ],
)
def test_parameters_have_the_shortest_names_that_tell_them_apart(
    tmp_path: Path, names: list[str], short: list[str]
) -> None:
    parameters = tuple(Parameter(name, (name,), "int", 1, 2) for name in names)
    assert list(short_names(replace(make_space(tmp_path), parameters=parameters)).values()) == short
