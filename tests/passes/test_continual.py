"""Adapters that go on from earlier ones: their start, what they see again, what is said of the tasks before."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data.examples import ClassificationData, GenerationData, MultiLabelData, load_data
from data.replay import replay_rows, with_replay
from evaluators.continual import backward_transfer, read_reports
from passes.training.adapter_pass import ATTRIBUTE
from passes.training.settings import AdapterSettings
from passes.training.train import train_adapter
from runtime.adapter_source import HEAD_KEY
from runtime.errors import OlivalError
from runtime.manifest import file_sha256
from tests.bottlenecks import adapted
from tests.passes.conftest import BAD, GOOD, adapter_step, data_config, mood_data, story_data, write_mood_csv
from tests.passes.test_training import reloaded
from tests.passes.test_workflow_check import problems

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4},
    "qlora": {"rank": 4, "quantization": "nf4"},
    "dora": {"rank": 4, "rslora": True},
    "bottleneck": {"bottleneck_size": 8},
}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves take longer to draw than these trainings last."""
    monkeypatch.setattr("passes.training.train.plot_curves", lambda *_: None)


def odd_data() -> ClassificationData:
    """Rows of a class that mood_data has, and of one that is new."""
    texts = [*GOOD, "Two plus two is four.", "Please answer by Friday.", "Call the office.", "seven, eight, nine"]
    return ClassificationData(texts, ["good"] * 4 + ["plain"] * 4, ["good", "plain"])


def trained(folder: Path, base: Path, method: str, data: Any, start: Path | None = None, **training: Any) -> Path:
    """Two steps over all rows at once, unless `training` says otherwise; every loss is logged."""
    arguments: dict[str, Any] = {
        "max_steps": 2,
        "per_device_train_batch_size": 16,
        "learning_rate": 0.02,
        "logging_steps": 1,
    }
    arguments |= {"logging_strategy": "steps", **training}
    folder.mkdir(parents=True)
    settings = AdapterSettings("test", method=method, training_args=arguments, **METHODS[method])
    train_adapter(folder, base, settings, data, None, start=start)
    return folder


