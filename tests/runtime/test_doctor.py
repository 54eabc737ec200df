"""inspect, check and convert; adapters in every naming scheme; and what damaged or hostile files meet."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from runtime.adapter_file import read_adapter, write_adapter
from runtime.adapter_source import read_source
from runtime.adapters import main
from runtime.conversion import fit, slot_tensors
from runtime.errors import PackageError
from runtime.manifest import FORMAT_VERSION
from runtime.onnx_adapter import read_onnx_adapter
from runtime.peft_config import scale
from tests.runtime.test_conversion import CONFIG, SLOTS, delta, lora, write_folder

QKV, ATTN = "model.layers.0.attn.qkv_proj", "model.layers.0.attn"
APART: dict[str, dict[str, Any]] = {
    f"{ATTN}.{part}": {"in": 8, "out": size, "parts": {part: size}, "dtype": "float32"}
    for part, size in (("q_proj", 8), ("k_proj", 4), ("v_proj", 4))
}
ROOT = Path(__file__).parents[2]


def pair(size_out: int, seed: int = 0, size_in: int = 8, rank: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """A (in, r) and B (r, out), as files without PEFT's names hold them."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(size_in, rank)).astype("f"), rng.normal(size=(rank, size_out)).astype("f")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A manifest with slots is all that these commands read of a package."""
    folder = tmp_path / "package"
    folder.mkdir()
    base = {"name": "tiny", "fingerprint": "00abcdef99", "hidden_size": 8}
    manifest = {
        "format_version": FORMAT_VERSION,
        "name": "p",
        "adapters": {},
        "base": base,
        "files": {},
        "precision": "fp32",
    }
    manifest |= {"slots": SLOTS, "target": {"execution_provider": "cpu"}}
    (folder / "package.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize(
    "names, change, verdict",
    [
        ("model.layers.0.self_attn.{}.lora_{}.weight", lambda v: v, "fits"),  # olive convert-adapters
        ("model.layers.0.attn.{}.lora_{}.weight", lambda v: v, "fits"),
        ("model.layers.0.attn.{}.lora_{}.MatMul.weight", lambda v: v, "repaired"),  # ModelBuilder and ExtractAdapters
        ("layers.0.self_attn.{}.lora_{}.weight", lambda v: v, "repaired"),
        ("model.layers.0.self_attn.{}.lora_{}.default.weight", lambda v: v, "repaired"),
        ("model.layers.0.self_attn.{}.lora_{}.weight", lambda v: v.T, "repaired"),
        ("model.layers.0.attn.{}.lora_{}.weight", lambda v: v[None], "fits"),
        ("base_model.model.model.layers.0.self_attn.{}.lora_{}.default.weight", lambda v: v.T, "repaired"),
        ("base_model.model.model.layers.0.self_attn.{}.lora_{}.weight", lambda v: v, "repaired"),
    ],
)
def test_names_and_layouts_of_files_are_repaired(
    tmp_path: Path, names: str, change: Callable[[np.ndarray], np.ndarray], verdict: str
) -> None:
    pairs = {"q_proj": pair(8), "v_proj": pair(4, 1)}
    given = {names.format(p, h): change(value) for p, ab in pairs.items() for h, value in zip("AB", ab, strict=True)}
    path = tmp_path / "a.onnx_adapter"
    write_adapter(path, given)
    result = fit(read_source(path), SLOTS, 8)
    assert {finding.verdict for finding in result.findings} == {verdict}
    found = delta(result.tensors, QKV)
    np.testing.assert_allclose(found[:, :8], pairs["q_proj"][0] @ pairs["q_proj"][1], rtol=1e-5)
    np.testing.assert_array_equal(found[:, 8:12], 0)
    np.testing.assert_allclose(found[:, 12:], pairs["v_proj"][0] @ pairs["v_proj"][1], rtol=1e-5)
    apart = fit(read_source(path), APART, 8)
    np.testing.assert_allclose(delta(apart.tensors, f"{ATTN}.v_proj"), found[:, 12:], rtol=1e-5)
    assert apart.empty_slots == [f"{ATTN}.k_proj"]


