"""`smallcall study slm`: real answers of a tiny model by the gateway's own code, and a table of them."""

import json
from pathlib import Path

import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from evaluation.cases.case import Case
from evaluation.cases.sets import case_set, sample
from evaluation.traces.client import Endpoint
from evaluation.traces.collect import collect
from evaluation.traces.table import TraceRow, signals_of, write_trace
from router.__main__ import app
from router.lab.batch import PINNED, Batch, drafted_rows
from router.lab.gateway_process import gateway_process
from router.lab.score_small import arm_of
from router.settings import Settings, load_settings
from slm.engine.engine import DraftEngine
from slm.weights.registry import resolve_model
from tests.evaluation.drafts import of_recording

SAME = (
    "case_id", "arm", "request_sha256", "status", "error", "outcome", "calls", "text", "finish_reason", "prompt_tokens",
    "completion_tokens", "cost_usd", "passed", "fail_reason", "side", "reason", "policy", "stage", "score", "findings",
    "small_outcome", "small_plan", "small_calls", "small_complete", "small_text", "small_steps", "forced", "span",
)  # fmt: skip


def cases() -> list[Case]:
    """A few of each kind, one without tools and one with more than the tiny model's context holds."""
    chosen = sample("heldout_tools", case_set("heldout_tools"), 1)
    long = replace(chosen[0], id="long", messages=[{"role": "user", "content": "word " * 9000}])
    return [*chosen, replace(chosen[0], id="no tools", tools=[]), long]


@pytest.mark.slow
async def test_answers_are_those_of_a_running_gateway(llama_folder: Path, tmp_path: Path) -> None:
    """Every column but times and ids, errors and refusals among them; signals up to rounding."""
    settings = Settings.model_validate({"small": {"model": str(llama_folder), "max_tokens": 24, "adapter": "none"}})
    endpoint = Endpoint("http://x/v1", PINNED, include_signals=True)
    chosen = cases()
    async with gateway_process(settings, llama_folder, tmp_path) as url:
        online = await collect(
            chosen, Endpoint(url, PINNED, include_signals=True), tmp_path / "t.parquet", command="test", concurrency=1
        )
    rows: list[TraceRow] = []
    await Batch(DraftEngine.load(llama_folder), settings.small).ask(chosen, chosen, rows.append)
    assert [row.case_id for row in rows] == [case.id for case in chosen]
    for ours, theirs in zip(rows, online.rows, strict=True):
        assert {name: getattr(ours, name) for name in SAME} == {name: getattr(theirs, name) for name in SAME}
        assert (ours.small_prefill_s is None) == (theirs.small_prefill_s is None)
        mine, other = signals_of(ours), signals_of(theirs)
        assert (mine is None) == (other is None)
        if mine is not None and other is not None:
            assert mine.logprob == pytest.approx(other.logprob, abs=1e-3)
    assert {row.error for row in rows} >= {None, "no_tools", "prompt_too_long"}
    assert endpoint.body([], []) == Batch(DraftEngine.load(llama_folder), settings.small).endpoint.body([], [])


def test_an_answer_depends_on_its_chunk_alone(llama_folder: Path) -> None:
    """What was drafted before leaves no trace, not in the last bit of a signal."""
    llama, small = DraftEngine.load(llama_folder), Settings().small.model_copy(update={"max_tokens": 16})
    first, *others = cases()[:4]
    alone = drafted_rows(llama, small, [first], lambda done, total: None)
    drafted_rows(llama, small, others, lambda done, total: None)
    (again,) = drafted_rows(llama, small, [first], lambda done, total: None)
    for name in ("logprob", "margin", "entropy", "small_text", "calls"):
        assert getattr(alone[0], name) == getattr(again, name)


@pytest.mark.slow
def test_the_small_model_is_scored_and_a_second_run_asks_nothing(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every case has an answer or a reason; a second run loads no model."""
    monkeypatch.setenv("SMALLCALL_SMALL__MODEL", str(llama_folder))
    monkeypatch.setenv("SMALLCALL_SMALL__MAX_TOKENS", "16")
    command = [
        "study", "slm", "--per-group", "1", "--only", "bfcl", "--only", "toolbench", "--only", "toolbench_recorded",
        "--arm", "zero-shot",
        "--folder", str(tmp_path / "traces"), "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    results = []
    for _ in range(2):
        outcome = CliRunner().invoke(app, command)
        assert outcome.exit_code == 0, outcome.output
        results.append(json.loads((tmp_path / "out" / "slm.json").read_text(encoding="utf-8")))
        monkeypatch.setattr(DraftEngine, "load", None)
    assert results[0]["sets"] == results[1]["sets"]
    bfcl, toolbench, recorded = results[0]["sets"]
    cells = {(cell["arm"], cell["group"]): cell for cell in bfcl["cells"]}
    assert cells["zero-shot", "all"]["n"] == 11
    assert "http_500" not in cells["zero-shot", "all"]["reasons"]
    for one in (toolbench, recorded):
        for arm in ("zero-shot", "zero-shot, first call"):
            assert len({cell["group"] for cell in one["cells"] if cell["arm"] == arm}) == 7
    assert "| all |" in (tmp_path / "out" / "slm.md").read_text(encoding="utf-8")


def test_an_unknown_arm_is_refused(tmp_path: Path) -> None:
    """The message names the arms."""
    outcome = CliRunner().invoke(app, ["study", "slm", "--arm", "best", "--folder", str(tmp_path)])
    assert outcome.exit_code == 2
    assert "zero-shot" in outcome.output


def test_failures_are_read_where_the_scores_left_them(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sets without a table are left out; without any table it says what to run."""
    monkeypatch.setenv("SMALLCALL_SMALL__MODEL", str(llama_folder))
    command = [
        "study", "failures", "--arm", "zero-shot", "--rows", "3", "--only", "bfcl", "--only", "toolbench",
        "--folder", str(tmp_path / "traces"), "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    outcome = CliRunner().invoke(app, command)
    assert outcome.exit_code == 1
    assert "study slm --arm 'zero-shot'" in outcome.output.replace("\n", " ")
    arm = arm_of("zero-shot", load_settings().small, resolve_model(str(llama_folder), tmp_path))
    table = arm.table(tmp_path / "traces", "bfcl")
    table.parent.mkdir(parents=True)
    write_trace(table, of_recording(case_set("bfcl")[:400]))
    outcome = CliRunner().invoke(app, command)
    assert outcome.exit_code == 0, outcome.output
    page = (tmp_path / "out" / "failures.md").read_text(encoding="utf-8")
    assert "command: `smallcall study failures --arm 'zero-shot' --rows 3 --only bfcl --only toolbench`" in page
    assert page.count("- draft: ") == 3
    assert "| kind | bfcl |" in page
    outcome = CliRunner().invoke(app, [*command, "--arm", "best"])
    assert outcome.exit_code == 2
