"""Prints artemis-ai's decisions about drafts. Runs in an environment of its own: rows of JSON in, one JSON out.

Its router accepts a call that `verify_tool_call` passes; its stronger oracles, which a user can wire in, check the full
schema and whether every text argument occurs in the request. It judges one call at a time: a draft of several is
taken where each passes, which is more than its router does. A draft without a call is no tool call to it: escalated.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version

from artemis.provenance import provenance_oracle, request_text
from artemis.structural import structural_oracle
from artemis.verifier import verify_tool_call


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    accepted: dict[str, list[bool]] = {"artemis-ai router": [], "artemis-ai structural + provenance": []}
    for row in rows:
        tools = [tool["function"] for tool in row["tools"]]
        structural = structural_oracle(tools)
        provenance = provenance_oracle(request_text(messages=row["messages"]), tools)
        calls = row["calls"]
        plain = bool(calls) and all(verify_tool_call(call, tools).ok for call in calls)
        deep = plain and all(structural(call).ok and provenance(call).ok for call in calls)
        accepted["artemis-ai router"].append(plain)
        accepted["artemis-ai structural + provenance"].append(deep)
    print(json.dumps({"version": version("artemis-ai"), "accepted": accepted, "problems": []}))


main()
