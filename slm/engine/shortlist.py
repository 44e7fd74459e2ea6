"""Selects the tools of a large catalogue that the small model is shown: those whose texts are closest to the request.

A model of this size reads a few tools well and two hundred badly, and every tool costs prompt tokens. Two ways to rank:
BM25 over the words of names and descriptions (Robertson and Zaragoza 2009; bm25s), or the cosine between mean-pooled
last hidden states of the small model itself, each less the mean over the catalogue, since such states share a large
common part. The second ranks what the first leaves of a very large catalogue, so a hostile list costs a bounded time.

Tools that the conversation has called, and one that the request names, always stay; the order of the list does, too. A
tool that is left out cannot be drafted: the judge sees all tools, but only the large model can then call it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from slm.engine.model import LoadedModel

if TYPE_CHECKING:
    from bm25s import BM25 as Index

Kind = Literal["none", "bm25", "embedding"]
KINDS: tuple[Kind, ...] = ("none", "bm25", "embedding")

QUERY_CHARS = 2000
TOOL_CHARS = 1000
EMBEDDED_TOKENS = 96
"""Tokens of a text that are embedded; longer texts are cut."""
EMBEDDED_AT_ONCE = 48
"""Tools of one request that embeddings rank; BM25 picks them where there are more. Drafts under way wait for them."""
VECTORS_KEPT = 8192
_INDEXES_KEPT = 32
_BATCH = 16

Tool = Mapping[str, Any]
Message = Mapping[str, Any]


class Ranking(Protocol):
    """Scores how well tools fit a request."""

    def scores(self, query: str, tools: Sequence[str]) -> NDArray[np.float64]:
        """One score for each tool's text, higher is closer; shape (tools,)."""


@dataclass(frozen=True, slots=True)
class ToolShortlist:
    """Cuts lists of more than `keep` tools down to the `keep` closest ones, and those that must stay."""

    ranking: Ranking
    keep: int

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ValueError(f"a shortlist keeps at least one tool, not {self.keep}")

    def of(self, messages: Sequence[Message], tools: Sequence[Tool], named: str | None = None) -> list[Tool]:
        """The tools that are shown, in their order. `named` is the one that the request demands."""
        if len(tools) <= self.keep:
            return list(tools)
        scores = self.ranking.scores(query_of(messages), [text_of(tool) for tool in tools])
        must = called_in(messages) | ({named} if named is not None else set())
        best = np.argsort(-scores, kind="stable")[: self.keep]
        kept = set(best.tolist()) | {place for place, tool in enumerate(tools) if _name(tool) in must}
        return [tool for place, tool in enumerate(tools) if place in kept]


class BM25:
    """Ranks tools by their words (BM25). Keeps the indexes of the last few lists of tools. Not safe to share between
    threads."""

    def __init__(self) -> None:
        self._indexes: OrderedDict[bytes, Index] = OrderedDict()

    def scores(self, query: str, tools: Sequence[str]) -> NDArray[np.float64]:
        """Return one BM25 score per tool; implements `Ranking`."""
        return np.asarray(self._index(tools).get_scores(words(query) or [""]), dtype=np.float64)

    def _index(self, tools: Sequence[str]) -> Index:
        from bm25s import BM25 as Index  # brings scipy, which a worker that shows all tools does not need

        key = hashlib.sha256("\0".join(tools).encode("utf-8", "surrogatepass")).digest()
        if key not in self._indexes:
            index = Index()
            index.index([words(text) or [""] for text in tools], show_progress=False)
            self._indexes[key] = index
            while len(self._indexes) > _INDEXES_KEPT:
                self._indexes.popitem(last=False)
        self._indexes.move_to_end(key)
        return self._indexes[key]


