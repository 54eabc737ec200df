"""Rows that a teacher is to answer: what is read of an answer, and what a student then learns."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from data.examples import ClassificationData, GenerationData, load_data, read_data
from data.olive_components import rows
from data.teacher_answers import Lesson, Reading, label_rights, split_answer
from data.teacher_settings import TeacherSettings, teacher_problems
from data.teaching import Unanswered
from runtime.errors import ConfigError, DataError

ROWS = [{"text": "win a car", "kind": "spam"}, {"text": "see you", "kind": "ham"}, {"text": "call 555", "kind": "spam"}]
SERVER = {"url": "http://localhost:8000/v1", "model": "tiny"}


def config(folder: Path, kind: str, **options: Any) -> dict[str, Any]:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    taught = {"teacher": SERVER, "prompt_template": "Spam? {text}", "labels": ["ham", "spam"], **options}
    return {
        "name": "taught",
        "load_dataset_config": {"type": "rows", "data_files": str(file)},
        "pre_process_data_config": {"type": kind, **taught},
    }


def unanswered(folder: Path, kind: str = "taught_generation", **options: Any) -> Unanswered:
    found = read_data(config(folder, kind, **options))
    assert isinstance(found, Unanswered)
    return found


READINGS = [
    ("spam", False, Lesson("", "spam")),
    (" **Spam**.\n", False, Lesson("", "spam")),
    ("It sells.\nAnswer: Spam!", True, Lesson("It sells.", "spam")),
    ("Answer: ham? No.\nanswer: spam\nBecause it sells.", True, Lesson("Answer: ham? No.", "spam")),
    ("Why: it sells. Answer:\n\n- \n`spam`", False, Lesson("Why: it sells.", "spam")),
    ("spam", True, None),  # no reasoning
    ("Answer: spam", True, None),
    ("It is spam", False, None),
    ("Answer: spam or ham", False, None),
    ("Answer:", False, None),
    ("", False, None),
    ("<html>", False, None),
]


@pytest.mark.parametrize(("text", "reasoning", "expected"), READINGS)
def test_reading(text: str, reasoning: bool, expected: Lesson | None) -> None:
    assert Reading(("ham", "spam"), reasoning=reasoning).lesson(text) == expected


def test_reading_free_text_and_odd_labels() -> None:
    assert Reading().lesson(" Two lines,\nall kept. ") == Lesson("", "Two lines,\nall kept.")
    assert Reading(reasoning=True).lesson("So.\nAnswer: 4") == Lesson("So.", "4")
    assert Reading().lesson("  \n") is None
    assert Reading(("+1", "-1")).lesson('"-1".') == Lesson("", "-1")
    assert split_answer("İ first ANSWER: two", "Answer:") == ("", "İ first ANSWER: two")  # lower() changes its length
    assert split_answer("İ first Answer: two", "Answer:") == ("İ first", "two")


def test_label_rights() -> None:
    expected = ["ham", "spam", "So. Answer: spam", "ham", "ham"]
    answers = ["Ham.\nmore", "It sells. Answer: spam", "spam", "hamster", ""]
    assert label_rights(expected, answers, "Answer:") == [True, True, True, False, False]


def test_what_a_student_learns(tmp_path: Path) -> None:
    """The answer alone, the reasoning before it, or both as two tasks; rows without an answer are left out."""
    found = [Lesson("It sells.", "spam"), None, Lesson("A number.", "spam")]
    asked = unanswered(tmp_path, template="{text}\nKind:")
    assert asked.questions == ["Spam? win a car", "Spam? see you", "Spam? call 555"]
    prompts = ["win a car\nKind:", "call 555\nKind:"]
    expected = GenerationData(prompts, ["spam", "spam"], "{text}\nKind:", 256, False, "rows.jsonl")
    assert asked.answered(found) == expected
    before = unanswered(tmp_path, template="{text}\nKind:", reasoning="before", answer_mark="So:")
    responses = ["It sells. So: spam", "A number. So: spam"]
    assert before.answered(found) == dataclasses.replace(expected, responses=responses)
    beside = unanswered(tmp_path, template="{text}\nKind:", reasoning="beside", reasoning_template="{text}\nWhy:")
    both = [*prompts, "win a car\nWhy:", "call 555\nWhy:"], ["spam", "spam", "It sells.", "A number."]
    assert beside.answered(found) == dataclasses.replace(expected, prompts=both[0], responses=both[1])
    assert before.reading.reasoning and beside.reading.reasoning and not asked.reading.reasoning


def test_a_classifier_learns_labels(tmp_path: Path) -> None:
    asked = unanswered(tmp_path, "taught_classification", max_length=9)
    texts, labels = ["win a car", "see you"], ["spam", "ham"]
    expected = ClassificationData(texts, labels, ["ham", "spam"], max_length=9, source="rows.jsonl")
    assert asked.answered([Lesson("", "spam"), Lesson("", "ham"), None]) == expected
    with pytest.raises(DataError, match="the teacher gave all of 2 rows the label 'ham'"):
        asked.answered([Lesson("", "ham"), None, Lesson("", "ham")])


def test_every_label_is_in_the_example(tmp_path: Path) -> None:
    """What is checked before the teacher is asked has all that it may answer, with fewer rows than labels too."""
    asked = unanswered(tmp_path, prompt="text").example()
    assert isinstance(asked, GenerationData) and asked.responses == ["ham"] * 3  # two data sets are compared by them
    names = ["ham", "spam", "bill", "news"]
    heads = unanswered(tmp_path, "taught_classification", labels=names).example()
    texts = ["win a car", "see you", "call 555", "win a car"]
    assert heads == ClassificationData(texts, names, names, source="rows.jsonl")
    with pytest.raises(DataError, match="unknown label 'news'"):
        heads.check_labels(names[:3])
    free = unanswered(tmp_path, prompt="text", labels=None).example()
    assert isinstance(free, GenerationData) and free.responses == ["answer"] * 3


def test_true_labels(tmp_path: Path) -> None:
    """Rows with true labels are data by themselves; the teacher is asked the same questions to be scored."""
    asked = unanswered(tmp_path, label="kind", prompt="text")
    assert asked.truth == GenerationData([r["text"] for r in ROWS], ["spam", "ham", "spam"], source="rows.jsonl")
    assert asked.true_labels == ["spam", "ham", "spam"] and len(asked.questions) == 3
    heads = unanswered(tmp_path, "taught_classification", label="kind").truth
    assert isinstance(heads, ClassificationData) and heads.labels == ["spam", "ham", "spam"]


def test_fingerprints_follow_what_is_asked_and_learned(tmp_path: Path) -> None:
    """But not how patiently it is asked: that changes no answer."""
    first = unanswered(tmp_path, prompt="text").fingerprint
    assert (
        unanswered(tmp_path, prompt="text", teacher={**SERVER, "retries": 9, "timeout_seconds": 1}).fingerprint == first
    )
    others: list[dict[str, Any]] = [
        {"teacher": {**SERVER, "temperature": 1}},
        {"prompt_template": "Ham? {text}"},
        {"reasoning": "before"},
        {"max_length": 99},
        {"labels": ["spam", "ham"]},
    ]
    assert len({first, *(unanswered(tmp_path, **{"prompt": "text", **o}).fingerprint for o in others)}) == 6


def test_no_row_with_an_answer(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl: the teacher gave none of 3 rows an answer"):
        unanswered(tmp_path, prompt="text").answered([None] * 3)
    with pytest.raises(DataError, match="'taught': its rows are answered by a teacher"):
        load_data(config(tmp_path, "taught_generation", prompt="text"))


def test_every_wrong_option_is_named(tmp_path: Path) -> None:
    wrong: dict[str, Any] = {"prompt_template": "{txt}", "labels": ["Ham", "ham."], "reasoning": "befor", "attempts": 0}
    wrong |= {"answer_mark": " ", "label": "knd", "reasoning_template": "{text}", "teacher": {**SERVER, "retris": 1}}
    with pytest.raises(ConfigError) as error:
        unanswered(tmp_path, **wrong)
    assert error.value.problems == [
        f"data config 'taught': {line}"
        for line in [
            "teacher.retris: unknown option of a teacher with url; did you mean 'retries'? Valid: api_key_env, "
            "backoff_seconds, max_new_tokens, model, request, requests_at_once, retries, stop, temperature, "
            "timeout_seconds, url",
            "labels: must differ by more than upper case, quotes and sentence marks, but are ['Ham', 'ham.']",
            "answer_mark: must be text, but is ' '",
            "attempts: must be a whole number of at least 1, but is 0",
            "reasoning: 'befor' is unknown; did you mean 'before'? Valid: before, beside, none",
            "reasoning_template: goes with reasoning 'beside', and that with it: the second task's prompt",
            "prompt_template: rows.jsonl: there is no column 'txt'; did you mean 'text'? Valid: kind, text",
            "label: rows.jsonl: there is no column 'knd'; did you mean 'kind'? Valid: kind, text",
        ]
    ]
    with pytest.raises(ConfigError, match=r"labels: must be a list of two or more texts, but is \[\]"):
        unanswered(tmp_path, labels=[])
    with pytest.raises(ConfigError, match="labels: is required"):
        unanswered(tmp_path, "taught_classification", labels=None)
    with pytest.raises(DataError, match="unknown parameter 'promt_template'"):
        unanswered(tmp_path, promt_template="{text}")
    with pytest.raises(ConfigError, match=r"label: rows.jsonl: unknown label 'spam' \(2 of 3 rows: 1, 3\)"):
        unanswered(tmp_path, labels=["ham", "eggs"], label="kind")


TEACHERS: list[tuple[Any, str]] = [
    (None, "teacher: must be an object with one of url, model_path, adapter, but is None"),
    ({}, "teacher: give one of url, model_path, adapter, but there is none of them"),
    ({"url": "http://h/v1", "model_path": "m"}, "teacher: give one of url, model_path, adapter, but there is both"),
    ({"url": "http://h/v1"}, "teacher.model: is required"),
    ({"url": "localhost:80", "model": "m"}, "teacher.url: 'localhost:80' is no http or https URL"),
    ({"url": "http://h:port/v1", "model": "m"}, "teacher.url: is no URL"),
    ({"url": "http://h/v1?key=1", "model": "m"}, "teacher.url: has a query or fragment"),
    ({"url": "http://h/v1/chat/completions", "model": "m"}, "teacher.url: 'http://h/v1/chat/completions' is a single"),
    ({**SERVER, "timeout_seconds": 0}, "teacher.timeout_seconds: must be a number above 0, but is 0"),
    ({**SERVER, "requests_at_once": True}, "teacher.requests_at_once: must be a whole number from 1, but is True"),
    ({**SERVER, "stop": "\n"}, "teacher.stop: must be a list of texts"),
    ({**SERVER, "request": {"api_key": "sk"}}, "teacher.request: a key has no place in a workflow"),
    ({**SERVER, "api_key_env": "NO_SUCH_KEY"}, "teacher.api_key_env: the environment variable NO_SUCH_KEY is not set"),
    ({**SERVER, "request": {"api-key": "sk"}}, "teacher.request: a key has no place in a workflow"),
    ({**SERVER, "request": {"extra": [{"headers": {"Authorization": "sk"}}]}}, "teacher.request: a key has no place"),
    ({**SERVER, "request": {"token": "sk"}}, "teacher.request: a key has no place in a workflow"),
    ({**SERVER, "request": {"X-ApiKey": "sk"}}, "teacher.request: a key has no place in a workflow"),
    ({**SERVER, "api_key_env": "sk-123"}, "teacher.api_key_env: must be an environment variable's name"),
    ({"model_path": "m", "temperature": 1}, "teacher.temperature: unknown option of a teacher with model_path"),
    ({"model_path": "m", "compute_dtype": "fp8"}, "teacher.compute_dtype: must be one of float32, bfloat16, float16"),
    ({"adapter": "a", "quantization": "nf4"}, "teacher.quantization: unknown option of a teacher with adapter"),
]


def test_all_that_is_wrong_with_a_server_comes_at_once() -> None:
    lines = teacher_problems({"url": "localhost", "retris": 1, "api_key_env": "NO_SUCH_KEY", "temperature": "hot"})
    assert [line.split(":")[0] for line in lines] == [
        "teacher.retris",
        "teacher.temperature",
        "teacher.url",
        "teacher.api_key_env",
        "teacher.model",
    ]
    (line,) = teacher_problems({"url": 5, "model": "m"})
    assert line == "teacher.url: must be text, but is 5"


@pytest.mark.parametrize(("options", "expected"), TEACHERS)
def test_a_wrong_teacher_is_named(options: Any, expected: str) -> None:
    (line,) = teacher_problems(options)
    assert line.startswith(expected)


def test_a_password_in_a_url_is_not_shown() -> None:
    (line,) = teacher_problems({"url": "https://me:sk-secret@host/v1", "model": "m"})
    assert line.startswith("teacher.url: has a user or password") and "secret" not in line
    for key in ("sk-secret", "hf_secret", "gsk_secretMIXED09"):
        (line,) = teacher_problems({**SERVER, "api_key_env": key})
        assert "secret" not in line
    assert line == (
        "teacher.api_key_env: the variable that api_key_env names is not set (names are upper case, such as "
        "OPENAI_API_KEY); export it, or leave out the option for a server without keys"
    )
    request = {"headers": {"Authorization": "sk-secret", "accept": "sk"}, "tools": [{"hf-Token": "sk-secret"}]}
    (line,) = teacher_problems({**SERVER, "request": request})
    assert "secret" not in line and "would store headers.Authorization, tools.hf-Token;" in line


def test_counts_of_tokens_are_no_keys() -> None:
    fields = {"max_tokens": None, "max_completion_tokens": 9, "return_token_ids": True, "logit_bias": {"5": 1}}
    assert teacher_problems({**SERVER, "request": fields}) == []


def test_the_documentation_names_every_option() -> None:
    import inspect

    from data import olive_components, teacher_settings

    text = (Path(__file__).resolve().parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
    components = (olive_components.taught_classification, olive_components.taught_generation)
    options = {name for component in components for name in inspect.signature(component).parameters}
    options |= {name for kind, names in teacher_settings.OPTIONS.items() for name in (kind, *names)}
    assert len(options) > 20
    assert [name for name in options - {"dataset", "others"} if f"`{name}`" not in text] == []


def test_our_explained_messages() -> None:
    """Every row of the sample teaches a reason and then its own label; none is held out, or labelled by the teacher."""
    samples = Path(__file__).resolve().parents[2] / "data" / "samples"
    lines = (samples / "tasks" / "sms_reasons.jsonl").read_text(encoding="utf-8").splitlines()
    explained = [json.loads(line) for line in lines]
    assert len(explained) == 120
    for row in explained:
        lesson = Reading(("ham", "spam"), reasoning=True).lesson(row["answer"])
        assert lesson is not None and lesson.answer == row["label"]
    workflow = samples.parents[1] / "workflows" / "tasks" / "distillation.json"
    configs = {c["name"]: c for c in json.loads(workflow.read_text(encoding="utf-8"))["data_configs"]}
    known = {row["text"] for row in explained}
    for name in ("labels_only", "held_out"):
        load = configs[name]["load_dataset_config"]
        dataset = rows(
            **{
                **{k: v for k, v in load.items() if k != "type"},
                "data_files": str(samples.parents[1] / load["data_files"]),
            }
        )
        assert len(dataset) in (120, 360) and not known & set(dataset["text"])


def test_the_key_is_no_part_of_a_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", "sk-secret")
    options = {**SERVER, "api_key_env": "TEACHER_KEY"}
    assert teacher_problems(options) == []
    settings = TeacherSettings.from_options(options)
    monkeypatch.setenv("TEACHER_KEY", "sk-secret\u2026")
    (line,) = teacher_problems(options)
    assert line == "teacher.api_key_env: the value of TEACHER_KEY has spaces or other signs that no key has"
    assert "sk-secret" not in repr(settings) and "sk-secret" not in json.dumps(settings.identity())
