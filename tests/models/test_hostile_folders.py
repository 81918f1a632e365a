"""Damaged and hostile model folders: each gives one message, quickly, and leaves no files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.minis import mini_checkpoint
from tests.helpers.runs import unmask
from unmask.core.errors import DataError
from unmask.models import load_model, save_model
from unmask.sampling import encoding as rollout
from unmask.sampling.encoding import encode_batch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint in its family's own layout."""
    return mini_checkpoint("llada", tmp_path_factory.mktemp("release") / "llada")


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(capsys: pytest.CaptureFixture[str], *command: object) -> str:
    assert unmask(*command) == 2
    told = capsys.readouterr().err
    assert "Error: " in told
    assert "Traceback" not in told
    return told


SIZES = [-1, 0, 10**7, 10**12, 10**30, "x", 1.5, None, [1], {}]


@pytest.mark.parametrize("value", SIZES, ids=str)
@pytest.mark.parametrize("key", ["n_layers", "d_model", "n_heads", "mlp_hidden_size", "embedding_size"])
def test_impossible_sizes_are_refused_by_convert(
    release: Path, tmp_path: Path, key: str, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    source = shutil.copytree(release, tmp_path / "source")
    change(source, **{key: value})
    if key == "embedding_size" and not value:
        # Then the vocabulary's own size counts.
        return
    refused(capsys, "convert", source, tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("value", SIZES, ids=str)
@pytest.mark.parametrize("key", ["n_layer", "n_embd", "n_head", "vocab_size", "n_positions"])
def test_impossible_sizes_are_refused_by_eval(
    tiny_model: Path, tmp_path: Path, key: str, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    source = shutil.copytree(tiny_model, tmp_path / "source")
    change(source, **{key: value})
    refused(capsys, "eval", source, "--task", "sudoku", "--rows", 1, "--output", tmp_path / "a.json")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("value", [5, {}, [5], [[]], "GPT2LMHeadModel", [], None], ids=str)
def test_an_architecture_must_be_a_name(
    tiny_model: Path, release: Path, tmp_path: Path, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    native, original = shutil.copytree(tiny_model, tmp_path / "a"), shutil.copytree(release, tmp_path / "b")
    change(native, architectures=value)
    change(original, architectures=value)
    if value != "GPT2LMHeadModel":
        refused(capsys, "eval", native, "--task", "sudoku", "--rows", 1, "--output", tmp_path / "a.json")
    # The model type identifies the model if the class name does not.
    assert unmask("convert", original, tmp_path / "made") in (0, 2)


def folder_in_place(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def dangling(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path.with_name("nowhere"))


def loop(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


def deep(path: Path) -> None:
    path.write_text("[" * 100_000)


def binary(path: Path) -> None:
    path.write_bytes(b"\xff\x00" * 100)


@pytest.mark.parametrize("fault", [folder_in_place, dangling, loop, deep, binary])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "model.safetensors.index.json"])
def test_folders_in_place_of_files_are_refused_by_convert(
    release: Path, tmp_path: Path, name: str, fault: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    source = shutil.copytree(release, tmp_path / "source")
    fault(source / name)
    if name == "model.safetensors.index.json" and not (source / name).is_file():
        # An index that is not a file does not count, but the weights exist.
        assert unmask("convert", source, tmp_path / "made") == 0
        return
    refused(capsys, "convert", source, tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("index", [{"a": 1, "b": 2}, {"a": "../../x.safetensors"}, {"a": None}, {}, [1]], ids=str)
def test_an_index_without_file_names_is_refused(
    release: Path, tmp_path: Path, index: object, capsys: pytest.CaptureFixture[str]
) -> None:
    source = shutil.copytree(release, tmp_path / "source")
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert "has no weight_map with file names" in refused(capsys, "convert", source, tmp_path / "made")


def test_paths_that_cannot_be_written_are_named(
    release: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for place, said in (
        (tmp_path / "file" / "x", "File exists"),
        (tmp_path / "link", "exists already"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        told = refused(capsys, "convert", release, place)
        assert str(place) in told
        assert said in told
    assert "File name too long" in refused(capsys, "eval", "x" * 300, "--task", "sudoku")


def test_output_dir_may_not_be_longer_than_a_name_can_be(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / ("x" * 300)
    told = refused(capsys, "train", "sudoku-tiny", f"model={tiny_model}", f"output_dir={place}")
    assert f"{place} cannot be written (File name too long)" in told
    assert os.listdir(tmp_path) == []


def test_a_chat_template_that_never_finishes_is_stopped(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser, tokenizer = load_model(tiny_model)
    tokenizer.chat_template = "".join(f"{{% for {n} in range(99999) %}}" for n in "abc") + "{% endfor %}" * 3
    save_model(denoiser, tokenizer, tmp_path / "model")
    denoiser, tokenizer = load_model(tmp_path / "model")
    monkeypatch.setattr(rollout, "ENCODING_SECONDS", 0.3)
    with pytest.raises(DataError, match="its chat template does not finish"):
        encode_batch(tokenizer, [[{"role": "user", "content": "1"}]], 0)
