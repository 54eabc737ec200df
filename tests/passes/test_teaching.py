"""Asking a teacher: what is kept, what is asked again, how it goes on after a kill; local teachers; workflows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.examples import GenerationData
from data.teacher_answers import Lesson, Reading
from data.teacher_settings import TeacherSettings
from data.teaching import Unanswered
from passes.teaching.answer_store import AnswerStore, key_of
from passes.teaching.asking import lessons
from runtime.errors import ConfigError, OlivalError
from tests.passes.chat_server import Reply, chat_server
from tests.passes.conftest import REPOSITORY

READING = Reading(("bad", "good"), reasoning=True)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def rows(teacher: dict[str, Any], questions: list[str], reading: Reading = READING, attempts: int = 3) -> Unanswered:
    def make(kept: list[int], found: list[Lesson]) -> GenerationData:
        return GenerationData([questions[row] for row in kept], [lesson.answer for lesson in found])

    settings = TeacherSettings.from_options({"backoff_seconds": 0.01, "requests_at_once": 1, **teacher})
    return Unanswered(questions, settings, reading, attempts, make, None, [], "rows.csv")


def ask(found: Unanswered, cache: Path) -> list[Lesson | None]:
    return lessons(found, Path(), {}, cache)


def kept(cache: Path) -> list[dict[str, str]]:
    (file,) = (cache / "teacher").iterdir()
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]


def test_nonsense_is_asked_again_and_then_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second time with the first answer and what was wrong with it; equal rows are asked once."""

    def answer(request: dict[str, Any], _: int) -> Reply:
        first, turns = request["messages"][0]["content"], len(request["messages"])
        if first == "never":
            return Reply(f"banana {turns}")
        return Reply("hm" if first == "later" and turns == 1 else "It shines. Answer: Good")

    shines = Lesson("It shines.", "good")
    with chat_server(answer) as server:
        teacher = {"url": server.url, "model": "tiny"}
        questions = ["now", "later", "never", "now"]
        assert ask(rows(teacher, questions), tmp_path) == [shines, shines, None, shines]
        assert [len(request["messages"]) for request in server.requests] == [1, 1, 1, 3, 3, 3]
        complaint = "That could not be read. First give the reasoning, then write 'Answer:' and one of bad, good "
        complaint += "and nothing else."
        assert server.requests[3]["messages"][1:] == [
            {"role": "assistant", "content": "hm"},
            {"role": "user", "content": complaint},
        ]
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith(
            "teacher tiny: 3 of 4 rows of rows.csv answered, 6 questions asked, 1 left out: their answers could not be "
            "read, such as 'banana 3'; raise `attempts`, or delete "
        )
        asked = len(server.requests)
        assert ask(rows(teacher, questions), tmp_path) == [shines, shines, None, shines]
        assert len(server.requests) == asked  # nonsense is kept too
        assert ask(rows(teacher, ["now"], Reading(("good", "dull"))), tmp_path) == [shines]
        assert len(server.requests) == asked  # the same question, read for a student that learns the label alone
        other = {**teacher, "temperature": 1.0}
        assert ask(rows(other, ["now"]), tmp_path) == [shines]
        assert len(server.requests) == asked + 1


def test_other_readings_change_no_answer_and_use_up_no_attempt(tmp_path: Path) -> None:
    """One wants labels, one reasons too: each keeps what it first read, and each asks for itself."""

    def answer(request: dict[str, Any], _: int) -> Reply:
        again, first = len(request["messages"]) > 1, request["messages"][0]["content"]
        if first == "never":
            return Reply("banana")
        return Reply("It rains. Answer: bad" if again else "good")

    alone = Reading(("bad", "good"))
    with chat_server(answer) as server:
        teacher = {"url": server.url, "model": "tiny"}
        labels, reasons = (rows(teacher, ["now", "never"], reading, attempts=1) for reading in (alone, READING))
        for _ in range(2):
            assert ask(labels, tmp_path) == [Lesson("", "good"), None]
            assert ask(reasons, tmp_path) == [Lesson("It rains.", "bad"), None]
            assert len(server.requests) == 4  # nothing is asked again the second time
        assert ask(rows(teacher, ["never"], alone, attempts=3), tmp_path) == [None]
        assert len(server.requests) == 6


def test_a_run_goes_on_where_a_failed_one_stopped(tmp_path: Path) -> None:
    """The message says how many rows are kept and where; the next run asks the others alone."""

    def answer(_: Any, number: int) -> Reply:
        return Reply(status=500) if number == 3 else Reply("So. Answer: bad")

    questions = [f"question {n}" for n in range(6)]
    with chat_server(answer) as server:
        found = rows({"url": server.url, "model": "tiny", "retries": 0}, questions)
        with pytest.raises(OlivalError) as error:
            ask(found, tmp_path)
        lines = str(error.value).splitlines()
        assert lines[0].startswith(f"rows.csv: {server.url}/chat/completions: no answer in 1 tries; the last: HTTP 500")
        assert lines[1].startswith("3 of 6 rows are answered and kept in ")
        assert lines[1].endswith(".jsonl; the same command goes on from there")
        assert ask(found, tmp_path) == [Lesson("So.", "bad")] * 6
        assert server.questions == questions[:4] + questions[3:]


