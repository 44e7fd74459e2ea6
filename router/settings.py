"""Every setting, from a YAML file and `SMALLCALL_*` variables (which win). The only reader of the environment.

`SMALLCALL_LARGE__API_KEY` is `large.api_key`. Unknown keys are errors that name their path, in the file and in the
environment alike, which is why variables are read here and not by a library that looks only for names it knows. An
empty variable counts as not set.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

import policies
import slm
from policies.rules.baselines import make_policy
from router.constants import removal_hint
from slm.weights.registry import DEFAULT_MODEL

PREFIX = "SMALLCALL_"
TEST_PREFIX = "SMALLCALL_TEST_"
"""Variables of the test suite; not ours."""
SHIPPED_ADAPTERS = {DEFAULT_MODEL: "smollm2-135m-toolcall"}
"""Known models and the folders of `slm/adapters` that go with them."""
NAME_PATTERN = r"^[a-z0-9][a-z0-9_.-]{0,63}$"
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
"""Name of an experiment or an arm."""
StickyMode = Literal["none", "after_escalation", "break_even"]
SECRET_CHARS = 8
"""Shortest secret, in characters, that is searched for in texts."""
_SECRET = re.compile(r"(?:^|_)(?:KEY|TOKEN|SECRET|PASSWORD)(?:_|$)")
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
OFFLOAD_BYTES = 64 * 1024
"""A larger request is read and judged in a thread: it may be hostile, and the event loop serves others."""


def is_loopback(host: str) -> bool:
    """True if this machine alone can reach the host."""
    return host in _LOOPBACK


SMALL_USD_PER_HOUR = 0.10
"""A cloud machine of two virtual CPUs; the default of gateway, reports and tuning alike."""


class SettingsError(ValueError):
    """A configuration that cannot be used; the message names each key and what is wrong with it, never its value."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Server(_Section):
    """Where the gateway listens, and how much it takes in."""

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    """0: any free one."""
    max_body_mb: float = Field(default=16.0, gt=0, le=256)
    max_inflight: int = Field(default=512, ge=1, le=100_000)
    """Requests under way at once; one more gets a 503 that asks to come again."""
    allow_public: bool = False
    """Serve everybody who can reach the host, as long as there is no key."""

    @property
    def loopback(self) -> bool:
        """True if this machine alone can reach the host."""
        return is_loopback(self.host)


