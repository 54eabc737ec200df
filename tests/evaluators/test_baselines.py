"""What a classification adapter has to beat on our own samples, computed a second time and printed (pytest -s)."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.preprocessing import StandardScaler

from data.examples import ClassificationData
from passes.training.baselines import classification_baselines, frozen_features

SAMPLES = Path(__file__).resolve().parents[2] / "data" / "samples"
FILES = {"spam": "sms_spam_{part}.csv", "intent": "intent_pt_{part}.jsonl"}


def read(name: str, part: str) -> tuple[list[str], list[str]]:
    """Texts and labels, read with the standard library alone."""
    file = SAMPLES / FILES[name].format(part=part)
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream)) if file.suffix == ".csv" else [json.loads(line) for line in stream]
    return [row["text"] for row in rows], [row["label"] for row in rows]


def tfidf_scores(train: tuple[list[str], list[str]], held_out: tuple[list[str], list[str]]) -> dict[str, float]:
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = LogisticRegression(C=10, max_iter=2000).fit(vectorizer.fit_transform(train[0]), train[1])
    return scores_of(held_out[1], model.predict(vectorizer.transform(held_out[0])))


def scores_of(expected: list[str], predicted: Any) -> dict[str, float]:
    return {
        "accuracy": accuracy_score(expected, predicted),
        "f1_macro": f1_score(expected, predicted, average="macro"),
        "f1_weighted": f1_score(expected, predicted, average="weighted"),
    }


@pytest.mark.parametrize("name", FILES)
def test_baselines_of_the_samples(tiny_llama_path: Path, name: str) -> None:
    train, held_out = read(name, "train"), read(name, "validation")
    names = sorted(set(train[1]))
    ours = [ClassificationData(*part, names, max_length=96) for part in (train, held_out)]
    measured = classification_baselines(tiny_llama_path, *ours)
    assert set(measured) == {"frozen_head", "tfidf"}
    assert measured["tfidf"] == pytest.approx(tfidf_scores(train, held_out))
    features = [frozen_features(tiny_llama_path, data) for data in ours]
    scaler = StandardScaler().fit(features[0])
    head = LogisticRegression(max_iter=2000).fit(scaler.transform(features[0]), train[1])
    expected = scores_of(held_out[1], head.predict(scaler.transform(features[1])))
    assert measured["frozen_head"] == pytest.approx(expected)
    chance = max(held_out[1].count(label) for label in names) / len(held_out[1])
    assert measured["tfidf"]["accuracy"] > chance
    for baseline, scores in measured.items():
        shown = ", ".join(f"{score} {value:.3f}" for score, value in scores.items())
        print(f"{name}, {baseline}: {shown} (most frequent class {chance:.3f})")


def test_frozen_features_are_those_of_the_last_token(tiny_llama_path: Path) -> None:
    """One text at a time through transformers, without padding."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    texts, labels = read("spam", "validation")
    texts, labels = texts[:24], labels[:24]
    measured = frozen_features(tiny_llama_path, ClassificationData(texts, labels, sorted(set(labels)), max_length=32))
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_llama_path)
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_llama_path).eval()
    for text, features in zip(texts, measured, strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"][:32]])
        with torch.no_grad():
            hidden = model(ids, output_hidden_states=True).hidden_states[-1]
        np.testing.assert_allclose(features, hidden[0, -1].numpy(), atol=1e-5)
