from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.__main__ import main
from data.examples import ClassificationData, GenerationData
from data.statistics import describe, format_statistics, languages
from tests.data.tokenizers_for_tests import byte_tokenizer

ENGLISH = "The weather was lovely this morning, so we walked along the river until it started to rain."
PORTUGUESE = "O tempo estava muito bonito hoje de manhã, então caminhamos ao longo do rio até começar a chover."


def test_describe_counts_what_is_there() -> None:
    texts = ["one two", "ONE  two", "abc", "d"]
    data = ClassificationData(texts, ["x", "x", "x", "y"], ["x", "y", "z"], source="s.csv")
    result = describe(data, byte_tokenizer())
    assert (result["source"], result["kind"], result["rows"], result["duplicates"]) == ("s.csv", "classification", 4, 1)
    assert result["classes"] == {
        "x": {"count": 3, "share": 0.75},
        "y": {"count": 1, "share": 0.25},
        "z": {"count": 0, "share": 0.0},
    }
    assert result["characters"] == {"min": 1, "mean": 4.75, "p50": 5.0, "p95": pytest.approx(7.85), "max": 8}
    assert result["words"]["max"] == 2
    assert (result["tokens"]["min"], result["tokens"]["max"]) == (2, 9)
    assert result["fingerprint"] == data.fingerprint
    assert sum(result["languages"].values()) == pytest.approx(1)
    assert json.loads(json.dumps(result)) == result


def test_describe_takes_prompt_and_response_together() -> None:
    result = describe(GenerationData(["ab", ""], ["c", "d"]))
    assert "classes" not in result and "tokens" not in result
    assert (result["characters"]["max"], result["characters"]["min"]) == (4, 1)


def test_an_empty_data_set_has_no_lengths() -> None:
    result = describe(ClassificationData([], [], ["x", "y"]))
    assert (result["rows"], result["characters"], result["languages"]) == (0, None, {})
    assert "0 rows" in format_statistics(result)


def test_languages() -> None:
    assert languages([ENGLISH, ENGLISH, ENGLISH, PORTUGUESE]) == {"en": 0.75, "pt": 0.25}
    assert languages(["1234 5678"]) == {"unknown": 1.0}


def test_the_table_shows_every_class_and_length() -> None:
    table = format_statistics(describe(ClassificationData([ENGLISH, PORTUGUESE], ["a", "b"], ["a", "b"], source="s")))
    for piece in ("s: 2 rows, classification", "a             1    50.0%", "characters", "words", "en 50.0%, pt 50.0%"):
        assert piece in table
    assert "tokens" not in table


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "train.csv").write_text("body,label\nhello there,ham\nfree prize,spam\n")
    (tmp_path / "dev.csv").write_text("body,label\nFREE  prize,spam\nnew text,ham\n")
    return str(tmp_path / "train.csv"), str(tmp_path / "dev.csv")


def test_the_command_prints_the_table_and_the_rows_in_both_files(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    train, dev = files
    assert main([train, "--text", "body", "--label", "label", "--against", dev]) == 0
    output = capsys.readouterr()
    assert "spam          1    50.0%" in output.out
    assert "1 of 2 rows of dev.csv also stand in train.csv\n  row 2 = row 1: 'free prize'" in output.out
    assert output.err == ""


def test_the_command_counts_tokens(files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    assert main([files[0], "--text", "body", "--tokenizer", str(tmp_path / "tokenizer")]) == 0
    assert "tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--text", "bdy", "--label", "label"], "no column 'bdy'; did you mean 'body'"),
        (["--text", "body", "--label", "body", "--prompt", "p"], "exclude --text"),
        (["--text", "body", "--against", "nowhere/dev.csv"], "no folder nowhere"),
        (["--text", "body", "--tokenizer", "nowhere/tokenizer"], "--tokenizer nowhere/tokenizer: cannot be loaded"),
    ],
)
def test_the_command_gives_one_line_and_exit_code_one(
    files: tuple[str, str], options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([files[0], *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error
