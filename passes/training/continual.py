"""Continual fine-tuning: an adapter goes on from the weights of an earlier one, on new data and a part of the old."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.examples import ClassificationData, GenerationData
from data.replay import united_labels, with_earlier_labels, with_replay
from passes.training.methods import LOW_RANK, chosen_method
from runtime.adapter_source import HEAD_KEY, WEIGHTS
from runtime.errors import OlivalError, nearest

if TYPE_CHECKING:
    import torch

CONTINUED = (*LOW_RANK, "bottleneck")  # methods whose adapters can be gone on from


@dataclass(frozen=True)
class Replay:
    """Which rows of earlier training data are seen again.

    Attributes:
        data_configs: the earlier data; the check of a workflow puts those of the earlier adapters where none is named.
        fraction: share of the rows of each, in 0..1 without 0.
        seed: of the choice of rows.
    """

    data_configs: Sequence[Any] = ()
    fraction: float = 0.2
    seed: int = 0


def continual_options() -> dict[str, Any]:
    """The options as Olive's PassConfigParam table."""
    from olive.passes.pass_config import PassConfigParam

    return {
        "continues": PassConfigParam(
            type_=str, default_value=None, description="An earlier adapter, from whose weights this one goes on."
        ),
        "replay": PassConfigParam(
            type_=dict,
            default_value=None,
            description="{'data_configs', 'fraction', 'seed'}: rows of earlier training data that are seen again.",
        ),
        "stages": PassConfigParam(
            type_=list, default_value=None, description="Filled in by the workspace: the earlier adapters."
        ),
    }


def continual_problems(config: Any) -> list[str]:
    """What is wrong with the values of a pass config; each line starts with the option's name."""
    if config.continues is None:
        return ["replay: goes with `continues`, which names an earlier adapter"] if config.replay is not None else []
    method, problems = chosen_method(config.method, config.quantization), []
    if method not in CONTINUED:
        problems.append(f"continues: is not for method '{method}', but for {', '.join(CONTINUED)}")
    if config.replay is None:
        return problems
    fields = {f.name: f.default for f in dataclasses.fields(Replay)}
    problems += [f"replay.{key}: unknown; {nearest(key, fields)}" for key in config.replay if key not in fields]
    values = {**fields, **config.replay}
    fraction, seed, named = values["fraction"], values["seed"], values["data_configs"]
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction <= 1:
        problems.append(f"replay.fraction: 0 < fraction <= 1 must hold, but it is {fraction!r}")
    if type(seed) is not int or seed < 0:
        problems.append(f"replay.seed: must be a whole number of at least 0, but is {seed!r}")
    if isinstance(named, str) or not isinstance(named, Sequence) or ("data_configs" in config.replay and not named):
        problems.append(f"replay.data_configs: must be a list of names from data_configs, but is {named!r}")
    return problems


def earlier_folder(continues: str, adapters: Mapping[str, str]) -> Path:
    """The trained folder of the adapter to go on from; `adapters` are those of the passes before.

    Raises OlivalError when there is none, or it is no longer there.
    """
    if continues not in adapters:
        raise OlivalError(f"continues: no pass before this one trains '{continues}'; {nearest(continues, adapters)}")
    folder = Path(adapters[continues])
    if not folder.is_dir():
        raise OlivalError(f"the trained adapter {continues} is no longer in the cache; run once with clean_cache: true")
    return folder


def continued_data(
    data: ClassificationData | GenerationData, start: Path, replay: Mapping[str, Any] | None, load: Callable[[Any], Any]
) -> Any:
    """What an adapter that goes on learns: `data` with the earlier labels before its own, then the replayed rows.

    Args:
        data: of the new task.
        start: folder of the earlier adapter.
        replay: None, or the fields of `Replay`.
        load: loads a data config as data of the same task.

    Raises OlivalError where there is nothing to replay.
    """
    data = with_earlier_labels(data, earlier_labels(start))
    if replay is None:
        return data
    chosen = Replay(**replay)
    if not chosen.data_configs:
        raise OlivalError("replay: names no data_configs; the check of a workflow fills them in, else give them")
    return with_replay(data, [load(c) for c in chosen.data_configs], chosen.fraction, chosen.seed)


def earlier_labels(start: Path) -> list[str]:
    """The labels of a trained adapter in the order of its head's rows; none of one for generation."""
    return list(_description(start)["labels"] or [])


def kept_thresholds(
    thresholds: Sequence[float], label_names: Sequence[str], seen: Container[str], start: Path
) -> list[float]:
    """`thresholds` of `label_names`, but of the earlier adapter where no held-out row had the label: none is `seen`."""
    before = _description(start)
    earlier = dict(zip(before["labels"], before["thresholds"], strict=True))
    pairs = zip(label_names, thresholds, strict=True)
    return [value if name in seen else earlier.get(name, value) for name, value in pairs]


def start_from(adapted: Any, start: Path) -> None:
    """Gives an adapter in its base (see `passes.training.methods.adapt`) the weights of an earlier one.

    Raises OlivalError when these are not of the same form, or of a method that cannot be gone on from.
    """
    import torch
    from peft import PeftModel, set_peft_model_state_dict
    from safetensors.torch import load_file

    from passes.training.bottleneck import BottleneckAdapted

    earlier = {name: value for name, value in load_file(start / WEIGHTS).items() if name != HEAD_KEY}
    theirs, own = ({name: list(v.shape) for name, v in some.items()} for some in (earlier, adapted.weights()))
    wrong = [name for name in sorted(own.keys() | theirs.keys()) if own.get(name) != theirs.get(name)]
    if wrong:
        raise OlivalError(
            f"continues: {start.name} is of another form: {wrong[0]} has shape {theirs.get(wrong[0])} there, "
            f"but {own.get(wrong[0])} here ({len(wrong)} such tensors); method, rank and target_modules must be its own"
        )
    if isinstance(adapted, BottleneckAdapted):
        with torch.no_grad():
            adapted.copy_weights(earlier)
    elif isinstance(adapted.model, PeftModel):
        set_peft_model_state_dict(adapted.model, earlier)
    else:
        raise OlivalError(f"continues: is not for {type(adapted).__name__}, but for methods {', '.join(CONTINUED)}")


def copy_head(weight: torch.Tensor, label_names: Sequence[str], start: Path) -> None:
    """Copies the rows of an earlier adapter's head to those of the same labels; new labels keep theirs.

    Args:
        weight: of the new head, float32 (classes, hidden), in the order of `label_names`; changed in place.
    """
    import torch
    from safetensors.torch import load_file

    head, earlier = load_file(start / WEIGHTS)[HEAD_KEY], earlier_labels(start)
    assert united_labels(earlier, label_names) == list(label_names), "the earlier labels come first"
    with torch.no_grad():
        weight[: len(earlier)] = head.to(weight)


def _description(start: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((start / "adapter.json").read_text(encoding="utf-8"))
    return content
