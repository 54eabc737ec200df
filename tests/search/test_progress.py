"""What a worker shows: on a terminal a bar that leaves it clean, elsewhere a line for each trial."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import termios
import textwrap
from collections.abc import Callable
from dataclasses import replace

import pytest

from search.progress import Progress
from search.records import StudyRecord
from tests.search.example_study import example_space, example_study, example_trial


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def screen(written: str) -> list[str]:
    """The lines that a terminal shows in the end, for what tqdm writes: text, line feeds, returns, cursor up."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[A|\x1b\[\d*[A-Za-z]|\r|\n|[^\r\n\x1b]+", written):
        if part == "\x1b[A":
            row -= 1
        elif part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif part == "\r":
            column = 0
        else:
            assert not part.startswith("\x1b"), f"unknown control sequence {part!r}"
            lines[row] = lines[row].ljust(column)[:column] + part + lines[row][column + len(part) :]
            column += len(part)
    return [line.rstrip() for line in lines]


def study(done: int) -> StudyRecord:
    return example_study(done=done)


def worked(stream: io.StringIO, upto: int = 7, before: Callable[[], None] = lambda: None) -> None:
    """Trials 0 to `upto` - 1 of the example under a Progress; `before` is called inside the last one."""
    with Progress(example_space(), stream, study(0)) as progress:
        for slot in range(upto):
            progress.trial_started(slot, 0, study(slot + 1).trials[-1].parameters)
            progress.stage(f"train spam 120/180, accuracy 0.9{slot}\n")
            if slot == upto - 1:
                before()
            progress.trial_finished(study(slot + 1).trials[-1], study(slot + 1))
        progress.note("a note [red] of two\nlines")


def test_a_pipe_gets_a_line_for_each_trial() -> None:
    stream = io.StringIO()
    worked(stream)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 8 and "\r" not in stream.getvalue() and "\x1b" not in stream.getvalue()
    assert lines[0].startswith("[1/30] trial 0 complete in ") and "spam-accuracy 0.95" in lines[0]
    assert lines[2].endswith("; best spam-accuracy 0.9535 (trial 0), tpot_p50_ms 0.432 (trial 2)")
    assert "trial 3 pruned in 13.5 s: spam training accuracy 0.871 at step 60" in lines[3].replace("14 s", "13.5 s")
    assert "breaks size_on_disk <= 3.2e+06" in lines[4]
    assert "trial 6 FAILED" in lines[6] and "no space left on device" in lines[6]
    assert lines[7] == "a note [red] of two lines"


def test_a_terminal_keeps_the_bar_and_what_failed() -> None:
    stream = Terminal()
    worked(stream)
    failed, note, bar, end = screen(stream.getvalue())
    assert failed.startswith("trial 6 FAILED") and note == "a note [red] of two lines" and end == ""
    assert re.match(r"quickstart 7/30 \|.+\| \d\d:\d\d, about 1\d min( \d+ s)? left, best spam-accuracy 0.9535", bar)
    assert "120/180" in stream.getvalue() and "learning_rate" in stream.getvalue()


def test_ctrl_c_leaves_a_clean_terminal() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    stream = Terminal()
    with pytest.raises(KeyboardInterrupt):
        worked(stream, upto=3, before=interrupt)
    bar, end = screen(stream.getvalue())
    assert bar.startswith("quickstart 2/30") and end == ""
    assert "\x1b[?25l" not in stream.getvalue()  # the cursor is never hidden


def test_a_resumed_study_goes_on_where_it_was() -> None:
    stream = Terminal()
    with Progress(example_space(), stream, study(12)):
        pass
    assert screen(stream.getvalue())[0].startswith("quickstart 12/30")
    stream = Terminal()
    with Progress(example_space(), stream):
        pass
    assert screen(stream.getvalue())[0].startswith("quickstart 0/30")
    stream = Terminal()
    with Progress(example_space(trials=5), stream, replace(study(12), space=example_space(trials=5))):
        pass
    assert screen(stream.getvalue())[0].startswith("quickstart 12/12")


def test_a_trial_without_reason_values_or_times() -> None:
    space = example_space()
    odd = example_trial(space, 0, "failed", reason=None, started=None, finished=None, metrics={}, parameters={})
    stream = io.StringIO()
    with Progress(space, stream) as progress:
        progress.trial_started(0, 2, {})
        progress.trial_finished(odd, StudyRecord(space, (odd,), ("target",), {}))
    assert stream.getvalue() == "[1/30] trial 0 FAILED\n"


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_no_line_is_longer_than_the_terminal(columns: int) -> None:
    """A process of its own on a pseudo terminal; a line that wraps would leave rests of the bar behind."""
    leader, follower = os.openpty()
    termios.tcsetwinsize(follower, (24, columns))
    script = """
        from tests.search.test_progress import worked
        import sys
        worked(sys.stderr)
    """
    run = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stderr=follower)
    os.close(follower)
    written = b""
    while chunk := _read(leader):
        written += chunk
    assert run.wait(timeout=60) == 0
    os.close(leader)
    lines = [line for line in screen(written.decode()) if "FAILED" not in line]  # it may wrap: it does not move again
    assert any(line.startswith("quickstart 7/30") for line in lines) and max(map(len, lines)) <= columns


def _read(descriptor: int) -> bytes:
    """What the terminal gives; empty when the process that had it is gone."""
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""
