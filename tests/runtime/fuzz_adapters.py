"""Damages adapter files and reads each: run as a program, so that a crash of the reader is seen as its exit code.

`python -m tests.runtime.fuzz_adapters COUNT FOLDER` prints one JSON object: how many files were refused, how many read.
"""

from __future__ import annotations

import faulthandler
import json
import random
import struct
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from runtime.adapter_file import write_adapter
from runtime.adapter_report import describe_source, inspect_text
from runtime.adapter_settings import checked_settings
from runtime.adapter_source import read_source
from runtime.conversion import fit
from runtime.errors import PackageError

DEADLINE_S = 10  # a sound file of this size takes a millisecond; a busy machine is allowed for
SLOT = "model.layers.0.attn.o_proj"
SLOTS: dict[str, dict[str, Any]] = {SLOT: {"in": 8, "out": 8, "parts": {"o_proj": 8}, "dtype": "float32"}}
CONFIG = {
    "peft_type": "LORA", "r": 2, "lora_alpha": 6, "bias": "none", "use_rslora": False, "use_dora": False,
    "rank_pattern": {"o_proj": 2}, "alpha_pattern": {r"layers\.\d+\.self_attn\.(q|o)_proj": 4}, "fan_in_fan_out": False,
}  # fmt: skip
SETTINGS = {"task": "classification", "labels": ["a", "b"], "template": "{text}", "max_length": 9, "metrics": {}}
ODD_VALUES: list[Any] = [
    None, True, -1, 0, 1e400, float("nan"), 10**30, "", "x" * 5000, [], [[]] * 9, {}, {"a": {"a": {}}}, "(a+)+$",
    {"(a+)+$": 1}, {"(.*.*.*)*x": 1}, {"o_proj": -1}, {"o_proj": "2"}, {"a" * 500 + "*": 1}, {"[": 1}, ["a", 1], "chat",
]  # fmt: skip


def sound_files() -> dict[str, bytes]:
    """One small file of each format, by its name in a PEFT folder or by itself."""
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 8), (8, 2)))
    module = "base_model.model.model.layers.0.self_attn.o_proj"
    peft = {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b, "base_model.model.score.weight": a}
    path = Path(sys.argv[2]) / "sound.onnx_adapter"
    slots = {f"{SLOT}.lora_A.weight": a.T[None], f"{SLOT}.lora_B.weight": b.T[None], "class_head.weight": a.T[None]}
    write_adapter(path, slots, "0badf00d")
    return {
        "a.onnx_adapter": path.read_bytes(),
        "adapter_model.safetensors": save(peft),
        "adapter_config.json": json.dumps(CONFIG).encode(),
        "adapter.json": json.dumps(SETTINGS).encode(),
    }


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def set_number(data: bytes, rng: random.Random) -> bytes:
    """A length, offset or shape becomes something that hurts."""
    layout = rng.choice(("<H", "<I", "<q"))
    size = struct.calcsize(layout)
    place = rng.randrange(0, len(data) - size) // 2 * 2
    most = 2 ** (8 * size - (layout == "<q"))
    value = rng.choice((0, 1, 3, 7, 255, most - 1, most // 2, len(data), len(data) - place, rng.randrange(most)))
    return data[:place] + struct.pack(layout, value) + data[place + size :]


def zero_block(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    length = min(rng.choice((4, 16, 64)), len(data) - start)
    return data[:start] + bytes(length) + data[start + length :]


def swap_words(data: bytes, rng: random.Random) -> bytes:
    first, second = (rng.randrange(0, len(data) - 4) // 4 * 4 for _ in range(2))
    changed = bytearray(data)
    changed[first : first + 4], changed[second : second + 4] = data[second : second + 4], data[first : first + 4]
    return bytes(changed)


def repeat_part(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start : start + rng.randrange(1, 200)] + data[start:]


def odd_value(data: bytes, rng: random.Random) -> bytes:
    """A value of a JSON object, or of a safetensors header, becomes one of another kind."""
    binary = data[8:9] == b"{"
    length = struct.unpack_from("<Q", data)[0] if binary else len(data)
    start = 8 if binary else 0
    values = json.loads(data[start : start + length])
    inner = rng.choice([v for v in values.values() if isinstance(v, dict) and v] or [values])
    place = inner if binary or rng.random() < 0.3 else values
    place[rng.choice(list(place))] = rng.choice(ODD_VALUES)
    text = json.dumps(values).encode()
    return (struct.pack("<Q", len(text)) + text + data[8 + length :]) if binary else text


def nest(data: bytes, rng: random.Random) -> bytes:
    depth = rng.choice((50, 5_000, 200_000))
    return b'{"r": ' + b"[" * depth + b"]" * depth + b"}"


DAMAGES: list[Callable[[bytes, random.Random], bytes]] = [
    cut, flip_bits, set_number, zero_block, swap_words, repeat_part, odd_value,
]  # fmt: skip


def read(folder: Path, name: str) -> None:
    """Everything that the commands do with a stranger's adapter before it is written into a package."""
    source = read_source(folder / name if name.endswith(".onnx_adapter") else folder)
    inspect_text(describe_source(source))
    result = fit(source, SLOTS, 8, "0badf00d")
    if not result.fits:
        raise PackageError("; ".join([*result.problems, *(f.note for f in result.findings)]))
    if source.settings:
        checked_settings("x", source.settings, result.info["classes"], {})


def main(count: int, folder: Path) -> dict[str, Any]:
    sound = sound_files()
    peft = folder / "peft"
    peft.mkdir()
    for name, data in sound.items():
        (peft / name).write_bytes(data)
    for name in sound:
        read(peft, name)
    rng = random.Random(0)
    results: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for number in range(count):
        name = rng.choices(list(sound), weights=(5, 3, 1, 1))[0]
        damage = rng.choice(DAMAGES)
        if name.endswith(".json") and rng.random() < 0.05:
            damage = nest
        if damage is odd_value and name.endswith(".onnx_adapter"):
            damage = set_number
        damaged = damage(sound[name], rng)
        (peft / name).write_bytes(damaged)
        faulthandler.dump_traceback_later(DEADLINE_S, exit=True)  # a hang is seen as an exit code as well
        try:
            read(peft, name)
            results["read"] += 1
        except PackageError as error:
            results["refused"] += 1
            assert 0 < len(str(error)) < 20_000, (number, name, len(str(error)))
        except Exception as error:
            raise RuntimeError(f"file {number}, {name} damaged by {damage.__name__}: {error!r}") from error
        faulthandler.cancel_dump_traceback_later()
        kinds[f"{name} {damage.__name__}"] += 1
        (peft / name).write_bytes(sound[name])
    return {**results, "kinds": kinds}


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]), Path(sys.argv[2]))))
