"""A made-up results.json: plausible numbers for tests that must not wait for a measurement."""

from __future__ import annotations

from typing import Any


def distribution(p50: float, samples: int = 640, noise: float = 0.03) -> dict[str, Any]:
    """Milliseconds around p50; percentiles above it only where the samples support them."""
    return {
        "samples": samples,
        "p50": p50 if samples >= 5 else None,
        "p90": 1.3 * p50 if samples >= 20 else None,
        "p99": 1.9 * p50 if samples >= 1000 else None,
        "missing": {} if samples >= 1000 else {"p99": f"needs 1,000 samples, has {samples}"},
        "p50_low": p50 * (1 - noise) if samples >= 5 else None,
        "p50_high": p50 * (1 + noise) if samples >= 5 else None,
    }


def rate(median: float, noise: float = 0.03) -> dict[str, float]:
    return {"median": median, "low": median * (1 - noise), "high": median * (1 + noise)}


def generation(adapter: str | None, batch_size: int = 1, tpot: float = 0.5, ttft: float = 6.8) -> dict[str, Any]:
    return {
        "adapter": adapter,
        "batch_size": batch_size,
        "prompt_tokens": 64,
        "new_tokens": 32,
        "runs": 20,
        "ttft_ms": distribution(ttft, samples=20),
        "tpot_ms": distribution(tpot, samples=620 * batch_size),
        "end_to_end_ms": distribution(ttft + 31 * tpot, samples=20),
        "tokens_per_second": rate(1000 * batch_size / tpot),
        "warmup_runs": 3,
        "stable": True,
    }


def classification(adapter: str, batch_size: int = 1, latency: float = 8.0) -> dict[str, Any]:
    return {
        "adapter": adapter,
        "batch_size": batch_size,
        "prompt_tokens": 64,
        "runs": 50,
        "latency_ms": distribution(latency, samples=50),
        "rows_per_second": rate(1000 * batch_size / latency),
        "warmup_runs": 3,
        "stable": True,
    }


def measurement(package: str = "quickstart", provider: str = "cpu", slower: float = 1.0) -> dict[str, Any]:
    """A package with two classifiers and a writer, at three batch sizes; `slower` multiplies every time."""
    writers = {None: 0.50, "blurbs": 0.55}
    classifiers = {"spam": 7.6, "intent_pt": 9.9}
    return {
        "package": package,
        "folder": f"/models/{package}",
        "fingerprint": "c4832e8576c9",
        "precision": "int4" if provider == "cpu" else "fp16",
        "execution_provider": provider,
        "threads": 2 if provider == "cpu" else None,
        "load_seconds": 0.42,
        "peak_rss_bytes": 310_000_000,
        "size_bytes": {
            "base": 3_180_000,
            "adapters": {"spam": 1_320_000, "intent_pt": 660_000, "blurbs": 1_320_000},
            "total": 6_480_000,
        },
        "generation": [
            generation(name, batch, slower * tpot * batch**0.5, slower * tpot * 13 * batch**0.7)
            for name, tpot in writers.items()
            for batch in (1, 4, 16)
        ],
        "classification": [
            classification(name, batch, slower * latency * batch**0.8)
            for name, latency in classifiers.items()
            for batch in (1, 4, 16)
        ],
        "quality": {
            "spam": {"accuracy": 0.975, "f1_macro": 0.974},
            "intent_pt": {"accuracy": 0.900, "f1_macro": 0.900},
            "blurbs": {"perplexity": 47.58},
        },
    }


def example_results(*measurements: dict[str, Any]) -> dict[str, Any]:
    """A whole results.json; with one measurement on the CPU unless others are given."""
    return {
        "schema_version": 1,
        "created": "2026-11-22T02:00:00+00:00",
        "machine": {
            "system": "Linux 6.1",
            "processor": "x86_64",
            "model": "Example CPU 9000",
            "cores": 2,
            "memory_bytes": 25_276_514_304,
            "gpus": [],
        },
        "versions": {"python": "3.11.7", "onnxruntime": "1.31.1", "onnxruntime-genai": "0.14.1", "numpy": "2.4.6"},
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "dirty": False,
        "options": {"batch_sizes": [1, 4, 16], "runs": 20},
        "targets": [
            {"execution_provider": "cpu", "available": True, "reason": None, "install": None},
            {
                "execution_provider": "cuda",
                "available": False,
                "reason": "onnxruntime 1.31.1 has no CUDAExecutionProvider",
                "install": 'pip install -c constraints.txt -e ".[cuda]"',
            },
        ],
        "measurements": list(measurements) or [measurement()],
        "agreement": [],
        "failures": [],
    }
