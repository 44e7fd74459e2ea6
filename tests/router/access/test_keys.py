"""Keys through the gateway's door: made, shown, recognised, refused, revoked; nothing tells a secret."""

import asyncio
import io
import json
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import openai
import orjson
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from router.__main__ import app as cli
from router.access.keys import (
    KeyFieldsError,
    KeyRing,
    NewKey,
    expiry,
    minted,
    new_key,
    period_of,
    presented,
    window_left_s,
)
from router.settings import Settings
from tests.router.cascade.test_gateway import CALL, Scripted, ask, rows_of
from tests.router.conftest import Make, ScriptedSmall, served
from tests.router.upstream.test_passthrough import CHAT, Provider, large

# litellm builds a pydantic model at its first stream, and pydantic has a remark on it.
pytestmark = pytest.mark.filterwarnings("ignore:Item 'summary' on TypedDict:UserWarning")

ADMIN = "an admin key of some length"
AS_ADMIN = {"authorization": f"Bearer {ADMIN}"}
ACCESS = {"admin_key": ADMIN}


async def call(
    url: str, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], Any]:
    """Status, headers and decoded body; `path` below the server's root."""
    base = url.removesuffix("/v1")
    data = None if body is None else io.BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode())
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, base + path, data=data, headers=headers or {}) as response,
    ):
        text = await response.text()
        told = {name.lower(): value for name, value in response.headers.items()}
        return response.status, told, json.loads(text) if text.startswith(("{", "[")) else text


async def make_key(url: str, **fields: Any) -> dict[str, Any]:
    """A key made over HTTP."""
    status, _, told = await call(url, "POST", "/admin/keys", {"name": "n", **fields}, AS_ADMIN)
    assert status == 201, told
    made: dict[str, Any] = told
    return made


async def test_a_key_opens_by_either_header_and_its_row_says_whose_it_was(gateway: Make, ledger_url: str) -> None:
    """The official clients' ways to show it; the row bears the key's id and tenant, and never the key."""
    app = gateway(small=ScriptedSmall(CALL), access=ACCESS, ledger={"url": ledger_url})
    async with served(app) as url:
        made = await make_key(url, tenant="blue")
        assert made["key"].startswith("sk-sc-")
        client = openai.AsyncOpenAI(base_url=url, api_key=made["key"], max_retries=0)
        await client.chat.completions.create(**ask())
        await client.close()
        tools = [{"name": "get_weather", "input_schema": {"type": "object"}}]
        message = {"model": "m", "max_tokens": 9, "messages": ask()["messages"], "tools": tools}
        assert (await call(url, "POST", "/v1/messages", message, {"x-api-key": made["key"]}))[0] == 200
        rows = await rows_of(app, 2)
        assert [(row.key_id, row.tenant, row.status) for row in rows] == [(made["id"], "blue", 200)] * 2


async def test_without_a_key_a_loopback_gateway_is_open_until_the_first_key_is_made(gateway: Make) -> None:
    """A key that a client shows means nothing before; afterwards it must be ours, and stays so when all are revoked."""
    async with served(gateway(small=ScriptedSmall(CALL), access=ACCESS)) as url:
        open_to_all = await call(url, "POST", "/v1/chat/completions", ask(), {"authorization": "Bearer unused"})
        made = await make_key(url)
        shut = await call(url, "POST", "/v1/chat/completions", ask())
        await call(url, "DELETE", f"/admin/keys/{made['id']}", None, AS_ADMIN)
        still_shut = await call(url, "POST", "/v1/chat/completions", ask())
    assert (open_to_all[0], shut[0], still_shut[0]) == (200, 401, 401)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", ask()),
        ("/v1/responses", {"model": "m", "input": "hi"}),
        ("/v1/messages", {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}),
        ("/v1/messages/count_tokens", {"model": "m", "messages": [{"role": "user", "content": "hi"}]}),
    ],
)
async def test_an_unknown_key_is_refused_in_each_dialects_own_shape(gateway: Make, path: str, body: Any) -> None:
    """401 before the body is read, without a row; the key of another place is not told again."""
    app = gateway(small=ScriptedSmall(CALL), access=ACCESS)
    async with served(app) as url:
        await make_key(url)
        foreign = "sk-proj-foreign"
        status, headers, told = await call(url, "POST", path, body, {"x-api-key": foreign})
        assert await app.services.ledger.count() == 0
    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    assert foreign not in json.dumps(told)
    if "messages" in path:
        assert (told["type"], told["error"]["type"]) == ("error", "authentication_error")
    else:
        assert told["error"] == {
            "message": "the key is not known", "type": "invalid_request_error", "param": None, "code": "invalid_api_key"
        }  # fmt: skip


