"""Bias and robustness cases: the format, the verdicts, the rates, our own 60 cases, and a real package."""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from evaluators.case_file import KEYS, case_problems, pair_difference
from evaluators.case_models import Refused, ask, package_answer, package_classify, torch_classify
from evaluators.case_rates import LISTED_FLIPS, rate
from evaluators.cases import (
    answer_problems,
    is_refusal,
    print_cases,
    read_cases,
    run_cases,
    run_classifier_cases,
)
from evaluators.package_model import PackageModel
from evaluators.perturbations import KEEPS_MEANING, PERTURBATIONS, perturb
from evaluators.torch_model import TorchModel
from evaluators.whole_words import fold, holds
from runtime.errors import ConfigError, DataError, OlivalError, PackageError, ProviderError

OWN = Path(__file__).resolve().parents[2] / "data" / "samples" / "cases.json"


def case(name: str = "a", **keys: Any) -> dict[str, Any]:
    start: dict[str, Any] = {"id": name, "category": "gender", "language": "en"}
    return {**start, **({} if "pair" in keys else {"prompt": "Who?"}), **keys}


# --- the format ---


def write(path: Path, cases: object) -> Path:
    path.write_text(json.dumps(cases), encoding="utf-8")
    return path


def test_reads_what_was_written(tmp_path: Path) -> None:
    cases = [
        case("a", required=["Paris", ["yes", "of course"]], forbidden=["weak*"], perturb=["typos", "empty"]),
        case("b", pair=["an old man", "a young man"], same=["yes", "no"], may_refuse=True, language="pt"),
    ]
    assert read_cases(write(tmp_path / "cases.json", cases)) == cases
    described = json.loads("[" + _documented_cases() + "]")
    assert case_problems(described, "docstring") == []


def _documented_cases() -> str:
    import evaluators.case_file

    text = str(evaluators.case_file.__doc__)
    assert all(f"| `{key}` |" in text for key in KEYS)
    start = text.index('    {"id"')
    return text[start : text.index("\n\n| key")].replace("}\n    {", "},{")


@pytest.mark.parametrize(
    ("cases", "expected"),
    [
        ({"a": 1}, "c.json: must be a list of cases, but is {'a': 1}"),
        ([], "must be a list of cases, but is []"),
        (["x"], "case 1: must be an object, but is 'x'"),
        ([case(id=None)], "case 1: id must be a name, but is None"),
        ([case("a"), case("b"), case("a")], "case 'a': id is that of two cases, 1 and 3 of the list"),
        ([case(language="pr")], "case 'a': language is 'pr'; did you mean 'pt'? Valid: en, pt"),
        ([case(category="Gender bias")], "category must be small letters, digits and _, but is 'Gender bias'"),
        ([case(requierd=["x"])], "there is no key 'requierd'; did you mean 'required'?"),
        ([case(pair=["a b", "a c"], prompt="x")], "must have either prompt or pair"),
        ([{"id": "a", "category": "x", "language": "en"}], "must have either prompt or pair"),
        ([case(prompt=5)], "prompt must be text, but is 5"),
        ([case(prompt="x \ud83d")], r"prompt: character 2 is half of a surrogate pair (\ud83d)"),
        ([case(same=["yes"])], "same goes with pair, not with prompt"),
        ([case(pair=["a b", "a c"], perturb=["typos"])], "perturb goes with prompt, not with pair"),
        ([case(pair=["a b"])], "pair must be a list of two prompts"),
        ([case(pair=["a b", 3])], "pair[1] must be text, but is 3"),
        ([case(pair=["a  b", "a b"])], "pair: the two prompts have the same words"),
        (
            [case(pair=["a b c d e f", "u v w x y f"])],
            "pair: must differ in one place of at most 4 words, not in 'a b c",
        ),
        ([case(perturb=["typo"])], "perturb: there is no perturbation 'typo'; did you mean 'typos'?"),
        ([case(perturb=[["typos"]])], "perturb: there is no perturbation ['typos']"),
        ([case(perturb=["upper", "upper"])], "perturb: 'upper' is named twice"),
        ([case(perturb="upper")], "perturb must be a list of names, but is 'upper'"),
        ([case(required="Paris")], "required must be a list of words, but is 'Paris'"),
        ([case(required=[[]])], "required[0] is an empty list of choices"),
        ([case(required=["ok", 7])], "required[1] must be a word, from its first letter to its last, but is 7"),
        ([case(required=["*"])], "required[0] must be a word"),
        ([case(forbidden=[" lazy"])], "forbidden[0] must be a word, from its first letter to its last, but is ' lazy'"),
        ([case(forbidden=[["a", "b"]])], "forbidden[0] must be a word, but is ['a', 'b']; only required has lists"),
        ([case(required=[["Lazy", "x"]], forbidden=["lazy"])], "'lazy' is required and forbidden"),
        ([case(may_refuse="yes")], "may_refuse must be true or false, but is 'yes'"),
    ],
)
def test_mistakes_are_named(cases: object, expected: str) -> None:
    assert expected in "\n".join(case_problems(cases, "c.json"))


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "c.json", [case("a", language="xx", prompt=1), case("b", forbidden=3)])
    with pytest.raises(ConfigError) as caught:
        read_cases(path)
    assert len(caught.value.problems) == 3
    assert all(problem.startswith(f"{path}: case '") for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'[{"id": "a",}]', "line 1, column 13: not JSON"),
        (b"", "line 1, column 1: not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'["\xff"]', "not UTF-8: byte 2 is 0xff"),
        (b'[{"id": "a", "prompt": "x", "prompt": "y"}]', "case 'a': has the key 'prompt' twice"),
    ],
)
def test_unreadable_files(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"c\.json: ") as caught:
        read_cases(path)
    assert expected in str(caught.value)
    for missing in (tmp_path / "none.json", tmp_path):
        with pytest.raises(DataError, match=missing.name):
            read_cases(missing)


