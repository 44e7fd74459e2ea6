"""Experiments made, listed and stopped over HTTP; what replicas and a restart see of them."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest
from typer.testing import CliRunner

from router.__main__ import app as cli
from router.http.services import GatewayApp
from tests.router.cascade.test_gateway import CALL, Scripted, ask, rows_of
from tests.router.conftest import Make, ScriptedSmall, served
from tests.router.selection.test_experiments import exposed_rows, written

# litellm builds a pydantic model at its first stream, and pydantic has a remark on it.
pytestmark = pytest.mark.filterwarnings("ignore:Item 'summary' on TypedDict:UserWarning")

ADMIN = "an-admin-key-of-tests"
BOLD = {"arms": {"control": {}, "bold": {"policy": {"kind": "small_only"}}}}


@pytest.fixture
def make(gateway: Make, ledger_url: str) -> Make:
    """A gateway whose own policy escalates what the small model drafts."""

    def made(**values: Any) -> GatewayApp:
        access = {"admin_key": ADMIN}
        small = ScriptedSmall(CALL, logprob=-2.0)
        return gateway(small=small, upstream=Scripted(), access=access, ledger={"url": ledger_url}, **values)

    return made


async def admin(
    url: str, method: str, name: str = "", body: Any = None, key: str | None = ADMIN
) -> tuple[int, dict[str, Any]]:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    path = url.removesuffix("/v1") + "/admin/experiments" + (f"/{name}" if name else "")
    async with aiohttp.ClientSession() as session, session.request(method, path, json=body, headers=headers) as got:
        return got.status, await got.json()


async def sides(url: str, conversations: str = "abcdef") -> dict[str, str | None]:
    """Who answers each conversation."""
    found: dict[str, str | None] = {}
    async with aiohttp.ClientSession() as session:
        for name in conversations:
            headers = {"x-smallcall-conversation": name}
            async with session.post(url + "/chat/completions", json=ask(), headers=headers) as response:
                await response.read()
                found[name] = response.headers.get("x-smallcall-model")
    return found


async def states(url: str) -> dict[str, str]:
    _, listed = await admin(url, "GET")
    return {one["name"]: one["state"] for one in listed["data"]}


async def until(url: str, wanted: dict[str, str]) -> None:
    """Wait for what another replica has done."""
    async with asyncio.timeout(20):
        while await states(url) != wanted:  # noqa: ASYNC110 - the change comes from outside
            await asyncio.sleep(0.02)


async def test_one_made_over_http_deals_arms_and_its_rows_say_so_also_after_a_restart(make: Make) -> None:
    """The arm is a function of name and conversation."""
    configured = make(experiments={"trial": BOLD})
    async with served(configured) as url:
        assert set((await sides(url)).values()) == {"small", "large"}
    app = make()
    async with served(app) as url:
        assert set((await sides(url)).values()) == {"large"}
        # `trial` has served requests by now, so the definition under this name is another experiment.
        assert (await admin(url, "PUT", "trial", BOLD))[1]["error"]["code"] == "experiment_begun"
        status, told = await admin(url, "PUT", "second", BOLD)
        assert (status, told["name"], told["state"], told["source"]) == (201, "second", "running", "api")
        assert told["experiment"]["arms"]["bold"]["policy"] == {"kind": "small_only"}
        expected = await sides(url)
        assert set(expected.values()) == {"small", "large"}
        status, again = await admin(url, "PUT", "second", BOLD)
        assert (status, again) == (200, told)
    restarted = make()
    async with served(restarted) as url:
        assert await states(url) == {"second": "running"}
        assert await sides(url) == expected
        rows = [row for row in await rows_of(restarted, 24) if row.experiment == "second"]
    assert len(rows) == 12
    assert {(row.arm, row.side) for row in rows} == {("control", "large"), ("bold", "small")}
    assert {row.arm_propensity for row in rows} == {0.5}
    assert len({row.unit_sha256 for row in rows}) == 6


async def test_one_that_is_stopped_stays_stopped_in_every_replica_and_after_a_restart(make: Make) -> None:
    one, other = make(), make()
    async with served(one) as first, served(other) as second:
        await admin(first, "PUT", "trial", BOLD)
        await until(second, {"trial": "running"})
        dealt = await sides(second)
        assert dealt == await sides(first)
        assert "small" in dealt.values()
        status, told = await admin(second, "DELETE", "trial")
        assert (status, told["state"]) == (200, "stopped")
        assert set((await sides(second)).values()) == {"large"}
        await until(first, {"trial": "stopped"})
        async with asyncio.timeout(20):  # the list is the store's; what a replica deals follows at its next look
            while set((await sides(first)).values()) != {"large"}:  # noqa: ASYNC110 - see `until`
                await asyncio.sleep(0.02)
        assert (await admin(first, "DELETE", "trial"))[1] == told
        status, refused = await admin(first, "PUT", "trial", BOLD)
        assert (status, refused["error"]["code"]) == (409, "experiment_stopped")
    async with served(make()) as url:
        assert await states(url) == {"trial": "stopped"}
        assert set((await sides(url)).values()) == {"large"}


async def test_one_whose_guardrail_went_is_stopped_in_every_replica_and_after_a_restart_without_its_rows(
    make: Make, ledger_url: str
) -> None:
    app = make()
    async with served(app) as first:
        await admin(first, "PUT", "trial", BOLD)
        assert "small" in (await sides(first)).values()
        await written(ledger_url, exposed_rows(1500, invalid={"control": 0.02, "bold": 0.4}))
        async with served(make()) as second:  # it looks when it starts
            assert await states(second) == {"trial": "guardrail"}
            assert set((await sides(second)).values()) == {"large"}
        _, listed = await admin(first, "GET")
        assert listed["data"][0]["stopped_at"] is not None
        async with asyncio.timeout(20):  # see above
            while set((await sides(first)).values()) != {"large"}:  # noqa: ASYNC110 - see `until`
                await asyncio.sleep(0.02)
        async with app.services.ledger.engine.begin() as connection:
            await connection.exec_driver_sql("DELETE FROM decisions")
    async with served(make()) as url:
        assert await states(url) == {"trial": "guardrail"}
        assert set((await sides(url)).values()) == {"large"}
        assert (await admin(url, "PUT", "trial", BOLD))[1]["error"]["code"] == "experiment_stopped"


async def test_one_of_the_configuration_is_stopped_but_not_changed_over_http(make: Make) -> None:
    async with served(make(experiments={"trial": BOLD})) as url:
        assert await states(url) == {"trial": "running"}
        status, refused = await admin(url, "PUT", "trial", BOLD)
        assert (status, refused["error"]["code"]) == (409, "experiment_configured")
        status, refused = await admin(url, "PUT", "other", BOLD)
        assert (status, refused["error"]["code"]) == (409, "experiment_running")
        status, told = await admin(url, "DELETE", "trial")
        assert (status, told["state"], told["source"]) == (200, "stopped", "configuration")
        status, told = await admin(url, "PUT", "other", BOLD)
        assert (status, told["state"]) == (201, "running")
    async with served(make(experiments={"trial": BOLD})) as url:
        assert await states(url) == {"trial": "stopped", "other": "running"}


async def test_one_that_has_served_nothing_may_be_replaced_and_one_that_has_may_not(make: Make) -> None:
    async with served(make()) as url:
        status, told = await admin(url, "PUT", "trial", {**BOLD, "enabled": False})
        assert (status, told["state"]) == (201, "disabled")
        assert set((await sides(url)).values()) == {"large"}
        status, told = await admin(url, "PUT", "trial", {**BOLD, "planned_units": 400})
        assert (status, told["state"], told["experiment"]["planned_units"]) == (200, "running", 400)
        await sides(url)
        status, refused = await admin(url, "PUT", "trial", BOLD)
        assert (status, refused["error"]["code"]) == (409, "experiment_begun")
        assert await states(url) == {"trial": "running"}


@pytest.mark.parametrize(
    ("name", "body", "param"),
    [
        ("trial", {"arms": {"control": {}}}, "arms"),
        ("trial", {"arms": {"control": {"policy": {"kind": "small_only"}}, "b": {}}}, "arms.control.policy"),
        ("trial", {**BOLD, "arms": {"control": {"weight": 0}, "b": {}}}, "arms.control.weight"),
        ("trial", {**BOLD, "plan": 3}, "plan"),
        ("trial", {**BOLD, "window_s": 60}, "window_s"),
        ("trial", {**BOLD, "guardrails": {"p95_latency_s": -1}}, "guardrails.p95_latency_s"),
        ("trial", {"arms": {"control": {}, "b": {"policy": {"kind": "none such"}}}}, "arms.b.policy.kind"),
        ("trial", {"arms": {"control": {}, "b": {"policy": {"kind": "bundle", "path": "/none"}}}}, "arms"),
        ("Trial", BOLD, "name"),
    ],
)
async def test_what_is_wrong_is_told_in_plain_json_by_its_field(
    gateway: Make, name: str, body: dict[str, Any], param: str
) -> None:
    async with served(gateway(upstream=Scripted(), access={"admin_key": ADMIN})) as url:
        status, told = await admin(url, "PUT", name, body)
        assert (status, told["error"]["param"], told["error"]["code"]) == (400, param, "invalid_request")
        assert told["error"]["message"].startswith(param + ": ")
        assert await states(url) == {}


async def test_only_the_admin_key_opens(gateway: Make) -> None:
    async with served(gateway(upstream=Scripted(), access={"admin_key": ADMIN})) as url:
        for method, name in (("GET", ""), ("PUT", "trial"), ("DELETE", "trial")):
            assert (await admin(url, method, name, BOLD, key=None))[0] == 401
            assert (await admin(url, method, name, BOLD, key="another-key-of-tests"))[0] == 401
        assert await admin(url, "DELETE", "trial") == (
            404,
            {
                "error": {
                    "message": "there is no such experiment",
                    "type": "invalid_request_error",
                    "param": None,
                    "code": "unknown_experiment",
                }
            },
        )
    async with served(gateway(upstream=Scripted())) as url:
        assert (await admin(url, "PUT", "trial", BOLD))[0] == 403


async def test_the_status_command_knows_it(make: Make, ledger_url: str, tmp_path: Any) -> None:
    async with served(make()) as url:
        await admin(url, "PUT", "trial", BOLD)
        await sides(url)
    file = tmp_path / "smallcall.yaml"
    file.write_text(json.dumps({"ledger": {"url": ledger_url}}))
    told = await asyncio.to_thread(CliRunner().invoke, cli, ["ab", "status", "trial", "--json", "--config", str(file)])
    assert told.exit_code == 0, told.output
    assert json.loads(told.output)["stopped"] is False
