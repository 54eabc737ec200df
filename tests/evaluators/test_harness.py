"""Tasks of lm-evaluation-harness from local files: on PyTorch and the package, against the harness's own HFLM."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evaluators.harness import BOOTSTRAPS, harness_model, run_tasks
from evaluators.package_model import PackageModel
from evaluators.torch_model import TorchModel
from runtime.errors import ConfigError, OlivalError
from tests.conftest import SENTENCES

CHOICES = [" boat", " water boils", " green door", "\nsoup", " a"]
# contexts with and without white space at their end, one with the BOS token as text, an empty one, and one too long
QUESTIONS = [*SENTENCES[:6], "Two plus two ", "<s>The train", "", " ".join(SENTENCES * 2)]
TASKS = {
    "tiny_choice": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
target_delimiter: ""
metric_list:
  - metric: acc
  - metric: acc_norm
""",
    "tiny_rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: word_perplexity
  - metric: byte_perplexity
  - metric: bits_per_byte
""",
    "tiny_cloze": """
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: "{{last}}"
target_delimiter: " "
metric_list:
  - metric: perplexity
    aggregation: perplexity
  - metric: acc
""",
    "tiny_writing": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{written}}"
generation_kwargs:
  until: ["e"]
  max_gen_toks: 12
metric_list:
  - metric: exact_match
""",
    "tiny_sampling": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{written}}"
generation_kwargs:
  do_sample: true
  temperature: 0.7
metric_list:
  - metric: exact_match
