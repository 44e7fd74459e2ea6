"""The committed study data: whole, readable, and the demo's rows drawn from them."""

from __future__ import annotations

import gzip
import hashlib
import tomllib
from collections import Counter
from fnmatch import fnmatch
from pathlib import Path

import msgspec
import pytest
from setuptools import find_namespace_packages

from evaluation.cases.case import CallsGold
from evaluation.cases.jsonl import RowError
from evaluation.cases.study_data import RecordedAnswer, RecordedCall, StudyData, load_recording
from evaluation.demo.rows import CATEGORIES, FILE, MODEL, PER_CATEGORY, choose, encode, load_demo, write
from evaluation.recorded.index import Recordings

DATA = Path(__file__).parents[3] / "evaluation" / "data"


@pytest.fixture(scope="module")
def data() -> StudyData:
    """The checkout's own data."""
    return StudyData.of_checkout()


def test_every_file_has_the_hash_that_was_committed() -> None:
    """SHA256SUMS names every data file and nothing else, and each has its hash."""
    listed = {
        name: digest for digest, name in (line.split() for line in (DATA / "SHA256SUMS").read_text().splitlines())
    }
    found = {
        str(path.relative_to(DATA)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in DATA.rglob("*")
        if path.is_file() and path.name not in {"README.md", "SHA256SUMS"}
    }
    assert found == listed


def test_the_wheel_takes_the_demo_rows_and_none_of_the_study_data() -> None:
    """By pyproject's own rules, folders of data are no packages and the 60 rows are package data."""
    root = DATA.parents[1]
    setuptools = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    rules = setuptools["packages"]["find"]
    packages = find_namespace_packages(str(root), rules.get("exclude", ()), rules["include"])
    assert "evaluation.demo" in packages
    assert not [name for name in packages if name.startswith(("evaluation.data", "evaluation.results"))]
    assert any(fnmatch(FILE, pattern) for pattern in setuptools["package-data"]["evaluation.demo"])
    for name, patterns in setuptools["package-data"].items():
        taken = [path for pattern in patterns for path in (root / name.replace(".", "/")).glob(pattern)]
        assert DATA not in {parent for path in taken for parent in path.parents}


def test_the_cases_are_those_of_the_readme(data: StudyData) -> None:
    """3,491 BFCL and 1,359 ToolBench rows, by category and kind of gold; all are test rows."""
    bfcl, toolbench = data.bfcl(), data.toolbench()
    assert Counter(case.category for case in bfcl) == {
        "simple_python": 400,
        "multiple": 200,
        "parallel": 200,
        "parallel_multiple": 200,
        "irrelevance": 240,
        "live_simple": 258,
        "live_multiple": 1053,
        "live_parallel": 16,
        "live_parallel_multiple": 24,
        "live_irrelevance": 884,
        "live_relevance": 16,
    }
    assert Counter(case.source for case in toolbench) == {"toolbench": 600, "stabletoolbench": 759}
    assert sum(case.scorable for case in toolbench) == 764
    assert all(case.scorable for case in bfcl)
    assert {case.split for case in (*bfcl, *toolbench)} == {"test"}
    assert all(set(case.gold_names) <= set(case.tool_names) for case in (*bfcl, *toolbench))


def test_each_model_answered_the_same_1198_cases_and_can_be_served(data: StudyData) -> None:
    """Twelve recordings over one set of BFCL cases, none of which is asked twice in the same words."""
    cases = data.bfcl()
    answered = set()
    for model in data.recorded_models():
        answers = data.recording(model)
        assert {answer.model for answer in answers} == {model}
        answered.add(frozenset(answer.id for answer in answers))
        assert len(list(Recordings(answers, cases))) == 1198
    assert len(data.recorded_models()) == 12
    (ids,) = answered
    assert ids <= {case.id for case in cases}


def test_the_gold_of_publication_differs_from_todays_where_it_is_listed(data: StudyData) -> None:
    """28 recorded cases had another gold then; each is a case with calls."""
    today = {case.id: case.gold for case in data.bfcl()}
    then = data.gold_of_publication()
    assert len(then) == 28
    for case_id, calls in then.items():
        gold = today[case_id]
        assert isinstance(gold, CallsGold)
        # As JSON, since 5 and 5.0 are equal in Python and not to a type check.
        assert msgspec.json.encode(gold.calls) != msgspec.json.encode(calls)


def test_an_unknown_model_is_refused_with_the_known_ones(data: StudyData) -> None:
    """The error tells what could have been asked for; a path is no model."""
    for name in ("gpt-9", "../bfcl"):
        with pytest.raises(LookupError, match=f"there are: .*{MODEL}"):
            data.recording(name)


def test_without_the_checkout_the_data_are_missed_clearly(tmp_path: Path) -> None:
    """An installed package has no study data, and says so."""
    with pytest.raises(FileNotFoundError, match="come with the repository"):
        StudyData(tmp_path)


@pytest.mark.parametrize(
    ("lines", "place"),
    [
        (['{"id": "a", "model": "m", "calls": [{"name": "f"}]}'], ":1: .*neither arguments nor arguments_raw"),
        (['{"id": "a", "model": "m", "input_tokens": "7"}'], r":1: .*\$\.input_tokens"),
        (['{"id": "a", "model": "m"}'] * 2, ":2: m has answered case 'a' already"),
    ],
)
def test_a_broken_recording_is_refused_with_its_line(tmp_path: Path, lines: list[str], place: str) -> None:
    """File, line and field, as for cases."""
    path = tmp_path / "m.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    with pytest.raises(RowError, match=place):
        load_recording(path)


def test_the_demo_rows_are_what_the_command_draws(data: StudyData, tmp_path: Path) -> None:
    """The file in the package is the command's output, line for line, and small."""
    write(data, tmp_path / FILE)
    packaged = DATA.parent / "demo" / FILE
    assert gzip.decompress(packaged.read_bytes()) == gzip.decompress((tmp_path / FILE).read_bytes())
    assert packaged.stat().st_size < 50_000


def test_the_demo_has_twelve_of_each_category_with_their_answers() -> None:
    """60 different cases, each with the answer, tokens and latency of the same id."""
    rows = load_demo()
    assert Counter(row.case.category for row in rows) == dict.fromkeys(CATEGORIES, PER_CATEGORY)
    assert len({row.case.id for row in rows}) == 60
    for row in rows:
        assert (row.recorded.id, row.recorded.model) == (row.case.id, MODEL)
        assert None not in (row.recorded.input_tokens, row.recorded.output_tokens, row.recorded.latency_s)


def test_the_draw_does_not_depend_on_the_order_of_the_rows(data: StudyData) -> None:
    """Shuffled input gives the same file; too few answers are refused."""
    cases, answers = data.bfcl(), data.recording(MODEL)
    assert encode(choose(cases[::-1], answers[::-1])) == encode(choose(cases, answers))
    with pytest.raises(ValueError, match="only 0 answered cases of simple_python"):
        choose(cases, [])


def test_recorded_arguments_go_out_as_json_or_as_they_were_written() -> None:
    """Decoded arguments are encoded again; broken ones keep their text."""
    assert RecordedCall("f", {"a": "ä"}).arguments_text == '{"a": "ä"}'
    assert RecordedCall("f", None, "{oops").arguments_text == "{oops"
    assert RecordedAnswer(id="a", model="m", text="hi").answer.text == "hi"
