from __future__ import annotations

import copy
import csv
import importlib
import logging
from pathlib import Path
from typing import Any

import pytest
from olive.data.config import DataConfig

import data.olive_components
from data.examples import ClassificationData, GenerationData, load_data
from runtime.errors import DataError


@pytest.fixture
def spam(tmp_path: Path) -> Path:
    """40 rows, a fifth of them spam, two rows with one text."""
    file = tmp_path / "spam.csv"
    with file.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["subject", "text", "label"])
        for number in range(40):
            writer.writerow([f"s{number}", f"text {number}", "spam" if number % 5 == 0 else "ham"])
    return file


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    file = tmp_path / "pairs.jsonl"
    file.write_text(
        '{"prompt": "2+2?", "context": "", "response": "4"}\n{"prompt": "3+3?", "context": "sum", "response": "6"}\n',
        encoding="utf-8",
    )
    return file


def _config(
    file: Path, load: dict[str, Any] | None = None, kind: str = "classification", **options: Any
) -> dict[str, Any]:
    return {
        "name": "tiny",
        "load_dataset_config": {"type": "rows", "data_files": str(file), **(load or {})},
        "pre_process_data_config": {"type": kind, **options},
    }


def _classification(config: dict[str, Any]) -> ClassificationData:
    data = load_data(config)
    assert isinstance(data, ClassificationData)
    return data


def _generation(config: dict[str, Any]) -> GenerationData:
    data = load_data(config)
    assert isinstance(data, GenerationData)
    return data


def test_a_classification_config(spam: Path) -> None:
    config = _config(spam, text="text", label="label", max_length=96, window_stride=48)
    before = copy.deepcopy(config)
    data = _classification(config)
    assert config == before
    assert (len(data), data.texts[0], data.labels[0]) == (40, "text 0", "spam")
    assert data.label_names == ["ham", "spam"]
    assert (data.template, data.max_length, data.window_stride) == ("{text}", 96, 48)
    assert data.source == "spam.csv"


@pytest.mark.parametrize("nested", [False, True])
def test_olives_own_config_object_and_json_round_trip(spam: Path, nested: bool) -> None:
    config = _config(spam, label_names=["spam", "ham"])
    if nested:  # the form in which Olive writes a parsed config
        for key in ("load_dataset_config", "pre_process_data_config"):
            part = config[key]
            config[key] = {"type": part.pop("type"), "params": part}
    parsed = DataConfig.parse_file_or_obj(copy.deepcopy(config))
    again = DataConfig.parse_file_or_obj(parsed.to_json())
    first, second = load_data(parsed), load_data(again)
    assert first == second == load_data(config)
    assert isinstance(first, ClassificationData) and first.label_names == ["spam", "ham"]


def test_the_components_are_found_through_a_user_script(spam: Path, tmp_path: Path) -> None:
    script = tmp_path / "plug_in.py"
    script.write_text("import data.olive_components\n")
    assert len(load_data({**_config(spam), "user_script": str(script)})) == 40


def test_a_component_of_the_users_own(spam: Path, tmp_path: Path) -> None:
    script = tmp_path / "shouting.py"
    script.write_text(
        "from olive.data.registry import Registry\n"
        "from data.preparing import prepare_classification\n"
        "@Registry.register_pre_process('shouting')\n"
        "def shouting(dataset, **options):\n"
        "    loud = dataset.map(lambda row: {'text': row['text'].upper()})\n"
        "    return prepare_classification(loud, **options)\n"
    )
    data = _classification({**_config(spam, kind="shouting", max_length=9), "user_script": str(script)})
    assert (data.texts[1], data.max_length, data.source) == ("TEXT 1", 9, "spam.csv")


def test_a_template_over_columns(spam: Path) -> None:
    data = _classification(_config(spam, text_template="{subject}: {text}"))
    assert data.texts[3] == "s3: text 3"
    assert data.template == "{subject}: {text}"


def test_parts_are_disjoint_complete_stratified_and_limited(spam: Path) -> None:
    split = {"validation_fraction": 0.25, "seed": 3, "stratify_by": "label"}
    train = _classification(_config(spam, {"split_part": "train", **split}))
    validation = _classification(_config(spam, {"split_part": "validation", **split}))
    assert sorted(train.texts + validation.texts) == sorted(f"text {number}" for number in range(40))
    assert (validation.labels.count("spam"), validation.labels.count("ham")) == (2, 8)
    assert train == load_data(_config(spam, {"split_part": "train", **split}))
    limited = _classification(_config(spam, {"split_part": "train", "limit": 12, **split}))
    assert limited.texts == train.texts[:12]
    assert _classification(_config(spam, {"limit": 7})).texts == [f"text {number}" for number in range(7)]