class Access(_Section):
    """Virtual keys, and what they may spend; the keys themselves are in the ledger's database."""

    admin_key: SecretStr | None = Field(default=None, min_length=16, max_length=512)
    """For the routes below `/admin`, which are shut without it."""
    assumed_output_tokens: int = Field(default=1024, ge=1, le=1_000_000)
    """Tokens of an answer, until it is known: what budgets and token rates hold for a request under way."""
    redis_url: SecretStr | None = None
    """Where replicas count together; None: each counts by itself."""
    on_redis_down: Literal["allow", "refuse"] = "allow"
    """`allow`: each replica counts by itself meanwhile; `refuse`: requests with a limited key get a 503."""

    @field_validator("redis_url")
    @classmethod
    def _redis(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("access.redis_url: must begin with redis://, rediss:// or unix://")
        return value


class Shortlist(_Section):
    """Which tools of a long list the small model is shown; the judge sees all of them."""

    kind: Literal["none", "bm25", "embedding"] = "none"
    """`bm25`: by the words of names and descriptions; `embedding`: by the small model's own states (not in int8)."""
    keep: int = Field(default=12, ge=1, le=4096)
    """Longer lists are cut down to so many; tools that the conversation has called, and one that the request names,
    come on top."""

    @property
    def options(self) -> tuple[Literal["none", "bm25", "embedding"], int]:
        """As the engine takes it."""
        return self.kind, self.keep


class Engine(_Section):
    """The engine that runs the small model."""

    kind: Literal["worker", "remote"] = "worker"
    """`worker`: a process of ours; `remote`: a server of OpenAI completions with log-probabilities."""
    api_base: str | None = None
    """Base URL of the remote server, `/v1` included."""
    model: str | None = None
    """As the remote server names it."""
    api_key: SecretStr | None = None
    guided: Literal["vllm", "llamacpp", "none"] = "vllm"
    """The form in which the remote server is sent a grammar."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.kind == "remote" and not (self.api_base and self.model):
            raise ValueError("small.engine: a remote one needs api_base and model")
        if self.kind == "worker":
            for name, field in type(self).model_fields.items():
                if name != "kind" and getattr(self, name) != field.default:
                    raise ValueError(f"small.engine: {name} is for kind remote")
        return self


class Small(_Section):
    """The small model and its worker."""

    enabled: bool = True
    model: str = "smollm2-135m-instruct"
    """A known name, or the path of a Hugging Face causal model folder."""
    adapter: str = "shipped"
    """Folder of a LoRA adapter in PEFT's layout; `shipped`: the one that comes with a known model; `none`: without."""
    engine: Engine = Engine()
    threads: int = Field(default=0, ge=0, le=256)
    """0: as many as torch takes by itself."""
    dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the worker computes; `cuda`: on the first GPU."""
    cache_mb: int = Field(default=256, ge=0, le=1_000_000)
    """MiB for the keys and values of prompts' beginnings that requests share; 0 keeps none."""
    max_wait_s: float | None = Field(default=10.0, gt=0, le=600)
    """A draft that would probably wait for longer goes to the large model at once; None: it waits."""
    max_tokens: int = Field(default=384, ge=8, le=4096)
    """Most tokens of a draft. A client's own limit is meant for the large model and does not touch it."""
    deadline_s: float = Field(default=30.0, gt=0, le=600)
    """For a draft, waiting included; then the large model is asked."""
    usd_per_hour: float = Field(default=SMALL_USD_PER_HOUR, ge=0, le=10_000)
    """Hourly cost of the small model's machine; drafts are charged by their seconds on it. 0: it is there anyway."""
    shortlist: Shortlist = Shortlist()

    @model_validator(mode="after")
    def _computable(self) -> Self:
        if self.device == "cuda" and self.dtype == "int8":
            raise ValueError("small.device: int8 runs on the CPU only")
        if self.shortlist.kind == "embedding" and self.dtype == "int8":
            raise ValueError("small.shortlist.kind: embedding needs small.dtype float32 or bfloat16")
        if self.shortlist.kind != "none" and self.engine.kind == "remote":
            raise ValueError("small.shortlist: is for small.engine.kind worker")
        return self

    @property
    def local(self) -> bool:
        """True if a worker of ours drafts, and weights are needed here."""
        return self.enabled and self.engine.kind == "worker"

    @property
    def adapter_folder(self) -> Path | None:
        """Where the adapter lies, if there is one."""
        if self.adapter == "none":
            return None
        if self.adapter != "shipped":
            return Path(self.adapter).expanduser()
        shipped = SHIPPED_ADAPTERS.get(self.model)
        return Path(slm.__file__).parent / "adapters" / shipped if shipped else None


class Price(_Section):
    """Prices of the large model, USD per million tokens; overrides litellm's price map."""

    input_usd_per_mtok: float = Field(ge=0)
    output_usd_per_mtok: float = Field(ge=0)
    cached_input_usd_per_mtok: float | None = Field(default=None, ge=0)
    """None: as any other input."""
    cache_write_usd_per_mtok: float | None = Field(default=None, ge=0)
    """Price of input that the provider charges for writing to its cache, as Anthropic does. None: as any other."""


class Large(_Section):
    """The large model, as litellm names it; without `model`, what is not answered small gets a 503."""

    model: str | None = None
    api_base: str | None = None
    api_key: SecretStr | None = None
    """None: litellm looks for the provider's own variable, such as OPENAI_API_KEY."""
    timeout_s: float = Field(default=120.0, gt=0, le=3600)
    """For a whole answer; of a stream, for its first chunk and between two chunks."""
    retries: int = Field(default=2, ge=0, le=10)
    """After time-outs, rate limits, 5xx and lost connections, before the first byte."""
    forward: list[Literal["chat_completions", "messages", "responses"]] | None = None
    """Dialects that the provider speaks itself, whose requests go on as they came; all others go through litellm.
    None: by the model's name, see `router.upstream.passthrough.spoken`."""
    drop_params: bool = False
    """Leave out parameters that the provider does not know, instead of refusing the request."""
    price: Price | None = None

    @model_validator(mode="after")
    def _somewhere(self) -> Self:
        if self.forward and not self.api_base and (self.model or "").partition("/")[0] not in ("openai", "anthropic"):
            raise ValueError("large.forward: where to is not known without large.api_base")
        return self


class Conversations(_Section):
    """Conversations that went large, and when they stay there."""

    sticky: StickyMode = "none"
    """`after_escalation`: the turns after one that went large go large, too; `break_even`: those do whose draft would
    cost more than it saves, the large model's prompt cache counted. `policies.rules.break_even` has the formula."""


class LedgerSettings(_Section):
    """Where decisions are kept."""

    url: str = "sqlite+aiosqlite:///smallcall.db"
    synchronous: Literal["full", "normal"] = "full"
    """SQLite's commits: `full` waits for the disk; `normal` does not, and a power cut may lose the last ones."""
    store_content: bool = False
    """Keep requests and answers too; without it no prompt is ever stored."""
    keep_days: int | None = Field(default=None, ge=1, le=36_500)
    """Older days are kept as sums only; None: every row is kept."""

    @model_validator(mode="after")
    def _sqlite_only(self) -> Self:
        if self.synchronous != "full" and not self.url.startswith("sqlite"):
            raise ValueError("ledger.synchronous: of SQLite only; PostgreSQL's server has synchronous_commit")
        return self


class Audits(_Section):
    """Shadow audits: the large model asked behind answers of the small one, to see how often it would have said the
    same."""

    enabled: bool = False
    rate: float = Field(default=0.02, gt=0, le=1)
    """Share of accepted answers to audit on average; more where the judge is unsure, less where it is sure."""
    usd_per_day: float = Field(default=1.0, ge=0)
    """By all gateways together, in UTC days."""


class BundlePolicy(_Section):
    """A policy of `kind: bundle`."""

    kind: Literal["bundle"]
    path: Path
    """The bundle's folder, as `smallcall tune --out` writes it; `shipped`: the one made for the shipped adapter."""
    digest: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """The digest that the bundle must have; None: any."""
    on_void: Literal["escalate", "warn"] = "escalate"
    """Where the gateway does not run what the bundle was made for: everything goes large, or drafts are served without
    a certificate."""
    usd_per_hour: float | None = Field(default=None, gt=0)
    """Budget of the large model, in this process, for a bundle that keeps a budget; None: as the bundle says."""

    @property
    def folder(self) -> Path:
        """Where the bundle lies."""
        if str(self.path) == "shipped":
            return Path(policies.__file__).parent / "bundles" / SHIPPED_ADAPTERS[DEFAULT_MODEL]
        return self.path.expanduser()


def checked_policy(value: dict[str, Any]) -> dict[str, Any]:
    """A `policy` section whose keys and values are known; a bundle is not looked for yet. Raises ValueError."""
    if value.get("kind") != "bundle":
        make_policy(value)
        return value
    try:
        BundlePolicy.model_validate(value)
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False, include_context=False)
        problems = (f"policy.{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in found)
        raise ValueError("; ".join(problems)) from None
    return value


class Arm(_Section):
    """One arm of an experiment."""

    weight: float = Field(default=1.0, gt=0, le=1e6)
    policy: dict[str, Any] | None = None
    """As `policy` of the whole; None: that one."""

    @field_validator("policy")
    @classmethod
    def _known_policy(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        return None if value is None else checked_policy(value)


class ExperimentGuardrails(_Section):
    """When an experiment ends by itself; None: not watched."""

    p95_latency_s: float | None = Field(default=None, gt=0)
    """Highest 95th percentile of an arm's latency, seconds."""
    invalid_calls: float | None = Field(default=0.05, ge=0, lt=1)
    """Rise of an arm's share of invalid drafts over the control's."""
    tool_errors: float | None = Field(default=0.02, ge=0, lt=1)
    """Rise of an arm's share of calls that their tool refused over the control's; needs labels."""


class Experiment(_Section):
    """Policies compared on live traffic. Not to be changed while it runs: a changed one gets a new name."""

    enabled: bool = True
    arms: dict[Name, Arm] = Field(min_length=2, max_length=16)
    """The first is the control: it has the gateway's own policy."""
    unit: Literal["conversation", "key"] = "conversation"
    """The unit that is assigned as a whole; the key where arms share a cache or a quota of the key."""
    planned_units: int = Field(default=2000, ge=200)
    """Units of all arms together; `smallcall ab plan` computes it."""
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    margin: float = Field(default=0.01, ge=0, lt=1)
    """Pass rate that an arm may lose and still ship."""
    guardrails: ExperimentGuardrails = ExperimentGuardrails()

    @field_validator("arms")
    @classmethod
    def _control(cls, value: dict[str, Arm]) -> dict[str, Arm]:
        first = next(iter(value))
        if value[first].policy is not None:
            raise ValueError(f"arms.{first}.policy: the first arm is the control and has the gateway's own policy")
        return value


class Settings(_Section):
    """The whole configuration."""

    server: Server = Server()
    access: Access = Access()
    small: Small = Small()
    large: Large = Large()
    ledger: LedgerSettings = LedgerSettings()
    audits: Audits = Audits()
    policy: dict[str, Any] = {"kind": "bundle", "path": "shipped"}
    """The policy section; `policies.rules.baselines.make_policy` and `BundlePolicy` have its keys."""
    conversations: Conversations = Conversations()
    experiments: dict[Name, Experiment] = {}
    """By name; one at most is enabled."""
    serve_draft_if_large_down: bool = False
    """Serve a valid draft that the policy did not accept where the large model cannot be had."""
    cache: Path = Path("~/.cache/smallcall")
    """Where weights are kept."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("policy")
    @classmethod
    def _known_policy(cls, value: dict[str, Any]) -> dict[str, Any]:
        return checked_policy(value)

    @field_validator("experiments")
    @classmethod
    def _one_at_a_time(cls, value: dict[str, Experiment]) -> dict[str, Experiment]:
        running = [name for name, one in value.items() if one.enabled]
        if len(running) > 1:
            raise ValueError(f"experiments: {' and '.join(running)} are enabled, and a request has one policy")
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
        if value and key.startswith(PREFIX) and not key.startswith(TEST_PREFIX):
            _put(values, key, value)
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False, include_context=False)
        # The cause would show values, secrets among them.
        raise SettingsError("; ".join(_problem(one["loc"], one["type"], one["msg"]) for one in found)) from None


def provider_variable(name: str) -> str | None:
    """A provider's own variable, such as OPENAI_API_KEY."""
    return os.environ.get(name) or None


def environment_secrets() -> list[str]:
    """Return the values of variables that are named as keys, tokens and secrets are, the longest first."""
    found = {value for name, value in os.environ.items() if _SECRET.search(name) and len(value) >= SECRET_CHARS}
    return sorted(found, key=len, reverse=True)


def keep_litellm_offline() -> None:
    """Settings that litellm reads from the environment when it is imported: call this before.

    Without them it downloads its price map and header tables, and loads a `.env` file out of the working folder.
    """
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    os.environ["LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS"] = "True"
    os.environ["LITELLM_MODE"] = "PRODUCTION"


def _problem(path: tuple[int | str, ...], kind: str, message: str) -> str:
    """Return what is wrong, with its path; our own validators say the path themselves."""
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    return f"{'.'.join(map(str, path))}: {removal_hint(path) or message}"


def _from_file(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:  # its text would show the line, and a key may stand there
        where = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise SettingsError(f"{file}: not YAML{where}: {error.problem}") from None
    except (UnicodeDecodeError, yaml.YAMLError):
        raise SettingsError(f"{file}: not YAML in UTF-8") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"{file}: not a mapping of settings")
    return values


def _put(values: dict[str, Any], variable: str, text: str) -> None:
    sections = variable.removeprefix(PREFIX).lower().split("__")
    target = values
    for section in sections[:-1]:
        inner = target.setdefault(section, {})
        if not isinstance(inner, dict):
            raise SettingsError(f"{variable}: {section} is not a section")
        target = inner
    secret = sections[-1].endswith("key")  # may be JSON itself, and is taken as it stands
    structured = text == "null" or text[0] in "[{"
    target[sections[-1]] = _yaml(variable, text) if "policy" in sections or (structured and not secret) else text


def _yaml(variable: str, text: str) -> Any:
    """A policy's values have no declared types, and a list, a mapping or null has no other text than YAML's; pydantic
    converts all other values."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise SettingsError(f"{variable}: not a YAML value") from None
