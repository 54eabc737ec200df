"""PEFT's adapter_config.json: whether its values are sane, whether slots can express it, and the scale of a module."""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Mapping
from typing import Any

from runtime.bottleneck import PEFT_TYPE as BOTTLENECK
from runtime.bottleneck import config_problems
from runtime.virtual_tokens import KINDS, kind_of

FULL = "FULL"  # peft_type of our own: weights of the base itself, or a head alone; PEFT has no such type
_MAX_RANK = 1 << 16
_MAX_PATTERN, _MAX_REGEXES, _MAX_CHOICES = 128, 16, 32  # characters of a key, keys that are regexes, | in a key
# A pattern's key is a regex to PEFT, and a stranger's regex can run for ever. What people write is names, digits and
# one choice in brackets; a repetition of anything else, or of a group, is refused.
_ATOM = r"(?:[\w-]|\\\.|\.(?![*+?{])|\\d[*+]?(?![*+?{])|\[[\w-]+\][*+]?(?![*+?{]))"
_GROUP = rf"(?:\((?:\?:)?{_ATOM}+(?:\|{_ATOM}+)*\)(?![*+?{{]))"
_CHOICE = rf"\^?(?:{_ATOM}|{_GROUP}|\.[*+](?![*+?{{]))+\$?"
_SAFE_KEY = re.compile(rf"{_CHOICE}(?:\|{_CHOICE})*")
# these initializations change the base's own weights, so the two matrices alone are not the adapter
_BASE_CHANGING = ("corda", "loftq", "olora", "pissa")


def value_problems(config: Mapping[str, Any]) -> list[str]:
    """What keeps a configuration from being read at all: missing keys, wrong types, absurd values."""
    if config.get("peft_type") == BOTTLENECK:
        return config_problems(config)
    if config.get("peft_type") == FULL:
        return []
    problems = []
    if kind_of(config):
        return _virtual_problems(config)
    if missing := [key for key in ("peft_type", "r", "lora_alpha") if key not in config]:
        return [f"is no LoRA configuration, it lacks {', '.join(missing)}"]
    if not _is_rank(config["r"]):
        problems.append(f"r is {_short(config['r'])}, but must be a whole number from 1 to {_MAX_RANK}")
    if not _is_alpha(config["lora_alpha"]):
        problems.append(f"lora_alpha is {_short(config['lora_alpha'])}, but must be a finite number")
    for key in ("use_rslora", "use_dora"):
        if not isinstance(config.get(key) or False, bool):
            problems.append(f"{key} is {_short(config[key])}, but must be true or false")
    for name, valid in (("rank_pattern", _is_rank), ("alpha_pattern", _is_alpha)):
        patterns = config.get(name) or {}
        if not isinstance(patterns, dict):
            problems.append(f"{name} is {_short(patterns)}, but must be an object of module names and numbers")
            continue
        regexes = [key for key in patterns if not _is_literal(key)]
        problems += [f"{name}: the key {_short(key)} {reason}" for key in regexes if (reason := _danger(key))]
        if len(regexes) > _MAX_REGEXES:
            problems.append(f"{name} has {len(regexes)} regexes, but at most {_MAX_REGEXES} are taken")
        problems += [
            f"{name}: {_short(key)} is {_short(value)}, which is no {'rank' if valid is _is_rank else 'finite number'}"
            for key, value in patterns.items()
            if not valid(value)
        ]
    return problems


def meaning_problems(config: Mapping[str, Any]) -> list[str]:
    """What a configuration asks for that A, B and DoRA's magnitude cannot express."""
    if config.get("peft_type") == BOTTLENECK or kind_of(config):
        return []
    if config.get("peft_type") == FULL:
        return []  # what its tensors say counts
    problems = []
    if config.get("peft_type") != "LORA":
        kind = _short(config.get("peft_type"))
        problems.append(
            f"peft_type is {kind}; only LORA, BOTTLENECK, {' and '.join(KINDS)} have slots, merge others with PEFT"
        )
    if config.get("bias", "none") != "none":
        problems.append(f"bias is {_short(config['bias'])}; slots have no bias, train with 'none'")
    for key in ("lora_bias", "layer_replication", "alora_invocation_tokens", "use_qalora"):
        if config.get(key):
            problems.append(f"{key} is {_short(config[key])}; slots cannot express it")
    start = _short(config.get("init_lora_weights", "")).strip("'").lower()
    if start.startswith(_BASE_CHANGING):
        problems.append(
            f"init_lora_weights is '{start}', which changes the base's weights; "
            "save the adapter with path_initial_model_for_weight_conversion"
        )
    return problems


def _virtual_problems(config: Mapping[str, Any]) -> list[str]:
    """What is wrong with a configuration of prompt or prefix tuning."""
    problems, virtual = [], config.get("num_virtual_tokens")
    if not isinstance(virtual, int) or isinstance(virtual, bool) or not 1 <= virtual <= _MAX_RANK:
        problems.append(f"num_virtual_tokens is {_short(virtual)}, but must be a whole number from 1 to {_MAX_RANK}")
    if config.get("num_transformer_submodules") not in (None, 1):
        found = _short(config["num_transformer_submodules"])
        problems.append(f"num_transformer_submodules is {found}, but a base that reads from left to right has 1")
    return problems


def scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) with use_rslora (Kalajdzievski 2023), with the module's own alpha_pattern.

    A pattern matches the end of a module's name, and the first one that matches counts, as in PEFT's get_pattern_key.
    The rank comes from the weights, so rank_pattern has done its work already.
    """
    patterns: Mapping[str, float] = config.get("alpha_pattern") or {}
    alpha = next((value for key, value in patterns.items() if _matches(key, module)), config["lora_alpha"])
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _matches(key: str, module: str) -> bool:
    if _is_literal(key):
        return module == key or module.endswith(f".{key}")
    return re.match(rf"(.*\.)?({key})$", module) is not None


def _is_literal(key: str) -> bool:
    return re.fullmatch(r"[\w.-]+", key) is not None


def _danger(key: str) -> str:
    """Why a regex is not run; empty for those that end soon on every module name."""
    if len(key) > _MAX_PATTERN:
        return f"is a regex of {len(key)} characters, but at most {_MAX_PATTERN} are taken"
    too_free = len(re.findall(r"(?<!\\)(?:\.|\])[*+]", key)) > 1 or len(re.findall(r"\\d[*+]", key)) > 3
    if too_free or key.count("|") > _MAX_CHOICES or len(re.findall(r"\((?!\?)|\(\?:", key)) > 1:
        return "is a regex that may run for ever; take names, \\d+ and one choice such as (q|v)_proj"
    if not _SAFE_KEY.fullmatch(key):
        return "is a regex of a kind that is not taken; take names, \\d+ and one choice such as (q|v)_proj"
    try:
        re.compile(f"(.*\\.)?({key})$")
    except re.error as error:
        return f"is no regex: {error}"
    return ""


def _is_rank(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MAX_RANK


def _is_alpha(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9  # NaN compares false


def _short(value: object) -> str:
    """A value for a message, as JSON writes it where that is short; nested and long values are cut."""
    return json.dumps(value) if value is None or isinstance(value, bool) else reprlib.repr(value)
