"""Adapters added, replaced and dropped in a running model, and one model used by many threads."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime.manifest
from runtime.errors import PackageError
from runtime.manifest import read_manifest
from runtime.model import MultiAdapterModel
from tests.conftest import SENTENCES
from tests.runtime.conftest import MixedPackage


def test_adapters_are_added_replaced_and_dropped(own_model: MultiAdapterModel, mixed_package: MixedPackage) -> None:
    model, sources = own_model, mixed_package.sources
    engine = model._engine()
    stream = model.stream("The", "poem", 20, stop_at_eos=False)
    pieces = [next(stream)]
    story = model.generate("The", "story", 12)
    entry = model.add_adapter("tale", sources["story"], template="Tale: {prompt}")
    assert entry == model.adapters["tale"] == read_manifest(model.folder)["adapters"]["tale"]
    tale = model.generate("The", "tale", 12)
    assert tale != story and tale == model.generate("Tale: The", "story", 12)
    model.add_adapter("tale", sources["poem"], replace=True)
    assert model.generate("The", "tale", 12) == model.generate("The", "poem", 12)
    assert model.generate_batch([("The", "tale"), ("The", "story")], 12)[1] == story
    model.add_adapter("tale", sources["mood"], replace=True)
    assert model.classify("The", "tale") == model.classify("The", "mood")
    model.drop_adapter("tale")
    with pytest.raises(PackageError, match="there is no adapter 'tale'"):
        model.generate("The", "tale")
    assert "tale" not in read_manifest(model.folder)["adapters"]
    assert "".join([*pieces, *stream]).rstrip("\ufffd") == model.generate("The", "poem", 20, stop_at_eos=False).rstrip(
        "\ufffd"
    )
    assert model._engine() is engine, "the base stays loaded"


def test_what_is_in_use_is_neither_replaced_nor_dropped(
    own_model: MultiAdapterModel, mixed_package: MixedPackage
) -> None:
    model = own_model
    before = read_manifest(model.folder)
    streams = [model.stream("The", "story", 20), model.stream("A", "story", 20)]
    model.drop_adapter("poem")  # a stream that was not begun uses nothing yet
    for stream in streams:
        next(stream)
    for change in (
        lambda: model.drop_adapter("story"),
        lambda: model.add_adapter("story", mixed_package.sources["poem"], replace=True),
    ):
        with pytest.raises(PackageError, match="adapter 'story' is in use by 2 running calls or streams"):
            change()
    assert read_manifest(model.folder)["adapters"]["story"] == before["adapters"]["story"]
    streams[0].close()  # type: ignore[attr-defined]
    del streams[:], stream  # abandoned half-way
    gc.collect()
    model.drop_adapter("story")
    assert "story" not in model.adapters


def test_changes_that_are_refused_change_nothing(own_model: MultiAdapterModel, mixed_package: MixedPackage) -> None:
    model, source = own_model, mixed_package.sources["story"]
    before = read_manifest(model.folder)
    for change, message in (
        (lambda: model.add_adapter("story", source), "already has an adapter 'story'"),
        (lambda: model.add_adapter("new", source, lables=["a"]), "there is no setting 'lables'; did you mean 'labels'"),
        (lambda: model.add_adapter("new", source.parent / "nothing"), "there is no such file or folder"),
        (lambda: model.add_adapter("new", source, task="classification"), "there is no head"),
        (lambda: model.drop_adapter("stry"), "there is no adapter 'stry'.*did you mean 'story'"),
    ):
        with pytest.raises(PackageError, match=message):
            change()
    assert read_manifest(model.folder) == before == model.manifest
    assert model.generate("The", "story", 3)


def test_the_base_is_not_read_again(
    own_model: MultiAdapterModel, mixed_package: MixedPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    original = runtime.manifest.file_sha256

    def watched(path: Path) -> str:
        read.append(path.name)
        return original(path)

    monkeypatch.setattr("runtime.manifest.file_sha256", watched)
    own_model.add_adapter("tale", mixed_package.sources["poem"])
    own_model.drop_adapter("poem")
    own_model.reload()
    assert read and set(read) == {"tale.onnx_adapter"}
    weights = own_model.folder / "model.onnx.data"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(PackageError, match=r"model\.onnx\.data: was altered"):
        own_model.reload()


def test_another_precision_of_the_same_base_is_another_base(
    own_model: MultiAdapterModel, mixed_package: MixedPackage
) -> None:
    from passes.package import write_package

    target: dict[str, Any] = {"precision": "int4", "execution_provider": "cpu"}
    write_package(own_model.folder, base_path=mixed_package.base, adapter_folders={}, name="other", **target)
    with pytest.raises(PackageError, match="holds another base now"):
        own_model.reload()


def test_many_threads_get_what_one_gets(own_model: MultiAdapterModel, mixed_package: MixedPackage) -> None:
    """Eight threads mix all ways to use a model, while a ninth adds, replaces and drops another adapter."""
    model = own_model
    pairs: list[tuple[Any, str | None]] = [(SENTENCES[i], ("story", None, "poem", "chat")[i % 4]) for i in range(6)]
    texts = [(text, ("mood", "news", "long")[i % 3]) for i, text in enumerate(SENTENCES)]
    calls: list[Callable[[], Any]] = [
        lambda: model.generate("The kettle", "story", 10),
        lambda: "".join(model.stream("A short", "poem", 10, stop="e")),
        lambda: model.generate("Two", None, 10, temperature=1.0, seed=4),
        lambda: next(model.stream("Half-way", "story", 10)),
        lambda: model.generate_batch(pairs, 8),
        lambda: model.generate("x", "chat", 30, regex="[a-z]{2,5}"),
        lambda: [c.label for c in model.classify_batch(texts, batch_size=5)],
        lambda: np.round(model.class_logits(SENTENCES, "mood"), 3).tolist(),
        lambda: np.round(model.logits(np.array([[1, 20, 30]]), adapter="story"), 3).tolist(),
    ]
    alone = [call() for call in calls]
    ended = threading.Event()
    changes = 0

    def change() -> None:
        nonlocal changes
        while not ended.is_set():
            model.add_adapter("guest", mixed_package.sources["poem"])
            assert model.generate("The", "guest", 3) is not None
            model.add_adapter("guest", mixed_package.sources["mood"], replace=True)
            model.drop_adapter("guest")
            changes += 1

    def work(number: int) -> None:
        for turn in range(18):
            i = (number + turn) % len(calls)
            assert calls[i]() == alone[i], f"call {i}"

    with ThreadPoolExecutor(9) as pool:
        changing = pool.submit(change)
        working = [pool.submit(work, number) for number in range(8)]
        try:
            for future in working:
                future.result()
        finally:
            ended.set()
        changing.result()
    assert changes > 0
    assert "guest" not in model.adapters and "guest" not in read_manifest(model.folder)["adapters"]
    for name in ("story", "poem", "mood", "chat"):
        model.drop_adapter(name)  # no use was left behind


def test_threads_that_start_together_start_one_engine(
    mixed_package: MixedPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    import runtime.model as module

    started: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        original = getattr(module, name)

        def start(*arguments: Any) -> Any:
            started.append(name)
            return original(*arguments)

        return start

    for name in ("GraphSession", "TextGenerator"):
        monkeypatch.setattr(module, name, counted(name))
    model = MultiAdapterModel.load(mixed_package.folder)
    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda _: model.generate("The", "story", 5), range(4)))
        labels = list(pool.map(lambda _: model.classify("The", "mood")[0].label, range(4)))
    assert len(set(texts)) == len(set(labels)) == 1
    assert sorted(started) == ["GraphSession", "TextGenerator"]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists what a process has mapped")
def test_weights_and_adapters_are_mapped_not_read(own_model: MultiAdapterModel) -> None:
    """Mapped pages are shared by all processes that use the package."""

    def mapped() -> set[str]:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        return {line.rsplit("/", 1)[-1] for line in lines if str(own_model.folder) in line}

    own_model.classify("The", "mood")
    assert mapped() == {"model.onnx.data"}
    own_model.generate("The", "story", 3)
    assert mapped() == {"model.onnx.data", "story.onnx_adapter"}
