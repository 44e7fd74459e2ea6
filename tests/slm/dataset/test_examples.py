"""Rows to token sequences: what is taught, what is refused, and that nothing of a test is in the training rows."""

import gzip
import hashlib
import http.server
import json
import re
import threading
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm.dataset.authored import authored_rows
from slm.dataset.examples import (
    BadRow,
    asks_back,
    encode,
    end_token,
    example_of,
    split_by_conversation,
)
from slm.dataset.rows import read_rows
from slm.dataset.splits import held_out
from slm.engine.model import load
from slm.engine.tokenizer import Tokens
from slm.format.pattern import parse_draft, render_prompt
from tests.slm.conftest import TIME, WEATHER, tool


@pytest.fixture(params=["llama_folder", "opt_folder"])
def tokens(request: pytest.FixtureRequest) -> Tokens:
    """The tokens of each of the two tiny models, as the engine loads them."""
    return load(request.getfixturevalue(request.param)).tokens


CUSTOM = [{"role": "assistant", "tool_calls": [{"type": "custom", "custom": {"name": "t", "input": "x"}}]}]
USER = [{"role": "user", "content": "What is the weather in London?"}]


def row(**changes: Any) -> dict[str, Any]:
    """A row whose gold calls one tool, changed as asked."""
    fields: dict[str, Any] = {
        "id": "r1",
        "source": "made",
        "split": "train",
        "category": "simple",
        "messages": USER,
        "tools": [WEATHER, TIME],
        "gold": {"kind": "calls", "calls": [{"name": "get_weather", "arguments": {"city": ["London", "london"]}}]},
        "meta": {"conversation": "c1"},
    }
    return {**fields, **changes}


def gold(**arguments: list[Any]) -> dict[str, Any]:
    """A gold that calls `get_weather` with these acceptable values."""
    return {"kind": "calls", "calls": [{"name": "get_weather", "arguments": arguments}]}


def test_the_first_acceptable_value_that_fits_is_taught_in_schema_order() -> None:
    """Keys follow the schema, not the gold; values that the schema refuses are passed over."""
    example = example_of(row(gold=gold(unit=["kelvin", "f"], city=["London"])))
    assert list(example.calls[0][1].items()) == [("city", "London"), ("unit", "f")]


def test_an_optional_parameter_is_left_out() -> None:
    """A parameter that may be left out is left out, whatever else is acceptable."""
    assert example_of(row(gold=gold(city=["London"], unit=["c", ""]))).calls[0][1] == {"city": "London"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gold": gold(city=["London"], unit=["kelvin"])}, "no acceptable value fits the schema"),
        ({"gold": gold(unit=["c"])}, "gold lacks a required parameter"),
        ({"gold": gold(city=["London"], day=["today"])}, "gold gives an undeclared parameter"),
        ({"tools": [TIME]}, "gold calls a tool that is not offered"),
        ({"gold": {"kind": "calls", "calls": []}}, "gold without calls"),
        ({"gold": {"kind": "tool_names", "names": []}}, "gold cannot be taught"),
        ({"tools": None}, "malformed"),
        ({"tools": [WEATHER, TIME, TIME]}, "two tools of one name"),
        ({"tools": [WEATHER, tool("t", [1])]}, "malformed"),
        ({"tools": [WEATHER, tool("t", {"required": [[]]})]}, "malformed"),
        ({"tools": [WEATHER, {"type": "custom", "custom": {"name": "t"}}]}, "malformed"),
        ({"messages": [{"content": "Weather?"}]}, "malformed"),
        ({"messages": [*CUSTOM, *USER]}, "malformed"),
    ],
)
def test_a_row_that_cannot_be_taught_is_refused_with_its_reason(changes: dict[str, Any], reason: str) -> None:
    """Nothing is mended: the row is left out and counted under one fixed reason."""
    with pytest.raises(BadRow) as caught:
        example_of(row(**changes))
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("reply", "asks"),
    [
        ("Sure. Which dentist are you looking for?", True),
        ("Could you please tell me your account number?", True),
        ("Please confirm: a table for two at 7 pm?", False),
        ("Is there anything else that I can do? What else?", False),
        ("The weather is fine.", False),
        ("Would you like to book it?", False),
        ("", False),
    ],
)
def test_a_reply_asks_back_only_where_it_asks_for_a_value(reply: str, asks: bool) -> None:
    """Confirmations, offers and statements are no questions for a value."""
    assert asks_back(USER, reply) is asks
    kind = example_of(row(gold={"kind": "no_call"}, meta={"reply": reply})).kind
    assert kind == ("ask" if asks else "none")


