"""A bundle served: certificates in force and void, hot reload, budgets, explanations; through the gateway's door."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import structlog

from evaluation.traces.client import Endpoint
from evaluation.traces.collect import collect
from evaluation.traces.table import TraceError, read_trace
from policies.bundle.bundle import load, save
from policies.bundle.manifest import Budget, Classes, OneClass, Threshold
from policies.texts import tool_sha256
from policies.types import Tool
from router.settings import BundlePolicy, Settings, SettingsError
from slm.weights.folders import read_adapter
from tests.policies.bundle.test_bundle import MADE_FOR, SCORE, SHOWN, manifest
from tests.router.cascade.test_gateway import CALL, CITY, ROWS, Scripted, ask, post, rows_of
from tests.router.conftest import Make, ScriptedSmall, served
from tests.router.fake_worker import INFO

ASKED = {"smallcall": {"include": ["decision", "explain"]}}


def bundle(folder: Path, policy: Any = None, **changes: Any) -> tuple[dict[str, Any], str]:
    """A bundle for the scripted worker; the policy section that serves it, and its digest."""
    digest = save(folder, manifest(policy, **changes))
    return {"kind": "bundle", "path": str(folder)}, digest


class Costly(Scripted):
    """A large model that reports usage at a price."""

    def __init__(self, usd: float) -> None:
        super().__init__()
        self.usd = usd

    async def complete(self, body: Any, tries: Any = None) -> dict[str, Any]:
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return {**await super().complete(body, tries), "usage": usage}

    def cost_usd(self, usage: Any) -> Any:
        return self.usd


async def told(url: str, path: str) -> Any:
    async with aiohttp.ClientSession() as session, session.get(url.removesuffix("/v1") + path) as response:
        return await response.json()


async def test_a_certificate_in_force_is_told_everywhere_and_kept_with_every_row(gateway: Make, tmp_path: Path) -> None:
    """Log at the start, /readyz, /v1/models, the answer's extras, the ledger's row."""
    policy, digest = bundle(tmp_path / "b")
    app = gateway(small=ScriptedSmall(CALL), upstream=Scripted(), policy=policy)
    with structlog.testing.capture_logs() as log:
        async with served(app) as url:
            assert (await told(url, "/readyz"))["certificates"] == "in_force"
            shown = (await told(url, "/v1/models"))["smallcall"]["policy"]
            assert (shown["state"], shown["digest"], shown["certificates"][0]["id"]) == ("in_force", digest, SHOWN.id)
            assert shown["certificates"][0]["says"] == SHOWN.sentence()
            status, headers, body = await post(url, ask(**ASKED))
            assert (status, headers["x-smallcall-model"]) == (200, "small")
            extras = body["smallcall"]
            assert (extras["bundle"], extras["certificate"]) == (digest, SHOWN.id)
            assert extras["probability"] == pytest.approx(0.99, abs=0.001)
            assert extras["explain"] == [{"signal": "weakest_token", "contribution": pytest.approx(0.99, abs=0.001)}]
            (row,) = await rows_of(app, 1)
            assert (row.bundle_sha256, row.certificate, row.policy[:19]) == (digest, SHOWN.id, f"bundle {digest[:12]}")
            assert row.probability == pytest.approx(0.99, abs=0.001)
    (entry,) = [entry for entry in log if entry["event"] == "certificates_in_force"]
    assert entry["bundle"] == digest
    assert SHOWN.sentence() in entry["certificates"][0]


@pytest.mark.parametrize(("on_void", "side"), [("escalate", "large"), ("warn", "small")])
async def test_a_hash_that_differs_voids_the_certificate(
    gateway: Make, tmp_path: Path, on_void: str, side: str
) -> None:
    """Everything goes large, or drafts are served without a certificate; the gateway says which hash it was."""
    other = msgspec.structs.replace(MADE_FOR, adapter_sha256="1" * 64)
    policy, digest = bundle(tmp_path / "b", made_for=other)
    app = gateway(small=ScriptedSmall(CALL), upstream=Scripted(), policy={**policy, "on_void": on_void})
    with structlog.testing.capture_logs() as log:
        async with served(app) as url:
            ready = await told(url, "/readyz")
            shown = (await told(url, "/v1/models"))["smallcall"]["policy"]
            _, headers, _ = await post(url, ask())
            (row,) = await rows_of(app, 1)
    assert (ready["certificates"], shown["state"], shown["differences"]) == ("void", "void", ["adapter_sha256"])
    assert headers["x-smallcall-model"] == side
    assert row.reason == ("certificate_void" if on_void == "escalate" else "accepted")
    assert (row.bundle_sha256, row.certificate) == (digest, None)
    (entry,) = [entry for entry in log if entry["event"] == "certificates_void"]
    assert (entry["differences"], entry["log_level"]) == (("adapter_sha256",), "warning")


async def test_a_worker_that_comes_back_with_other_weights_voids_it_while_the_gateway_runs(
    gateway: Make, tmp_path: Path
) -> None:
    """The standing follows the worker's own word, not the start's."""
    policy, _ = bundle(tmp_path / "b")
    small = ScriptedSmall(CALL)
    small.info = None  # type: ignore[assignment]
    async with served(gateway(small=small, upstream=Scripted(), policy=policy)) as url:
        assert (await told(url, "/readyz"))["certificates"] == "waiting"
        small.info = INFO
        assert (await told(url, "/readyz"))["certificates"] == "in_force"
        small.info = msgspec.structs.replace(INFO, weights_sha256="2" * 64)
        assert (await told(url, "/readyz"))["certificates"] == "void"
        assert (await post(url, ask()))[1]["x-smallcall-reason"] == "certificate_void"


async def test_a_large_model_that_it_was_not_counted_against_voids_it(gateway: Make, tmp_path: Path) -> None:
    """Harm is what the large model would have done better."""
    policy, _ = bundle(tmp_path / "b", made_for=msgspec.structs.replace(MADE_FOR, large_model="claude"))
    async with served(gateway(small=ScriptedSmall(CALL), upstream=Scripted(), policy=policy)) as url:
        assert (await told(url, "/v1/models"))["smallcall"]["policy"]["differences"] == ["large_model"]


async def test_a_tool_that_was_not_certified_goes_large_by_class(gateway: Make, tmp_path: Path) -> None:
    """Where the policy goes by tool, a changed definition has no certificate."""
    known = tool_sha256(Tool("get_weather", "Weather.", CITY))
    made_for = msgspec.structs.replace(MADE_FOR, tools={"get_weather": known})
    classes = Classes(classes=[OneClass(pattern="*", alpha=0.05, threshold=0.5, certificate=SHOWN.id)])
    policy, _ = bundle(tmp_path / "b", classes, made_for=made_for)
    changed = {"type": "function", "function": {"name": "get_weather", "description": "Else.", "parameters": CITY}}
    for on_void, reason in (("escalate", "tool_not_certified"), ("warn", "accepted")):
        app = gateway(small=ScriptedSmall(CALL), upstream=Scripted(), policy={**policy, "on_void": on_void})
        async with served(app) as url:
            assert (await post(url, ask(**ASKED)))[2]["smallcall"]["certificate"] == SHOWN.id
            _, headers, body = await post(url, ask(tools=[changed], **ASKED))
            assert headers["x-smallcall-reason"] == reason
            assert body["smallcall"]["certificate"] is None


async def test_a_hangup_swaps_the_bundle_whole(gateway: Make, tmp_path: Path) -> None:
    """SIGHUP: the folder's new content is in force; content that cannot be loaded leaves the old one."""
    path = tmp_path / "current"
    policy, _ = bundle(tmp_path / "one")
    _, strict = bundle(tmp_path / "two", Threshold(threshold=0.999), certificates=[])
    path.symlink_to(tmp_path / "one")
    app = gateway(small=ScriptedSmall(CALL), upstream=Scripted(), policy={**policy, "path": str(path)})

    async def hang_up_until(event: str) -> None:
        with structlog.testing.capture_logs() as log:
            os.kill(os.getpid(), signal.SIGHUP)
            async with asyncio.timeout(5):
                while event not in [entry["event"] for entry in log]:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

    def point_to(name: str) -> None:
        path.unlink()
        path.symlink_to(tmp_path / name)

    async with served(app) as url:
        assert (await post(url, ask()))[1]["x-smallcall-model"] == "small"
        point_to("two")
        await hang_up_until("policy_reloaded")
        _, headers, body = await post(url, ask(**ASKED))
        assert (headers["x-smallcall-reason"], body["smallcall"]["bundle"]) == ("low_confidence", strict)
        assert (await told(url, "/readyz"))["certificates"] == "uncertified"
        point_to("nowhere")
        await hang_up_until("policy_not_reloaded")
        assert (await post(url, ask(**ASKED)))[2]["smallcall"]["bundle"] == strict


