"""The texts name no file of results that is not there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "evaluation" / "results"
TEXTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "slm").rglob("README.md"))]


def results_named(text: str) -> set[str]:
    """Names of the files in `evaluation/results` that a text names by their path, as a link or in any other way."""
    return set(re.findall(r"evaluation/results/([\w./-]+\.\w+)", text))


def results_linked(text: str) -> set[str]:
    """Targets of the links into `evaluation/results`, without their anchors."""
    return set(re.findall(r"\]\(([^)#\s]*evaluation/results/[^)#\s]*)", text))


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_of_results_that_a_text_names_is_there(path: Path) -> None:
    """By its path from the root, and links from where the text stands."""
    text = path.read_text(encoding="utf-8")
    assert [name for name in sorted(results_named(text)) if not (RESULTS / name).is_file()] == []
    assert [link for link in sorted(results_linked(text)) if not (path.parent / link).exists()] == []


def test_names_are_found_however_they_are_written() -> None:
    """In backticks, in a link with an anchor, at the end of a sentence; and the README names some."""
    text = "`evaluation/results/a.md`, [b](../evaluation/results/b-1.json.gz#top) and evaluation/results/c.png."
    assert results_named(text) == {"a.md", "b-1.json.gz", "c.png"}
    assert results_linked(text) == {"../evaluation/results/b-1.json.gz"}
    assert {"slm.md", "gateway.md"} <= results_named((ROOT / "README.md").read_text(encoding="utf-8"))
