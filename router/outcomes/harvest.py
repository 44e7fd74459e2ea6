"""Training rows from the ledger: what the large model answered where the small one was not trusted.

A row is taken where it can be taught: the answer makes calls of offered tools that fit their schemas (by the trainer's
own reader, `slm.dataset.conversations`), and nothing speaks against it (feedback, a tool's refusal, a correction).
Answers of the small model that an audit agreed with are taken as replay: escalations alone are the hard cases. Of a
conversation only the harvested answer is taught; earlier ones are context.

Each tenant gets a folder of its own, and nothing of one goes into another's: a decision without a tenant belongs to its
key, one without a key to `default`. A tenth of the conversations, chosen by their digest before anything is looked at,
is held out and stays so from harvest to harvest. Each row names its conversation by that digest, so that the trainer
keeps its turns together too. Files hold prompts: only their owner may read them. They appear whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from sqlalchemy import or_, select
from sqlalchemy.ext.asyncio import AsyncEngine

from router.ledger.outcomes import Known, OutcomeLabel, known, of_decisions
from router.ledger.tables import audits, decisions
from router.selection.conversation import opening
from router.upstream.answer_reader import AnswerSummary
from slm.dataset.conversations import examples_of
from slm.dataset.examples import BadRow

_PAGE = 200
HOLDOUT_SHARE = 0.1
NOBODY = ""
"""Whose decisions without a key are."""


@dataclass(slots=True)
class Tally:
    """Counts of what became of one tenant's rows."""

    folder: str
    escalated: int = 0
    replay: int = 0
    executed: int = 0
    """Harvested rows with a result of their tool that was no error."""
    held_out: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    """Why others were not taken."""


class Harvest:
    """Writes into `folder`, which is made; one tenant's files are open at a time for each tenant seen."""

    def __init__(self, folder: Path, *, only_executed: bool) -> None:
        self._folder, self._only_executed = folder, only_executed
        self._files = contextlib.ExitStack()
        self._open: dict[tuple[str, str], IO[str]] = {}
        self._seen: dict[str, set[str]] = {}
        self.tallies: dict[str, Tally] = {}

    async def run(self, engine: AsyncEngine, since: datetime, until: datetime) -> dict[str, Tally]:
        """Harvest decisions of `since` ≤ time < `until`; what became of them, by tenant.

        Raises:
            OSError: a file cannot be written. SQLAlchemyError: the ledger cannot be read.
        """
        written: list[Path] = []
        with self._files:
            after = ""
            while page := await _page(engine, since, until, after):
                after = page[-1]["decision_id"]
                outcomes = await _known(engine, page)
                for row in page:
                    self._take(row, outcomes.get(row["decision_id"]))
            written = [Path(file.name) for file in self._open.values()]
        for part in written:
            part.replace(part.with_suffix(""))
        for tenant, tally in self.tallies.items():
            summary = {"tenant": tenant, **asdict(tally), "since": since.isoformat(), "until": until.isoformat()}
            _private(self._folder / tally.folder / "harvest.json").write_text(json.dumps(summary, indent=1) + "\n")
        return self.tallies

    def _take(self, row: Mapping[str, Any], outcome: Known | None) -> None:
        tenant = row["tenant"] or row["key_id"] or NOBODY
        tally = self.tallies.setdefault(tenant, Tally(folder_of(tenant)))
        replay = row["side"] == "small"
        try:
            made = self._row(row, tenant, outcome)
        except BadRow as bad:
            tally.refused[bad.reason] = tally.refused.get(bad.reason, 0) + 1
            return
        executed = outcome is not None and outcome.tool_error is False
        if self._only_executed and not executed:
            tally.refused["no result was seen"] = tally.refused.get("no result was seen", 0) + 1
            return
        held_out = share_of(made["conversation"]) < HOLDOUT_SHARE
        tally.held_out += held_out
        tally.executed += executed
        if replay:
            tally.replay += 1
        else:
            tally.escalated += 1
        self._file(tally.folder, "holdout" if held_out else "train").write(json.dumps(made, ensure_ascii=False) + "\n")

    def _row(self, row: Mapping[str, Any], tenant: str, outcome: Known | None) -> dict[str, Any]:
        """A conversation whose last message is to be taught. Raises BadRow."""
        if outcome is not None and (outcome.wrong or outcome.passed is False):
            raise BadRow("something speaks against it")
        content = row["content"]
        request, answer = content.get("request"), content.get("answer")
        if not isinstance(request, dict) or not isinstance(answer, dict):
            raise BadRow("the answer was not kept")
        seen = AnswerSummary(keep=True)
        seen.whole(answer)
        message = seen.message()
        if message is None:
            raise BadRow("makes no call")
        digest = row["request_sha256"]
        if digest in self._seen.setdefault(tenant, set()):
            raise BadRow("the same request again")
        messages = [{**turn, "weight": 0} if turn.get("role") == "assistant" else turn for turn in request["messages"]]
        made = {
            "id": row["decision_id"],
            "conversation": opening_digest(messages),
            "messages": [*messages, message],
            "tools": request.get("tools") or [],
        }
        (example,) = list(examples_of(made, "harvest")) or (BadRow("nothing to teach"),)
        if isinstance(example, BadRow):
            raise example
        self._seen[tenant].add(digest)
        return made

    def _file(self, folder: str, part: str) -> IO[str]:
        if (folder, part) not in self._open:
            path = _private(self._folder / folder / f"{part}.jsonl.part")
            self._open[folder, part] = self._files.enter_context(path.open("w", encoding="utf-8"))
        return self._open[folder, part]