class Embedding:
    """Ranks tools by the small model's hidden states. Caches the vectors of tools. Not safe to share between
    threads."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._first = BM25()
        self._vectors: OrderedDict[str, NDArray[np.float32]] = OrderedDict()

    def scores(self, query: str, tools: Sequence[str]) -> NDArray[np.float64]:
        """Return one cosine per tool, minus infinity for tools that BM25 left out; implements `Ranking`."""
        scores = np.full(len(tools), -np.inf)
        places = list(range(len(tools)))
        if len(tools) > EMBEDDED_AT_ONCE:
            best = np.argsort(-self._first.scores(query, tools), kind="stable")[:EMBEDDED_AT_ONCE]
            places = sorted(best.tolist())
        vectors = self._of([tools[place] for place in places])
        mean = vectors.mean(axis=0)
        asked = self._embedded([query])[0]
        scores[places] = _cosines(vectors - mean, asked - mean)
        return scores

    def _of(self, texts: Sequence[str]) -> NDArray[np.float32]:
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        for start in range(0, len(new), _BATCH):
            batch = new[start : start + _BATCH]
            self._vectors.update(zip(batch, self._embedded(batch), strict=True))
        for text in texts:
            self._vectors.move_to_end(text)
        vectors = np.stack([self._vectors[text] for text in texts])
        while len(self._vectors) > VECTORS_KEPT:
            self._vectors.popitem(last=False)
        return vectors

    def _embedded(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Mean last hidden states, shape (texts, hidden). Padding stands behind the text, where no token sees it."""
        ids = [self._loaded.tokens.encode(text)[:EMBEDDED_TOKENS] or [0] for text in texts]
        width = max(map(len, ids))
        device = self._loaded.model.device
        padded = torch.tensor([row + [row[-1]] * (width - len(row)) for row in ids], device=device)
        real = torch.tensor([[1.0] * len(row) + [0.0] * (width - len(row)) for row in ids], device=device)[..., None]
        with torch.inference_mode():
            states = self._loaded.model.get_decoder()(input_ids=padded, use_cache=False).last_hidden_state.float()
            made: NDArray[np.float32] = ((states * real).sum(1) / real.sum(1)).cpu().numpy()
        return made


def shortlist_of(kind: Kind, keep: int, loaded: LoadedModel) -> ToolShortlist | None:
    """The shortlist of a configuration; None for `none`.

    Raises:
        ValueError: `keep` is less than 1, or embeddings are asked of a model in int8, which has given its own weights
            up.
    """
    if kind == "none":
        return None
    if kind == "embedding" and loaded.info.dtype == "int8":
        raise ValueError("a shortlist by embedding needs float32 or bfloat16")
    return ToolShortlist(BM25() if kind == "bm25" else Embedding(loaded), keep)


def query_of(messages: Sequence[Message]) -> str:
    """Return the text of the user's last message and of the messages after it, at most QUERY_CHARS characters."""
    last = max((place for place, message in enumerate(messages) if message.get("role") == "user"), default=0)
    texts = [_content(message) for message in messages[last:]]
    return "\n".join(text for text in texts if text)[:QUERY_CHARS]


def text_of(tool: Tool) -> str:
    """Name, description and parameters of a tool as one text, at most TOOL_CHARS."""
    function = tool.get("function")
    if not isinstance(function, Mapping):
        return ""
    parameters = function.get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    parts = [" ".join(words(str(function.get("name", "")))), str(function.get("description") or "")]
    if isinstance(properties, Mapping):
        for name, inner in properties.items():
            about = inner.get("description") if isinstance(inner, Mapping) else None
            parts.append(f"{name} {about or ''}".strip())
    return ". ".join(part for part in parts if part)[:TOOL_CHARS]


def words(text: str) -> list[str]:
    """Lower-case words, `camelCase` and `snake_case` split, a plural's s cut."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+|[^\W\d_A-Za-z]+", text)
    return [word[:-1] if len(word) > 3 and word.endswith("s") else word for word in map(str.lower, parts)]


def called_in(messages: Sequence[Message]) -> set[str]:
    """Names of the tools that the conversation has called."""
    names = set()
    for message in messages:
        calls = message.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            function = call.get("function") if isinstance(call, Mapping) else None
            if isinstance(function, Mapping):
                names.add(str(function.get("name")))
    return names


def _name(tool: Tool) -> str:
    function = tool.get("function")
    return str(function.get("name")) if isinstance(function, Mapping) else ""


def _content(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    return json.dumps(content, ensure_ascii=False) if content else ""


def _cosines(rows: NDArray[np.float32], one: NDArray[np.float32]) -> NDArray[np.float64]:
    sizes = np.linalg.norm(rows, axis=1) * np.linalg.norm(one)
    return np.asarray((rows @ one) / np.where(sizes > 0, sizes, 1.0), dtype=np.float64)
