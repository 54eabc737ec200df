"""Searches over candidates that have been measured already, many times with other seeds: only the sampler runs.

One search says little of a sampler, because its luck decides. Here both sides' own samplers are asked, one candidate
after the other, and get the measured values at once; what counts is how many candidates had to be measured until the
best one was among them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmark.olive_search import PERPLEXITY, Options, Space, combinations, flat

Table = Mapping[Options, Mapping[str, float]]


def olive_orders(
    sampler: str, space: Space, table: Table, seeds: Sequence[int], until: Options | None = None
) -> list[list[Options]]:
    """The candidates that Olive's sampler asks for, by seed, up to `until`; on the flat space.

    A workflow cannot set the seed.
    """
    from olive.search.search_parameter import Categorical
    from olive.search.search_strategy import SearchStrategy

    choices = {name: Categorical(value["support"]) for name, value in flat({}, space).items()}
    objective = {PERPLEXITY: {"higher_is_better": False, "goal": None, "priority": 1}}
    orders = []
    for seed in seeds:
        config = {"execution_order": "joint", "sampler": sampler, "sampler_config": {"seed": seed}}
        strategy = SearchStrategy(config)
        strategy.initialize({"export": [choices]}, "base", {"export": objective})
        order: list[Options] = []
        for sample in strategy:
            values = sample.passes_configs["export"]["params"]
            quantization = values["quantization"] or {}
            options = (values["precision"], quantization.get("algorithm"), quantization.get("block_size"))
            order.append(options)
            if options == until:
                break
            strategy.record_feedback_signal(sample.search_point.index, *_signal(table.get(options)))
        orders.append(order)
    return orders


def our_orders(
    space_file: Path, table: Table, seeds: Sequence[int], until: Options | None = None
) -> list[list[Options]]:
    """The candidates that `python -m search` asks for, by seed, up to `until`: its samplers on a study in memory."""
    import optuna

    from search.new_values import new_values
    from search.samplers import GRID, draw, grid_trials, make_sampler
    from search.space_file import read_space

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    orders = []
    for seed in seeds:
        space = dataclasses.replace(read_space(space_file), seed=seed)
        if space.sampler["type"] == GRID:
            orders.append([_options(values) for values in grid_trials(space)])
            continue
        study = optuna.create_study(direction="minimize")
        order: list[Options] = []
        for slot in range(space.trials):
            study.sampler = make_sampler(space, slot)
            if (fixed := new_values(study, space, slot)) is not None:
                study.enqueue_trial(fixed)
            trial = study.ask()
            values = draw(trial, space.parameters)
            trial.set_user_attr("parameters", values)
            options = _options(values)
            order.append(options)
            if options == until:
                break
            metrics = table.get(options)
            if metrics is None:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                continue
            for constraint in space.constraints:
                trial.set_constraint(
                    f"{constraint.target}: {constraint}", constraint.excess(metrics[constraint.metric])
                )
            study.tell(trial, metrics[PERPLEXITY])
        orders.append(order)
    return orders


def random_orders(space: Space, seeds: Sequence[int]) -> list[list[Options]]:
    """Every combination once in random order: what Olive makes of `alternatives` whose choices nobody has sorted."""
    import numpy as np

    every = combinations(space)
    return [[every[i] for i in np.random.default_rng(seed).permutation(len(every))] for seed in seeds]


def evaluations_to(best: Options, order: Sequence[Options], table: Table) -> int | None:
    """How many different candidates are measured until `best` is; None where it is never tried.

    Candidates that cannot be exported are not counted: both sides find that out before they export.
    """
    if best not in order:
        return None
    tried = order[: list(order).index(best) + 1]
    return sum(1 for options in dict.fromkeys(tried) if options in table)


def _options(values: Mapping[str, Any]) -> Options:
    return values["precision"], values.get("algorithm"), values.get("block_size")


def _signal(metrics: Mapping[str, float] | None) -> tuple[Any, list[str], bool]:
    """What Olive's engine tells its search: (result, model ids, left out)."""
    from olive.evaluator.metric_result import MetricResult

    if metrics is None:
        return None, [], True
    score = {"value": metrics[PERPLEXITY], "priority": 1, "higher_is_better": False}
    return MetricResult.model_validate({PERPLEXITY: score}), ["model"], False
