"""Every setting, from a YAML file and `SMALLCALL_*` variables (which win). The only reader of the environment.

Unknown keys are errors that name their path. `SMALLCALL_LARGE__API_KEY` is `large.api_key`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

import slm
from policies.baselines import make_policy
from slm.weights import DEFAULT_MODEL

PREFIX = "SMALLCALL_"
SHIPPED_ADAPTERS = {DEFAULT_MODEL: "smollm2-135m-toolcall"}
"""Known models and the folders of `slm/adapters` that go with them."""


class SettingsError(ValueError):
    """A configuration that cannot be used; the message names each key and what is wrong with it."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Server(_Section):
    """Where the gateway listens."""

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    max_body_mb: float = Field(default=16.0, gt=0, le=256)
    allow_public: bool = False
    """There are no keys yet: a host that others can reach must be asked for."""


class Small(_Section):
    """The small model and its worker."""

    enabled: bool = True
    model: str = "smollm2-135m-instruct"
    """A known name, or the path of a Hugging Face causal model folder."""
    adapter: str = "none"
    """Folder of a LoRA adapter in PEFT's layout; `shipped`: the one that comes with a known model; `none`: without."""
    threads: int = Field(default=0, ge=0, le=256)
    """0: as many as there are cores."""
    dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    max_queue: int = Field(default=64, ge=1, le=10_000)
    max_tokens: int = Field(default=384, ge=8, le=4096)
    deadline_s: float = Field(default=30.0, gt=0, le=600)
    grammar: bool = True

    @property
    def adapter_folder(self) -> Path | None:
        """Where the adapter lies, if there is one."""
        if self.adapter == "none":
            return None
        if self.adapter != "shipped":
            return Path(self.adapter).expanduser()
        shipped = SHIPPED_ADAPTERS.get(self.model)
        return Path(slm.__file__).parent / "adapters" / shipped if shipped else None


class Large(_Section):
    """The large model, as litellm names it; without `model`, what is not answered small gets a 503."""

    model: str | None = None
    api_base: str | None = None
    api_key: SecretStr | None = None
    timeout_s: float = Field(default=120.0, gt=0, le=3600)
    retries: int = Field(default=2, ge=0, le=10)


class LedgerSettings(_Section):
    """Where decisions are kept."""

    url: str = "sqlite+aiosqlite:///smallcall.db"
    store_content: bool = False
    """Keep requests and answers too; without it no prompt is ever stored."""


class Settings(_Section):
    """The whole configuration."""

    server: Server = Server()
    small: Small = Small()
    large: Large = Large()
    ledger: LedgerSettings = LedgerSettings()
    policy: dict[str, Any] = {"kind": "threshold", "threshold": 0.5}
    """See `policies.baselines.make_policy`."""
    serve_draft_if_large_down: bool = False
    """Serve a valid draft of low confidence where the large model cannot be had."""
    cache: Path = Path("~/.cache/smallcall")
    """Where weights are kept."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("policy")
    @classmethod
    def _known_policy(cls, value: dict[str, Any]) -> dict[str, Any]:
        make_policy(value)
        return value

    @property
    def cache_folder(self) -> Path:
        """`cache` with the home folder filled in."""
        return self.cache.expanduser()


def load_settings(file: Path | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """Read the settings.

    Raises:
        SettingsError: the file cannot be read, or a key is unknown or wrong.
    """
    values = _from_file(file) if file else {}
    for key, value in (os.environ if environment is None else environment).items():
        if key.startswith(PREFIX) and not key.startswith(PREFIX + "TEST_"):
            _put(values, key, value)
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False)]
        raise SettingsError("; ".join(problems)) from None  # the cause would show values, secrets among them
    if settings.server.host not in ("127.0.0.1", "::1", "localhost") and not settings.server.allow_public:
        raise SettingsError(
            "server.host: others could reach it, and there are no keys; set server.allow_public to allow"
        )
    return settings


def keep_litellm_offline() -> None:
    """Make litellm read its bundled price map: its default is a download at import. Call before importing it."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"


def _from_file(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"{file}: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"{file}: not a mapping of settings")
    return values


def _put(values: dict[str, Any], variable: str, text: str) -> None:
    *sections, last = variable.removeprefix(PREFIX).lower().split("__")
    target = values
    for section in sections:
        inner = target.setdefault(section, {})
        if not isinstance(inner, dict):
            raise SettingsError(f"{variable}: {section} is not a section")
        target = inner
    try:
        target[last] = text if last in ("api_key", "api_base", "model", "url") else yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"{variable}: not a YAML value") from error
