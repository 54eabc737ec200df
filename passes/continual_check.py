"""Tells each training that goes on from an earlier adapter which ones those are, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data.examples import config_content
from passes.registration import task_of
from passes.training.methods import chosen_method
from passes.training.settings import AdapterSettings
from runtime.errors import nearest

# what decides the form of an adapter and how its weights are read, so that weights can be gone on from
_SAME = ("rank", "alpha", "rslora", "target_modules", "bottleneck_size", "pooling")


def fill_continual(ours: list[tuple[str, Any]], data_configs: Sequence[Any]) -> list[str]:
    """Fills in the option `stages` and the data of `replay`. Returns what keeps a pass from its `continues`.

    `stages` are [{"adapter", "validation_data": data config or None}] from the first adapter to the one that a pass
    goes on from. Data configs are put in the place of their names, as Olive does it with options of one data config;
    without names the replayed data are those that the stages were trained on.

    Args:
        ours: (name, Olive's pass configuration) of this workspace's passes.
        data_configs: Olive's, of the workflow.
    """
    named = {config.name: config_content(config) for config in data_configs}
    trainings = {s.config["adapter_name"]: (n, s) for n, s in reversed(ours) if isinstance(_name(s), str)}
    before: dict[str, Any] = {}
    problems = []
    for name, step in ours:
        step.config = {key: value for key, value in (step.config or {}).items() if key != "stages"}
        continues = step.config.get("continues")
        if isinstance(continues, str):
            wrong = [f"passes.{name}.{p}" for p in _problems(continues, step, before, trainings)]
            if not wrong:
                chain = _chain(continues, before)
                stages = [{"adapter": s.config["adapter_name"], "validation_data": _validation(s)} for s in chain]
                step.config = {**step.config, "stages": stages}
                wrong = _fill_replay(name, step, chain, named)
            problems += wrong
        if isinstance(_name(step), str):
            before.setdefault(step.config["adapter_name"], step)
    return problems


def replayed_configs(config: Mapping[str, Any]) -> list[Any]:
    """Data configs of a pass's replay, as `fill_continual` leaves them; without those that are wrong."""
    replay = config.get("replay")
    given = replay.get("data_configs") if isinstance(replay, dict) else None
    return [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []


def stage_configs(config: Mapping[str, Any]) -> list[Any]:
    """Held-out data configs of the adapters that a pass goes on from: its report depends on them."""
    found = [stage["validation_data"] for stage in config.get("stages") or []]
    return [one for one in found if one is not None]


def _problems(continues: str, step: Any, before: Mapping[str, Any], trainings: Mapping[str, Any]) -> list[str]:
    if continues == _name(step):
        return [f"continues: '{continues}' is this pass's own adapter; {nearest('', before)}"]
    if continues not in before:
        if continues in trainings:
            later = trainings[continues][0]
            return [f"continues: '{continues}' is trained later, by passes.{later}; put that pass before this one"]
        return [f"continues: no pass before this one trains '{continues}'; {nearest(continues, before)}"]
    earlier = before[continues]
    if task_of(earlier) != task_of(step):
        return [f"continues: '{continues}' is for {task_of(earlier)}, but this pass trains for {task_of(step)}"]
    theirs, own = _form(earlier), _form(step)
    differences = [
        f"{key} is {_said(theirs[key])} there, but {_said(own[key])} here" for key in own if theirs[key] != own[key]
    ]
    if not differences:
        return []
    return [f"continues: '{continues}' gives its weights to an adapter of its own form alone: {'; '.join(differences)}"]


def _form(step: Any) -> dict[str, Any]:
    config = step.config
    values = {key: config.get(key) for key in _SAME}
    form = {key: getattr(AdapterSettings, key, None) if value is None else value for key, value in values.items()}
    if isinstance(form["target_modules"], list):
        form["target_modules"] = sorted(map(str, form["target_modules"]))
    return {"method": chosen_method(config.get("method"), config.get("quantization")), **form}


def _said(value: Any) -> str:
    return "null" if value is None else str(value)


def _chain(continues: str, before: Mapping[str, Any]) -> list[Any]:
    """The passes of the stages, the first one first."""
    step = before[continues]
    further = step.config.get("continues")
    return [*(_chain(further, before) if further in before and further != continues else []), step]


def _fill_replay(name: str, step: Any, chain: Sequence[Any], named: Mapping[str, Any]) -> list[str]:
    replay = step.config.get("replay")
    if not isinstance(replay, dict):
        return []
    given, problems, configs = replay.get("data_configs"), [], []
    if given is None:
        configs = [
            config_content(s.config["train_data_config"]) for s in chain if not _unresolved(s, "train_data_config")
        ]
    elif not isinstance(given, list):
        return []  # `problems` of the pass has said it
    held_out = {stage["name"] for s in chain if (stage := _validation(s)) is not None}
    own = config_content(step.config["train_data_config"]) if not _unresolved(step, "train_data_config") else {}
    for config in given or []:
        where = f"passes.{name}.replay.data_configs"
        if not isinstance(config, str) and not (isinstance(config, dict) and isinstance(config.get("name"), str)):
            problems.append(f"{where}: must be names from data_configs, but one is {config!r}")
        elif (config if isinstance(config, str) else config["name"]) in held_out:
            problems.append(f"{where}: '{config}' is what an earlier adapter is scored on; name its training data")
        elif config == own.get("name"):
            problems.append(f"{where}: '{config}' is what this pass learns anyway; name earlier training data")
        elif isinstance(config, str) and config not in named:
            problems.append(f"{where}: there is no data config '{config}'; {nearest(config, named)}")
        else:
            configs.append(named[config] if isinstance(config, str) else config)
    step.config = {**step.config, "replay": {**replay, "data_configs": configs}}
    return problems


def _validation(step: Any) -> dict[str, Any] | None:
    return (
        None if _unresolved(step, "validation_data_config") else config_content(step.config["validation_data_config"])
    )


def _unresolved(step: Any, option: str) -> bool:
    """Whether a step has no such data, or a name that Olive did not know."""
    return step.config.get(option) is None or isinstance(step.config[option], str)


def _name(step: Any) -> Any:
    return (step.config or {}).get("adapter_name")