def _private(path: Path) -> Path:
    """An empty file that only its owner may read."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.unlink(missing_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    return path


def folder_of(tenant: str) -> str:
    """A folder's name for a tenant: readable where it can be, and another one for every other tenant."""
    plain = re.sub(r"[^a-z0-9_-]+", "-", tenant.lower())[:40].strip("-")
    if tenant == NOBODY:
        return "default"
    if plain == tenant != "default":
        return plain
    return f"{plain or 'tenant'}-{hashlib.sha256(tenant.encode()).hexdigest()[:12]}"


def opening_digest(messages: Sequence[Mapping[str, Any]]) -> str:
    """Digest of what was said in a conversation's opening, in hexadecimal digits."""
    turns = [{key: turn.get(key) for key in ("role", "content")} for turn in opening(messages)]
    return hashlib.sha256(json.dumps(turns, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()


def share_of(conversation: str) -> float:
    """Where a conversation lies in [0, 1), by its digest."""
    return int(conversation[:16], 16) / 2**64


async def _page(engine: AsyncEngine, since: datetime, until: datetime, after: str) -> list[dict[str, Any]]:
    d = decisions.c
    query = (
        select(d.decision_id, d.side, d.request_sha256, d.content, d.tenant, d.key_id)
        .select_from(decisions.outerjoin(audits, audits.c.decision_id == d.decision_id))
        .where(
            d.created_at >= since,
            d.created_at < until,
            d.decision_id > after,
            d.content.is_not(None),
            d.status == 200,
            or_(d.side == "large", audits.c.agreed.is_(True)),
        )
        .order_by(d.decision_id)
        .limit(_PAGE)
    )
    async with engine.connect() as connection:
        found = (await connection.execute(query)).mappings()
        return [{str(name): value for name, value in row.items()} for row in found]


async def _known(engine: AsyncEngine, page: Sequence[Mapping[str, Any]]) -> dict[str, Known]:
    found: dict[str, list[OutcomeLabel]] = {}
    for one in await of_decisions(engine, page[0]["decision_id"], page[-1]["decision_id"]):
        found.setdefault(one.decision_id, []).append(one)
    return {decision_id: known(outcomes) for decision_id, outcomes in found.items()}
