"""Rival judges on the same drafts: artemis-ai, cascadeflow and RouteLLM from PyPI, beside ours, in one table.

Each rival runs in an environment of its own (`--folder`), reads drafts as JSON and says which it would serve. What is
escalated is answered by a recorded large model. Drafts are those of recorded small models (xLAM-1b and Llama-3-8B, no
token signals) and, with `--small`, of a trace with signals. Our classifier, fitted out of fold, stands at each rival's
own share escalated, so that the two differ in nothing but whom they escalate.

RouteLLM's requirements (torch, transformers, datasets) are lent to it by this environment; `shortuuid` is its server's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.environments import InstallError, python_with
from bench.judge_table import Drafts, JudgeTable, Rival, compare, drafts_of, render_markdown, write
from evaluation.cases.study_data import StudyData
from evaluation.recorded.models import GPT_4O, trace_of
from evaluation.recorded.trace import trace_of_recording
from evaluation.replay.classifier_scorer import ClassifierJudges
from evaluation.replay.scorers import crossfit
from evaluation.traces.table import Trace, read_trace
from router.cli.provenance import commit

SCRIPTS = Path(__file__).parent / "rivals"
RECORDED = ("Salesforce_xLAM-1b-fc-r", "meta-llama_Meta-Llama-3-8B-Instruct")
TIMEOUT_S = 900


@dataclass(frozen=True, slots=True)
class Package:
    """A rival on PyPI."""

    name: str
    requirement: str
    script: str
    lent: bool = False
    """True where its own requirements are lent by this environment."""
    variables: tuple[str, ...] = ()
    """Additions to the environment of its process."""


PACKAGES = (
    Package("artemis-ai", "artemis-ai==0.7.0", "decide_artemis.py"),
    Package("cascadeflow", "cascadeflow==1.2.0", "decide_cascadeflow.py"),
    # Its import asks for a key of OpenAI's, whatever the router.
    Package(
        "RouteLLM",
        "routellm==0.2.0 shortuuid==1.0.13",
        "decide_routellm.py",
        lent=True,
        variables=("OPENAI_API_KEY=unused", "HF_HUB_DOWNLOAD_TIMEOUT=5"),
    ),
)


def environment(package: Package, folder: Path) -> Path:
    """The rival's Python, installed if need be. Raises as `bench.environments.python_with`."""
    options = ["--no-deps"] if package.lent else []
    return python_with(folder / package.name, package.requirement.split(), options=options, lent=package.lent)


def decisions(package: Package, folder: Path, drafts: Drafts) -> Rival:
    """The rival's verdict on every draft, or the reasons why it cannot be asked."""
    rows = folder / f"{drafts.name}.jsonl"
    rows.write_text("\n".join(json.dumps(row) for row in drafts.rows()) + "\n", encoding="utf-8")
    try:
        python = environment(package, folder)
        command = ["env", *package.variables, str(python), str(SCRIPTS / package.script), str(rows)]
        run = subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)
        answer = json.loads(run.stdout.strip().splitlines()[-1])
    except InstallError as error:
        return Rival(package.requirement, {}, [f"not installed: {str(error)[-300:]}"])
    except subprocess.CalledProcessError as error:
        last = (str(error.stderr) or "").strip().splitlines()[-1:]
        return Rival(package.requirement, {}, [f"exit code {error.returncode}: {' '.join(last)[:300]}"])
    except subprocess.TimeoutExpired:
        return Rival(package.requirement, {}, [f"no answer within {TIMEOUT_S} s"])
    return Rival(f"{package.name} {answer['version']}", answer["accepted"], answer["problems"])


def small_arms(small: Sequence[Path], data: StudyData) -> list[tuple[str, Trace]]:
    """Traces given, then the recorded small models."""
    cases = data.bfcl()
    arms = [(path.stem, read_trace(path)) for path in small]
    for name in RECORDED:
        arms.append((name, trace_of_recording(cases, data.recording(name), arm=name, prices=None, command="recorded")))
    return arms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", type=Path, action="append", default=[], help="a trace with signals; repeat for more")
    parser.add_argument("--folder", type=Path, default=Path("var/rivals"), help="where the rivals' environments go")
    parser.add_argument("--out", type=Path, default=Path("evaluation/results"))
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    data = StudyData.of_checkout()
    cases = data.bfcl()
    large = trace_of(GPT_4O, cases, data, command="recorded")
    tables: list[JudgeTable] = []
    for name, trace in small_arms(given.small, data):
        drafts = drafts_of(name, cases, trace, large)
        ours = crossfit(ClassifierJudges().judges()[0], drafts.part)
        tables.append(compare(drafts, [decisions(package, given.folder, drafts) for package in PACKAGES], ours))
    command = "python -m bench.judges" + "".join(f" --small {path.name}" for path in given.small)
    facts = {"command": command, "commit": commit()}
    for path in write(tables, given.out, facts):
        print(f"wrote {path}")
    print(render_markdown(tables, facts))


if __name__ == "__main__":
    main()
