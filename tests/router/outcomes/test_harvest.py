"""Training rows from the ledger: what may be taught, whose it is, and that the trainer takes it."""

import asyncio
import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from router.__main__ import app as cli
from router.ledger.audits import record_audit
from router.ledger.outcomes import record
from router.ledger.row import DecisionRow
from router.ledger.store import Ledger
from router.outcomes.harvest import folder_of, opening_digest, share_of
from slm.dataset.rows import read_rows
from slm.dataset.splits import held_out
from tests.router.cascade.test_gateway import TOOL
from tests.router.cli.test_costs import large, small, write
from tests.router.outcomes.test_labels import outcome
from tests.router.outcomes.test_shadow_audits import _audit


def _content(question: str, arguments: Any, **changes: Any) -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": json.dumps(arguments)}
    message = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c", "type": "function", "function": function}],
    }
    request = {"model": "m", "messages": [{"role": "user", "content": question}], "tools": [TOOL]}
    return {"request": {**request, **changes}, "answer": {"choices": [{"message": message}]}}


def _large(name: str, **changes: Any) -> DecisionRow:
    told = {"content": _content(f"Weather in {name}?", {"city": name}), "request_sha256": name}
    return large(name, **{**told, **changes})


ANTHROPIC = {"content": [{"type": "tool_use", "id": "t", "name": "get_weather", "input": {"city": "Oslo"}}]}
OPENAI = {"output": [{"type": "function_call", "call_id": "t", "name": "get_weather", "arguments": '{"city": "Bonn"}'}]}
EARLIER = [
    {"role": "user", "content": "Weather in Kiel?"},
    {"role": "assistant", "content": "Which day?"},
    {"role": "user", "content": "Today."},
]


def _rows() -> list[DecisionRow]:
    oslo, bonn = _content("Weather in Oslo?", {}), _content("Weather in Bonn?", {})
    return [
        _large("Paris"),
        _large("paris-again", content=_content("Weather in Paris?", {"city": "Paris"}), request_sha256="Paris"),
        _large("oslo", content={**oslo, "answer": ANTHROPIC}),
        _large("bonn", content={**bonn, "answer": OPENAI}),
        _large("kiel", content=_content("", {"city": "Kiel"}, messages=EARLIER)),
        _large("broken", content=_content("Weather?", {"town": "X"})),
        _large("unknown-tool", content=_content("Weather?", {"city": "X"}, tools=[])),
        _large("prose", content={**oslo, "answer": {"choices": [{"message": {"content": "Hello"}}]}}),
        _large("refused-by-tool"),
        _large("corrected"),
        _large("streamed-away", content={**oslo, "answer": None}),
        _large("failed", status=502),
        _large("not-kept", content=None),
        replace(small("agreed"), content=_content("Weather in Rome?", {"city": "Rome"}), request_sha256="r"),
        replace(small("disagreed"), content=_content("Weather in Lima?", {"city": "Lima"}), request_sha256="l"),
        replace(small("not-audited"), content=_content("Weather in Bern?", {"city": "Bern"}), request_sha256="b"),
    ]


@pytest.fixture
def filled(ledger_url: str, tmp_path: Path) -> Path:
    """The configuration of a ledger that holds every kind of row."""

    async def fill() -> None:
        async with Ledger.open(ledger_url) as ledger:
            await write(ledger, _rows())
            await record_audit(ledger.engine, _audit("agreed", True))
            await record_audit(ledger.engine, _audit("disagreed", False))
            await record(
                ledger.engine,
                [
                    outcome(decision_id="refused-by-tool", label=0, strength="strong", fault="call"),
                    outcome(decision_id="corrected", label=0, strength="weak", fault="call"),
                    outcome(decision_id="Paris", label=1, strength="weak"),
                ],
            )

    asyncio.run(fill())
    file = tmp_path / "smallcall.yaml"
    file.write_text(json.dumps({"ledger": {"url": ledger_url}}))
    return file


def _harvested(config: Path, out: Path, *arguments: str) -> Any:
    return CliRunner().invoke(cli, ["harvest", "--config", str(config), "--out", str(out), *arguments])


def _lines(folder: Path) -> list[dict[str, Any]]:
    files = [file for name in ("train", "holdout") if (file := folder / f"{name}.jsonl").exists()]
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def test_what_can_be_taught_is_taken_and_the_trainer_reads_it(filled: Path, tmp_path: Path) -> None:
    """Escalated calls of every dialect that fit their schemas and met no objection, agreed answers as replay."""
    out = tmp_path / "harvest"
    done = _harvested(filled, out)
    assert done.exit_code == 0, done.output
    rows = {row["id"]: row for row in _lines(out / "default")}
    assert rows.keys() == {"Paris", "oslo", "bonn", "kiel", "agreed"} or rows.keys() == {
        "paris-again", "oslo", "bonn", "kiel", "agreed",
    }  # fmt: skip
    for name, city in (("oslo", "Oslo"), ("bonn", "Bonn")):
        (call,) = rows[name]["messages"][-1]["tool_calls"]
        assert json.loads(call["function"]["arguments"]) == {"city": city}
    told = json.loads((out / "default" / "harvest.json").read_text())
    assert (told["escalated"], told["replay"]) == (4, 1)
    assert told["refused"] == {
        "the same request again": 1,
        "a call that does not fit its schema": 1,
        "gold calls a tool that is not offered": 1,
        "makes no call": 1,
        "something speaks against it": 2,
        "the answer was not kept": 1,
    }
    examples = [one for file in (out / "default").glob("*.jsonl") for one in read_rows(file).examples]
    assert len(examples) == 5
    (kiel,) = (one for one in examples if one.id.startswith("kiel/"))
    assert (kiel.kind, kiel.calls) == ("calls", (("get_weather", {"city": "Kiel"}),))
    assert all(read_rows(file).refused == {} for file in (out / "default").glob("*.jsonl"))
    modes = {stat.S_IMODE(file.stat().st_mode) for file in (out / "default").iterdir()}
    assert modes == {0o600}
    assert not list(out.glob("*/*.part"))


