"""Scores on earlier tasks against plain transformers, peft and scikit-learn; where the table has them."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data.examples import ClassificationData, GenerationData, MultiLabelData
from evaluators.continual import REPORT, read_reports
from evaluators.subjects import evaluation_file
from evaluators.torch_model import TorchModel
from evaluators.workspace_evaluator import WorkspaceEvaluator
from passes.training.continual_report import score
from tests.conftest import SENTENCES
from tests.evaluators.test_workspace_evaluator import trained
from tests.passes.conftest import data_config, write_mood_csv

REPORTED: dict[str, Any] = {
    "adapter": "mood",
    "stages": ["first", "mood"],
    "tasks": ["first", "mood"],
    "score": "accuracy",
    "higher_is_better": True,
    "matrix": [[0.9, None], [0.65, 0.8]],
    "won": {"first": -0.25},
    "backward_transfer": -0.25,
    "replay": {"fraction": 0.3},
}


def plain(base: Path, folder: Path) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()


def test_generation_is_scored_by_perplexity(
    torch_model: TorchModel, tiny_llama_path: Path, adapter_folders: dict[str, Path]
) -> None:
    data = GenerationData([text[:9] for text in SENTENCES[:4]], [text[9:] for text in SENTENCES[:4]])
    model, tokenizer = plain(tiny_llama_path, adapter_folders["story"]), torch_model.tokenizer
    nats, count = 0.0, 0
    for prompt, response in zip(data.prompts, data.responses, strict=True):
        head = tokenizer(prompt)["input_ids"]
        tail = [*tokenizer(response, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(torch.tensor([head + tail])).logits[0, len(head) - 1 : -1]
        nats += float(torch.nn.functional.cross_entropy(logits, torch.tensor(tail), reduction="sum"))
        count += len(tail)
    assert score(torch_model, "story", data) == pytest.approx(math.exp(nats / count), rel=1e-5)


def test_several_labels_are_scored_by_micro_f1(tiny_llama_path: Path, make_peft_adapter: Callable[..., Path]) -> None:
    from sklearn.metrics import accuracy_score, f1_score

    labels = ["bad", "good", "none"]
    folder = make_peft_adapter(tiny_llama_path, labels=labels, settings={"thresholds": [0.4, 0.5, 0.6]})
    one = make_peft_adapter(tiny_llama_path, labels=labels, seed=3)
    model = TorchModel(tiny_llama_path, {"several": folder, "one": one})
    texts, sets = SENTENCES[:6], [["bad"], ["good", "none"], [], labels, ["none"], ["bad"]]
    from safetensors.torch import load_file

    def logits(which: Path) -> torch.Tensor:
        peft, rows = plain(tiny_llama_path, which), []
        head = load_file(which / "adapter_model.safetensors")["base_model.model.score.weight"]
        for text in texts:
            with torch.no_grad():
                ids = torch.tensor([model.tokenizer(text)["input_ids"]])
                rows.append(peft(ids, output_hidden_states=True).hidden_states[-1][0, -1] @ head.T)
        return torch.stack(rows)

    truth = [[name in row for name in labels] for row in sets]
    guess = torch.sigmoid(logits(folder)) >= torch.tensor([0.4, 0.5, 0.6])
    several = MultiLabelData(texts, [", ".join(row) for row in sets], labels, label_sets=sets)
    wanted = f1_score(truth, guess.int().tolist(), average="micro")
    assert 0 < wanted < 1 and score(model, "several", several) == pytest.approx(wanted)
    single = ClassificationData(texts, ["bad", "good", "none", "bad", "none", "none"], labels)
    chosen = [labels[int(row.argmax())] for row in logits(one)]
    assert score(model, "one", single) == pytest.approx(accuracy_score(single.labels, chosen))


def test_the_evaluation_has_reports_and_tells_equal_scores_apart(
    tiny_llama_path: Path, adapter_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from olive.evaluator.metric import Metric

    from evaluators.report import print_report
    from passes.registration import register

    register()
    folders = {"mood": Path(shutil.copytree(adapter_folders["mood"], tmp_path / "mood"))}
    (folders["mood"] / REPORT).write_text(json.dumps(REPORTED), encoding="utf-8")
    assert read_reports(folders | {"story": adapter_folders["story"]}) == {"mood": REPORTED}
    rows = write_mood_csv(tmp_path / "mood.csv", SENTENCES[:6], ["good", "bad", "none"] * 2)
    others = write_mood_csv(tmp_path / "others.csv", SENTENCES[6:], ["none", "none", "bad"] * 2)
    metrics = [
        Metric.model_validate(
            {"name": n, "type": "accuracy", "data_config": data_config(n, f), "sub_types": [{"name": "accuracy_score"}]}
        )
        for n, f in (("mood", rows), ("earlier", others))
    ]
    result = WorkspaceEvaluator(metric_options={"earlier": {"adapter": "mood"}}).evaluate(
        trained(tiny_llama_path, folders), metrics
    )
    evaluation = json.loads(evaluation_file().read_text(encoding="utf-8"))
    found = {row["metric"]: row["pytorch"] for row in evaluation["quality"] if "accuracy" in row["metric"]}
    assert set(found) == {"accuracy", "accuracy (earlier)"}
    assert found["accuracy"] == result.root["mood-accuracy_score"].value
    assert found["accuracy (earlier)"] == result.root["earlier-accuracy_score"].value
    assert evaluation["continual"] == {"mood": REPORTED}
    print_report(evaluation, None, tmp_path / "out")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "30%" in line]
    assert line.split() == ["mood", "first", "first", "accuracy", "0.900", "0.650", "-0.250", "30%"]
