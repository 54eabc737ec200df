"""What a worker shows while it runs: a live bar on a terminal, a line for each finished trial anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self, TextIO

from tqdm import tqdm

from search.labels import duration_text, metric_text, objective_label, short_names, value_text
from search.records import StudyRecord, TrialRecord
from search.samplers import slots_of
from search.space import Space
from search.standing import best, finished, seconds_left, value_of

_STATES = {"complete": "complete", "pruned": "pruned", "failed": "FAILED", "lost": "lost"}


class Progress:
    """A bar over the study's trials with the best values, and under it the stage of the trial that this worker runs.

    A context manager: leaving it, by Ctrl-C too, takes the lower line away and ends the bar with a line feed. The
    cursor is never hidden, so a worker that is killed leaves a terminal that works. Lines for the person at the
    terminal go through `note`, which writes them above the bar.

    Args:
        space: what is searched.
        stream: stderr by default; live if it is a terminal.
        study: what there is of the study already, so that the bar does not begin at 0.

        with Progress(space) as progress:
            progress.trial_started(0, 0, {"rank": 8})
            progress.stage("train spam 120/180, accuracy 0.95")
            progress.trial_finished(record, study)
    """

    def __init__(self, space: Space, stream: TextIO | None = None, study: StudyRecord | None = None) -> None:
        self.space = space
        self.stream = sys.stderr if stream is None else stream
        self.study = study
        self._bar: tqdm[Any] | None = None
        self._line: tqdm[Any] | None = None
        self._trial = ""

    def __enter__(self) -> Self:
        if self.stream.isatty():
            common: dict[str, Any] = {"file": self.stream, "dynamic_ncols": True, "miniters": 0}
            shape = "{desc} {n_fmt}/{total_fmt} |{bar:12}| {elapsed}{postfix}"
            name = _one_line(self.space.name)
            self._bar = tqdm(total=slots_of(self.space), desc=name, bar_format=shape, position=0, **common)
            self._line = tqdm(total=0, bar_format="{desc}", position=1, leave=False, **common)
            self._show_study()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for part in (self._line, self._bar):
            if part is not None:
                part.close()
        self._line = self._bar = None

    def trial_started(self, slot: int, attempt: int, parameters: Mapping[str, Any]) -> None:
        """A trial of this worker begins; its parameters are shown until its first stage."""
        names = short_names(self.space)
        again = f" (attempt {attempt + 1})" if attempt else ""
        self._trial = f"trial {slot}{again}: "
        self._show_line(", ".join(f"{names.get(n, n)} {value_text(v, 20)}" for n, v in parameters.items()))

    def stage(self, text: str) -> None:
        """What the trial does now; shown on a terminal only, and no more often than an eye can follow."""
        if self._line is not None and self._bar is not None:
            self._line.set_description_str(self._trial + _one_line(text), refresh=False)
            self._line.update(0)
            self._bar.update(0)  # the time that has passed

    def trial_finished(self, record: TrialRecord, study: StudyRecord) -> None:
        """A trial of this worker has ended; `study` has it, and what other workers have done meanwhile."""
        self.study = study
        line = _finished_line(record, study)
        if self._bar is None:
            found = _best_values(study)
            so_far = f"; best {found}" if found else ""
            self.note(f"[{len(finished(study))}/{slots_of(self.space)}] {line}{so_far}")
            return
        if record.state in ("failed", "lost"):
            self.note(line)
        self._trial = ""
        self._show_line("")
        self._show_study()

    def note(self, text: str) -> None:
        """A line beside the bar, such as a warning."""
        if self._bar is None:
            print(_one_line(text), file=self.stream, flush=True)
        else:
            self._bar.write(_one_line(text), file=self.stream)

    def _show_study(self) -> None:
        """Draws the bar as the study stands."""
        if self._bar is None or self.study is None:
            return
        left = seconds_left(self.study, datetime.now(UTC))
        time = f"about {duration_text(left)} left" if left is not None else ""
        found = _best_values(self.study)
        self._bar.n = len(finished(self.study))
        self._bar.total = max(slots_of(self.space), self._bar.n)  # the space may ask for fewer than there are
        self._bar.set_postfix_str(", ".join(filter(None, [time, f"best {found}" if found else ""])), refresh=False)
        self._bar.refresh()

    def _show_line(self, text: str) -> None:
        if self._line is not None:
            self._line.set_description_str(self._trial + _one_line(text))


def _finished_line(record: TrialRecord, study: StudyRecord) -> str:
    """`trial 7 complete in 41 s: spam-accuracy 0.963, tpot_p50_ms 0.58`, or the reason why not."""
    after = f" in {duration_text(record.seconds)}" if record.seconds is not None else ""
    values = [
        f"{objective_label(study.space, o)} {metric_text(o.metric, record.value(o))}"
        for o in study.space.objectives
        if record.value(o) is not None
    ]
    words = [*values, *(f"breaks {w}" for broken in record.violated.values() for w in broken)]
    if record.reason:
        words.append(_one_line(record.reason))
    end = f": {', '.join(words)}" if words else ""
    return f"trial {record.slot} {_STATES.get(record.state, record.state)}{after}{end}"


def _best_values(study: StudyRecord) -> str:
    """`spam-accuracy 0.963 (trial 7), tpot_p50_ms 0.58 (trial 2)`; empty where nothing is measured yet."""
    found = []
    for objective in study.space.objectives:
        if trial := best(study, objective):
            value = metric_text(objective.metric, value_of(trial, objective))
            found.append(f"{objective_label(study.space, objective)} {value} (trial {trial.slot})")
    return ", ".join(found)


def _one_line(text: str) -> str:
    return " ".join(text.split())