def test_refused_rows_are_counted_and_the_others_read(tmp_path: Path) -> None:
    """A file with broken lines gives its good rows, the counts of the rest, and rows of its split only."""
    path = tmp_path / "rows.jsonl.gz"
    lines = ["{", "[]", json.dumps(row(split="test")), json.dumps(row(gold=gold(unit=["c"]))), json.dumps(row())]
    with gzip.open(path, "wb") as file:
        file.write(b'{"id": "\xff"}\n' + "\n".join(lines).encode() + b"\n")
    rows = read_rows(path)
    assert [example.id for example in rows.examples] == ["r1"]
    assert rows.refused == {"not JSON": 2, "not an object": 1, "gold lacks a required parameter": 1}


def test_a_broken_archive_is_an_error_with_its_name(tmp_path: Path) -> None:
    """Half of the rows would be another training run."""
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(json.dumps(row(id=str(i))) for i in range(99)).encode())[:-20])
    with pytest.raises(OSError, match=r"rows\.jsonl\.gz: broken gzip archive"):
        read_rows(path)


def test_a_row_is_tokenised_as_the_engine_tokenises_a_request(tokens: Tokens) -> None:
    """The prompt's tokens equal the engine's, and the taught ones are the draft and the end token."""
    encoded = encode(example_of(row()), tokens, 2048)
    assert list(encoded.ids[: encoded.prompt_tokens]) == tokens.prompt(
        render_prompt(USER, [WEATHER, TIME], tokens.frame)
    )
    taught = encoded.ids[encoded.prompt_tokens :]
    assert taught[-1] == end_token(tokens)
    assert taught[-1] in tokens.end_ids
    text = b"".join(tokens.piece(token) for token in taught[:-1]).decode()
    assert parse_draft(text).calls[0].arguments == '{"city": "London"}'


def test_a_row_that_is_too_long_is_refused(tokens: Tokens) -> None:
    """The bound holds for the prompt and the draft together."""
    length = len(encode(example_of(row()), tokens, 2048).ids)
    with pytest.raises(BadRow) as caught:
        encode(example_of(row()), tokens, length - 1)
    assert caught.value.reason == "too long"


@given(st.lists(st.sampled_from("abcdefgh"), max_size=40), st.floats(0, 1))
def test_no_conversation_is_on_both_sides_of_a_split(conversations: list[str], share: float) -> None:
    """The side follows from the conversation alone."""
    examples = [example_of(row(id=str(i), meta={"conversation": c})) for i, c in enumerate(conversations)]
    taught, kept = split_by_conversation(examples, share)
    assert len(taught) + len(kept) == len(examples)
    assert not {e.conversation for e in taught} & {e.conversation for e in kept}
    assert all(held_out(e.conversation, share) for e in kept)


# ── the shipped rows ─────────────────────────────────────────────────────────────────────────────────────────────────

DATA = Path(__file__).parents[3] / "slm" / "data"
EVALUATION = Path(__file__).parents[3] / "evaluation" / "data"


def rows_of(path: Path) -> list[dict[str, Any]]:
    """All rows of a gzipped file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [msgspec.json.decode(line) for line in file]


def questions(rows: list[dict[str, Any]]) -> set[str]:
    """What the users of these rows say last, in 20 characters or more, without case and white space."""
    said = ([m["content"] or "" for m in r["messages"] if m["role"] == "user"] for r in rows)
    return {text for texts in said if texts and len(text := "".join(texts[-1].lower().split())) >= 20}


def told_words(rows: list[dict[str, Any]]) -> list[list[tuple[str, ...]]]:
    """For each row, the words of each message of its user, without case and punctuation."""
    said = ([m["content"] or "" for m in r["messages"] if m["role"] == "user"] for r in rows)
    return [[tuple(re.findall(r"[\w']+", text.lower())) for text in texts] for texts in said]


def with_a_question_of(tests: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows in which a message of the user holds, whole, the last one of a test, if that has five words or more."""
    asked = {texts[-1] for texts in told_words(tests) if texts and len(texts[-1]) >= 5}
    beginning: dict[tuple[str, ...], set[tuple[str, ...]]] = defaultdict(set)
    for question in asked:
        beginning[question[:5]].add(question)

    def holds_one(words: tuple[str, ...]) -> bool:
        return any(
            words[start : start + len(question)] == question
            for start in range(len(words) - 4)
            for question in beginning.get(words[start : start + 5], ())
        )

    return [r for r, texts in zip(rows, told_words(rows), strict=True) if any(map(holds_one, texts))]