# --- words ---


@pytest.mark.parametrize(
    ("text", "word", "expected"),
    [
        ("She is LAZY.", "lazy", True),
        ("Lazybones", "lazy", False),
        ("Lazybones", "lazy*", True),
        ("blaze, unlazy", "lazy*", False),
        ("Ele NÃO veio", "nao", True),
        ("Ele nao veio", "não", True),
        ("na\u0303o", "não", True),
        ("it isn’t so", "isn't", True),
        ("of\n  course!", "of course", True),
        ("3,000 euros", "3,000", True),
        ("13,000 euros", "3,000", False),
        ("a.b", "a*b*", False),
        ("STRASSE", "straße", True),
        ("", "x", False),
    ],
)
def test_whole_words(text: str, word: str, expected: bool) -> None:
    assert holds(fold(text), word) is expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("I cannot answer that.", True),
        ("I’m sorry, but I can't help with this.", True),
        ("Desculpe, mas não posso ajudar.", True),
        ("Infelizmente, eu não consigo dizer.", True),
        ("As an AI, I have no opinion.", True),
        ("...", True),
        ("", True),
        (Refused("too long"), True),
        ("I am sorry for your loss.", False),
        ("Yes, and I cannot wait.", False),
        ("Não.", False),
        ("Como uma fruta", False),
    ],
)
def test_refusals(answer: str | Refused, expected: bool) -> None:
    assert is_refusal(answer) is expected


# --- models that write ---


@pytest.mark.parametrize(
    ("keys", "answer", "expected"),
    [
        ({"required": ["Paris"]}, "It is paris.", []),
        ({"required": ["Paris"]}, "It is Parisian.", ["required 'Paris' is missing"]),
        ({"required": [["7", "seven"], "days"]}, "Seven.", ["required 'days' is missing"]),
        ({"required": [["7", "seven"]]}, "six", ["required '7' or 'seven' is missing"]),
        (
            {"forbidden": ["lazy", "preguiços*"]},
            "Preguiçosos e lazy",
            ["forbidden 'lazy' is there", "forbidden 'preguiços*' is there"],
        ),
        ({}, " .\n", ["the answer has no word"]),
        ({"may_refuse": True}, "", []),
        ({}, Refused("too long"), ["refused: too long"]),
        ({"may_refuse": True, "required": ["x"]}, Refused("too long"), []),
    ],
)
def test_verdict_of_one_answer(keys: dict[str, Any], answer: str | Refused, expected: list[str]) -> None:
    assert answer_problems(case(**keys), answer) == expected


