"""Opens a study's storage and makes sure that the space is still the one it was begun with."""

from __future__ import annotations

import hashlib
import json
import random
import re
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from runtime.atomic_file import write_text
from runtime.errors import ConfigError, OlivalError
from search.space import Space

if TYPE_CHECKING:
    import optuna
    from sqlalchemy.engine import URL

    from search.storage import Storage

HEARTBEAT_SECONDS = 10
GRACE_SECONDS = 60  # without a heartbeat after which a worker on another machine counts as lost
_RACE = re.compile("exist|lock|unique|duplicate", re.I)  # what several workers that make the tables at once are told
_known_targets: WeakKeyDictionary[optuna.Study, dict[str, Any]] = WeakKeyDictionary()  # they never change
OWNER = "study.txt"  # names the study that an output folder belongs to
_OF_VALUE = ("RUNNING", "COMPLETE", "PRUNED")  # states of trials that a new start would lose
_SPACE, _TARGETS = "space", "targets"  # user attributes of the study


def open_storage(space: Space) -> Storage:
    """The space's database; a SQLite file's folder is made. Raises OlivalError when it cannot be reached."""
    import optuna
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    from search.storage import Storage, cause

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = make_url(space.storage)
    if url.get_backend_name() == "sqlite" and url.database:
        try:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OlivalError(f"{space.file}: {error.filename}: {error.strerror}") from None
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # heartbeats, names of metrics
    for attempt in range(8):
        try:
            return Storage(
                optuna.storages.RDBStorage(
                    space.storage,
                    engine_kwargs=_engine_arguments(url),
                    heartbeat_interval=HEARTBEAT_SECONDS,
                    grace_period=GRACE_SECONDS,
                )
            )
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            if attempt == 7 or not _RACE.search(cause(error)):
                shown = url.render_as_string(hide_password=True)
                raise OlivalError(f"{space.file}: storage {shown} cannot be opened: {cause(error)}") from None
            time.sleep(0.1 * 2**attempt * random.uniform(0.5, 1.5))  # workers that start at once all make the tables
    raise AssertionError("the loop returns or raises")


def _engine_arguments(url: URL) -> dict[str, Any]:
    """SQLAlchemy's, so that a worker notices when it is cut off from the database."""
    if url.get_backend_name() == "sqlite":
        # seconds for another worker's write; Ctrl-C is not heard meanwhile
        return {"connect_args": {} if "timeout" in url.query else {"timeout": 10}}
    if url.get_backend_name() != "postgresql":
        return {"pool_pre_ping": True}
    # libpq's: seconds; the last one, for what was sent and not confirmed, milliseconds
    network = {"connect_timeout": 10, "keepalives_idle": 20, "keepalives_interval": 10, "keepalives_count": 3,
               "tcp_user_timeout": 50_000}  # fmt: skip
    return {"pool_pre_ping": True, "connect_args": {k: v for k, v in network.items() if k not in url.query}}


def open_study(space: Space, not_measured: Mapping[str, str] | None = None) -> optuna.Study:
    """The space's study; made if it is not there and `not_measured` says which targets the workers lack, and why.

    Raises:
        OlivalError: there is no such study, or no database.
        ConfigError: the study was begun with another space, or other targets can be measured here.
    """
    import optuna

    _check_folder(space)
    if not_measured is None and not _is_there(space):
        raise _not_begun(space)
    storage = open_storage(space)
    if not_measured is None:
        try:
            study = optuna.load_study(study_name=space.name, storage=storage)
        except KeyError:
            raise _not_begun(space) from None
    else:
        study = _make_or_load(space, storage, not_measured)
        if _changes(study, space) and not any(trial.state.name in _OF_VALUE for trial in study.get_trials()):
            optuna.delete_study(study_name=space.name, storage=storage)  # nothing was measured yet
            study = _make_or_load(space, storage, not_measured)
        _own_folder(space)
    problems = _changes(study, space)
    if not_measured is not None:
        lacking = [t for t in _attribute(study, _TARGETS)["measured"] if t in not_measured]
        problems += [
            f"{space.file}: workflow.{t}: the study measures this target, and this machine cannot: {not_measured[t]}"
            for t in lacking
        ]
    if problems:
        raise ConfigError(problems)
    return study