async def test_a_request_under_way_keeps_its_policy(gateway: Make, tmp_path: Path) -> None:
    """What was loaded meanwhile judges the next one."""
    policy, first = bundle(tmp_path / "b")
    app = gateway(small=ScriptedSmall(CALL, pause_s=0.01), upstream=Scripted(), policy=policy)
    async with served(app) as url:
        asking = asyncio.create_task(post(url, ask(**ASKED)))
        await asyncio.sleep(0.1)
        (tmp_path / "b").rename(tmp_path / "old")
        _, second = bundle(tmp_path / "b", Threshold(threshold=0.999), certificates=[])
        assert await app.services.policies.reload(held=False)
        assert (await asking)[2]["smallcall"]["bundle"] == first
        assert (await post(url, ask(**ASKED)))[2]["smallcall"]["bundle"] == second


async def test_the_control_of_a_running_experiment_is_not_swapped(gateway: Make, tmp_path: Path) -> None:
    """Arms name bundles, too, and each row says which one judged."""
    policy, one = bundle(tmp_path / "one")
    other, two = bundle(tmp_path / "two", Threshold(threshold=0.6, certificate=SHOWN.id))
    arms = {"control": {}, "other": {"policy": other}}
    app = gateway(small=ScriptedSmall(CALL), policy=policy, experiments={"trial": {"arms": arms}})
    async with served(app) as url:
        assert not await app.services.policies.reload(held=True)
        for index in range(20):
            await post(url, ask(messages=[{"role": "user", "content": str(index)}]))
        rows = await rows_of(app, 20)
    assert {(row.arm, row.bundle_sha256) for row in rows} == {("control", one), ("other", two)}