def test_square_matrices_are_read_as_their_names_say(tmp_path: Path) -> None:
    a, b = pair(8, rank=8)
    write_adapter(tmp_path / "a.onnx_adapter", {f"{ATTN}.o_proj.lora_A.weight": a, f"{ATTN}.o_proj.lora_B.weight": b})
    tensors, _ = slot_tensors(tmp_path / "a.onnx_adapter", SLOTS, 8)
    np.testing.assert_allclose(delta(tensors, f"{ATTN}.o_proj"), a @ b, rtol=1e-5)
    weights = lora("self_attn.o_proj", 8, 8, rank=8)
    tensors, _ = slot_tensors(write_folder(tmp_path / "peft", weights), SLOTS, 8)
    peft_a, peft_b = weights.values()
    np.testing.assert_allclose(delta(tensors, f"{ATTN}.o_proj"), (peft_b @ peft_a).T * 6 / 8, rtol=1e-4)


def test_packed_adapter_is_divided_for_separate_slots(tmp_path: Path) -> None:
    """A file in the slot form of a base that packs q, k and v, for a base that does not."""
    folder = write_folder(tmp_path / "peft", {**lora("self_attn.q_proj", 8, 8), **lora("self_attn.v_proj", 8, 4, 3, 1)})
    packed, info = slot_tensors(folder, SLOTS, 8)
    write_adapter(tmp_path / "a.onnx_adapter", packed)
    found, found_info = slot_tensors(tmp_path / "a.onnx_adapter", APART, 8)
    wanted = delta(packed, QKV)
    for part, rows in (("q_proj", slice(0, 8)), ("v_proj", slice(12, 16))):
        np.testing.assert_allclose(delta(found, f"{ATTN}.{part}"), wanted[:, rows], rtol=1e-5)
    assert found_info == info
    assert found[f"{ATTN}.v_proj.lora_A.weight"].shape == (1, 8, 3)


@pytest.mark.parametrize(
    "name, rows, verdict",
    [
        ("base_model.model.score.weight", 3, "fits"),
        ("base_model.model.score.modules_to_save.weight", 3, "fits"),
        ("base_model.model.score.modules_to_save.default.weight", 3, "fits"),
        ("base_model.model.classifier.weight", 3, "fits"),
        ("base_model.model.lm_head.weight", 3, "no slot"),
    ],
)
def test_heads(tmp_path: Path, name: str, rows: int, verdict: str) -> None:
    value = np.arange(rows * 8, dtype=np.float32).reshape(rows, 8)
    weights = {name: value, **lora("self_attn.o_proj", 8, 8)}
    result = fit(read_source(write_folder(tmp_path, weights)), SLOTS, 8)
    assert next(f.verdict for f in result.findings if f.key == name) == verdict
    if verdict == "fits":
        np.testing.assert_array_equal(result.tensors["class_head.weight"][0], value.T)
        for bias, fits in ((np.zeros(3, "f"), True), (np.ones(3, "f"), False)):
            biased = {**weights, name.replace("weight", "bias"): bias}
            assert fit(read_source(write_folder(tmp_path, biased)), SLOTS, 8).fits == fits


