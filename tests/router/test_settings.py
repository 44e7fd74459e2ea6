"""Configuration: files, variables, and errors that name the key."""

import ast
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel

from router import settings as module
from router.constants import FORMER_SETTINGS
from router.settings import Experiment, Settings, SettingsError, load_settings


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
        ("access: {redis_url: localhost}", {}, "access.redis_url"),
        ("access: {admin_key: short}", {}, "access.admin_key"),
        ("conversations: {sticky: always}", {}, "conversations.sticky"),
        ("ledger: {url: postgresql+asyncpg://h/n, synchronous: normal}", {}, "ledger.synchronous"),
        ("- 1", {}, "not a mapping"),
        ("a: [", {}, "line 1"),
        ("", {"SMALLCALL_SERVRE__PORT": "1"}, "servre"),
        ("server: {port: 1}", {"SMALLCALL_SERVER__PORT__X": "1"}, "SMALLCALL_SERVER__PORT__X"),
        ("policy: {kind: threshold, threshold: 7}", {}, "policy.threshold"),
        ("large: {price: {input_usd_per_mtok: 1}}", {}, "large.price.output_usd_per_mtok"),
    ],
)
def test_unknown_and_wrong_keys_are_named(tmp_path: Path, text: str, environment: dict[str, str], named: str) -> None:
    """Nothing is ignored: a wrong key fails at start-up with its path."""
    file = tmp_path / "smallcall.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=named):
        load_settings(file, environment)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("server.keep_alive_s", "10"),
        ("access.refresh_s", "5"),
        ("small.grammar", "true"),
        ("small.engine.frame", "chatml"),
        ("small.shortlist.above", "the value of small.shortlist.keep"),
        ("audits.per_minute", "6"),
        ("conversations.draft_usd", "0"),
    ],
)
def test_a_former_setting_is_refused_with_what_it_is_now(key: str, value: str) -> None:
    """In the file and as a variable alike."""
    variable = "SMALLCALL_" + key.upper().replace(".", "__")
    with pytest.raises(SettingsError) as caught:
        load_settings(environment={variable: "1"})
    assert str(caught.value) == f"{key}: removed: it is a constant now ({value})"


def test_a_former_setting_of_an_experiment_is_refused_whatever_its_name() -> None:
    arms = "{control: {}, bold: {policy: {kind: small_only}}}"
    with pytest.raises(SettingsError) as caught:
        load_settings(environment={"SMALLCALL_EXPERIMENTS__BOLDER": f"{{arms: {arms}, window_s: 60}}"})
    assert str(caught.value) == "experiments.bolder.window_s: removed: it is a constant now (3600)"


def test_no_hint_is_of_a_key_that_is_still_there() -> None:
    """A key that came back must not be told to be gone."""
    for key in FORMER_SETTINGS:
        section: type[BaseModel] = Settings
        *parts, name = key.split(".")
        for part in parts:
            section = Experiment if part == "*" else _section(section, part)
        assert name not in section.model_fields, key


def _section(model: type[BaseModel], name: str) -> type[BaseModel]:
    annotation = model.model_fields[name].annotation
    parts = [part for part in (annotation, *get_args(annotation)) if isinstance(part, type)]
    inner = [part for part in parts if issubclass(part, BaseModel)]
    return inner[0] if inner else model


def test_an_error_never_shows_a_secret(tmp_path: Path) -> None:
    """A wrong setting beside a key does not print the key."""
    with pytest.raises(SettingsError) as caught:
        load_settings(environment={"SMALLCALL_LARGE__API_KEY": "sk-secret", "SMALLCALL_LARGE__RETRIES": "x"})
    assert "sk-secret" not in str(caught.value)
    file = tmp_path / "smallcall.yaml"
    file.write_text("large:\n  api_key: [sk-secret\n  x: }")
    with pytest.raises(SettingsError) as caught:
        load_settings(file, {})
    assert "sk-secret" not in str(caught.value)
    assert "sk-secret" not in repr(load_settings(environment={"SMALLCALL_LARGE__API_KEY": "sk-secret"}))


def _names(model: type[BaseModel]) -> set[str]:
    names = set()
    for name, field in model.model_fields.items():
        sections = [part for part in (field.annotation, *get_args(field.annotation)) if isinstance(part, type)]
        inner = [part for part in sections if issubclass(part, BaseModel)]
        names |= _names(inner[0]) if inner else {name}
    return names


def test_every_setting_is_read_somewhere() -> None:
    """No knob is dead: each stands as an attribute in the code, be it in a property or a rule of the settings."""
    root = Path(module.__file__).parent
    trees = [ast.parse(path.read_text()) for path in root.rglob("*.py")]
    read = {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert _names(Settings) - read == set()
    assert {"input_usd_per_mtok", "max_inflight", "api_key"} <= _names(Settings)


def test_an_empty_variable_counts_as_not_set_and_types_are_converted() -> None:
    """As compose files leave them; a policy's values, whose types are not declared, are read as YAML."""
    made = load_settings(
        environment={
            "SMALLCALL_LARGE__MODEL": "",
            "SMALLCALL_SMALL__ENABLED": "false",
            "SMALLCALL_POLICY__KIND": "threshold",
            "SMALLCALL_POLICY__THRESHOLD": "0.25",
            "SMALLCALL_LARGE__API_KEY": "0123",
        }
    )
    assert (made.large.model, made.small.enabled) == (None, False)
    assert made.policy == {"kind": "threshold", "threshold": 0.25}
    assert made.large.api_key is not None
    assert made.large.api_key.get_secret_value() == "0123"


def test_lists_mappings_and_null_are_variables_too() -> None:
    """They are written as in the file; a key that looks like JSON stays a text, and broken YAML names its variable."""
    made = load_settings(
        environment={
            "SMALLCALL_LARGE__MODEL": "openai/gpt-4o",
            "SMALLCALL_LARGE__FORWARD": "[responses]",
            "SMALLCALL_LARGE__PRICE": "{input_usd_per_mtok: 1, output_usd_per_mtok: 2}",
            "SMALLCALL_LARGE__API_KEY": '{"type": "service_account"}',
            "SMALLCALL_SMALL__MAX_WAIT_S": "null",
        }
    )
    assert tuple(made.large.forward) == ("responses",)
    assert made.large.price is not None
    assert made.large.price.output_usd_per_mtok == 2
    assert made.small.max_wait_s is None
    assert made.large.api_key is not None
    assert made.large.api_key.get_secret_value() == '{"type": "service_account"}'
    with pytest.raises(SettingsError, match="SMALLCALL_LARGE__FORWARD: not a YAML value"):
        load_settings(environment={"SMALLCALL_LARGE__FORWARD": "[responses"})


def test_the_example_file_is_valid_and_says_the_defaults() -> None:
    """Every key of the example exists, and what it sets without a comment is what would be without it."""
    example = Path(module.__file__).parents[1] / "smallcall.example.yaml"
    assert load_settings(example, {}) == Settings()
    assert set(yaml.safe_load(example.read_text())) == set(Settings.model_fields)


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


def test_int8_on_a_gpu_is_refused() -> None:
    """Where the settings are read, not when the worker starts."""
    assert load_settings(environment={"SMALLCALL_SMALL__DEVICE": "cuda"}).small.device == "cuda"
    with pytest.raises(SettingsError, match="int8 runs on the CPU only"):
        load_settings(environment={"SMALLCALL_SMALL__DEVICE": "cuda", "SMALLCALL_SMALL__DTYPE": "int8"})
