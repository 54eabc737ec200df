"""Parameters as Optuna holds them: what goes in comes out, of the same type, through Optuna's own storage too."""

from __future__ import annotations

import json
from typing import Any

import pytest

from runtime.errors import DataError
from search.distributions import decode, distribution, encode
from search.space import Parameter

CHOICES: dict[str, tuple[Any, ...]] = {
    "words": ("int4", "int8", ""),
    "numbers": (16, 32, 0.5),
    "simple kinds": (None, False, 7, "7", 0.25),
    "one, true and their like": (1, True, "1", 1.0, 0, False, 0.0, None, "null", "true"),
    "lists and objects": ([1, 2], {"type": "int4", "block": {"size": 32}}, [], {}, [[]], "[]"),
    "an object and its text": ({"a": 1}, '{"a": 1}'),
    "nested ones and trues": ([1], [True], [1.0], ["1"]),
    "long and not ASCII": ({"prompt": "São Paulo " * 300}, "ação", "\n\t\"'"),
    "large": (2**70, -(2**70), 1e300),
    "one alone": ({"only": None},),
}


def same(one: Any, other: Any) -> bool:
    """Equal and of equal types, all the way down."""
    return type(one) is type(other) and json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('storage')}/studies.db"


@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES.keys())
def test_choices_come_back(choices: tuple[Any, ...], storage: str) -> None:
    """Each choice through encode, Optuna with a database, and decode; no two share what is held."""
    import optuna

    parameter = Parameter("p", ("x",), "categorical", choices=choices)
    study = optuna.create_study(storage=storage)
    for choice in choices:
        study.enqueue_trial({"p": encode(parameter, choice)})
        trial = study.ask({"p": distribution(parameter)})
        assert same(decode(parameter, trial.params["p"]), choice)
    again = optuna.load_study(study_name=study.study_name, storage=storage)
    assert len(again.trials) == len(choices)
    for stored, choice in zip(again.trials, choices, strict=True):
        assert same(decode(parameter, stored.params["p"]), choice)
    held = [trial.params["p"] for trial in again.trials]
    assert all(one != other for i, one in enumerate(held) for other in held[:i])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES.keys())
def test_optuna_holds_every_choice_without_a_warning(choices: tuple[Any, ...]) -> None:
    distribution(Parameter("p", ("x",), "categorical", choices=choices))


def test_simple_choices_stay_readable() -> None:
    parameter = Parameter("precision", ("x",), "categorical", choices=("int4", "int8", None))
    assert distribution(parameter).choices == ("int4", "int8", None)  # type: ignore[attr-defined]


def test_a_decoded_object_is_nobody_elses() -> None:
    parameter = Parameter("p", ("x",), "categorical", choices=({"a": [1]}, None))
    decode(parameter, '{"a": [1]}')["a"].append(2)
    assert parameter.choices[0] == {"a": [1]}
    assert encode(Parameter("p", ("x",), "categorical", choices=({"a": 1, "b": 2},)), {"b": 2, "a": 1})


NUMBERS = {
    "float": Parameter("p", ("x",), "float", 1e-6, 1e-3, log=True),
    "float with step": Parameter("p", ("x",), "float", 0.0, 0.5, step=0.1),
    "int": Parameter("p", ("x",), "int", 1, 6),
    "int with step": Parameter("p", ("x",), "int", 4, 64, step=4),
    "int, log": Parameter("p", ("x",), "int", 1, 1024, log=True),
    "float between whole numbers": Parameter("p", ("x",), "float", 0, 1),
}


@pytest.mark.parametrize("parameter", NUMBERS.values(), ids=NUMBERS.keys())
def test_numbers_come_back(parameter: Parameter) -> None:
    import optuna

    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(20):
        drawn = study.ask({"p": distribution(parameter)}).params["p"]
        value = decode(parameter, drawn)
        assert type(value) is (int if parameter.kind == "int" else float)
        assert json.loads(json.dumps(value)) == value == encode(parameter, value) == drawn
        assert parameter.low is not None and parameter.high is not None
        assert parameter.low <= value <= parameter.high
        if parameter.step:
            assert ((value - parameter.low) / parameter.step) == pytest.approx(
                round((value - parameter.low) / parameter.step)
            )
        seen.add(value)
    assert len(seen) > 2


@pytest.mark.parametrize(
    ("parameter", "value", "words"),
    [
        (Parameter("precision", ("x",), "categorical", choices=("int4", "int8")), "int2", 'precision: "int2" is none'),
        (Parameter("flag", ("x",), "categorical", choices=(1, True)), 1.0, "flag: 1.0 is none of the choices 1, true"),
        (NUMBERS["int"], 7, "p: 7 is no whole number from 1 to 6"),
        (NUMBERS["int"], 1.5, "p: 1.5 is no whole number"),
        (NUMBERS["int"], True, "p: true is no whole number"),
        (NUMBERS["float"], 1.0, "p: 1.0 is no number from 1e-06 to 0.001"),
        (NUMBERS["float"], "1e-4", 'p: "1e-4" is no number'),
    ],
)
def test_what_is_not_in_the_space(parameter: Parameter, value: Any, words: str) -> None:
    with pytest.raises(DataError) as raised:
        encode(parameter, value)
    assert words in str(raised.value)


def test_an_unknown_choice_of_a_storage() -> None:
    with pytest.raises(DataError, match="'int2' is none of the choices"):
        decode(Parameter("p", ("x",), "categorical", choices=("int4", "int8")), "int2")
