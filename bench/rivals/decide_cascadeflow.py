"""Prints cascadeflow's decisions about drafts. Runs in an environment of its own: rows of JSON in, one JSON out.

As its cascade does: the request's complexity is analysed, hard ones go to the large model directly, and a draft of
calls is taken where its validator's score reaches the threshold of that complexity. A draft without a call is refused.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version

from cascadeflow.quality.tool_validator import ToolQualityValidator
from cascadeflow.routing.tool_complexity import ToolComplexityAnalyzer

DIRECT = ("hard", "expert")


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    analyzer, validator = ToolComplexityAnalyzer(), ToolQualityValidator()
    accepted = []
    for row in rows:
        said = [m["content"] for m in row["messages"] if m["role"] == "user" and isinstance(m.get("content"), str)]
        level = analyzer.analyze_tool_call(said[-1] if said else "", row["tools"]).complexity_level
        if not row["calls"] or level.value in DIRECT:
            accepted.append(False)
            continue
        accepted.append(bool(validator.validate_tool_calls(row["calls"], row["tools"], level).is_valid))
    decided = {"cascadeflow tool validator": accepted}
    print(json.dumps({"version": version("cascadeflow"), "accepted": decided, "problems": []}))


main()
