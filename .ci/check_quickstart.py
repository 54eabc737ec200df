"""Holds the quickstart's evaluation to what the project promises: python .ci/check_quickstart.py evaluation.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(file: Path) -> int:
    rows = {(r["adapter"], r["metric"]): r for r in json.loads(file.read_text(encoding="utf-8"))["quality"]}
    spam, intent = rows["spam", "accuracy"], rows["intent_pt", "f1_macro"]
    blurbs = rows["blurbs", "perplexity"]
    promises = {
        "spam accuracy >= 0.95": spam["package"] >= 0.95,
        "spam accuracy at least 5 points above a head on the frozen base": spam["package"] >= spam["base"] + 0.05,
        "intent_pt macro-F1 >= 0.80": intent["package"] >= 0.80,
        "intent_pt macro-F1 at least 5 points above a head on the frozen base": intent["package"]
        >= intent["base"] + 0.05,
        "blurbs perplexity at most half of the base's": blurbs["package"] <= blurbs["base"] / 2,
        "blurbs perplexity: int4 loses at most 5 %": blurbs["package"] <= blurbs["pytorch"] * 1.05,
    }
    for name in ("spam", "intent_pt"):
        row = rows[name, "accuracy"]
        promises[f"{name} accuracy: int4 loses at most 2 points"] = row["package"] >= row["pytorch"] - 0.02 - 1e-9
    for promise, kept in promises.items():
        print(f"{'kept  ' if kept else 'BROKEN'}  {promise}")
    return 0 if all(promises.values()) else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