async def test_a_budget_escalates_while_there_is_money_and_no_longer(gateway: Make, tmp_path: Path) -> None:
    """The large model's cost is counted from its answers; a spent budget serves what the floor allows."""
    budget = Budget(floor=0.3, usd_per_hour=100.0, certificate=SHOWN.id)
    always = msgspec.structs.replace(SCORE, calibration=[(0.0, 0.1), (1.0, 0.1)])
    policy, _ = bundle(tmp_path / "b", budget, judge=always)
    large = Costly(0.4)
    app = gateway(small=ScriptedSmall(CALL), upstream=large, policy={**policy, "usd_per_hour": 1.0})
    async with served(app) as url:
        sides = [(await post(url, ask()))[1]["x-smallcall-model"] for _ in range(6)]
        reasons = [row.reason for row in await rows_of(app, 6)]
    assert sides == ["large"] * 3 + ["small"] * 3
    assert reasons == ["gain_of_large"] * 3 + ["accepted"] * 3
    assert large.asked == 3


async def test_pinned_requests_are_no_bundles_business(gateway: Make, tmp_path: Path) -> None:
    """The client chose: no bundle and no certificate stands in the row."""
    policy, _ = bundle(tmp_path / "b")
    app = gateway(small=ScriptedSmall(CALL), upstream=Scripted(), policy=policy)
    async with served(app) as url:
        assert (await post(url, ask(model="smallcall/small", **ASKED)))[2]["smallcall"]["certificate"] is None
        (row,) = await rows_of(app, 1)
    assert (row.policy, row.bundle_sha256, row.certificate) == ("pinned", None, None)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"kind": "bundle"}, "policy.path"),
        ({"kind": "bundle", "path": "x", "pat": 1}, "policy.pat"),
        ({"kind": "bundle", "path": "x", "on_void": "shrug"}, "policy.on_void"),
        ({"kind": "bundle", "path": "x", "digest": "abc"}, "policy.digest"),
        ({"kind": "magic"}, "bundle"),
    ],
)
def test_keys_of_a_bundle_are_checked_with_the_configuration(policy: dict[str, Any], message: str) -> None:
    """Unknown and wrong keys name their path; the bundle itself is looked for when the gateway is made."""
    with pytest.raises(ValueError, match=message):
        Settings.model_validate({"policy": policy})


def test_a_bundle_that_cannot_be_loaded_keeps_the_gateway_from_starting(gateway: Make, tmp_path: Path) -> None:
    """A missing one, another digest than asked for, and a budget for a policy that keeps none."""
    policy, _ = bundle(tmp_path / "b")
    for wrong, message in [
        ({"path": str(tmp_path / "none")}, "policy.path"),
        ({"digest": "f" * 64}, "as asked for"),
        ({"usd_per_hour": 1.0}, "policy.usd_per_hour"),
    ]:
        with pytest.raises(SettingsError, match=message):
            gateway(small=ScriptedSmall(CALL), policy={**policy, **wrong})


async def test_a_trace_keeps_what_its_drafts_were_made_with(gateway: Make, tmp_path: Path) -> None:
    """Told by the gateway itself; a run does not go on from drafts of another adapter."""
    (case,) = [row.case for row in ROWS if row.recorded.calls][:1]
    small = ScriptedSmall("Thought: none\nAction: none")
    async with served(gateway(small=small)) as url:
        endpoint = Endpoint(url, "smallcall/small", include_signals=True)
        trace = await collect([case], endpoint, tmp_path / "t.parquet", command="test")
        assert trace.info.serving is not None
        assert trace.info.serving.made_for("gpt-4o") == MADE_FOR
        assert read_trace(tmp_path / "t.parquet").info.serving == trace.info.serving
        assert await collect([case], endpoint, tmp_path / "t.parquet", command="test") == trace
        small.info = msgspec.structs.replace(INFO, adapter_sha256="3" * 64)
        with pytest.raises(TraceError, match="another adapter"):
            await collect([case], endpoint, tmp_path / "t.parquet", command="test")


async def test_the_shipped_bundle_is_made_for_the_shipped_adapter_and_void_for_another(gateway: Make) -> None:
    """`path: shipped` loads; its hashes are the adapter's that comes with it; before another worker it is void."""
    policy = {"kind": "bundle", "path": "shipped"}
    loaded = load(BundlePolicy.model_validate(policy).folder)
    folder = Settings().small.adapter_folder
    assert folder is not None
    made_for = loaded.manifest.made_for
    assert made_for is not None
    assert made_for.adapter_sha256 == read_adapter(folder).sha256
    app = gateway(small=ScriptedSmall(CALL), upstream=Scripted(), policy=policy)
    async with served(app) as url:
        assert (await told(url, "/readyz"))["certificates"] == "void"
