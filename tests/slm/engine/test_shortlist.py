"""A shortlist: what must stay stays, the order too, and what is closest to the request comes first."""

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slm.engine.engine import DraftEngine
from slm.engine.model import LoadError, load
from slm.engine.shortlist import (
    BM25,
    EMBEDDED_AT_ONCE,
    Embedding,
    ToolShortlist,
    query_of,
    shortlist_of,
    text_of,
    words,
)
from slm.protocol import Done, DraftFailed, PlanMade
from tests.slm.conftest import TIME, WEATHER, command, schema, tool

NOUNS = "invoice parcel flight recipe poem tax garden song hotel ticket lamp camera bicycle river museum ladder".split()
MANY = [tool(f"get_{noun}", schema([noun], **{noun: {"type": "string"}}), f"Look up a {noun}.") for noun in NOUNS]
ASKED = [{"role": "user", "content": "Which museums are open, please?"}]


def names(tools: Any) -> list[str]:
    """Names in order."""
    return [one["function"]["name"] for one in tools]


def called(name: str) -> list[dict[str, Any]]:
    """A conversation that has called a tool."""
    call = {"id": "1", "type": "function", "function": {"name": name, "arguments": "{}"}}
    return [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "done"},
        *ASKED,
    ]


@given(st.integers(1, 16), st.randoms(use_true_random=False))
def test_a_shortlist_is_part_of_the_list_in_its_order(keep: int, rng: random.Random) -> None:
    """At most `keep` and what must stay; a list that is short enough is left alone."""
    tools = rng.sample(MANY, rng.randint(1, len(MANY)))
    shown = ToolShortlist(BM25(), keep).of(called("get_tax"), tools, "get_song")
    assert shown == [one for one in tools if one in shown]
    if len(tools) <= keep:
        assert shown == tools
    assert len(shown) <= keep + 2
    assert {"get_tax", "get_song"} & set(names(tools)) <= set(names(shown))


@pytest.mark.parametrize("kind", ["bm25", "embedding"])
def test_the_tool_that_is_asked_for_is_kept(kind: Any, llama: DraftEngine) -> None:
    """Words decide in BM25; embeddings of a random model at least find the text itself."""
    shortlist = shortlist_of(kind, 1, llama._loaded)
    assert shortlist is not None
    asked = ASKED if kind == "bm25" else [{"role": "user", "content": text_of(MANY[14])}]
    assert names(shortlist.of(asked, MANY)) == ["get_museum"]


def test_embeddings_do_not_depend_on_their_neighbours(llama: DraftEngine) -> None:
    """Padding is not seen: a text among longer ones has the vector that it has alone."""
    embedding = Embedding(llama._loaded)
    alone, among = (
        embedding._embedded(["a lamp"])[0],
        embedding._embedded(["a lamp", "a much longer text of a lamp"])[0],
    )
    assert np.allclose(alone, among, atol=1e-5)


def test_a_huge_list_is_embedded_in_part(llama: DraftEngine) -> None:
    """So that a hostile request costs a bounded time; BM25 says which part."""
    texts = [f"tool number {index}" for index in range(EMBEDDED_AT_ONCE + 40)]
    scores = Embedding(llama._loaded).scores("number 80", texts)
    assert np.isfinite(scores).sum() == EMBEDDED_AT_ONCE
    assert np.isfinite(scores[80])


@pytest.mark.parametrize(
    "odd", [{}, {"function": 3}, {"function": {"name": "x", "description": 5, "parameters": "no"}}]
)
def test_odd_tools_and_messages_do_not_break_it(odd: Any) -> None:
    """What is wrong with a request is for others to say."""
    messages = [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "tool_calls": [4]}]
    assert len(ToolShortlist(BM25(), 1).of(messages, [odd, *MANY])) == 1
    assert query_of([]) == ""
    assert words("getHTTPPage_titles2") == ["get", "http", "page", "title", "2"]


@pytest.mark.parametrize("kind", ["bm25", "embedding"])
@pytest.mark.parametrize("base", ["llama_folder", "opt_folder"])
def test_the_engine_drafts_from_the_shortlist(kind: Any, base: str, request: pytest.FixtureRequest) -> None:
    """The prompt is shorter, only a shown tool can be called, and a tool that is demanded always can."""
    folder = request.getfixturevalue(base)
    short, whole = DraftEngine.load(folder, shortlist=(kind, 2)), DraftEngine.load(folder)
    tools = [*MANY, WEATHER, TIME]
    asked = command(tools=tools, tool_choice="required", parallel_tool_calls=False)
    shown = short._shown(asked)
    assert len(shown) == 2
    assert short.begin(asked).prompt_tokens < whole.begin(asked).prompt_tokens
    events = list(short.draft(asked))
    plan = next(event for event in events if isinstance(event, PlanMade))
    assert set(plan.names) <= set(names(shown))
    named = command(tools=tools, tool_choice="named", forced_tool="get_time")
    assert isinstance(list(short.draft(named))[-1], Done)
    twice = command(tools=[*MANY, MANY[0]])
    ((_, (failed,)),) = short.draft_many([twice])
    assert isinstance(failed, DraftFailed)
    assert "named twice" in failed.message


def test_a_shortlist_that_cannot_be_had_is_refused(llama_folder: Any) -> None:
    """Embeddings in int8, or one that keeps nothing."""
    with pytest.raises(LoadError, match="float32 or bfloat16"):
        DraftEngine.load(llama_folder, dtype="int8", shortlist=("embedding", 12))
    with pytest.raises(LoadError, match="at least one tool"):
        DraftEngine.load(llama_folder, shortlist=("bm25", 0))
    assert shortlist_of("none", 0, load(llama_folder)) is None
