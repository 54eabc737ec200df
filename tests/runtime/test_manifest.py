"""The manifest's checks, and the adapters command line, on one small package that each test copies."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from passes.package import write_package
from runtime.adapter_file import read_adapter, write_adapter
from runtime.adapters import main
from runtime.errors import PackageError
from runtime.manifest import base_fingerprint, file_entry, read_manifest
from runtime.model import MultiAdapterModel
from tests.conftest import SENTENCES, save_tiny_model
from tests.runtime.olive_files import convert_with_olive

WIDE = np.ones((1, 32, 2), np.float32)
MOOD, STORY = "adapters/mood.onnx_adapter", "adapters/story.onnx_adapter"


@pytest.fixture(scope="module")
def original(
    tiny_llama_path: Path, make_peft_adapter: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("packages") / "tiny"
    sources = {
        "mood": make_peft_adapter(tiny_llama_path, labels=["bad", "good"]),
        "story": make_peft_adapter(tiny_llama_path, seed=1),
    }
    write_package(
        folder,
        base_path=tiny_llama_path,
        adapter_folders=sources,
        precision="int4",
        execution_provider="cpu",
        name="tiny",
        workflow={"a": 1},
    )
    return folder


@pytest.fixture
def package(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path / "package")
    return tmp_path / "package"


def edit(package: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((package / "package.json").read_text())
    change(manifest)
    (package / "package.json").write_text(json.dumps(manifest))


def swap(package: Path) -> None:
    (package / MOOD).rename(package / "x")
    (package / STORY).rename(package / MOOD)
    (package / "x").rename(package / STORY)


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def edit_story(package: Path, **values: str) -> None:
    edit(package, lambda m: m["adapters"]["story"].update(values))


def list_file(package: Path, path: str) -> None:
    edit(package, lambda m: m["files"].update({path: {"sha256": "", "bytes": 0}}))


def two_damages(package: Path) -> None:
    (package / MOOD).unlink()
    flip_a_byte(package / "tokenizer.json")


def replace_story(package: Path, tensors: dict[str, np.ndarray], fingerprint: str = "") -> None:
    """Another file for adapter story, with a manifest that knows its sha256."""
    write_adapter(package / STORY, tensors, fingerprint)
    edit(package, lambda m: m["adapters"]["story"].update(file_entry(package / STORY)))


def test_manifest_says_what_is_in_the_folder(original: Path, tiny_llama_path: Path) -> None:
    manifest = read_manifest(original)
    listed = {*manifest["files"], "package.json", MOOD, STORY}
    assert {p.relative_to(original).as_posix() for p in original.rglob("*") if p.is_file()} == listed
    assert {"model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json"} <= listed
    base = {"name": "tiny_llama", "architecture": "LlamaForCausalLM", "hidden_size": 64, "num_hidden_layers": 2}
    base |= {"vocab_size": 300, "context_length": 128, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    base |= {"generates": True, "pooling": "last"}
    assert manifest["base"] == {**base, "fingerprint": base_fingerprint(tiny_llama_path)}
    assert (manifest["precision"], manifest["quantization"]["algorithm"], manifest["workflow"]) == (
        "int4",
        "default",
        {"a": 1},
    )
    assert manifest["adapters"]["mood"]["labels"] == ["bad", "good"]
    genai = json.loads((original / "genai_config.json").read_text())
    assert genai["model"]["decoder"]["session_options"]["intra_op_num_threads"] == manifest["target"]["threads"]


@pytest.mark.parametrize(
    "damage, messages",
    [
        (lambda p: (p / "package.json").unlink(), ["is no package, it has no package.json"]),
        (lambda p: (p / "package.json").write_text("{"), ["package.json: is no JSON"]),
        (lambda p: edit(p, lambda m: m.update(format_version=1)), ["format_version is 1, but this runtime reads 2"]),
        (lambda p: edit(p, lambda m: m.pop("slots")), ["misses slots"]),
        (
            lambda p: edit(p, lambda m: m["adapters"]["story"].pop("sha256")),
            ["an entry is malformed: KeyError('sha256')"],
        ),
        (lambda p: edit(p, lambda m: m.update(files=[1])), ["package.json: an entry is malformed"]),
        (lambda p: (p / MOOD).unlink(), [f"{MOOD}: is missing"]),
        (lambda p: flip_a_byte(p / MOOD), [f"{MOOD}: was altered, its sha256"]),
        (lambda p: (p / "model.onnx").write_bytes(b"x"), ["model.onnx: was altered, it has 1 bytes"]),
        (lambda p: flip_a_byte(p / "model.onnx.data"), ["model.onnx.data: was altered, its sha256"]),
        (swap, [f"{MOOD}: was swapped, it is the file of adapter 'story'", f"{STORY}: was swapped, it is the file of"]),
        (lambda p: edit_story(p, base_fingerprint="f" * 64), [f"{STORY}: adapter 'story' was made for another base"]),
        (lambda p: edit_story(p, file="../story.onnx_adapter"), ["path '../story.onnx_adapter' must be relative"]),
        (lambda p: list_file(p, "/etc/hostname"), ["path '/etc/hostname' must be relative"]),
        (lambda p: list_file(p, "C:\\a"), ["must be relative and stay inside"]),
        (lambda p: list_file(p, "a\\..\\..\\b"), ["must be relative and stay inside"]),
        (
            lambda p: replace_story(p, read_adapter(p / STORY), "0badf00d"),
            [f"{STORY}: says itself that it was made for"],
        ),
        (lambda p: replace_story(p, {"class_head.weight": WIDE}), [f"{STORY}: class_head.weight has shape [1, 32, 2]"]),
        (lambda p: replace_story(p, {"a.lora_A.weight": WIDE}), [f"{STORY}: a.lora_A.weight has no slot"]),
        (two_damages, [f"{MOOD}: is missing", "tokenizer.json: was altered"]),
    ],
)
def test_damage_is_named_in_one_error(package: Path, damage: Callable[[Path], Any], messages: list[str]) -> None:
    damage(package)
    with pytest.raises(PackageError) as caught:
        MultiAdapterModel.load(package)
    for message in messages:
        assert message in str(caught.value)


def test_link_that_leaves_the_package(package: Path) -> None:
    outside = package.parent / "outside.json"
    shutil.copyfile(package / "tokenizer.json", outside)
    (package / "tokenizer.json").unlink()
    try:
        (package / "tokenizer.json").symlink_to(outside)
    except OSError as error:
        pytest.skip(f"this account cannot make symbolic links: {error}")
    with pytest.raises(PackageError, match=r"tokenizer\.json: is a link that leaves the package"):
        read_manifest(package)


def test_command_line_adds_lists_and_removes(
    package: Path, tiny_llama_path: Path, make_peft_adapter: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_peft_adapter(tiny_llama_path, rank=3, seed=5)
    head = make_peft_adapter(tiny_llama_path, rank=2, seed=6, labels=["x", "y"])
    (head / "adapter.json").unlink()  # as a folder of another tool
    model = MultiAdapterModel.load(package)
    assert main(["add", str(package), "poem", str(source), "--template", "Poem: {prompt}"]) == 0
    assert main(["add", str(package), "sort", str(head), "--labels", "left, right", "--max-length", "32"]) == 0
    capsys.readouterr()
    assert main(["list", str(package)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["adapter", "task", "rank"], ["mood", "classification", "4"], ["story", "generation", "4"],
        ["poem", "generation", "3"], ["sort", "classification", "2"],
    ]  # fmt: skip
    assert lines[4].endswith("left, right") and "'Poem: {prompt}'" in lines[3]
    with pytest.raises(PackageError, match="there is no adapter 'poem'"):
        model.generate("The", "poem", 3)
    model.reload()
    assert model.adapters["poem"]["template"] == "Poem: {prompt}"
    first = model.generate("The", "poem", 12)
    assert set(model.classify("The", "sort")[0].probabilities) == {"left", "right"}
    assert (
        main(["add", str(package), "poem", str(make_peft_adapter(tiny_llama_path, rank=5, seed=9)), "--replace"]) == 0
    )
    model.reload()
    assert model.generate("The", "poem", 12) != first
    assert main(["drop", str(package), "sort"]) == 0
    model.reload()
    files = {p.relative_to(package).as_posix() for p in (package / "adapters").iterdir()}
    assert files == {entry["file"] for entry in model.adapters.values()} and len(files) == 3
    assert list(model.adapters) == ["mood", "story", "poem"]


def test_adapter_is_replaced_and_removed_under_a_running_stream(
    original: Path, package: Path, tiny_llama_path: Path, make_peft_adapter: Callable[..., Path]
) -> None:
    model = MultiAdapterModel.load(package)
    whole = model.generate("The", "story", 30, stop_at_eos=False)
    stream = model.stream("The", "story", 30, stop_at_eos=False)
    pieces = [next(stream)]
    assert main(["add", str(package), "story", str(make_peft_adapter(tiny_llama_path, seed=8)), "--replace"]) == 0
    model.reload()
    assert model.generate("The", "story", 30, stop_at_eos=False) != whole
    assert main(["drop", str(package), "story"]) == 0
    model.reload()
    shutil.copytree(original, package, dirs_exist_ok=True)  # the first adapter comes back
    model.reload()
    assert model.generate("The", "story", 30, stop_at_eos=False) == whole
    assert main(["drop", str(package), "story"]) == 0
    model.reload()
    assert "".join([*pieces, *stream]).rstrip("\ufffd") == whole.rstrip("\ufffd")
    with pytest.raises(PackageError, match="there is no adapter 'story'"):
        model.generate("The", "story", 3)


def test_file_of_olive_convert_adapters_can_be_added(
    package: Path, tiny_llama_path: Path, make_peft_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    """One adapter by two ways, through Olive's own command and directly, gives the same answers."""
    source = make_peft_adapter(tiny_llama_path, rank=6, seed=4, labels=["x", "y", "z"])
    file = convert_with_olive(source, tmp_path / "olive.onnx_adapter")
    assert main(["add", str(package), "direct", str(source)]) == 0
    assert main(["add", str(package), "olive", str(file), "--labels", "x,y,z"]) == 0
    model = MultiAdapterModel.load(package)
    facts = ("rank", "target_modules", "labels", "task")
    assert [model.adapters["olive"][f] for f in facts] == [model.adapters["direct"][f] for f in facts]
    found, wanted = (model.class_logits(SENTENCES[:4], name) for name in ("olive", "direct"))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_file_of_this_package_can_be_added_to_a_copy(package: Path) -> None:
    assert main(["add", str(package), "twin", str(package / STORY)]) == 0
    manifest = read_manifest(package)
    twin, story = manifest["adapters"]["twin"], manifest["adapters"]["story"]
    assert {**twin, "file": STORY} == story  # the file's bytes and what is said of it


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["add", "P", "mood", "SOURCE"], "already has an adapter 'mood'; --replace"),
        (["add", "P", "a/b", "SOURCE"], "only letters, digits, _ and -"),
        (["add", "P", "new", "nowhere"], "nowhere: there is no such file or folder"),
        (["add", "P", "new", "SOURCE", "--task", "classification"], "there is no head"),
        (["add", "P", "new", "HEAD"], "labels must name the head's 2 classes in order, but there are 0"),
        (["add", "P", "new", "HEAD", "--task", "generation", "--labels", "a,b"], "labels are for classification"),
        (["add", "P", "new", "HEAD", "--labels", "a,b,c"], "2 classes in order, but there are 3"),
        (["add", "P", "new", "HEAD", "--labels", "a,a"], "labels must differ"),
        (["add", "P", "new", "SOURCE", "--template", "{} {b}"], "plain names"),
        (["add", "P", "new", "SOURCE", "--template", "{a", "--max-length", "0"], "max_length is 0"),
        (["add", "P", "new", "SOURCE", "--max-length", "129"], "max_length is 129, but the base's context is 128"),
        (["add", "P", "new", "WIDE"], "but the base takes [64, r]"),
        (["add", "P", "new", "FOREIGN"], "made for another base"),
        (["drop", "P", "moodd"], "did you mean 'mood'"),
        (["list", "nowhere"], "is no package"),
    ],
)
def test_command_line_refuses_and_changes_nothing(
    package: Path,
    tiny_llama_path: Path,
    make_peft_adapter: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    places = {"P": package, "SOURCE": tmp_path / "source", "HEAD": tmp_path / "head"}
    if "SOURCE" in arguments:
        shutil.copytree(make_peft_adapter(tiny_llama_path, target_modules=["q_proj"]), places["SOURCE"])
    if "HEAD" in arguments:
        shutil.copytree(make_peft_adapter(tiny_llama_path, labels=["a", "b"]), places["HEAD"])
        (places["HEAD"] / "adapter.json").unlink()
    if "WIDE" in arguments:
        places["WIDE"] = make_peft_adapter(save_tiny_model(tmp_path / "wide", hidden_size=128, num_attention_heads=8))
    if "FOREIGN" in arguments:
        places["FOREIGN"] = tmp_path / "foreign.onnx_adapter"
        write_adapter(places["FOREIGN"], read_adapter(package / STORY), "0badf00d")
    before = {p: p.read_bytes() for p in package.rglob("*") if p.is_file()}
    assert main([str(places.get(a, a)) for a in arguments]) == 1
    assert message in capsys.readouterr().err
    assert {p: p.read_bytes() for p in package.rglob("*") if p.is_file()} == before
