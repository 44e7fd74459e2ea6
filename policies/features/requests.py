"""Signals of the request and of what is known of its tools."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from policies.features.calls import planned_names
from policies.features.grounding import message_text
from policies.features.probe import Probe
from policies.texts import tool_sha256, tool_words, words
from policies.types import Draft, Request

MAX_COMPARED_TOOLS = 256
"""Tools whose texts are compared with the request; planned ones beyond are compared too."""
MAX_HASHED_TOOLS = 64
"""Offered tools that are searched among known ones; planned ones beyond are searched too."""
MAX_REQUEST_CHARS = 4_000
_ERROR = re.compile(
    r"\b(?:errors?|exception|traceback|failed|failure|invalid|not found|denied|forbidden|unauthori[sz]ed|bad request"
    r"|timed? ?out|unavailable)\b"
)


@dataclass(frozen=True, slots=True)
class ToolRecord:
    """The record of one tool's drafts in the training rows."""

    rate: float
    """Pass rate, smoothed towards that of all rows; in [0, 1]."""
    rows: int


@dataclass(frozen=True, slots=True)
class Context:
    """The judge's knowledge beyond the request; belongs to a fitted classifier (`Classifier.context`)."""

    known_tools: frozenset[str] = frozenset()
    """`policies.texts.tool_sha256` of the tools that training rows offered."""
    tool_records: Mapping[str, ToolRecord] = field(default_factory=dict)
    """By the same hash, of the tools that drafts of training rows planned."""
    probe: Probe | None = None


NOTHING_KNOWN = Context()


def request_features(request: Request, draft: Draft) -> dict[str, float]:
    """Signals of family `request`."""
    messages = request.messages
    said = next((message_text(m) for m in reversed(messages) if m.get("role") == "user"), "")
    last = messages[-1] if messages else {}
    is_tool = last.get("role") in ("tool", "function")
    made = {
        "tools": float(len(request.tools)),
        "turn": float(sum(message.get("role") == "user" for message in messages)),
        "messages": float(len(messages)),
        "request_chars": math.log1p(len(said)),
        "last_is_tool": float(is_tool),
        "call_required": float(request.tool_choice in ("required", "named")),
    }
    if is_tool:
        made["last_is_error"] = float(_ERROR.search(message_text(last)[:500].casefold()) is not None)
    return made | _similarity(request, planned_names(draft), said[:MAX_REQUEST_CHARS])


def _similarity(request: Request, planned: Sequence[str], said: str) -> dict[str, float]:
    compared = {tool.name: tool for tool in request.tools[:MAX_COMPARED_TOOLS]}
    compared |= {tool.name: tool for tool in request.tools[MAX_COMPARED_TOOLS:] if tool.name in planned}
    if not compared:
        return {}
    scores = _cosines({name: tool_words(tool) for name, tool in compared.items()}, words(said))
    ranked = sorted(scores.values(), reverse=True)
    made = {"similarity_best": ranked[0]}
    if len(ranked) > 1:
        made["similarity_lead"] = ranked[0] - ranked[1]
    chosen = [scores[name] for name in set(planned) if name in scores]
    if chosen:
        made["name_similarity"] = min(chosen)
        others = [score for name, score in scores.items() if name not in planned]
        if others:
            made["name_lead"] = min(chosen) - max(others)
    return made


def _cosines(texts: Mapping[str, frozenset[str]], said: frozenset[str]) -> dict[str, float]:
    """Cosine of each text's words to `said`, words weighted by ln((1 + N)/(1 + texts that hold it)) + 1."""
    holders = Counter(word for text in texts.values() for word in text)
    rarest = math.log(1 + len(texts)) + 1

    def squares(chosen: frozenset[str]) -> float:
        return sum(
            (math.log((1 + len(texts)) / (1 + holders[word])) + 1 if word in holders else rarest) ** 2
            for word in chosen
        )

    length = squares(said)
    if not length:
        return dict.fromkeys(texts, 0.0)
    return {
        name: squares(text & said) / math.sqrt(length * squares(text)) if text & said else 0.0
        for name, text in texts.items()
    }


def tool_hashes(request: Request, draft: Draft) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Hashes of offered tools, as far as they are searched, and of planned ones; tools that are no JSON have none."""
    planned = set(planned_names(draft))
    of = {
        tool.name: tool_sha256(tool)
        for place, tool in enumerate(request.tools)
        if place < MAX_HASHED_TOOLS or tool.name in planned
    }
    return (
        tuple(made for made in of.values() if made is not None),
        tuple(made for name, made in of.items() if name in planned and made is not None),
    )


def record_features(offered: Sequence[str], planned: Sequence[str], context: Context) -> dict[str, float]:
    """Signals of family `record`, of the hashes of `tool_hashes`."""
    made: dict[str, float] = {}
    if not context.known_tools:
        return made
    if offered:
        made["known_share"] = sum(tool in context.known_tools for tool in offered) / len(offered)
    if planned:
        made["tool_known"] = sum(tool in context.known_tools for tool in planned) / len(planned)
        records = [context.tool_records.get(tool) for tool in planned]
        made["tool_rows"] = math.log1p(min(0 if record is None else record.rows for record in records))
        rates = [record.rate for record in records if record is not None]
        if rates:
            made["tool_rate"] = min(rates)
    return made