""",
}


@pytest.fixture(scope="module")
def task_folder(torch_model: TorchModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task files and their data; what is to be written is what PyTorch with the adapter writes, in half the rows."""
    folder = tmp_path_factory.mktemp("tasks")
    rows: list[dict[str, Any]] = []
    for number, question in enumerate(QUESTIONS):
        (written,) = torch_model.generate([torch_model.encode(question or "The")[:100]], "story", 12, ["e"])
        row = {"question": question, "choices": CHOICES, "answer": number % len(CHOICES), "last": "seven boats"}
        rows.append({**row, "text": " ".join(SENTENCES[number:]) or "a", "written": written if number % 2 else "no"})
    data = folder / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    for name, text in TASKS.items():
        kwargs = {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")}
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {json.dumps(kwargs)}\ntest_split: test"
        (folder / f"{name}.yaml").write_text(head + text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def own_model(tiny_llama_path: Path, adapter_folders: dict[str, Path]) -> Callable[[str | None], Any]:
    """The harness's own model of the base, or of the base with an adapter merged into it."""

    def make(adapter: str | None) -> Any:
        from lm_eval.models.huggingface import HFLM
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model: Any = AutoModelForCausalLM.from_pretrained(tiny_llama_path)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, str(adapter_folders[adapter])).merge_and_unload()
        tokenizer: Any = AutoTokenizer.from_pretrained(tiny_llama_path)
        # its cache reads the wrong positions for two windows of the same tokens that score different numbers of them
        return HFLM(pretrained=model.eval(), tokenizer=tokenizer, batch_size=4, device="cpu", logits_cache=False)

    return make


@pytest.mark.parametrize("adapter", [None, "story"])
def test_tasks_give_what_the_harness_gives(
    torch_model: TorchModel,
    package_model: PackageModel,
    own_model: Callable[[str | None], Any],
    task_folder: Path,
    adapter: str | None,
) -> None:
    """Every output type at once; the float32 package and PEFT against the merged model in HFLM."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    names = [name for name in TASKS if name != "tiny_sampling"]
    manager = TaskManager(include_path=str(task_folder), include_defaults=False)
    reference = own_model(adapter)
    evaluated = simple_evaluate(reference, tasks=names, task_manager=manager, bootstrap_iters=BOOTSTRAPS)
    results = evaluated["results"]
    for model in (torch_model, package_model):
        found = run_tasks(model, names, task_folder, adapter, batch_size=3)
        assert set(found) == set(names)
        for name in names:
            assert found[name] == pytest.approx({key: results[name][key] for key in found[name]}, rel=1e-4)
        assert set(found["tiny_choice"]) == {f"acc{n}{e},none" for n in ("", "_norm") for e in ("", "_stderr")}
        assert set(found["tiny_rolling"]) == {"word_perplexity,none", "byte_perplexity,none", "bits_per_byte,none"}
        assert found["tiny_writing"]["exact_match,none"] == pytest.approx(0.4 if adapter else 0, abs=0.11)


def test_answers_are_those_of_the_harness_one_by_one(
    torch_model: TorchModel, package_model: PackageModel, own_model: Callable[[str | None], Any]
) -> None:
    """Not only their means: every log-likelihood, every flag, every text, in the order of the requests."""
    from lm_eval.api.instance import Instance

    pairs = [(question, choice) for question in QUESTIONS for choice in CHOICES]
    scored = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    rolling = [Instance("loglikelihood_rolling", {}, (" ".join(SENTENCES[i:]),), 0) for i in range(5)]
    settings = {"until": ["e", "\n\n"], "max_gen_toks": 16}
    written = [Instance("generate_until", {}, (q, dict(settings)), 0) for q in QUESTIONS if q and "<s>" not in q]
    written += [Instance("generate_until", {}, ("The soup", {"until": [], "max_gen_toks": 7}), 0)]
    reference = own_model("story")
    expected = reference.loglikelihood(scored, disable_tqdm=True)
    for model in (torch_model, package_model):
        found = harness_model(model, "story", 4)
        answers = found.loglikelihood(scored, disable_tqdm=True)
        assert [value for value, _ in answers] == pytest.approx([value for value, _ in expected], rel=1e-4)
        assert [top for _, top in answers] == [top for _, top in expected]
        sums = found.loglikelihood_rolling(rolling, disable_tqdm=True)
        assert sums == pytest.approx(reference.loglikelihood_rolling(rolling, disable_tqdm=True), rel=1e-4)
        texts = found.generate_until(written, disable_tqdm=True)
        assert texts == reference.generate_until(written, disable_tqdm=True)


def test_limit_takes_the_first_rows(package_model: PackageModel, task_folder: Path) -> None:
    few = run_tasks(package_model, ["tiny_choice"], task_folder, "story", limit=2)["tiny_choice"]
    assert few["acc,none"] in (0, 0.5, 1)


def test_unknown_tasks_are_named_with_the_nearest(
    package_model: PackageModel, task_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One's own tasks, and the harness's: it has thousands, reading which takes a while; here it has one."""
    from lm_eval.tasks import manager

    monkeypatch.setattr(manager, "__file__", str(tmp_path / "manager.py"))
    text = (task_folder / "tiny_choice.yaml").read_text(encoding="utf-8")
    (tmp_path / "hellaswag.yaml").write_text(text.replace("tiny_choice", "hellaswag"), encoding="utf-8")
    assert set(run_tasks(package_model, ["hellaswag", "tiny_choice"], task_folder, limit=1)) == {
        "hellaswag",
        "tiny_choice",
    }
    with pytest.raises(ConfigError, match=r"there is no task 'tiny_choise'; did you mean 'tiny_choice'\?") as error:
        run_tasks(package_model, ["tiny_choise", "rolling", "tiny_cloze"], task_folder)
    assert len(error.value.problems) == 2
    with pytest.raises(ConfigError, match=r"no task 'helaswag'; did you mean 'hellaswag'\?"):
        run_tasks(package_model, ["helaswag"])
    with pytest.raises(ConfigError, match=r"no task 'xyz'; `lm-eval ls tasks` lists them"):
        run_tasks(package_model, ["xyz"])


def test_mistakes_are_named(package_model: PackageModel, task_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OlivalError, match="there is no such folder of task files"):
        run_tasks(package_model, ["tiny_choice"], tmp_path / "nothing")
    with pytest.raises(OlivalError, match="no task is named"):
        run_tasks(package_model, [])
    with pytest.raises(OlivalError, match="tiny_sampling: its generation_kwargs sample"):
        run_tasks(package_model, ["tiny_sampling"], task_folder, "story")
    with pytest.raises(OlivalError, match="there is no adapter 'storry'; did you mean 'story'"):
        run_tasks(package_model, ["tiny_choice"], task_folder, "storry")
    text = (task_folder / "tiny_choice.yaml").read_text(encoding="utf-8").replace("rows.jsonl", "gone.jsonl")
    (tmp_path / "lost.yaml").write_text(text.replace("tiny_choice", "lost"), encoding="utf-8")
    with pytest.raises(OlivalError, match=r"lost: cannot be run: .*gone\.jsonl"):
        run_tasks(package_model, ["lost"], tmp_path, "story")


def test_without_the_harness_it_says_how_to_get_it(
    package_model: PackageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(OlivalError, match=r"pip install -c constraints.txt -e '.\[harness\]'"):
        run_tasks(package_model, ["hellaswag"])