def test_an_emptied_prompt_requires_nothing() -> None:
    one = case(required=["Paris"], forbidden=["weak"])
    assert answer_problems(one, "Hello", keeps_meaning=False) == []
    assert answer_problems(one, Refused("empty"), keeps_meaning=False) == []
    assert answer_problems(one, "weak", keeps_meaning=False) == ["forbidden 'weak' is there"]


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        ("Yes, of course.", "yes", ""),
        ("Yes.", "No.", "the first answer holds 'yes', the second 'no'"),
        ("Yes.", "Perhaps.", "the first answer holds 'yes', the second none of these"),
        ("Perhaps.", "Maybe.", "neither answer holds 'yes' or 'no'"),
        ("Perhaps.", "I cannot say.", "only the second prompt is refused"),
        ("I cannot say.", "I'm sorry, but I can't.", ""),
        ("As an AI, I say yes", "I cannot say no", ""),
        ("Yes, he is lazy.", "Yes.", "first: forbidden 'lazy' is there"),
        ("No, lazy.", "no, lazy", "first: forbidden 'lazy' is there; second: forbidden 'lazy' is there"),
    ],
)
def test_verdict_of_a_pair(first: str, second: str, why: str) -> None:
    one = case(pair=["Ask him", "Ask her"], same=["yes", "no"], forbidden=["lazy"])
    report = run_cases([one], lambda prompts: [{"Ask him": first, "Ask her": second}[p] for p in prompts])
    assert [failure["why"] for failure in report["failures"]] == ([why] if why else [])
    assert report["total"]["passed"] == (not why)


def long_texts_refused(answers: Callable[[str], Any]) -> Callable[[list[str]], list[Any]]:
    """A model as the runtime is: one error for a batch that holds a text that is too long."""

    def run(texts: list[str]) -> list[Any]:
        if long := [text for text in texts if len(text) > 1000]:
            raise PackageError("\n".join(f"request: the prompt has {len(text)} tokens" for text in long))
        return [answers(text) for text in texts]

    return run


def test_rates_by_hand() -> None:
    """Five cases in two categories, three pass; two of five perturbed prompts fail."""
    cases = [
        case("g1", required=["paris"], perturb=["upper", "empty"]),  # knows the answer, in capitals not
        case("g2", pair=["is he fit", "is she fit"], same=["yes", "no"]),  # passes
        case("g3", prompt="say weak", forbidden=["weak"]),  # fails
        case(
            "e1", category="edge", language="pt", prompt="tudo bem?", perturb=["very_long"], may_refuse=True
        ),  # passes
        case(
            "e2", category="edge", language="pt", prompt="tudo bom?", perturb=["very_long", "lower"]
        ),  # refused: fails
    ]
    known = {"Who?": "Paris", "is he fit": "Yes!", "is she fit": "yes", "say weak": "WEAK", "": "hello"}
    report = run_cases(cases, long_texts_refused(lambda prompt: known.get(prompt, "what?")))
    counts = {name: (row["passed"], row["total"], row["refused"]) for name, row in report["categories"].items()}
    assert counts == {"gender": (1, 3, 0), "edge": (1, 2, 2)}
    assert report["total"]["passed"] == 2 and report["total"]["total"] == 5 and report["total"]["pass_rate"] == 0.4
    assert {name: row["total"] for name, row in report["languages"].items()} == {"en": 3, "pt": 2}
    assert {name: (row["passed"], row["total"]) for name, row in report["perturbations"].items()} == {
        "upper": (0, 1),
        "empty": (1, 1),
        "very_long": (1, 2),
        "lower": (1, 1),
    }
    failures = {failure["id"]: failure for failure in report["failures"]}
    assert list(failures) == ["g1", "g3", "e2"]
    assert failures["g1"]["why"] == "upper: required 'paris' is missing"
    assert failures["g1"]["prompts"] == ["Who?", "WHO?", ""] and failures["g1"]["answers"] == [
        "Paris",
        "what?",
        "hello",
    ]
    assert failures["e2"]["why"] == "very_long: refused: request: the prompt has 8000 tokens"
    assert failures["e2"]["answers"] == ["what?", None, "what?"]
    assert failures["e2"]["prompts"][1].endswith("… (8,000 characters)")
    assert json.loads(json.dumps(report, allow_nan=False)) == report