ASKING = """
import json, sys
from pathlib import Path
from data.teacher_answers import Reading
from data.teacher_settings import TeacherSettings
from data.teaching import Unanswered
from passes.teaching.asking import lessons
url, cache, questions = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
settings = TeacherSettings.from_options({"url": url, "model": "tiny", "requests_at_once": 1})
lessons(Unanswered(questions, settings, Reading(("bad", "good")), 1, None, None, [], "rows"), Path(), {}, cache)
"""


def test_a_run_goes_on_after_kill_9(tmp_path: Path) -> None:
    """Killed while the sixth answer is under way: five are kept, and the next process asks for the others."""
    process: list[subprocess.Popen[bytes]] = []

    def answer(_: Any, number: int) -> Reply:
        if number == 5:
            os.kill(process[0].pid, signal.SIGKILL)
        return Reply("good")

    questions = [f"question {n}" for n in range(8)]
    with chat_server(answer) as server:
        command = [sys.executable, "-c", ASKING, server.url, str(tmp_path), json.dumps(questions)]
        process.append(subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE))
        assert process[0].wait(60) == -signal.SIGKILL
        assert len(kept(tmp_path)) == 5 and server.questions == questions[:6]
        subprocess.run(command, cwd=REPOSITORY, check=True, timeout=60)
        assert server.questions == questions[:6] + questions[5:]
        assert [record["question"] for record in kept(tmp_path)] == [key_of(question) for question in questions]


def test_the_store_outlives_a_line_that_is_cut_off(tmp_path: Path) -> None:
    """At every byte: what stood before is read, and what is written next too."""
    store = AnswerStore(tmp_path, "models/Big Teacher", {"temperature": 0})
    store.keep("one", "first\nline\u2028ü")
    store.keep("two", "second")
    whole = store.file.read_bytes()
    start = whole.rindex(b"\n", 0, -1)
    for end in range(start, len(whole) - 1):
        store.file.write_bytes(whole[:end])
        found = AnswerStore(tmp_path, "models/Big Teacher", {"temperature": 0})
        assert found.answers()[key_of("one")] == ["first\nline\u2028ü"]
        found.keep("three", "third")
        assert found.answers()[key_of("three")] == ["third"]
        assert found.answers().keys() <= {key_of(name) for name in ("one", "two", "three")}
    store.file.unlink()
    store.file.mkdir()
    with pytest.raises(OlivalError, match=r"an answer of the teacher cannot be kept: .*directory"):
        store.keep("one", "first")
    assert store.file.name.startswith("models_Big_Teacher-")
    assert AnswerStore(tmp_path, "models/Big Teacher", {"temperature": 1}).answers() == {}


def test_a_local_teacher_writes_what_transformers_writes(tiny_llama_path: Path, tmp_path: Path) -> None:
    """Greedily, by the tokenizer's chat template; told what was wrong, it answers in the conversation."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_llama_path)
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_llama_path, dtype=torch.float32)

    def reference(messages: list[dict[str, str]]) -> str:
        ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=False
        )
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=0
        )
        return str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))

    questions = ["The soup was warm", "Why?", "Two plus two is four, and four"]
    teacher = {"model_path": str(tiny_llama_path), "max_new_tokens": 6, "batch_size": 2}
    found = rows(teacher, questions, Reading(("good", "bad")), attempts=2)
    assert ask(found, tmp_path) == [None] * 3  # random weights write nonsense
    answers = AnswerStore(tmp_path / "teacher", "x", None)
    (answers.file,) = (tmp_path / "teacher").iterdir()
    for question in questions:
        talk = [{"role": "user", "content": question}]
        first = reference(talk)
        talk += [{"role": "assistant", "content": first}, {"role": "user", "content": found.reading.complaint()}]
        assert answers.answers()[key_of(question)] == [first, reference(talk)]
    free = rows(teacher, questions, Reading())
    assert [lesson.answer for lesson in ask(free, tmp_path) if lesson] == [
        text.strip() for text in (answers.answers()[key_of(question)][0] for question in questions)
    ]


def test_an_adapter_as_teacher(tiny_llama_path: Path, make_peft_adapter: Callable[..., Path], tmp_path: Path) -> None:
    """Its own weights are active, its question is plain text as it was trained; equal to PEFT's own generate."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = make_peft_adapter(tiny_llama_path, rank=8, seed=1, settings={"template": "{prompt}"})
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_llama_path)
    base: Any = AutoModelForCausalLM.from_pretrained(tiny_llama_path, dtype=torch.float32)
    model: Any = PeftModel.from_pretrained(base, folder)
    questions = ["The soup was warm", "Why?"]
    found = rows({"adapter": "story", "max_new_tokens": 6}, questions, Reading())
    answers = [lesson.answer for lesson in lessons(found, tiny_llama_path, {"story": folder}, tmp_path) if lesson]
    expected = []
    for question in questions:
        ids = torch.tensor([tokenizer(question)["input_ids"]])
        made = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
        expected.append(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True).strip())
    assert answers == expected
    with pytest.raises(ConfigError, match=r"teacher\.adapter: 'other' is not trained yet; .*Valid: story"):
        lessons(rows({"adapter": "other"}, questions), tiny_llama_path, {"story": folder}, tmp_path)