def test_check_tells_of_every_tensor(tmp_path: Path, package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = {
        **lora("self_attn.q_proj", 8, 8),
        **{k.replace("layers.0", "layers.7"): v for k, v in lora("self_attn.v_proj", 8, 4).items()},
        **lora("self_attn.o_proj", 16, 8),
        **lora("mlp.router", 8, 8),
        "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": np.ones((2, 8), "f"),
        "base_model.model.model.layers.0.mlp.gate_proj.lora_A.weight": np.full((2, 8), np.nan, "f"),
    }
    folder = write_folder(tmp_path / "peft", weights, use_dora=True)
    assert main(["check", str(package), str(folder), "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    notes = {t["name"] if "name" in t else t["key"]: (t["verdict"], t["note"]) for t in facts["tensors"]}
    assert set(notes) == set(weights)
    wanted = {
        "layers.0.self_attn.q_proj.lora_B": ("fits", f"-> {QKV} (q_proj), times 3"),
        "layers.7.self_attn.v_proj.lora_A": ("other base", "layer 7, but the base has layers 0 to 0"),
        "layers.0.self_attn.o_proj.lora_A": ("other base", "A [16, 2] and B [2, 8], but the base takes [8, r] and"),
        "layers.0.mlp.router.lora_A": ("no slot", "has no slot in this base"),
        "layers.0.mlp.up_proj.lora_A": ("unusable", "comes without its lora_B"),
        "layers.0.mlp.gate_proj.lora_A": ("unusable", "not finite"),
    }
    for name, (verdict, note) in wanted.items():
        found = notes[f"base_model.model.model.{name}.weight"]
        assert found[0] == verdict and note in found[1]
    assert "use_dora is true" in facts["problems"][0] and "merge" in facts["problems"][0]
    good = write_folder(tmp_path / "good", lora("self_attn.q_proj", 8, 8))
    assert main(["check", str(package), str(good)]) == 0
    text = capsys.readouterr().out
    assert "1 of 4 slots filled" in text and "fits the base of 'p' (tiny, 00abcdef99)" in text


def test_inspect_says_what_an_adapter_is(tmp_path: Path, package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = {**lora("self_attn.q_proj", 8, 8, 4), **lora("mlp.up_proj", 8, 12, 2)}
    folder = write_folder(tmp_path / "peft", {**weights, "base_model.model.score.weight": np.ones((3, 8), "f")})
    (folder / "adapter.json").write_text('{"labels": ["x", "y", "z"]}')
    assert main(["inspect", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    wanted = {"format": "PEFT folder", "kind": "LoRA", "ranks": [2, 4], "targets": ["q_proj", "up_proj"], "layers": 1}
    wanted |= {"dtypes": {"float32": 5}, "scales": [1.5, 3.0], "labels": ["x", "y", "z"], "base": "somewhere/else"}
    assert {key: facts[key] for key in wanted} == wanted
    assert facts["head"] == {"tensor": "base_model.model.score.weight", "classes": 3}
    assert facts["tensors"][0]["shape"] == list(next(iter(weights.values())).shape) or len(facts["tensors"]) == 5
    assert main(["add", str(package), "xyz", str(folder)]) == 0
    assert main(["inspect", str(package / "adapters" / "xyz.onnx_adapter")]) == 0
    text = capsys.readouterr().out
    assert "onnx_adapter" in text and "00abcde" in text and "class_head.weight" in text and "1 x 8 x 4" in text
    assert main(["inspect", str(package)]) == 0
    text = capsys.readouterr().out
    assert "xyz      classification  4 " in text and "x, y, z" in text


def test_converted_file_is_the_adapter(tmp_path: Path, package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_folder(tmp_path / "peft", lora("self_attn.q_proj", 8, 8))
    out = tmp_path / "out.onnx_adapter"
    assert main(["convert", str(folder), str(out), "--for", str(package)]) == 0
    wanted, _ = slot_tensors(folder, SLOTS, 8)
    found = read_adapter(out)
    assert set(found) == set(wanted) and all(np.array_equal(found[name], wanted[name]) for name in wanted)
    assert read_onnx_adapter(out).model_version == 0x00ABCDE
    before = out.read_bytes()
    assert main(["convert", str(folder), str(out), "--for", str(package)]) == 1
    assert "--replace overwrites it" in capsys.readouterr().err and out.read_bytes() == before
    assert main(["convert", str(folder), str(out), "--for", str(package), "--replace"]) == 0
    assert main(["convert", str(folder), str(tmp_path / "a.bin"), "--for", str(package)]) == 1
    assert "must end in .onnx_adapter" in capsys.readouterr().err
    assert main(["check", str(package), str(out)]) == 0
    foreign = tmp_path / "foreign.onnx_adapter"
    write_adapter(foreign, found, "0badf00d")
    assert main(["check", str(package), str(foreign)]) == 1
    assert "made for another base" in capsys.readouterr().out


def test_parser_agrees_with_onnxruntime(tmp_path: Path) -> None:
    import onnxruntime

    rng = np.random.default_rng(0)
    kinds = ("float32", "float16", "float64", "int64", "int8", "uint8", "uint64")
    tensors = {f"t.{kind}": rng.integers(0, 2, (1, 3, i)).astype(kind) for i, kind in enumerate(kinds)}
    path = tmp_path / "a.onnx_adapter"
    write_adapter(path, tensors, "1234567")
    found, theirs = read_onnx_adapter(path), onnxruntime.AdapterFormat.read_adapter(str(path))
    assert (found.model_version, found.adapter_version) == (theirs.get_model_version(), theirs.get_adapter_version())
    assert set(found.tensors) == set(tensors)
    for name, value in theirs.get_parameters().items():
        np.testing.assert_array_equal(found.tensors[name], value.numpy())
        assert found.tensors[name].dtype == value.numpy().dtype == tensors[name].dtype


def test_bfloat16_in_an_onnx_adapter(tmp_path: Path) -> None:
    import onnxruntime

    bits = np.array([[0x3F80, 0xC040]], np.uint16)  # 1 and -3
    value = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, 16)
    adapter = onnxruntime.AdapterFormat()
    adapter.set_parameters({"a": value})
    adapter.export_adapter(str(tmp_path / "a.onnx_adapter"))
    file = read_onnx_adapter(tmp_path / "a.onnx_adapter")
    np.testing.assert_array_equal(file.tensors["a"], [[1.0, -3.0]])
    assert file.dtypes == {"a": "bfloat16"}


def patched(data: bytes, old: bytes, new: bytes) -> bytes:
    assert data.count(old) == 1
    return data.replace(old, new)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda d: patched(d, struct.pack("<3q", 1, 5, 7), struct.pack("<3q", 1, 5, 7000)), "35000|140 bytes of data"),
        (lambda d: patched(d, struct.pack("<3q", 1, 5, 7), struct.pack("<3q", -1, -5, 7)), "impossible shape"),
        (lambda d: patched(d, struct.pack("<3q", 1, 5, 7), struct.pack("<3q", 0, 2**40, 2**40)), "impossible shape"),
        (lambda d: patched(d, b"abcdefgh", b"abcd\xff\xfegh"), "no text"),
        (lambda d: patched(d, b"abcdefgh", b"\0bcdefgh"), "no name"),
        (lambda d: patched(d, b"TORT", b"ORTM"), "not b'TORT'"),
        (lambda d: b"\xff\xff\xff\x7f" + d[4:], "but the file has"),
        (lambda d: d[:60], "file has 60|does not lie within"),
        (lambda d: d[:-5], "claims|does not lie|the file has"),
    ],
)
def test_damage_that_onnxruntime_may_not_see(tmp_path: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    path = tmp_path / "a.onnx_adapter"
    write_adapter(path, {"abcdefgh": np.ones((1, 5, 7), np.float32)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(PackageError, match=message) as caught:
        read_onnx_adapter(path)
    assert str(path) in str(caught.value)


def test_tensors_that_share_their_bytes_do_not_fill_the_memory(tmp_path: Path) -> None:
    """500 tensors point at the bytes of one: 500 times its size if they were copied."""
    path = tmp_path / "a.onnx_adapter"
    write_adapter(path, {"a": np.ones(50_000, np.float32), "b": np.ones(3, np.float32)})
    data = bytearray(path.read_bytes())
    root = struct.unpack_from("<I", data, 0)[0]
    fields = root - struct.unpack_from("<i", data, root)[0]
    vector = root + struct.unpack_from("<H", data, fields + 4 + 2 * 3)[0]
    vector += struct.unpack_from("<I", data, vector)[0]
    tables = [vector + 4 + 4 * i + struct.unpack_from("<I", data, vector + 4 + 4 * i)[0] for i in range(2)]
    places = {}
    for table in tables:
        vtable = table - struct.unpack_from("<i", data, table)[0]
        for field in (1, 3):
            places[table, field] = table + struct.unpack_from("<H", data, vtable + 4 + 2 * field)[0]
    small, large = tables if tables[0] < tables[1] else tables[::-1]
    for field in (1, 3):
        target = places[large, field] + struct.unpack_from("<I", data, places[large, field])[0]
        struct.pack_into("<I", data, places[small, field], target - places[small, field])
    path.write_bytes(data)
    with pytest.raises(PackageError, match=r"claim more than its \d+ bytes"):
        read_onnx_adapter(path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"r": -1}, "r is -1, but must be a whole number"),
        ({"r": "8"}, "r is '8'"),
        ({"r": True}, "r is true"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"lora_alpha": 1e400}, "lora_alpha is inf"),
        ({"use_rslora": "no"}, "use_rslora is 'no'"),
        ({"rank_pattern": ["q_proj"]}, r"rank_pattern is \['q_proj'\]"),
        ({"rank_pattern": {"q_proj": 0}}, "'q_proj' is 0, which is no rank"),
        ({"alpha_pattern": {"q_proj": None}}, "'q_proj' is null, which is no finite number"),
        ({"alpha_pattern": {"(a+)+$": 1}}, "which is|a regex of a kind"),
        ({"alpha_pattern": {"(a|a)*b": 1}}, "a regex of a kind"),
        ({"alpha_pattern": {"(.*)*x": 1}}, "regex"),
        ({"alpha_pattern": {".*.*.*.*x": 1}}, "may run for ever"),
        ({"alpha_pattern": {"(a|b)" * 20: 1}}, "may run for ever"),
        ({"alpha_pattern": {r"(?=a)\1": 1}}, "a regex of a kind"),
        ({"alpha_pattern": {"[z-a]": 1}}, "is no regex"),
        ({"alpha_pattern": {"a+" * 100: 1}}, "a regex of 200 characters"),
        ({"alpha_pattern": {f"a\\.{i}": 1 for i in range(99)}}, "has 99 regexes"),
    ],
)
def test_absurd_configurations_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = write_folder(tmp_path, lora("self_attn.o_proj", 8, 8), **change)
    with pytest.raises(PackageError, match=message):
        read_source(folder)


@pytest.mark.parametrize(
    "key", ["q_proj", "self_attn.q_proj", r"layers\.\d+\.self_attn\.(q|v)_proj", "model.layers.0.self_attn.q_proj",
            "proj", r".*\.0\..*_proj", "layers.[0-3].self_attn.(?:q|k)_proj", "q_proj|v_proj",
            "^model.*q_proj", "attn.q_proj"],
)  # fmt: skip
def test_patterns_match_as_in_peft(key: str, tmp_path: Path) -> None:
    from peft.utils.other import get_pattern_key

    try:
        read_source(write_folder(tmp_path, lora("self_attn.o_proj", 8, 8), alpha_pattern={key: 7}))
    except PackageError as error:
        assert key == r".*\.0\..*_proj", error  # two free repetitions are not taken
        return
    for module in ("model.layers.0.self_attn.q_proj", "model.layers.12.self_attn.v_proj", "model.layers.0.mlp.up_proj"):
        wanted = 7 if get_pattern_key([key], module) == key else 6
        assert scale({**CONFIG, "alpha_pattern": {key: 7}}, module, 1) == wanted


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("adapter_config.json", "[" * 100_000, "is no JSON"),
        ("adapter_config.json", "[]", "must hold a JSON object"),
        ("adapter_config.json", " " * (2 << 20), "at most 1048576 are read"),
        ("adapter.json", "[1]", "must hold a JSON object"),
    ],
)
def test_json_files_of_strangers(tmp_path: Path, name: str, text: str, message: str) -> None:
    folder = write_folder(tmp_path, lora("self_attn.o_proj", 8, 8))
    (folder / name).write_text(text)
    with pytest.raises(PackageError, match=message):
        read_source(folder)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"labels": 5}, "labels is 5, but must be a list of names"),
        ({"labels": ["a", 1, "c"]}, "must be a list of names"),
        ({"task": ["x"]}, "task is"),
        ({"max_length": True}, "max_length is True"),
        ({"template": {"a": 1}}, "template is"),
        ({"metrics": [1]}, "metrics is"),
    ],
)
def test_settings_of_strangers(
    tmp_path: Path, package: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], message: str
) -> None:
    weights = {**lora("self_attn.o_proj", 8, 8), "base_model.model.score.weight": np.ones((3, 8), "f")}
    folder = write_folder(tmp_path / "peft", weights)
    (folder / "adapter.json").write_text(json.dumps({"labels": ["a", "b", "c"], **change}))
    assert main(["add", str(package), "x", str(folder)]) == 1
    assert message in capsys.readouterr().err


