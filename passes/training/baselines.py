"""What a classification adapter has to beat: a head on the frozen base, and TF-IDF with logistic regression."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data.examples import ClassificationData
from data.tokenizing import encode_text, length_sorted_batches, pad_batch, pad_id


def classification_baselines(
    base: Path, train_data: ClassificationData, validation_data: ClassificationData
) -> dict[str, dict[str, float]]:
    """Metrics of both baselines on the validation rows: {"frozen_head": {...}, "tfidf": {...}}."""
    return {
        "frozen_head": frozen_head_baseline(base, train_data, validation_data),
        "tfidf": tfidf_baseline(train_data, validation_data),
    }


def frozen_head_baseline(
    base: Path, train_data: ClassificationData, validation_data: ClassificationData
) -> dict[str, float]:
    """Logistic regression on the frozen base's last-token features, standardized: the best head of its kind."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    model.fit(frozen_features(base, train_data), train_data.labels)
    return _scores(validation_data, list(model.predict(frozen_features(base, validation_data))))


def tfidf_baseline(train_data: ClassificationData, validation_data: ClassificationData) -> dict[str, float]:
    """Word unigrams and bigrams weighted by TF-IDF under logistic regression: what needs no language model."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=2000)
    )
    model.fit(train_data.texts, train_data.labels)
    return _scores(validation_data, list(model.predict(validation_data.texts)))


def frozen_features(base: Path, data: ClassificationData, batch_size: int = 32) -> np.ndarray:
    """Final-norm hidden state of each text's last token in the float32 base: (rows, hidden) float32."""
    import torch

    from passes.base_model import load_base, load_tokenizer
    from passes.training.pooling import pooled_features

    tokenizer, model = load_tokenizer(base), load_base(base)
    rows = [encode_text(tokenizer, text, data.max_length) for text in data.texts]
    features = np.empty((len(rows), model.config.hidden_size), dtype=np.float32)
    with torch.no_grad():
        for indices in length_sorted_batches([len(row) for row in rows], batch_size):
            batch = pad_batch([rows[i] for i in indices], pad_id(tokenizer))
            ids, mask = (torch.from_numpy(batch[n]).to(model.device) for n in ("input_ids", "attention_mask"))
            features[indices] = pooled_features(model, ids, mask).float().cpu().numpy()
    return features


def _scores(data: ClassificationData, predicted: list[str]) -> dict[str, float]:
    from evaluators.classification import classification_scores

    return classification_scores(data.labels, predicted, data.label_names)
