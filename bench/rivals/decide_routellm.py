"""Prints RouteLLM's decisions about requests. Runs in an environment of its own: rows of JSON in, one JSON out.

It chooses a model from the last message alone. Each of its routers is built as its controller builds it and asked for
a win rate; what a router wants and cannot have (weights of a hub, OpenAI's embeddings) is reported as a problem.
"""

from __future__ import annotations

import json
import random
import sys
from importlib.metadata import version

SHARE_LARGE = 0.5


def main() -> None:
    with open(sys.argv.pop(1), encoding="utf-8") as file:  # its server reads what is left of the arguments on import
        rows = [json.loads(line) for line in file]
    random.seed(0)  # its random router takes the process's generator
    accepted: dict[str, list[bool]] = {}
    problems = []
    try:
        from routellm.controller import Controller
    except Exception as error:  # noqa: BLE001  # whatever stops it is reported
        print(json.dumps({"version": version("routellm"), "accepted": {}, "problems": [_problem("import", error)]}))
        return
    prompts = [str(row["messages"][-1].get("content") or "") for row in rows]
    for name in ("random", "mf", "bert", "causal_llm", "sw_ranking"):
        try:
            router = Controller([name], strong_model="large", weak_model="small").routers[name]
            rates = [float(router.calculate_strong_win_rate(prompt)) for prompt in prompts]
        except Exception as error:  # noqa: BLE001  # whatever stops it is reported
            problems.append(_problem(name, error))
            continue
        cut = sorted(rates)[int(len(rates) * (1 - SHARE_LARGE))]
        accepted[f"RouteLLM {name}, half escalated"] = [rate < cut for rate in rates]
    try:
        from routellm.openai_server import ChatCompletionRequest

        ChatCompletionRequest(model="router-mf-0.5", messages=rows[0]["messages"], tools=rows[0]["tools"])
    except Exception as error:  # noqa: BLE001  # whatever stops it is reported
        problems.append(_problem("its server's request model with `tools`", error))
    print(json.dumps({"version": version("routellm"), "accepted": accepted, "problems": problems}))


def _problem(name: str, error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{name}: {type(error).__name__}: {' '.join(lines)[:300]}"


main()