def test_links(tmp_path: Path) -> None:
    """A folder of the Hugging Face cache is made of links to its blobs; any other link out of a folder is refused."""
    cache = tmp_path / "models--a--b"
    folder = write_folder(tmp_path / "real", lora("self_attn.o_proj", 8, 8))
    snapshot = cache / "snapshots" / "1234"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    try:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (cache / "blobs" / name).write_bytes((folder / name).read_bytes())
            (snapshot / name).symlink_to(cache / "blobs" / name)
    except OSError as error:
        pytest.skip(f"this account cannot make symbolic links: {error}")
    assert len(read_source(snapshot).tensors) == 2
    (snapshot / "adapter_model.safetensors").unlink()
    (snapshot / "adapter_model.safetensors").symlink_to(folder / "adapter_model.safetensors")
    with pytest.raises(PackageError, match=r"adapter_model\.safetensors: is a link that leaves the folder"):
        read_source(snapshot)


def test_bare_safetensors_with_names_of_peft_need_their_configuration(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "peft", lora("self_attn.o_proj", 8, 8))
    assert read_source(folder / "adapter_model.safetensors").config is not None
    save_file(lora("self_attn.o_proj", 8, 8), tmp_path / "a.safetensors")
    with pytest.raises(PackageError, match=r"need the adapter_config\.json beside the file"):
        slot_tensors(tmp_path / "a.safetensors", SLOTS, 8)


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_files(tmp_path: Path, count: int) -> None:
    """In one process of its own, whose exit code tells of a crash or a hang; every file is refused in words or read."""
    command = [sys.executable, "-m", "tests.runtime.fuzz_adapters", str(count), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert result["refused"] + result["read"] == count
    assert result["refused"] > 0.7 * count and result["read"] > 0.05 * count  # not everything is refused
    assert len(result["kinds"]) > 25 and min(result["kinds"].values()) > 0.002 * count
