"""The sets of cases that scores are given for, and samples of them that are the same on every machine.

`bfcl` by category, `toolbench` by its six groups, `in_domain` (other conversations, known tools) and `heldout_tools`
(tools that no training row offers as the right one) by source. `new_agents` holds the tests of two sources that the
shipped recipe does not train on (`NEW_AGENTS`): agents whose tools the small model has never seen. `validation` holds
conversations of the training sources that no recipe trains on (`slm.dataset.splits`): it is there to fit a judge on,
and scored on demand only. `toolbench_recorded` holds ToolBench's queries without a gold, with the tool that the
recorded model called first in its place: its score is agreement with that model, not correctness.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from msgspec.structs import replace

import slm
from evaluation.cases.case import Case, ToolNamesGold, load_cases
from evaluation.cases.study_data import StudyData
from slm.dataset.splits import held_out

SETS = ("bfcl", "in_domain", "heldout_tools", "new_agents", "toolbench", "toolbench_recorded", "validation")
NEW_AGENTS = frozenset({"star", "taskmaster4"})
"""Sources that stand for agents which the small model has not met."""
TOOLBENCH = ("toolbench", "toolbench_recorded")
"""The sets whose scores are given by ToolBench's six groups."""


def training_file() -> Path:
    """The committed rows of the training sources, test rows included. Raises FileNotFoundError outside a checkout."""
    path = Path(slm.__file__).parent / "data" / "train.jsonl.gz"
    if not path.is_file():
        raise FileNotFoundError(f"{path.name} comes with the repository, not with the package")
    return path


def case_set(name: str) -> list[Case]:
    """All cases of a set that can be scored, in the order of their file.

    Raises LookupError, naming the sets there are; FileNotFoundError outside a checkout.
    """
    if name == "bfcl":
        return StudyData.of_checkout().bfcl()
    if name == "toolbench":
        return [case for case in StudyData.of_checkout().toolbench() if case.scorable]
    if name == "toolbench_recorded":
        return _recorded_toolbench(StudyData.of_checkout())
    if name not in SETS:
        raise LookupError(f"no set {name!r}; there are: {', '.join(SETS)}")
    return list(_training_sets(training_file())[name])


def _recorded_toolbench(data: StudyData) -> list[Case]:
    """Cases without a gold whose recorded first call is of an offered tool."""
    called = {answer.id: answer.calls[0].name for answer in data.toolbench_first_calls() if answer.calls}
    return [
        replace(case, gold=ToolNamesGold([called[case.id]]))
        for case in data.toolbench()
        if not case.scorable and called.get(case.id) in case.tool_names
    ]


def cases_of(name: str) -> list[Case]:
    """A set by its name, or the cases of a file of one's own (`.jsonl`, `.jsonl.gz`).

    Raises as `case_set` and `evaluation.cases.case.load_cases` do.
    """
    if name not in SETS and Path(name).suffix in (".jsonl", ".gz"):
        return load_cases(Path(name))
    return case_set(name)


@lru_cache(maxsize=1)
def _training_sets(path: Path) -> dict[str, list[Case]]:
    """The sets that stand among the training rows: reading them takes seconds."""
    sets: dict[str, list[Case]] = defaultdict(list)
    for case in load_cases(path):
        if case.source in NEW_AGENTS:
            if case.split == "test":
                sets["new_agents"].append(case)
        elif case.split == "test":
            sets[str(case.meta.get("test_kind"))].append(case)
        elif held_out(case.conversation):
            sets["validation"].append(case)
    return sets


def group_of(name: str, case: Case) -> str:
    """Return the group that a case of this set is reported under: its category or its source."""
    return case.category if name in ("bfcl", *TOOLBENCH) else case.source


def sample(name: str, cases: Sequence[Case], per_group: int | None) -> list[Case]:
    """At most so many cases of each group, drawn by a hash of their ids; all cases for None. Their order is kept."""
    if per_group is None:
        return list(cases)
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        groups[group_of(name, case)].append(case)
    drawn = {case.id for group in groups.values() for case in sorted(group, key=_draw)[:per_group]}
    return [case for case in cases if case.id in drawn]


def _draw(case: Case) -> bytes:
    return hashlib.sha256(f"sample\0{case.id}".encode()).digest()
