"""The shape of results.json, schema version 1, as a JSON Schema (draft 2020-12)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SCHEMA_VERSION = 1

_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_NUMBER = {"type": "number"}
_POSITIVE = {"type": "number", "minimum": 0}
_MAYBE_NUMBER = {"type": ["number", "null"], "minimum": 0}
_MAYBE_TEXT = {"type": ["string", "null"]}


def _object(properties: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """An object that has `properties`, may have `optional`, and whatever later versions add."""
    return {"type": "object", "required": list(properties), "properties": {**properties, **(optional or {})}}


def _list(items: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _by_name(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": values}


# milliseconds; p50_low and p50_high are the 95 % interval of the median, `missing` says why a percentile is null
_DISTRIBUTION = _object(
    {"samples": _COUNT, **dict.fromkeys(("p50", "p90", "p99", "p50_low", "p50_high"), _MAYBE_NUMBER)},
    {"missing": _by_name(_TEXT)},
)
_RATE = _object(dict.fromkeys(("median", "low", "high"), _POSITIVE))
_RUN = {"batch_size": _COUNT, "prompt_tokens": _COUNT, "runs": _COUNT, "warmup_runs": _COUNT}
_RUN |= {"stable": {"type": "boolean"}}
_GENERATION = _object(
    {
        "adapter": _MAYBE_TEXT,
        **_RUN,
        "new_tokens": _COUNT,
        **dict.fromkeys(("ttft_ms", "tpot_ms", "end_to_end_ms"), _DISTRIBUTION),
        "tokens_per_second": _RATE,
    }
)
_CLASSIFICATION = _object({"adapter": _TEXT, **_RUN, "latency_ms": _DISTRIBUTION, "rows_per_second": _RATE})

# what `python -m benchmark.worker` writes; an encoder has no "generation"
MEASUREMENT = _object(
    {
        **dict.fromkeys(("package", "folder", "fingerprint", "precision", "execution_provider"), _TEXT),
        "threads": {"type": ["integer", "null"]},
        "load_seconds": _POSITIVE,
        "peak_rss_bytes": _COUNT,
        "size_bytes": _object({"base": _COUNT, "adapters": _by_name(_COUNT), "total": _COUNT}),
        "quality": _by_name(_by_name({"type": ["number", "null"]})),
    },
    {"generation": _list(_GENERATION), "classification": _list(_CLASSIFICATION)},
)

RESULTS = _object(
    {
        "schema_version": {"const": SCHEMA_VERSION},
        "created": _TEXT,
        "machine": _object({"model": _TEXT}),
        "versions": _by_name(_MAYBE_TEXT),
        "commit": _MAYBE_TEXT,
        "dirty": {"type": ["boolean", "null"]},
        "options": {"type": "object"},
        "targets": _list(
            _object(
                {
                    "execution_provider": _TEXT,
                    "available": {"type": "boolean"},
                    "reason": _MAYBE_TEXT,
                    "install": _MAYBE_TEXT,
                }
            )
        ),
        "measurements": _list(MEASUREMENT),
        "agreement": _list(
            _object(
                {
                    **dict.fromkeys(("package", "reference", "execution_provider"), _TEXT),
                    "adapter": _MAYBE_TEXT,
                    **dict.fromkeys(("top1_agreement", "kl_divergence", "max_abs_difference"), _NUMBER),
                    "positions": _COUNT,
                }
            )
        ),
        "failures": _list(_object(dict.fromkeys(("package", "execution_provider", "reason"), _TEXT))),
    }
)


def problems(content: Any, schema: Mapping[str, Any]) -> list[str]:
    """What does not keep to a schema, a line each: where (such as ``$.measurements[0].threads``) and what is wrong."""
    from jsonschema import Draft202012Validator

    errors = sorted(Draft202012Validator(schema).iter_errors(content), key=lambda error: error.json_path)
    return [f"{error.json_path}: {error.message[:200]}" for error in errors]