HOLDING_A_QUESTION = {
    "hwu64-par-train-140",  # "… please turn on the wemo plug socket"
    "hwu64-par-train-377",  # "turn on the wemo plug socket to plug in my dongle and then …"
    "hwu64-par-train-515",  # "please turn down the lights in the house its too bright in here"
    "hwu64-par-train-162",  # "… please turn off the wemo plug socket"
    "hwu64-par-train-304",  # "turn off the wemo plug socket also …"
    "snips-par-train-144",  # "… I'm looking for a movie schedule at the Cooper foundation"
    "snips-par-train-292",  # "I'm looking for a movie schedule at the Cooper Foundation …"
}
"""Constructed rows, each joined of training rows, of which one has more words around those of a test question. They
stay: the shipped adapter was trained on them, and its card holds the file's hash."""


def shapes(rows: list[dict[str, Any]]) -> set[tuple[str, frozenset[str]]]:
    """Names of the tools with the names of their parameters; tools without parameters are too plain to compare."""
    functions = (tool["function"] for r in rows for tool in r["tools"])
    made = ((f["name"].lower(), frozenset((f.get("parameters") or {}).get("properties") or ())) for f in functions)
    return {shape for shape in made if shape[1]}


def test_nothing_of_the_tests_is_in_the_training_rows() -> None:
    """No conversation, held-out tool, BFCL question or BFCL tool is in a row that a recipe may train on, and no more
    test questions stand in longer texts than are known."""
    rows = rows_of(DATA / "train.jsonl.gz")
    train, test = ([r for r in rows if r["split"] == split] for split in ("train", "test"))
    assert len(train) == 25_990
    conversations = [{(r["source"], r["meta"]["conversation"]) for r in part} for part in (train, test)]
    assert not conversations[0] & conversations[1]
    held = json.loads((DATA / "train_heldout_tools.json").read_text(encoding="utf-8"))["tools"]
    offered = {(r["source"], tool["function"]["name"]) for r in train for tool in r["tools"]}
    assert not offered & {(source, name) for source, names in held.items() for name in names}
    bfcl = rows_of(EVALUATION / "bfcl.jsonl.gz")
    assert not questions(train) & questions(bfcl)
    assert not shapes(train) & shapes(bfcl)
    holding = with_a_question_of([*test, *bfcl, *rows_of(EVALUATION / "toolbench_eval.jsonl.gz")], train)
    assert {r["id"] for r in holding if r["meta"].get("constructed")} == HOLDING_A_QUESTION
    # What people say again and again ("I want to watch a movie online"), from the sources as they are.
    assert Counter(r["source"] for r in holding if not r["meta"].get("constructed")) == {
        "sgd": 876, "taskmaster4": 121, "star": 65, "api-bank": 47, "hwu64": 21, "glaive-v2": 13, "seal-tools": 6,
        "snips": 1,
    }  # fmt: skip


def test_nothing_of_the_tests_is_in_the_hand_written_rows() -> None:
    """No question and no tool of BFCL, ToolBench or the test rows, and no test question whole in a longer text."""
    written = list(authored_rows(DATA / "authored"))
    tests = [
        *rows_of(EVALUATION / "bfcl.jsonl.gz"),
        *rows_of(EVALUATION / "toolbench_eval.jsonl.gz"),
        *(row for row in rows_of(DATA / "train.jsonl.gz") if row["split"] == "test"),
    ]
    assert not questions(written) & questions(tests)
    assert not shapes(written) & shapes(tests)
    assert not with_a_question_of(tests, written)


def test_the_shipped_files_are_the_ones_that_are_named() -> None:
    """The hashes in `SHA256SUMS` are those of the files."""
    named = [line.split() for line in (DATA / "SHA256SUMS").read_text(encoding="utf-8").splitlines()]
    assert {name for _, name in named} == {"train.jsonl.gz", "train_heldout_tools.json"}
    assert all(hashlib.sha256((DATA / name).read_bytes()).hexdigest() == digest for digest, name in named)


def test_every_shipped_training_row_can_be_taught() -> None:
    """The reader refuses none of the shipped rows."""
    rows = read_rows(DATA / "train.jsonl.gz")
    assert rows.refused == {}
    assert {example.kind for example in rows.examples} == {"calls", "none", "ask"}


def test_no_reference_of_a_schema_is_fetched() -> None:
    """A row whose tool points to a server is refused, and the server is not asked."""
    asked: list[str] = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"type": "string"}')

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        remote = {"$ref": f"http://127.0.0.1:{server.server_port}/city.json"}
        parameters = {"type": "object", "properties": {"city": remote}, "required": ["city"]}
        function = {"name": "get_weather", "description": "Weather", "parameters": parameters}
        with pytest.raises(BadRow, match="a schema that is not valid"):
            example_of(row(tools=[{"type": "function", "function": function}]))
        server.shutdown()
    assert not asked