async def test_a_key_that_is_not_ours_is_no_ticket_for_a_large_body(gateway: Make) -> None:
    """Nothing of the body is waited for."""
    app = gateway(small=ScriptedSmall(CALL), access=ACCESS)
    async with served(app) as url:
        await make_key(url)
        host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9000000\r\n\r\n")
        async with asyncio.timeout(5):
            assert (await reader.readline()).startswith(b"HTTP/1.1 401")
        writer.close()


async def test_a_revoked_and_an_expired_key_say_so(gateway: Make) -> None:
    app = gateway(small=ScriptedSmall(CALL), access=ACCESS)
    async with served(app) as url:
        made = await make_key(url)
        past = NewKey.model_construct(name="old", expires_at=datetime.now(UTC) - timedelta(seconds=1))
        _, expired = await app.services.gate.store.create(past, datetime.now(UTC))
        await app.services.gate.refresh()
        headers = [{"x-api-key": secret} for secret in (made["key"], expired)]
        assert (await call(url, "GET", "/v1/models", None, headers[0]))[0] == 200
        assert (await call(url, "DELETE", f"/admin/keys/{made['id']}", None, AS_ADMIN))[0] == 200
        after = [await call(url, "GET", "/v1/models", None, one) for one in headers]
    assert [status for status, _, _ in after] == [401, 401]
    assert [told["error"]["message"] for _, _, told in after] == ["the key was revoked", "the key has expired"]


async def test_a_key_of_another_process_counts_after_the_refresh(gateway: Make, ledger_url: str) -> None:
    """Made and revoked beside the running gateway, as a command or a replica does."""
    app = gateway(small=ScriptedSmall(CALL), access=ACCESS, ledger={"url": ledger_url})
    async with served(app) as url, served(gateway(access=ACCESS, ledger={"url": ledger_url})) as other:
        made = await make_key(other)
        headers = {"x-api-key": made["key"]}
        await asyncio.sleep(0.5)
        assert (await call(url, "GET", "/v1/models", None, headers))[0] == 200
        assert (await call(url, "GET", "/v1/models"))[0] == 401
        await call(other, "DELETE", f"/admin/keys/{made['id']}", None, AS_ADMIN)
        await asyncio.sleep(0.5)
        assert (await call(url, "GET", "/v1/models", None, headers))[0] == 401


async def test_a_row_that_cannot_be_read_does_not_keep_revoked_keys_in_force(gateway: Make, tmp_path: Path) -> None:
    """Such a key opens nothing, the others go on; where nothing can be read, that is counted until it can."""
    async with served(gateway(small=ScriptedSmall(CALL), access=ACCESS)) as url:
        first, second = await make_key(url), await make_key(url)
        headers = [{"x-api-key": one["key"]} for one in (first, second)]

        def write(*statements: str) -> None:
            with sqlite3.connect(tmp_path / "ledger.db", timeout=5) as connection:
                for statement in statements:
                    connection.execute(statement)
            connection.close()

        async def seen() -> list[int]:
            await asyncio.sleep(0.6)
            return [(await call(url, "GET", "/v1/models", None, one))[0] for one in headers]

        changed = "UPDATE access_revision SET revision = revision + 1"
        of_first = f"WHERE key_id = '{first['id']}'"
        write(f"UPDATE access_keys SET created_at = 'yesterday' {of_first}", changed)
        assert await seen() == [200, 200]
        assert 'smallcall_refresh_failures_total{what="keys"}' in (await call(url, "GET", "/metrics"))[2]
        write(f"UPDATE access_keys SET created_at = '2026-01-01 00:00:00', digest = 'none' {of_first}", changed)
        assert await seen() == [401, 200]
        await call(url, "DELETE", f"/admin/keys/{second['id']}", None, AS_ADMIN)
        assert await seen() == [401, 401]