def test_a_second_harvest_is_the_same_and_holds_out_the_same(filled: Path, tmp_path: Path) -> None:
    """Byte for byte; turns of one conversation are on one side."""
    texts = []
    for name in ("a", "b"):
        assert _harvested(filled, tmp_path / name).exit_code == 0
        texts.append([(tmp_path / name / "default" / f"{part}.jsonl") for part in ("train", "holdout")])
    for one, other in zip(*texts, strict=True):
        assert one.exists() == other.exists()
        assert not one.exists() or one.read_bytes() == other.read_bytes()
    assert opening_digest(EARLIER) == opening_digest(EARLIER[:1])
    shares = [share_of(opening_digest([{"role": "user", "content": str(i)}])) for i in range(2000)]
    assert sum(share < 0.1 for share in shares) == pytest.approx(200, abs=50)


def test_turns_of_one_conversation_are_on_one_side_of_the_trainers_split(ledger_url: str, tmp_path: Path) -> None:
    """Of thirty conversations of three harvested turns each, none is on both sides at any share."""

    def turn(name: str, count: int) -> DecisionRow:
        more = [{"role": role, "content": f"{role} {i}"} for i in range(count) for role in ("assistant", "user")]
        content = _content("", {"city": name}, messages=[{"role": "user", "content": f"Weather in {name}?"}, *more])
        return _large(f"{name}-{count}", content=content)

    async def fill() -> None:
        async with Ledger.open(ledger_url) as ledger:
            await write(ledger, [turn(f"city{i}", count) for i in range(30) for count in range(3)])

    asyncio.run(fill())
    config = tmp_path / "smallcall.yaml"
    config.write_text(json.dumps({"ledger": {"url": ledger_url}}))
    assert _harvested(config, tmp_path / "x").exit_code == 0
    files = list((tmp_path / "x" / "default").glob("*.jsonl"))
    conversations: dict[str, list[str]] = {}
    for one in (one for file in files for one in read_rows(file).examples):
        conversations.setdefault(str(one.messages[0]["content"]), []).append(one.conversation)
    assert [len(names) for names in conversations.values()] == [3] * 30
    for share in (0.02, 0.1, 0.3, 0.5, 0.9):
        assert all(len({held_out(name, share) for name in names}) == 1 for names in conversations.values())
    assert len({name for names in conversations.values() for name in names}) == 30


def test_only_executed_calls_may_be_asked_for(filled: Path, tmp_path: Path) -> None:
    """Those whose tool's result was seen."""
    done = _harvested(filled, tmp_path / "x", "--only-executed")
    assert done.exit_code == 0, done.output
    assert [row["id"] for row in _lines(tmp_path / "x" / "default")] == ["Paris"]


def test_tenants_have_folders_that_cannot_meet() -> None:
    """Hostile and like names too."""
    names = ["acme", "ACME", "acme/../x", "", "..", "default", "a" * 100, "é", "acme-"]
    folders = [folder_of(name) for name in names]
    assert len(set(folders)) == len(names)
    assert all(folder and "/" not in folder and folder.strip(".") for folder in folders)
    assert folders[0] == "acme"


def test_an_empty_ledger_says_what_is_needed(ledger_url: str, tmp_path: Path) -> None:
    """Exit code 1, and the setting by name."""
    file = tmp_path / "smallcall.yaml"
    file.write_text(json.dumps({"ledger": {"url": ledger_url}}))
    done = _harvested(file, tmp_path / "x")
    assert (done.exit_code, "ledger.store_content" in done.output) == (1, True)


def test_one_tenants_prompts_are_not_in_anothers_folder(ledger_url: str, tmp_path: Path) -> None:
    """By tenant, else by key; the same request of two tenants is each one's own."""

    async def fill() -> None:
        async with Ledger.open(ledger_url) as ledger:
            owners = [("blue", "k1"), ("blue", "k2"), ("red", "k3"), (None, "k4"), (None, None)]
            same = [
                _large(
                    f"same{i}", request_sha256="same", content=_content("Weather?", {"city": "X"}), tenant=t, key_id=k
                )
                for i, (t, k) in enumerate(owners)
            ]
            own = [_large(f"own{i}", tenant=t, key_id=k) for i, (t, k) in enumerate(owners)]
            await write(ledger, [*same, *own])

    asyncio.run(fill())
    file = tmp_path / "smallcall.yaml"
    file.write_text(json.dumps({"ledger": {"url": ledger_url}}))
    out = tmp_path / "x"
    assert _harvested(file, out).exit_code == 0
    ids = {folder.name: {row["id"] for row in _lines(folder)} for folder in out.iterdir()}
    assert ids.pop("blue") in ({"same0", "own0", "own1"}, {"same1", "own0", "own1"})
    assert ids == {"red": {"same2", "own2"}, "k4": {"same3", "own3"}, "default": {"same4", "own4"}}