def first_loss(folder: Path) -> float:
    history = json.loads((folder / "training.json").read_text(encoding="utf-8"))["history"]
    return float(next(entry["loss"] for entry in history if "loss" in entry))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def reference(base: Path, folder: Path, method: str) -> Any:
    """The base with the earlier adapter, by transformers and peft, and numpy for bottlenecks."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    if method == "qlora":
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
        model: Any = AutoModelForCausalLM.from_pretrained(base, quantization_config=config, dtype=torch.float32)
        return PeftModel.from_pretrained(model, folder).eval()
    if method != "bottleneck":
        return reloaded(base, folder)
    hooks = adapted(AutoModelForCausalLM.from_pretrained(base).eval(), folder)
    model = hooks.__enter__()
    model.hooks = hooks  # they go with what holds them
    return model


SLOW = ("lora", "qlora", "dora")  # a classifier's start shows the way that they go


@pytest.mark.parametrize("method", [pytest.param(m, marks=[pytest.mark.slow] if m in SLOW else []) for m in METHODS])
def test_the_first_loss_is_that_of_the_earlier_adapter(method: str, tmp_path: Path, tiny_llama_path: Path) -> None:
    """On new rows of text to generate, summed over response tokens one row at a time."""
    from transformers import AutoTokenizer

    first = trained(tmp_path / "first", tiny_llama_path, method, story_data())
    before = file_sha256(first / "adapter_model.safetensors")
    new = GenerationData(["Who came", "What is green"], ["A short letter came.", "He painted the door green."])
    second = trained(tmp_path / "second", tiny_llama_path, method, new, start=first)
    model, tokenizer = reference(tiny_llama_path, first, method), AutoTokenizer.from_pretrained(tiny_llama_path)
    total, count = 0.0, 0
    assert max(float(value.abs().max()) for name, value in tensors(first).items() if "B" in name or "up" in name) > 0.01
    for prompt, response in zip(new.prompts, new.responses, strict=True):
        head = tokenizer(prompt)["input_ids"]
        tail = [*tokenizer(response, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(torch.tensor([head + tail])).logits[0, len(head) - 1 : -1]
        total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(tail), reduction="sum"))
        count += len(tail)
    assert first_loss(second) == pytest.approx(total / count, rel=2e-5)
    assert first_loss(second) != pytest.approx(
        first_loss(trained(tmp_path / "x", tiny_llama_path, method, new)), rel=1e-3
    )
    assert file_sha256(first / "adapter_model.safetensors") == before


@pytest.fixture(scope="module")
def mood(tmp_path_factory: pytest.TempPathFactory, tiny_llama_path: Path) -> Path:
    return trained(tmp_path_factory.mktemp("continual") / "mood", tiny_llama_path, "lora", mood_data(1), max_steps=4)


def test_a_classifier_starts_with_the_earlier_head(mood: Path, tmp_path: Path, tiny_llama_path: Path) -> None:
    """The first loss is that of peft with the rows of the earlier head; new labels get rows of their own."""
    from transformers import AutoTokenizer

    data = ClassificationData(GOOD[:2] + BAD[:2], ["bad", "good"] * 2, ["bad", "good"])
    second = trained(tmp_path / "second", tiny_llama_path, "lora", data, start=mood)
    model, tokenizer = reloaded(tiny_llama_path, mood), AutoTokenizer.from_pretrained(tiny_llama_path)
    head, losses = tensors(mood)[HEAD_KEY], []
    for text, label in zip(data.texts, data.labels, strict=True):
        with torch.no_grad():
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            logits = model(ids, output_hidden_states=True).hidden_states[-1][0, -1] @ head.T
        losses.append(-float(torch.log_softmax(logits, -1)[["bad", "good"].index(label)]))
    assert first_loss(second) == pytest.approx(sum(losses) / 4, rel=2e-5)

    united = odd_data()
    united = ClassificationData(united.texts, united.labels, ["bad", "good", "plain"])
    third = trained(tmp_path / "third", tiny_llama_path, "lora", united, start=mood, learning_rate=1e-9)
    rows = tensors(third)[HEAD_KEY]
    torch.testing.assert_close(rows[:2], head, atol=1e-7, rtol=0)
    assert 0.01 < float(rows[2].std()) < 0.03
    assert json.loads((third / "adapter.json").read_text(encoding="utf-8"))["labels"] == ["bad", "good", "plain"]


def test_an_adapter_of_another_form_is_no_start(mood: Path, tmp_path: Path, tiny_llama_path: Path) -> None:
    settings = AdapterSettings("test", rank=3, training_args={"max_steps": 1})
    with pytest.raises(OlivalError, match=r"of another form: .*lora_A.weight has shape \[4, 96\] there, but \[3, 96\]"):
        train_adapter(tmp_path, tiny_llama_path, settings, mood_data(1), None, start=mood)


def test_replayed_rows_are_the_share_of_each_class() -> None:
    labels = ["a"] * 50 + ["b"] * 20 + ["c"] * 2
    earlier = ClassificationData([f"old {i}" for i in range(72)], labels, ["a", "b", "c"])
    new = ClassificationData([f"new {i}" for i in range(9)], ["d"] * 9, ["a", "b", "c", "d"])
    mixed = with_replay(new, [earlier, earlier], 0.2, seed=3)
    assert mixed.texts[:9] == new.texts and mixed.label_names == new.label_names
    assert Counter(mixed.labels) == {"d": 9, "a": 20, "b": 8, "c": 2}
    for text, label, number in zip(mixed.texts[9:], mixed.labels[9:], mixed.row_numbers[9:], strict=True):
        assert text == f"old {number - 1}" and label == labels[number - 1]
    assert replay_rows(earlier, 0.2, 3) == replay_rows(earlier, 0.2, 3) != replay_rows(earlier, 0.2, 4)
    assert replay_rows(earlier, 1.0, 0) == list(range(72))
    written = with_replay(story_data(), [story_data()], 0.5, 0)
    pairs = set(zip(story_data().prompts, story_data().responses, strict=True))
    assert len(written) == 6 and set(zip(written.prompts, written.responses, strict=True)) == pairs
    several = MultiLabelData(["x", "y"], ["a, b", ""], ["a", "b"], label_sets=[["a", "b"], []])
    assert with_replay(several, [several], 1.0, 0).label_sets == [["a", "b"], [], ["a", "b"], []]


@pytest.mark.slow
def test_several_labels_a_text_keep_the_earlier_thresholds(tmp_path: Path, tiny_llama_path: Path) -> None:
    """Where no held-out row has a label, nothing can be learned of its threshold."""
    several = MultiLabelData(GOOD + BAD, [""] * 8, ["a", "b"], label_sets=[["a"]] * 4 + [["b"]] * 3 + [[]])
    first = trained(tmp_path / "first", tiny_llama_path, "lora", several)
    description = json.loads((first / "adapter.json").read_text(encoding="utf-8"))
    description["thresholds"] = [0.125, 0.25]
    (first / "adapter.json").write_text(json.dumps(description), encoding="utf-8")
    new = MultiLabelData(GOOD, [""] * 4, ["a", "b", "c"], label_sets=[["c"], ["b"], ["c", "b"], []])
    settings = AdapterSettings("test", rank=4, training_args={"max_steps": 1})
    train_adapter(tmp_path, tiny_llama_path, settings, new, new, start=first)
    after = json.loads((tmp_path / "adapter.json").read_text(encoding="utf-8"))
    assert after["labels"] == ["a", "b", "c"] and after["thresholds"][0] == 0.125
    assert all(0 < value < 1 and value != 0.25 for value in after["thresholds"][1:])


def test_backward_transfer_is_that_of_the_paper() -> None:
    """Lopez-Paz and Ranzato 2017, equation 3, on a matrix of three tasks; a lower perplexity is won."""
    matrix: list[list[float | None]] = [[0.9, None, None], [0.5, 0.8, None], [0.6, 0.9, 0.7]]
    found = backward_transfer(["a", "b", "c"], ["a", "b", "c"], matrix, True)
    assert found["won"] == pytest.approx({"a": -0.3, "b": 0.1})
    assert found["backward_transfer"] == pytest.approx(((0.6 - 0.9) + (0.9 - 0.8)) / 2)
    lower = backward_transfer(["a", "b"], ["a"], [[20.0], [30.0]], False)
    assert lower == {"won": {"a": -10.0}, "backward_transfer": -10.0}
    assert backward_transfer(["a", "b"], ["b"], [[None], [0.5]], True) == {"won": {}, "backward_transfer": None}


@pytest.fixture
def chain(tiny_workflow: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """`tiny_workflow` with a classifier "odd" that goes on from "mood" with half of its rows; no export, no metrics."""
    odd = odd_data()
    file = write_mood_csv(tmp_path / "odd.csv", odd.texts, odd.labels)
    tiny_workflow["data_configs"] += [data_config("odd_train", file), data_config("odd_validation", file)]
    step = adapter_step("ClassificationHead", "odd", "odd", validation_data_config="odd_validation", baselines=False)
    step |= {"continues": "mood", "replay": {"fraction": 0.5, "seed": 1}}
    passes = tiny_workflow["passes"]
    passes["mood"]["baselines"] = False
    tiny_workflow["passes"] = {"mood": passes["mood"], "story": passes["story"], "odd": step}
    del tiny_workflow["evaluators"], tiny_workflow["evaluator"]
    return tiny_workflow


def parsed(workflow: dict[str, Any]) -> Any:
    from olive.workflows.run.config import RunConfig

    from passes.registration import register
    from passes.workflow_check import check_workflow

    register()
    config = RunConfig.parse_file_or_obj(workflow)
    assert check_workflow(config) == [] == check_workflow(config)
    return config


def test_a_workflow_trains_scores_and_keeps_both(
    chain: dict[str, Any], run_pass: Callable[..., Any], tiny_llama_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Scores are those of peft and transformers; both adapters are there; a second run trains and scores nothing."""
    from olive.model import HfModelHandler
    from transformers import AutoTokenizer

    config = parsed(chain)
    steps = {name: config.passes[name][0] for name in ("mood", "odd")}
    assert steps["odd"].config["stages"][0]["adapter"] == "mood"
    assert [c["name"] for c in steps["odd"].config["replay"]["data_configs"]] == ["mood_train"]
    model = run_pass("ClassificationHead", HfModelHandler(str(tiny_llama_path)), steps["mood"].config)
    first = Path(model.model_attributes[ATTRIBUTE]["mood"])
    before = file_sha256(first / "adapter_model.safetensors")
    after = run_pass("ClassificationHead", model, steps["odd"].config)
    folders = {name: Path(folder) for name, folder in after.model_attributes[ATTRIBUTE].items()}
    assert folders["mood"] == first and file_sha256(first / "adapter_model.safetensors") == before
    assert json.loads((folders["odd"] / "training.json").read_text(encoding="utf-8"))["rows"] == 8 + 8

    report = read_reports(folders)["odd"]
    tokenizer, matrix = AutoTokenizer.from_pretrained(tiny_llama_path), []
    for name, label_names, tasks in (("mood", ["bad", "good"], 1), ("odd", ["bad", "good", "plain"], 2)):
        peft, head = reloaded(tiny_llama_path, folders[name]), tensors(folders[name])[HEAD_KEY]
        row: list[float | None] = [None, None]
        for place, data in enumerate((mood_data(), odd_data())[:tasks]):
            right = 0
            for text, label in zip(data.texts, data.labels, strict=True):
                with torch.no_grad():
                    ids = torch.tensor([tokenizer(text)["input_ids"]])
                    hidden = peft(ids, output_hidden_states=True).hidden_states[-1][0, -1]
                right += label_names[int((hidden @ head.T).argmax())] == label
            row[place] = right / len(data)
        matrix.append(row)
    assert report["matrix"] == matrix and report["stages"] == report["tasks"] == ["mood", "odd"]
    assert report["won"] == {"mood": matrix[1][0] - matrix[0][0]}  # type: ignore[operator]
    assert (report["score"], report["replay"]) == ("accuracy", {"fraction": 0.5, "seed": 1})
    assert (
        f"continual odd: accuracy on the task of mood {matrix[0][0]:.3f} -> {matrix[1][0]:.3f}"
        in capfd.readouterr().err
    )

    written = (folders["odd"] / "continual.json").stat().st_mtime_ns
    again = run_pass("ClassificationHead", model, steps["odd"].config)
    assert again.model_attributes[ATTRIBUTE] == after.model_attributes[ATTRIBUTE]
    assert (folders["odd"] / "continual.json").stat().st_mtime_ns == written
    assert "scoring it" not in capfd.readouterr().err


