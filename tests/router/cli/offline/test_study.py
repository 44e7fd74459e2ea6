"""`smallcall study`: the offline commands through their public door."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from evaluation.cases.case import Case
from evaluation.cases.study_data import RecordedAnswer, StudyData
from evaluation.recorded.index import served_name
from evaluation.recorded.models import GPT_4O, trace_of
from evaluation.recorded.server import RecordedServer
from evaluation.traces.table import read_trace, write_trace
from router.__main__ import app
from tests.evaluation.drafts import of_recording


def test_the_cascade_study_is_one_command(tmp_path: Path) -> None:
    """A trace in, cascade.md and cascade.json out; sets that no trace holds are named as missing."""
    trace = tmp_path / "small.parquet"
    write_trace(trace, of_recording(StudyData.of_checkout().bfcl()[::5]))
    command = ["study", "cascade", "--small", str(trace), "--out", str(tmp_path / "out"), "--draws", "20"]
    outcome = CliRunner().invoke(app, [*command, "--large", "gpt-4o-2024-08-06"])
    assert outcome.exit_code == 0, outcome.output
    assert "missing: in_domain: no trace holds a case of it" in outcome.output
    study = json.loads((tmp_path / "out" / "cascade.json").read_text(encoding="utf-8"))
    assert study["command"] == "smallcall study cascade --small small.parquet --large gpt-4o-2024-08-06 --draws 20"
    assert [table["protocol"] for table in study["tables"]] == ["split"]
    assert "bfcl, gpt-4o-2024-08-06, cold: no trace of training sources was given" in study["missing"]
    assert "## BFCL, cases with recorded answers" in (tmp_path / "out" / "cascade.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--small", "absent.parquet"], 1, "absent.parquet"),
        (["--small", "absent.parquet", "--large", "gpt-9"], 2, "gpt-9"),
        (["--small", "absent.parquet", "--quality-of-large", "1.5"], 2, "quality-of-large"),
    ],
)
def test_the_cascade_study_says_what_is_wrong(options: list[str], code: int, said: str) -> None:
    """An absent trace, an unknown model and an impossible rate are errors that name them."""
    outcome = CliRunner().invoke(app, ["study", "cascade", *options])
    assert outcome.exit_code == code
    assert said in outcome.output


@contextlib.contextmanager
def recorded(answers: list[RecordedAnswer], cases: list[Case], api_key: str) -> Iterator[RecordedServer]:
    """A recorded model that answers from a thread of its own."""
    server, loop, over = RecordedServer(answers, cases, api_key=api_key), asyncio.new_event_loop(), threading.Event()
    ready = threading.Event()

    async def serve() -> None:
        async with server:
            ready.set()
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield server
    finally:
        over.set()
        thread.join(10)
        loop.close()


def test_own_cases_are_collected_with_a_key_and_priced(tmp_path: Path) -> None:
    """Without the key no row is answered, and the next run asks again; costs are the usage times the given prices;
    the key is nowhere on disk."""
    data = StudyData.of_checkout()
    answers = {answer.id: answer for answer in data.recording("gpt-4o-2024-08-06-FC")}
    cases = [case for case in data.bfcl() if case.id in answers][:3]
    own, key, out = tmp_path / "own.jsonl", tmp_path / "key", tmp_path / "out" / "large.parquet"
    own.write_bytes(b"\n".join(msgspec.json.encode(case) for case in cases) + b"\n")
    key.write_text("sk-of-the-endpoint\n", encoding="utf-8")
    with recorded([answers[case.id] for case in cases], cases, "sk-of-the-endpoint") as server:
        command = [
            "study", "collect", str(out), "--endpoint", server.url, "--model", served_name("gpt-4o-2024-08-06-FC"),
            "--cases", str(own), "--no-signals", "--input-price", "2.5", "--output-price", "10",
        ]  # fmt: skip
        refused = CliRunner().invoke(app, command)
        assert "0 of 3 passed" in refused.output
        outcome = CliRunner().invoke(app, [*command, "--key-file", str(key)])
    assert outcome.exit_code == 0, outcome.output
    rows = read_trace(out).rows
    assert [row.case_id for row in rows] == [case.id for case in cases]
    for row in rows:
        assert row.error is None
        assert row.prompt_tokens is not None
        assert row.completion_tokens is not None
        assert row.cost_usd == pytest.approx((row.prompt_tokens * 2.5 + row.completion_tokens * 10) / 1e6)
    assert not any(b"sk-of-the-endpoint" in path.read_bytes() for path in out.parent.iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--cases", "no-set"], "no-set"),
        (["--cases", "absent.jsonl"], "absent.jsonl"),
        (["--input-price", "1"], "--output-price"),
    ],
)
def test_collecting_says_which_option_is_wrong(tmp_path: Path, options: list[str], said: str) -> None:
    """An unknown set, a file that is not there, half a price."""
    outcome = CliRunner().invoke(app, ["study", "collect", str(tmp_path / "t.parquet"), *options])
    assert outcome.exit_code == 2
    assert said in outcome.output
    assert not (tmp_path / "t.parquet").exists()


def test_the_report_is_one_command(tmp_path: Path) -> None:
    """Of a trace and a recorded model, of two traces over own cases, with pictures: page, figures and PNG files."""
    cases = StudyData.of_checkout().bfcl()[::6]
    small, large, own = tmp_path / "small.parquet", tmp_path / "large.parquet", tmp_path / "own.jsonl"
    write_trace(small, of_recording(cases))
    write_trace(large, trace_of(GPT_4O, cases, StudyData.of_checkout(), command="recorded"))
    own.write_bytes(b"\n".join(msgspec.json.encode(case) for case in cases) + b"\n")
    reports = []
    for name, options in (
        ("a", ["--png"]),
        ("b", ["--cases", str(own), "--large", str(large), "--on-no-call", "answer"]),
    ):
        out = tmp_path / name
        outcome = CliRunner().invoke(app, ["report", str(small), "--out", str(out), *options])
        assert outcome.exit_code == 0, outcome.output
        assert "report.html" in outcome.output
        reports.append(json.loads((out / "report.json").read_text(encoding="utf-8")))
        assert (out / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert reports[0]["command"] == "smallcall report small.parquet --cases bfcl --large gpt-4o-2024-08-06-FC"
    assert [report["on_no_call"] for report in reports] == ["escalate", "answer"]
    assert reports[0]["cases"] == reports[1]["cases"] > 150
    assert all(report["curves"][0]["key"] == "classifier" for report in reports)
    assert all(report["tools"] and report["reliability"] and report["risk"] for report in reports)
    for picture in ("curve", "reliability", "risk"):
        assert (tmp_path / "a" / f"{picture}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["absent.parquet"], 1, "absent.parquet"),
        (["absent.parquet", "--on-no-call", "shrug"], 2, "on-no-call"),
        (["SMALL", "--large", "gpt-3.5-turbo-0125-FC"], 1, "give --input-price"),
        (["SMALL", "--cases", "elsewhere"], 1, "no set 'elsewhere'"),
        (["no-such-recording"], 1, "no recording of 'no-such-recording'"),
    ],
)
def test_the_report_says_what_is_wrong(options: list[str], code: int, said: str, tmp_path: Path) -> None:
    """An absent trace, a model without a price, an unknown set: errors that name them."""
    small = tmp_path / "small.parquet"
    write_trace(small, of_recording(StudyData.of_checkout().bfcl()[:40]))
    outcome = CliRunner().invoke(app, ["report", *(str(small) if word == "SMALL" else word for word in options)])
    assert outcome.exit_code == code
    assert said in outcome.output
