"""Configuration: files, variables, and errors that name the key."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from router import settings as module
from router.settings import Settings, SettingsError, load_settings


def test_variables_win_over_the_file(tmp_path: Path) -> None:
    """Nested keys come from both; the environment has the last word."""
    file = tmp_path / "smallcall.yaml"
    file.write_text("server: {port: 9000}\nlarge: {model: openai/a}\n")
    made = load_settings(file, {"SMALLCALL_LARGE__MODEL": "openai/b", "SMALLCALL_SMALL__THREADS": "2", "OTHER": "x"})
    assert (made.server.port, made.large.model, made.small.threads) == (9000, "openai/b", 2)


@pytest.mark.parametrize(
    ("text", "environment", "named"),
    [
        ("sever: {port: 1}", {}, "sever"),
        ("server: {prot: 1}", {}, "server.prot"),
        ("server: {port: many}", {}, "server.port"),
        ("", {"SMALLCALL_SERVER__PROT": "1"}, "server.prot"),
        ("policy: {kind: magic}", {}, "policy"),
        ("server: {host: 0.0.0.0}", {}, "server.host"),
        ("- 1", {}, "not a mapping"),
    ],
)
def test_unknown_and_wrong_keys_are_named(tmp_path: Path, text: str, environment: dict[str, str], named: str) -> None:
    """Nothing is ignored: a wrong key fails at start-up with its path."""
    file = tmp_path / "smallcall.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=named):
        load_settings(file, environment)


def test_an_error_never_shows_a_secret() -> None:
    """A wrong setting beside a key does not print the key."""
    with pytest.raises(SettingsError) as caught:
        load_settings(environment={"SMALLCALL_LARGE__API_KEY": "sk-secret", "SMALLCALL_LARGE__RETRIES": "x"})
    assert "sk-secret" not in str(caught.value)
    assert "sk-secret" not in repr(load_settings(environment={"SMALLCALL_LARGE__API_KEY": "sk-secret"}))


def _names(model: type[BaseModel]) -> set[str]:
    names = set()
    for name, field in model.model_fields.items():
        inner = field.annotation
        names |= _names(inner) if isinstance(inner, type) and issubclass(inner, BaseModel) else {name}
    return names


def test_every_setting_is_read_somewhere() -> None:
    """No knob is dead: each is used outside the settings module, which itself reads three."""
    root = Path(module.__file__).parent
    code = "\n".join(path.read_text() for path in root.rglob("*.py") if path.name != "settings.py")
    dead = {
        name
        for name in _names(Settings)
        if name not in ("cache", "allow_public", "adapter") and not re.search(rf"\.{name}\b", code)
    }
    assert dead == set()
    assert "cache_folder" in code
    assert "adapter_folder" in code


def test_the_shipped_adapter_goes_with_its_own_model_only(tmp_path: Path) -> None:
    """Another model, or `none`, runs bare; a path is taken as it is."""

    def folder(**small: str) -> Path | None:
        return Settings.model_validate({"small": small}).small.adapter_folder

    assert folder(adapter="shipped", model=str(tmp_path)) is None
    assert folder(adapter="none") is None
    assert folder(adapter=str(tmp_path)) == tmp_path
    shipped = folder(adapter="shipped")
    assert shipped is not None
    assert (shipped / "adapter_config.json").is_file()