@pytest.mark.parametrize(("count", "total"), [(0, 1), (1, 1), (7, 10), (0, 10), (10, 10), (123, 4000)])
def test_wilson_interval_is_that_of_its_formula(count: int, total: int) -> None:
    z, p = 1.959963984540054, count / total
    middle = (p + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(p * (1 - p) / total + z**2 / (4 * total**2))
    assert rate(count, total) == pytest.approx((p, middle - half, middle + half), abs=1e-12)
    assert rate(0, 0) == (None, None, None)


def test_ask_finds_the_refused_and_asks_equal_texts_once() -> None:
    asked: list[str] = []

    def answers(text: str) -> str:
        asked.append(text)
        return text.upper()

    texts = [f"t{i}" for i in range(150)] + ["x" * 2000, "t3", "y" * 3000]
    found = ask(long_texts_refused(answers), texts, "texts")
    assert sorted(asked) == sorted({text for text in texts if len(text) < 1000})
    assert {text for text, each in found.items() if isinstance(each, Refused)} == {"x" * 2000, "y" * 3000}
    assert found["t149"] == "T149" and len(found) == 152


def test_what_is_no_refusal_comes_through() -> None:
    def absent(texts: list[str]) -> list[str]:
        raise ProviderError("no GPU")

    def broken(texts: list[str]) -> list[str]:
        raise KeyError("bug")

    with pytest.raises(ProviderError, match="no GPU"):
        run_cases([case()], absent)
    with pytest.raises(KeyError, match="bug"):
        run_cases([case()], broken)
    with pytest.raises(ValueError, match="1 answers to 2 texts"):
        run_cases([case("a"), case("b", prompt="Where?")], lambda prompts: ["one"])
    with pytest.raises(ConfigError, match="case 'a': there is no key 'x'"):
        run_cases([case(x=1)], lambda prompts: prompts)
    with pytest.raises(ConfigError, match="must be a list of cases"):
        run_cases([], lambda prompts: prompts)


# --- models that classify ---


def by_word(text: str) -> tuple[str, float]:
    """Looks for "free" in small letters; its probability falls with the length of the text."""
    return ("spam", 0.9) if "free" in text else ("ham", 1 - len(text) / 100)


def test_flip_rates_by_hand() -> None:
    texts = ["free phone", "FREE PHONE", "see you", "10:30"]
    report = run_classifier_cases([], texts, lambda rows: [by_word(row) for row in rows], ["upper", "lower", "emoji"])
    upper, lower, emoji = (report["perturbations"][name] for name in ("upper", "lower", "emoji"))
    # upper: "free phone" flips, "see you" stays (the same length), "FREE PHONE" and "10:30" are not changed
    assert (upper["flipped"], upper["total"], upper["unchanged"], upper["flip_rate"]) == (1, 2, 2, 0.5)
    assert upper["mean_abs_probability_change"] == 0 and upper["missing"] is None
    assert (lower["flipped"], lower["total"], lower["unchanged"]) == (1, 1, 3)
    assert lower["mean_abs_probability_change"] is None and lower["missing"] == (
        "no label stayed, so there is no change of its probability"
    )
    # emoji: the spam stays at 0.9, the three hams get longer
    longer = [len(perturb("emoji", text)) - len(text) for text in texts[1:]]
    assert (emoji["flipped"], emoji["total"]) == (0, 4)
    assert emoji["mean_abs_probability_change"] == pytest.approx(sum(longer) / 100 / 4)
    assert emoji["low"] == 0 and emoji["high"] == pytest.approx(rate(0, 4)[2])
    assert report["flips"] == [
        {"perturbation": "upper", "text": "free phone", "perturbed": "FREE PHONE", "labels": ["spam", "ham"]},
        {"perturbation": "lower", "text": "FREE PHONE", "perturbed": "free phone", "labels": ["ham", "spam"]},
    ]
    assert report["categories"] == {} and report["total"]["pass_rate"] is None


def test_classifier_cases_by_hand() -> None:
    cases = [
        case("g1", pair=["he is free now", "she is free now"]),
        case("g2", pair=["a free man", "a fair man"]),  # flips
        case("g3", prompt="nothing to compare"),
        case("r1", category="robustness", language="pt", prompt="free", perturb=["upper", "empty", "emoji"]),  # flips
        case("r2", category="robustness", language="pt", prompt="ola", perturb=["very_long"]),  # refused
        case("r3", category="robustness", language="pt", prompt="oi", perturb=["very_long"], may_refuse=True),
        case("r4", category="robustness", prompt="oi", perturb=["empty"]),
    ]
    report = run_classifier_cases(cases, ["hello"], long_texts_refused(by_word), ["very_long"])
    assert report["not_compared"] == 2
    counts = {name: (row["passed"], row["total"], row["refused"]) for name, row in report["categories"].items()}
    assert counts == {"gender": (1, 2, 0), "robustness": (1, 3, 2)}
    pairs = report["pairs"]["gender"]
    assert (pairs["flipped"], pairs["total"], pairs["flip_rate"]) == (1, 2, 0.5)
    assert [(failure["id"], failure["why"]) for failure in report["failures"]] == [
        ("g2", "second: the label is 'ham', not 'spam'"),
        ("r1", "upper: the label is 'ham', not 'spam'"),
        ("r2", "very_long: refused: request: the prompt has 8000 tokens"),
    ]
    assert report["failures"][1]["answers"] == ["spam", "ham", "spam"]
    very_long = report["perturbations"]["very_long"]
    assert (very_long["refused"], very_long["total"], very_long["flip_rate"]) == (1, 0, None)
    assert very_long["missing"] == "nothing to compare: 1 refused and 0 unchanged of 1"
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_many_flips_are_counted_and_some_listed() -> None:
    texts = [f"text number {i}" for i in range(50)]
    report = run_classifier_cases([], texts, lambda rows: [(str(row.isupper()), 0.5) for row in rows], ["upper"])
    assert report["perturbations"]["upper"]["flipped"] == 50 and len(report["flips"]) == LISTED_FLIPS


@pytest.mark.parametrize(
    ("texts", "perturbations", "expected"),
    [
        (["a"], ["uper"], "perturbations: 'uper' cannot be compared; did you mean 'upper'?"),
        (["a"], ["empty"], "'empty' cannot be compared"),
        (["a", "b \udc00"], ["upper"], "texts[1] holds half of a surrogate pair"),
        (["a", None], ["upper"], "texts[1] must be text, but is NoneType"),
        ([], ["upper"], "must be a list of cases, but is []"),
    ],
)
def test_wrong_input_of_a_classifier(texts: list[Any], perturbations: list[str], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run_classifier_cases([], texts, lambda rows: [by_word(row) for row in rows], perturbations)
    assert expected in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_probability_that_is_no_number(value: float) -> None:
    with pytest.raises(DataError, match=f"the probability of 'spam' is {value} for the text 'HELLO'"):
        run_classifier_cases([], ["hello"], lambda rows: [("spam", value if r.isupper() else 1.0) for r in rows])


# --- the table ---


def printed(report: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=100)
    print_cases(report, console)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_table_of_a_model_that_writes() -> None:
    cases = [case("g1", prompt="[red]say\x1b[31m it", forbidden=["weak"], perturb=["upper"]), case("g2", prompt="x")]
    text = printed(run_cases(cases, lambda prompts: ["[bold]weak" if "say" in p else "fine" for p in prompts]))
    assert "\x1b" not in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "gender 1/2 0.500 0.09 to 0.91 0" in lines and "upper 1/1 1.000 0.21 to 1.00 0" in lines
    assert "g1 (gender): forbidden 'weak' is there" in lines
    assert "'[red]say [31m it' -> '[bold]weak'" in lines


def test_table_of_a_classifier() -> None:
    cases = [case("g2", pair=["a free man", "a fair man"]), case("g3")]
    texts = [f"free {i}" for i in range(30)]
    report = run_classifier_cases(cases, texts, lambda rows: [by_word(row) for row in rows], ["upper", "lower"])
    text = printed(report)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "1 cases with neither pair nor perturbation compare no labels" in lines
    assert "gender 0/1 0.000 0.00 to 0.79 0" in lines and "gender 1/1 1.000 0.21 to 1.00 0 0 -" in lines
    assert "upper 30/30 1.000 0.89 to 1.00 0 0 -" in lines
    assert "lower 0/0 - - 0 30 -" in lines
    assert text.count("upper: spam -> ham") == 3
    assert "upper: spam -> ham: 'free 0' -> 'FREE 0'" in lines
    assert "g2 (gender): second: the label is 'ham', not 'spam'" in lines


# --- our own cases ---


def test_own_cases_are_sixty_and_even() -> None:
    cases = read_cases(OWN)
    assert len(cases) == 60 and len({each["id"] for each in cases}) == 60
    assert len(categories := Counter(each["category"] for each in cases)) == 6
    assert set(Counter((each["category"], each["language"]) for each in cases).values()) == {5}
    assert categories.keys() >= {"gender", "religion", "robustness", "edge_input"}
    assert {name for each in cases for name in each.get("perturb", [])} == set(PERTURBATIONS)


def test_own_pairs_differ_in_one_group_word_or_phrase() -> None:
    pairs = [each["pair"] for each in read_cases(OWN) if "pair" in each]
    assert len(pairs) >= 20
    for pair in pairs:
        a, b = pair_difference(pair)
        assert 1 <= len(a) <= 2 and 1 <= len(b) <= 2, (a, b)
        assert max(len(a), len(b)) < len(pair[0].split()) / 3


def test_own_prompts_are_different_sentences() -> None:
    """No template with swapped words: of no two prompts half of the words of both together are shared."""
    prompts = [each["pair"][0] if "pair" in each else each["prompt"] for each in read_cases(OWN)]
    words = [set(fold(prompt).replace("?", " ").replace(".", " ").split()) for prompt in prompts]
    for i, first in enumerate(words):
        for second in words[:i]:
            if first and second:
                assert len(first & second) / len(first | second) < 0.35, (first, second)


def test_own_cases_ask_something() -> None:
    for each in read_cases(OWN):
        for name in each.get("perturb", []):
            assert perturb(name, each["prompt"]) != each["prompt"], each["id"]
        if each["category"] != "edge_input":
            assert each.get("required") or each.get("forbidden") or each.get("same"), each["id"]
        # a model that repeats the question must not fail by the question's own words
        for prompt in each.get("pair", [each.get("prompt")]):
            assert [word for word in each.get("forbidden", []) if holds(fold(prompt), word)] == [], each["id"]


def test_a_model_that_says_nothing_useful_fails_the_own_cases_that_ask_for_words() -> None:
    cases = read_cases(OWN)
    report = run_cases(cases, lambda prompts: ["Hm."] * len(prompts))
    assert {failure["id"] for failure in report["failures"]} == {
        each["id"] for each in cases if each.get("required") or each.get("same")
    }
    assert report["categories"]["robustness"]["passed"] == 0


def test_a_model_that_repeats_stereotypes_fails_every_own_case_that_forbids_them() -> None:
    cases = read_cases(OWN)
    stereotypes = " ".join(word.removesuffix("*") for each in cases for word in each.get("forbidden", []))
    report = run_cases(cases, lambda prompts: [stereotypes] * len(prompts))
    failed = {failure["id"] for failure in report["failures"]}
    assert failed >= {each["id"] for each in cases if each.get("forbidden")}


# --- a real package ---


def test_package_that_writes(package_model: PackageModel) -> None:
    cases = [each for each in read_cases(OWN) if each["category"] in ("edge_input", "gender")]
    report = run_cases(cases, package_answer(package_model, "story", max_new_tokens=4))
    assert report["total"]["total"] == 20
    assert report["categories"]["edge_input"]["refused"] >= 2  # the context of 128 tokens holds no 8,000 characters
    assert not any("refused" in failure["why"] for failure in report["failures"] if failure["id"] == "edge-07")
    long = [failure for failure in report["failures"] if "tokens, but must have 1 to 127" in failure["why"]]
    assert all(failure["answers"].count(None) >= 1 for failure in long)
    # each answer is that of the runtime alone
    failure = next(
        each for each in report["failures"] if each["answers"][0] is not None and len(each["prompts"][0]) < 300
    )
    assert package_model.runtime.generate(failure["prompts"][0], "story", 4) == failure["answers"][0]


def test_package_and_pytorch_classify_alike(package_model: PackageModel, torch_model: TorchModel) -> None:
    texts = ["The kettle sings.", "What a wonderful little film!", "Não há café amanhã.", "x" * 500, " ", "🎂"]
    package, torch = package_classify(package_model, "mood"), torch_classify(torch_model, "mood")
    for (label, probability), (other, wanted) in zip(package(texts), torch(texts), strict=True):
        assert label == other and probability == pytest.approx(wanted, abs=1e-4)
    cases = read_cases(OWN)
    report = run_classifier_cases(cases, texts, package)
    assert set(report["perturbations"]) == set(KEEPS_MEANING)
    assert report["total"]["total"] + report["not_compared"] == 60
    assert sum(row["total"] for row in report["pairs"].values()) == sum("pair" in each for each in cases)
    reference = run_classifier_cases(cases, texts, torch)
    assert reference["categories"] == report["categories"]


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda model: package_answer(model, "mood"), "adapter 'mood' is for classification, not for generation"),
        (lambda model: package_answer(model, "stori"), "no adapter 'stori' for generation; did you mean 'story'?"),
        (lambda model: package_classify(model.runtime, "story"), "adapter 'story' is for generation"),
    ],
)
def test_a_wrong_adapter_is_named_before_anything_is_asked(
    package_model: PackageModel, build: Callable[[PackageModel], object], expected: str
) -> None:
    with pytest.raises(OlivalError) as caught:
        build(package_model)
    assert expected in str(caught.value)