async def test_only_allowed_models_may_be_named_and_are_listed(gateway: Make) -> None:
    """403 that names the field, in each dialect; a pin is a model like any other."""
    app = gateway(small=ScriptedSmall(CALL), upstream=Scripted(), access=ACCESS)
    async with served(app) as url:
        made = await make_key(url, models=["gpt-4*", "smallcall/small", "house"])
        headers = {"x-api-key": made["key"]}
        allowed = [
            (await call(url, "POST", "/v1/chat/completions", ask(model=name), headers))[0]
            for name in ("gpt-4o", "smallcall/small", "house")
        ]
        refused = await call(url, "POST", "/v1/chat/completions", ask(model="smallcall/large"), headers)
        message = {"model": "opus", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
        anthropics = await call(url, "POST", "/v1/messages", message, headers)
        listed = await call(url, "GET", "/v1/models", None, headers)
        found = [
            (await call(url, "GET", f"/v1/models/{name}", None, headers))[0]
            for name in ("gpt-4o", "smallcall/small", "smallcall%2Fsmall", "house", "smallcall/large", "opus")
        ]
        keyless = await call(url, "GET", "/v1/models/gpt-4o")
    assert found == [200, 200, 200, 200, 404, 404]
    assert keyless[0] == 401
    assert allowed == [200, 200, 200]
    assert (refused[0], refused[2]["error"]["code"], refused[2]["error"]["param"]) == (
        403,
        "model_not_allowed",
        "model",
    )
    assert (anthropics[0], anthropics[2]["error"]["type"]) == (403, "permission_error")
    assert [model["id"] for model in listed[2]["data"]] == ["smallcall/small", "house"]


async def test_the_clients_key_reaches_neither_provider_nor_logs_nor_disk(gateway: Make, tmp_path: Path) -> None:
    """Neither does the admin key; forwarded and translated, answered and refused requests alike."""
    provider = Provider(orjson.dumps(CHAT))
    seen: list[str] = []
    price = {"input_usd_per_mtok": 1, "output_usd_per_mtok": 1}
    with structlog.testing.capture_logs() as logs:
        async with provider.running() as base:
            upstream = large("openai/gpt-4o-2024-08-06", base, price=price)
            async with served(gateway(large=upstream, access=ACCESS, ledger={"store_content": True})) as url:
                made = await make_key(url, hard_usd=2e-4)
                headers = {"authorization": f"Bearer {made['key']}", "x-api-key": made["key"]}
                messages = {"model": "m", "max_tokens": 5, "messages": ask()["messages"]}
                for path, body in (("chat/completions", ask()), ("messages", messages), ("messages", messages)):
                    seen.append(str(await call(url, "POST", f"/v1/{path}", body, headers)))
                seen.append(str(await call(url, "GET", "/admin/keys", None, AS_ADMIN)))
    kept = b"".join(path.read_bytes() for path in tmp_path.glob("ledger.db*"))  # noqa: ASYNC240 - the gateway is gone
    assert [told[1:4] for told in seen] == ["200", "200", "402", "200"]
    assert len(provider.asked) == 2
    for secret in (made["key"], ADMIN):
        assert all(secret not in text for text in (*seen, str(provider.asked), str(logs)))
        assert secret.encode() not in kept


async def test_admin_routes_need_the_admin_key_always(gateway: Make) -> None:
    """On the loopback too; a virtual key is none; without one set they are shut."""
    async with served(gateway(access=ACCESS)) as url:
        made = await make_key(url)
        for headers in ({}, {"x-api-key": made["key"]}, {"x-api-key": ADMIN[:-1]}, {"authorization": "Bearer "}):
            for method, path in (("GET", "/admin/keys"), ("POST", "/admin/keys"), ("DELETE", "/admin/keys/x")):
                status, _, told = await call(url, method, path, None, headers)
                assert (status, told["error"]["code"]) == (401, "invalid_admin_key")
        assert (await call(url, "GET", "/admin/keys", None, {"x-api-key": ADMIN}))[0] == 200
    async with served(gateway()) as url:
        status, _, told = await call(url, "GET", "/admin/keys", None, AS_ADMIN)
        assert (status, told["error"]["code"]) == (403, "admin_not_configured")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"name": ""}, "name"),
        ({"nmae": "x"}, "nmae"),
        ({"hard_usd": -1}, "hard_usd"),
        ({"hard_usd": 1, "soft_usd": 2}, "soft_usd"),
        ({"window": "week"}, "window"),
        ({"requests_per_minute": 0}, "requests_per_minute"),
        ({"models": ["x"] * 65}, "models"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"expires_at": "2099-01-01T00:00:00"}, "expires_at"),
        ({"name": "a\nb"}, "name"),
    ],
)
async def test_a_wrong_field_of_a_new_key_is_named(gateway: Make, fields: dict[str, Any], named: str) -> None:
    async with served(gateway(access=ACCESS)) as url:
        status, _, told = await call(url, "POST", "/admin/keys", {"name": "n", **fields}, AS_ADMIN)
        assert status == 400
        assert named in told["error"]["message"]
        huge = await call(url, "POST", "/admin/keys", b'{"name": "' + b"x" * 70_000 + b'"}', AS_ADMIN)
        assert huge[0] == 413
        assert (await call(url, "GET", "/admin/keys", None, AS_ADMIN))[2]["data"] == []