def test_missing_values_name_the_rows_of_the_file_even_in_a_part(spam: Path) -> None:
    text = spam.read_text(encoding="utf-8").replace("text 17,", ",").replace("text 4,", " ,")
    spam.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"column 'text' has no value in 2 of 40 rows: 5, 18$"):
        load_data(_config(spam))
    messages = ""
    for part in ("train", "validation"):
        try:
            load_data(_config(spam, {"split_part": part, "validation_fraction": 0.5}))
        except DataError as error:
            messages += str(error).rsplit(":", 1)[1]
    assert sorted(int(number) for number in messages.replace(",", " ").split()) == [5, 18]


@pytest.mark.parametrize(
    ("load", "options", "message"),
    [
        ({}, {"label": "lable"}, "no column 'lable'; did you mean 'label'"),
        ({}, {"text": "txt"}, "no column 'txt'; did you mean 'text'"),
        ({}, {"text_template": "{txt}"}, "no column 'txt'; did you mean 'text'"),
        ({}, {"text_template": "fixed"}, "names no column"),
        ({}, {"text": "text", "text_template": "{text}"}, "either text or text_template"),
        ({}, {"label_names": ["ham", "spma"]}, r"unknown label 'spam' \(8 of 40 rows: 1, 6.*did you mean 'spma'"),
        ({}, {"label_names": ["ham"]}, "two or more different names"),
        ({}, {"label_names": ["ham", "ham"]}, "two or more different names"),
        ({}, {"label_names": "ham"}, "must be a list"),
        ({}, {"max_length": 0}, "max_length must be a whole number"),
        ({}, {"max_length": "96"}, "max_length must be a whole number"),
        ({}, {"max_length": None}, "max_length must be a whole number"),
        ({}, {"max_length": 8, "window_stride": 9}, "window_stride <= max_length must hold"),
        ({}, {"max_lenght": 8}, "classification: unknown parameter 'max_lenght'; did you mean 'max_length'"),
        ({"limt": 3}, {}, "rows: unknown parameter 'limt'; did you mean 'limit'"),
        ({"limit": 0}, {}, "limit must be a whole number"),
        ({"split_part": "test"}, {}, "unknown split_part 'test'"),
        ({"split_part": "train", "stratify_by": "lable"}, {}, "no column 'lable'"),
        ({"split_part": "train", "stratify_by": "text"}, {}, "class 'text 0' has a single row"),
        ({"stratify_by": "label"}, {}, "needs split_part"),
        ({"split_part": "train", "validation_fraction": 1.5}, {}, "0 < validation_fraction < 1"),
        ({"type": "row"}, {}, "load_dataset_config.type: unknown 'row'; did you mean 'rows'"),
        ({"type": "local_dataset"}, {}, "set load_dataset_config.type to 'rows'"),
        ({}, {"type": "clasification"}, "did you mean 'classification'"),
        ({}, {"type": "skip_pre_process"}, "makes no data for this workspace"),
    ],
)
def test_wrong_classification_configs(spam: Path, load: dict[str, Any], options: dict[str, Any], message: str) -> None:
    config = _config(spam, load)
    config["pre_process_data_config"].update(options)
    with pytest.raises(DataError, match=message) as caught:
        load_data(config)
    assert "data config 'tiny'" in str(caught.value)


def test_unknown_parameters_are_listed_together_and_olives_own_are_ignored(spam: Path) -> None:
    with pytest.raises(DataError, match=r"'labels'.*'txt'"):
        load_data(_config(spam, labels="a", txt="b"))
    config = _config(spam, {"trust_remote_code": False}, task="text-classification", model_name="m")
    config["type"] = "HuggingfaceContainer"  # Olive puts these parameters in for it
    assert len(load_data(config)) == 40


def test_one_class_only(tmp_path: Path) -> None:
    file = tmp_path / "one.csv"
    file.write_text("text,label\na,ham\nb,ham\n")
    with pytest.raises(DataError, match=r"one.csv: column 'label' holds one class only, 'ham', in 2 rows"):
        load_data(_config(file))
    assert _classification(_config(file, label_names=["ham", "spam"])).label_names == ["ham", "spam"]


