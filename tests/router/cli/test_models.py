"""`smallcall models`."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from router.cli.models import ExportFormat, models_app
from router.settings import load_settings
from slm.engine.export import FORMATS
from slm.weights.registry import DEFAULT_MODEL, KNOWN_MODELS

FILE = KNOWN_MODELS[DEFAULT_MODEL].file
runner = CliRunner()


def test_an_empty_cache_is_listed_as_such(tmp_path: Path) -> None:
    """Every known model has a line; nothing is written."""
    result = runner.invoke(models_app, ["list", "--cache", str(tmp_path / "none")])
    assert result.exit_code == 0
    assert DEFAULT_MODEL in result.stdout
    assert "not pulled" in result.stdout
    assert not (tmp_path / "none").exists()


def test_the_configured_cache_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SMALLCALL_CACHE is honoured."""
    monkeypatch.setenv("SMALLCALL_CACHE", str(tmp_path))
    assert "not pulled" in runner.invoke(models_app, ["list"]).stdout


@pytest.mark.parametrize("command", ["list", "pull"])
def test_a_wrong_setting_is_an_error_and_not_a_traceback(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is named."""
    monkeypatch.setenv("SMALLCALL_NO_SUCH_KEY", "1")
    result = runner.invoke(models_app, [command])
    assert result.exit_code == 1
    assert "error: no_such_key" in result.stderr


def test_an_unknown_model_is_an_error_that_lists_the_known(tmp_path: Path) -> None:
    """Nothing on stdout, so that a script reads no wrong path."""
    result = runner.invoke(models_app, ["pull", "gpt-9", "--cache", str(tmp_path)])
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"known: {', '.join(sorted(KNOWN_MODELS))}" in result.stderr


def test_a_folder_without_the_file_is_an_error(tmp_path: Path) -> None:
    """With `--from`, no other source is asked."""
    result = runner.invoke(models_app, ["pull", "--from", str(tmp_path), "--cache", str(tmp_path / "cache")])
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"error: local: {tmp_path} holds no {FILE.name}" in result.stderr


def test_another_file_of_the_same_size_is_an_error(tmp_path: Path) -> None:
    """Both hashes are shown; the copy is removed and the original is not."""
    original = tmp_path / FILE.name
    original.touch()
    os.truncate(original, FILE.bytes)
    result = runner.invoke(models_app, ["pull", "--from", str(tmp_path), "--cache", str(tmp_path / "cache")])
    assert result.exit_code == 1
    assert f"wrong file, expected SHA-256 {FILE.sha256}" in result.stderr
    assert original.stat().st_size == FILE.bytes
    assert not list((tmp_path / "cache").rglob("*.gguf"))


def test_a_folder_is_exported_and_its_path_printed(llama_folder: Path, tmp_path: Path) -> None:
    """stdout holds the paths and nothing else; what is not possible is an error without a traceback."""
    asked = ["export", str(tmp_path / "out"), "--model", str(llama_folder), "--adapter", "none"]
    result = runner.invoke(models_app, asked)
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'out'}\n")
    assert (tmp_path / "out" / "model.safetensors").is_file()
    again = runner.invoke(models_app, asked)
    assert (again.exit_code, again.stdout) == (1, "")
    assert "is there already" in again.stderr
    other = runner.invoke(models_app, [*asked[:1], str(tmp_path / "gguf"), *asked[2:], "--format", "q8_0"])
    assert other.exit_code == 1
    assert "and there is none" in other.stderr


def test_the_formats_are_those_of_the_export() -> None:
    """The command line names them without importing torch."""
    assert tuple(one.value for one in ExportFormat) == FORMATS


@pytest.mark.model
def test_pull_prints_the_folder_and_list_shows_it() -> None:
    """stdout holds the path and nothing else."""
    pulled = runner.invoke(models_app, ["pull"])
    folder = Path(pulled.stdout.strip())
    assert pulled.exit_code == 0
    assert (folder / "model.safetensors").is_file()
    assert load_settings().cache_folder in folder.parents
    assert "ready" in runner.invoke(models_app, ["list"]).stdout