async def test_keys_are_kept_as_digests_only(gateway: Make, tmp_path: Path) -> None:
    """What is listed and what is stored shows the last four characters at most."""
    async with served(gateway(access=ACCESS)) as url:
        made = await make_key(url, hard_usd=2.5, window="day", models=["a*"])
        _, _, told = await call(url, "GET", "/admin/keys", None, AS_ADMIN)
    (listed,) = told["data"]
    assert told["has_more"] is False
    secret = made.pop("key")
    assert listed == made
    assert (listed["hint"], listed["hard_usd"], listed["spent_usd"]) == (f"…{secret[-4:]}", 2.5, 0.0)
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        rows = database.execute("SELECT * FROM access_keys").fetchall()
    database.close()
    assert len(rows) == 1
    assert secret not in str(rows)


async def test_many_keys_are_shown_page_by_page(gateway: Make) -> None:
    """In the order in which they were made."""
    async with served(gateway(access=ACCESS)) as url:
        made = [(await make_key(url))["id"] for _ in range(5)]
        shown: list[str] = []
        more = True
        while more:
            _, _, told = await call(url, "GET", f"/admin/keys?limit=2&after={''.join(shown[-1:])}", None, AS_ADMIN)
            shown, more = shown + [key["id"] for key in told["data"]], told["has_more"]
        wrong = [await call(url, "GET", f"/admin/keys?limit={limit}", None, AS_ADMIN) for limit in ("0", "1001", "x")]
    assert shown == made
    assert [(status, told["error"]["param"]) for status, _, told in wrong] == [(400, "limit")] * 3


# ── hosts that others can reach ──────────────────────────────────────────────────────────────────────────────────────


def _public(tmp_path: Path, **more: Any) -> Path:
    file = tmp_path / "smallcall.yaml"
    url = f"sqlite+aiosqlite:///{tmp_path / 'ledger.db'}"
    config = {"server": {"host": "0.0.0.0", "port": 0}, "ledger": {"url": url}, "small": {"enabled": False}, **more}
    file.write_text(json.dumps(config))
    return file


def test_a_public_host_without_a_key_does_not_start_and_says_what_to_do(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["serve", "--config", str(_public(tmp_path))])
    assert done.exit_code == 2
    assert "smallcall keys create" in done.output
    assert "access.admin_key" in done.output


async def test_a_public_host_is_shut_to_those_without_a_key(gateway: Make) -> None:
    """With an admin key it may start before the first key is made; metrics want the admin key, health checks none."""
    app = gateway(small=ScriptedSmall(CALL), access=ACCESS, server={"host": "0.0.0.0"})
    async with served(app) as url:
        assert (await call(url, "POST", "/v1/chat/completions", ask()))[0] == 401
        made = await make_key(url)
        assert (await call(url, "POST", "/v1/chat/completions", ask(), {"x-api-key": made["key"]}))[0] == 200
        open_to_all = [(await call(url, "GET", path))[0] for path in ("/healthz", "/readyz")]
        metrics = [(await call(url, "GET", "/metrics", None, headers))[0] for headers in ({}, AS_ADMIN)]
    assert (open_to_all, metrics) == ([200, 200], [401, 200])