@pytest.mark.parametrize(
    "config",
    [
        {"name": "a b"},
        {},
        {"name": "x", "type": "Nothing"},
        {"name": "x", "user_script": "nowhere/script.py"},
        {"name": "x", "pre_process_data_config": {"type": "classification", "task": "x"}},
        "spam_train",
    ],
)
def test_what_is_no_data_config_is_a_data_error(config: Any) -> None:
    with pytest.raises(DataError, match="data config"):
        load_data(config)


def test_a_prompt_column(pairs: Path) -> None:
    data = _generation(_config(pairs, kind="generation", max_length=64, packing=True))
    assert (data.prompts, data.responses) == (["2+2?", "3+3?"], ["4", "6"])
    assert (data.template, data.max_length, data.packing, data.source) == ("{prompt}", 64, True, "pairs.jsonl")


def test_a_prompt_template_with_an_optional_column(pairs: Path) -> None:
    data = _generation(_config(pairs, kind="generation", template="{context}|{prompt} "))
    assert data.prompts == ["|2+2? ", "sum|3+3? "]
    assert data.template == "{context}|{prompt} "


def test_chat_and_plain_text(pairs: Path) -> None:
    chat = _generation(_config(pairs, kind="generation", template="Add: {prompt}", chat_template=True))
    assert (chat.prompts[0], chat.template) == ("Add: 2+2?", "chat")
    plain = _generation(_config(pairs, kind="generation", text_template="{prompt} {response}"))
    assert (plain.prompts, plain.responses[0], plain.template) == (["", ""], "2+2? 4", "{prompt}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"response": "answer"}, "no column 'answer'"),
        ({"prompt": "promt"}, "no column 'promt'; did you mean 'prompt'"),
        ({"prompt": "context"}, "column 'context' has no value in 1 of 2 rows: 1"),
        ({"template": "{context}"}, "column 'context' has no value in 1 of 2 rows: 1"),
        ({"template": "{prompt}", "prompt": "prompt"}, "either prompt or template"),
        ({"text_template": "{prompt}", "response": "response"}, "excludes response"),
        ({"text_template": "{prompt}", "chat_template": True}, "excludes chat_template"),
        ({"packing": "yes"}, "packing must be true or false"),
        ({"chat_tempalte": True}, "did you mean 'chat_template'"),
    ],
)
def test_wrong_generation_configs(pairs: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(_config(pairs, kind="generation", **options))


def test_registering_twice_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        importlib.reload(data.olive_components)
    assert "Duplicate" not in caplog.text


def test_fingerprints_follow_content_and_settings_but_not_the_source() -> None:
    base = ClassificationData(["a", "b"], ["x", "y"], ["x", "y"], source="one.csv")
    assert len(base.fingerprint) == 64
    assert base.fingerprint == ClassificationData(["a", "b"], ["x", "y"], ["x", "y"], source="two.csv").fingerprint
    others = [
        ClassificationData(["a", "c"], ["x", "y"], ["x", "y"]),
        ClassificationData(["a", "b"], ["y", "x"], ["x", "y"]),
        ClassificationData(["a", "b"], ["x", "y"], ["y", "x"]),
        ClassificationData(["a", "b"], ["x", "y"], ["x", "y"], max_length=9),
        ClassificationData(["a", "b"], ["x", "y"], ["x", "y"], window_stride=9),
        base.take([1, 0]),
    ]
    assert len({data.fingerprint for data in [base, *others]}) == 7
    pair = GenerationData(["p"], ["r"])
    assert pair.fingerprint != GenerationData(["p"], ["r"], packing=True).fingerprint


def test_take_keeps_names_and_settings() -> None:
    data = ClassificationData(["a", "b", "c"], ["x", "y", "x"], ["x", "y"], max_length=9, source="s")
    assert data.take([2, 0]) == ClassificationData(["c", "a"], ["x", "x"], ["x", "y"], max_length=9, source="s")
    pairs = GenerationData(["p", "q"], ["r", "s"], "chat", 5, True, "s")
    assert pairs.take([1]) == GenerationData(["q"], ["s"], "chat", 5, True, "s")


def test_label_ids_follow_the_names_given() -> None:
    data = ClassificationData(["a", "b"], ["spam", "ham"], ["ham", "spam"], source="x.csv")
    assert data.label_ids(data.label_names) == [1, 0]
    assert data.label_ids(["spam", "ham", "other"]) == [0, 1]
    with pytest.raises(DataError, match=r"x.csv: row 1: unknown label 'spam'; did you mean 'spma'\? Valid: ham, spma"):
        data.label_ids(["ham", "spma"])