def test_what_an_adapter_goes_on_from_is_part_of_its_key(
    chain: dict[str, Any],
    mood: Path,
    tmp_path: Path,
    tiny_llama_path: Path,
    run_pass: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import shutil

    from olive.model import HfModelHandler

    keys: list[str] = []

    def note(store: Path, name: str, key: str, make: Any) -> Any:
        keys.append(key)
        raise OlivalError("stop")

    monkeypatch.setattr("passes.training.adapter_pass.find_or_make", note)
    other = Path(shutil.copytree(mood, tmp_path / "mood-other"))
    options = parsed(chain).passes["odd"][0].config
    replay = options["replay"]
    for start, change in (
        (mood, {}),
        (mood, {}),
        (other, {}),
        (mood, {"replay": {**replay, "fraction": 0.25}}),
        (mood, {"replay": {**replay, "seed": 2}}),
        (mood, {"replay": None}),
    ):
        handler = HfModelHandler(str(tiny_llama_path), model_attributes={ATTRIBUTE: {"mood": str(start)}})
        with pytest.raises(OlivalError, match="stop"):
            run_pass("ClassificationHead", handler, {**options, **change})
    assert keys[0] == keys[1] and len(set(keys)) == 5
    handler = HfModelHandler(str(tiny_llama_path), model_attributes={ATTRIBUTE: {"mood": str(mood)}})
    with pytest.raises(OlivalError, match="replay: names no data_configs"):
        run_pass("ClassificationHead", handler, {**options, "replay": {"fraction": 0.5}})
    with pytest.raises(OlivalError, match="no pass before this one trains 'mood'"):
        run_pass("ClassificationHead", HfModelHandler(str(tiny_llama_path)), options)


def fingerprint(workflow: dict[str, Any], name: str) -> str:
    return str(parsed(json.loads(json.dumps(workflow))).passes[name][0].config["fingerprint"])


def test_the_fingerprint_follows_earlier_data(chain: dict[str, Any]) -> None:
    """Replayed rows and the held-out rows of earlier tasks are read by the pass, so Olive's cache must see them."""
    first = fingerprint(chain, "odd")
    validation = next(d for d in chain["data_configs"] if d["name"] == "mood_validation")
    validation["pre_process_data_config"]["max_length"] = 48
    second = fingerprint(chain, "odd")
    train = next(d for d in chain["data_configs"] if d["name"] == "mood_train")
    train["pre_process_data_config"]["augmentation"] = {"word_swap": 1}
    assert len({first, second, fingerprint(chain, "odd")}) == 3


def change(workflow: dict[str, Any], name: str, **options: Any) -> Any:
    return workflow["passes"][name].update(options)


def first_pass(workflow: dict[str, Any], name: str) -> None:
    workflow["passes"] = {name: workflow["passes"][name], **workflow["passes"]}


def pre_process(workflow: dict[str, Any], name: str, **options: Any) -> Any:
    return next(d for d in workflow["data_configs"] if d["name"] == name)["pre_process_data_config"].update(options)


HELD_OUT = (
    "has augmentation or balance, which are for training; held-out rows must be those that will come, so name a data "
    "config without them"
)
WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], list[str]]] = {
    "unknown": (
        lambda w: change(w, "odd", continues="mod"),
        ["passes.odd.continues: no pass before this one trains 'mod'; did you mean 'mood'? Valid: mood, story"],
    ),
    "itself": (
        lambda w: change(w, "odd", continues="odd"),
        ["passes.odd.continues: 'odd' is this pass's own adapter; Valid: mood, story"],
    ),
    "later": (
        lambda w: first_pass(w, "odd"),
        ["passes.odd.continues: 'mood' is trained later, by passes.mood; put that pass before this one"],
    ),
    "another task": (
        lambda w: change(w, "odd", continues="story"),
        ["passes.odd.continues: 'story' is for generation, but this pass trains for classification"],
    ),
    "another form": (
        lambda w: change(w, "odd", rank=8, alpha=32, method="dora", target_modules=["q_proj"], pooling="mean"),
        [
            "passes.odd.continues: 'mood' gives its weights to an adapter of its own form alone: method is lora there, "
            "but dora here; rank is 4 there, but 8 here; alpha is 16.0 there, but 32 here; target_modules is "
            "all-linear there, but ['q_proj'] here; pooling is null there, but mean here"
        ],
    ),
    "a method without a start": (
        lambda w: (change(w, "odd", method="prompt", rank=8), change(w, "mood", method="prompt", rank=8)),
        ["passes.odd.continues: is not for method 'prompt', but for lora, qlora, dora, bottleneck"],
    ),
    "replay alone": (
        lambda w: change(w, "odd", continues=None),
        ["passes.odd.replay: goes with `continues`, which names an earlier adapter"],
    ),
    "replay's values": (
        lambda w: change(w, "odd", replay={"fraction": 1.5, "seed": -1, "shuffle": True, "data_configs": []}),
        [
            "passes.odd.replay.shuffle: unknown; Valid: data_configs, fraction, seed",
            "passes.odd.replay.fraction: 0 < fraction <= 1 must hold, but it is 1.5",
            "passes.odd.replay.seed: must be a whole number of at least 0, but is -1",
            "passes.odd.replay.data_configs: must be a list of names from data_configs, but is []",
        ],
    ),
    "replay of what is not there": (
        lambda w: change(w, "odd", replay={"data_configs": ["mood_trian"]}),
        [
            "passes.odd.replay.data_configs: there is no data config 'mood_trian'; did you mean 'mood_train'? Valid: "
            "mood_train, mood_validation, odd_train, odd_validation, story_train"
        ],
    ),
    "replay of another kind": (
        lambda w: change(w, "odd", replay={"data_configs": ["story_train"]}),
        [
            "passes.odd.replay.data_configs: 'story_train' has pre_process_data_config.type 'generation', but data for "
            "classification are needed"
        ],
    ),
    "another template": (
        lambda w: pre_process(w, "odd_train", text_template="{text}\nMood:"),
        [
            "passes.odd.continues: mood.csv: an adapter has one template, but there are '{text}' (earlier) and "
            "'{text}\\nMood:'",
            "passes.odd.replay.data_configs: mood.csv: an adapter has one template, but there are '{text}' (earlier) "
            "and '{text}\\nMood:'",
        ],
    ),
    "augmented validation": (
        lambda w: (
            pre_process(w, "odd_validation", augmentation={"word_swap": 1}),
            pre_process(w, "mood_validation", balance="oversample"),
        ),
        [
            f"passes.mood.validation_data_config: 'mood_validation' {HELD_OUT}",
            f"passes.odd.validation_data_config: 'odd_validation' {HELD_OUT}",
        ],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_said_before_anything_runs(case: str, chain: dict[str, Any]) -> None:
    spoil, wanted = WRONG[case]
    spoil(chain)
    found = problems(chain)
    assert [line for line in found if "continues" in line or "replay" in line or "held-out" in line] == wanted


def test_an_evaluator_takes_no_augmented_data(tiny_workflow: dict[str, Any]) -> None:
    pre_process(tiny_workflow, "mood_validation", augmentation={"word_swap": 1})
    assert problems(tiny_workflow) == [
        f"passes.mood.validation_data_config: 'mood_validation' {HELD_OUT}",
        f"evaluator.metrics.mood.data_config: 'mood_validation' {HELD_OUT}",
    ]


def test_column_names_are_no_part_of_a_template(chain: dict[str, Any], tmp_path: Path) -> None:
    """Two files that name their columns differently fill one template."""
    pre_process(chain, "mood_train", text_template="{text}\nTopic:")
    odd = next(d for d in chain["data_configs"] if d["name"] == "odd_train")
    rows = odd_data()
    file = tmp_path / "subject.jsonl"
    lines = [json.dumps({"subject": t, "label": n}) for t, n in zip(rows.texts, rows.labels, strict=True)]
    file.write_text("\n".join(lines), encoding="utf-8")
    odd["load_dataset_config"]["data_files"] = str(file)
    odd["pre_process_data_config"] |= {"text_template": "{subject}\nTopic:"}
    assert problems(chain) == []
    assert load_data(odd).template == "{subject}\nTopic:"