async def test_a_public_host_may_be_opened_to_all_until_there_is_a_key(gateway: Make) -> None:
    app = gateway(small=ScriptedSmall(CALL), access=ACCESS, server={"host": "0.0.0.0", "allow_public": True})
    async with served(app) as url:
        assert (await call(url, "POST", "/v1/chat/completions", ask()))[0] == 200
        await make_key(url)
        assert (await call(url, "POST", "/v1/chat/completions", ask()))[0] == 401


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_command_makes_lists_and_revokes_what_the_gateway_serves(
    gateway: Make, tmp_path: Path, ledger_url: str
) -> None:
    """The same logic as over HTTP, on the same tables."""
    config = str(_public(tmp_path, ledger={"url": ledger_url}))

    def run(*arguments: str) -> Any:
        done = CliRunner().invoke(cli, ["keys", *arguments, "--config", config])
        assert done.exit_code == 0, done.output
        return json.loads(done.output) if "--json" in arguments else done.output

    options = ["--tenant", "t", "--hard-usd", "5", "--soft-usd", "4", "--window", "day", "--rpm", "60", "--tpm", "9000"]
    made = await asyncio.to_thread(
        run, "create", "--name", "ci", *options, "--expires", "30d", "--model", "gpt-*", "--json"
    )
    shown = await asyncio.to_thread(run, "list")
    assert made["key"] not in shown
    assert made["id"] in shown
    (listed,) = await asyncio.to_thread(run, "list", "--json")
    assert (listed["state"], listed["hard_usd"], listed["requests_per_minute"], listed["models"]) == (
        "open", 5.0, 60, ["gpt-*"],
    )  # fmt: skip
    headers = {"x-api-key": made["key"]}
    async with served(gateway(small=ScriptedSmall(CALL), access=ACCESS, ledger={"url": ledger_url})) as url:
        assert (await call(url, "POST", "/v1/chat/completions", ask(), headers))[0] == 200
        await asyncio.to_thread(run, "revoke", made["id"])
        await asyncio.sleep(0.5)
        assert (await call(url, "POST", "/v1/chat/completions", ask(), headers))[0] == 401
    (listed,) = await asyncio.to_thread(run, "list", "--json")
    assert listed["state"] == "revoked"


def test_the_command_names_what_is_wrong(tmp_path: Path) -> None:
    config = str(_public(tmp_path))

    def failed(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(cli, ["keys", *arguments, "--config", config])
        return done.exit_code, done.output

    assert failed("create", "--name", "x", "--window", "week")[0] == 2
    assert "window" in failed("create", "--name", "x", "--window", "week")[1]
    assert "expires" in failed("create", "--name", "x", "--expires", "soon")[1]
    assert failed("revoke", "key_0") == (1, "key_0: there is no such key\n")


# ── pieces ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.text(max_size=60))
def test_no_text_but_the_secret_itself_finds_a_key(text: str) -> None:
    """Nor does the secret with anything before, behind or changed in it."""
    key, secret = minted(new_key({"name": "n"}), datetime(2026, 1, 1, tzinfo=UTC))
    ring = KeyRing({key.key_id: key})
    assert ring.find(secret) is key
    for other in (text, secret + text, text + secret, secret[:-1] + text, secret.swapcase()):
        assert (ring.find(other) is key) == (other == secret)


def test_secrets_have_256_bits_and_are_never_the_same() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    secrets = {minted(new_key({"name": "n"}), now)[1] for _ in range(1000)}
    assert len(secrets) == 1000
    assert {len(secret) for secret in secrets} == {len("sk-sc-") + 43}


def test_both_headers_are_read_and_nothing_else() -> None:
    assert presented({"authorization": "Bearer  a ", "x-api-key": "b"}) == ["a", "b"]
    assert presented({"authorization": "bearer a"}) == ["a"]
    assert presented({"authorization": "Basic a"}) == []
    assert presented({"authorization": "Bearer", "x-api-key": " "}) == []


def test_windows_are_days_and_months_of_utc() -> None:
    at = datetime(2026, 12, 31, 23, 59, 30, tzinfo=UTC)
    assert [period_of(window, at) for window in ("day", "month", "total")] == ["2026-12-31", "2026-12", "total"]
    assert [window_left_s(window, at) for window in ("day", "month", "total")] == [30.0, 30.0, None]
    assert window_left_s("month", datetime(2028, 2, 1, tzinfo=UTC)) == 29 * 86_400


def test_an_expiry_is_a_span_or_a_time_with_its_zone() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert expiry("90m", now) == now + timedelta(minutes=90)
    assert expiry("2027-01-31T00:00:00Z", now) == datetime(2027, 1, 31, tzinfo=UTC)
    for text in ("soon", "2027-01-31T00:00:00", "1y", "999999d9", "-1d"):
        with pytest.raises(KeyFieldsError, match="expires"):
            expiry(text, now)


def test_a_short_admin_key_is_refused() -> None:
    with pytest.raises(ValueError, match="admin_key"):
        Settings.model_validate({"access": {"admin_key": "short"}})