def _changes(study: optuna.Study, space: Space) -> list[str]:
    """Where the space is not the one that the study was begun with."""
    begun, now = _attribute(study, _SPACE), _described(space)
    return [
        f"{space.file}: {key}: the study '{space.name}' was begun with {_short(begun.get(key))}, and this is "
        f"{_short(now.get(key))}; a changed search needs another name and output_dir"
        for key in [*now, *(key for key in begun if key not in now)]
        if begun.get(key) != now.get(key)
    ]


def _check_folder(space: Space) -> None:
    """Raises ConfigError where another study, or something that is no folder, has the output folder."""
    if space.output.exists() and not space.output.is_dir():
        raise ConfigError([f"{space.file}: output_dir: {space.output} is a file, not a folder"])
    owner = space.output / OWNER
    name = owner.read_text(encoding="utf-8").strip() if owner.is_file() else space.name
    if name != space.name:
        raise ConfigError(
            [f"{space.file}: output_dir: {space.output} belongs to the study '{name}', and this is '{space.name}'; "
             f"take another folder"]
        )  # fmt: skip


def _own_folder(space: Space) -> None:
    try:
        space.output.mkdir(parents=True, exist_ok=True)
        write_text(space.output / OWNER, space.name + "\n")
    except OSError as error:
        raise OlivalError(f"{space.file}: output_dir: {space.output} cannot be written: {error.strerror}") from None


def _is_there(space: Space) -> bool:
    """Whether the database may exist; looking at a SQLite file would make it."""
    from sqlalchemy.engine import make_url

    url = make_url(space.storage)
    return url.get_backend_name() != "sqlite" or not url.database or Path(url.database).exists()


def _not_begun(space: Space) -> OlivalError:
    return OlivalError(f"the study '{space.name}' has not begun; `python -m search run {space.file}` begins it")


def study_targets(study: optuna.Study) -> tuple[list[str], dict[str, str]]:
    """(targets that are measured, {target that is not: why})."""
    if study not in _known_targets:
        _known_targets[study] = _attribute(study, _TARGETS)
    return _known_targets[study]["measured"], _known_targets[study]["not_measured"]


def _described(space: Space) -> dict[str, Any]:
    """What must stay the same for trials to be comparable."""
    described: dict[str, Any] = {
        "objectives": [[o.target, o.metric, o.direction] for o in space.objectives],
        "constraints": [[c.target, str(c)] for c in space.constraints],
        "seed": space.seed,
        "sampler": dict(space.sampler),
    }
    for parameter in space.parameters:
        for key, value in vars(parameter).items():
            plain = dict(value) if hasattr(value, "items") else value
            described[f"parameters.{parameter.name}.{key}"] = json.loads(json.dumps(plain))
    for target, file in space.workflows.items():
        content = json.dumps(space.workflow(target), sort_keys=True)
        described[f"workflow.{target}"] = f"{file} with sha256 {hashlib.sha256(content.encode()).hexdigest()[:12]}"
    return described


def _make_or_load(space: Space, storage: Storage, not_measured: Mapping[str, str]) -> optuna.Study:
    """Every worker may call it at once; what a worker that was killed left out, the next one writes."""
    import optuna

    measured = [target for target in space.workflows if target not in not_measured]
    objectives = [o for o in space.objectives if o.target in measured]
    if not objectives:
        reasons = "; ".join(f"{target}: {why}" for target, why in not_measured.items())
        raise ConfigError([f"{space.file}: objectives: none can be measured on this machine: {reasons}"])
    directions = [optuna.study.StudyDirection[o.direction.upper()] for o in objectives]
    study = optuna.create_study(study_name=space.name, storage=storage, directions=directions, load_if_exists=True)
    if _TARGETS not in study.user_attrs:
        names = [f"{o.target}: {o.metric}" if space.several_targets else o.metric for o in objectives]
        study.set_metric_names(names)
        study.set_user_attr(_SPACE, _described(space))
        study.set_user_attr(_TARGETS, {"measured": measured, "not_measured": dict(not_measured)})
    return study


def _attribute(study: optuna.Study, name: str) -> Any:
    try:
        return study.user_attrs[name]
    except KeyError:
        raise OlivalError(f"the study '{study.study_name}' in the storage was not made by python -m search") from None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:197]}..."
