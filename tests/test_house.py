"""The layout of the four packages: small folders that say what they own, as docs/architecture.md tells it."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = sorted(
    path.parent
    for package in ("router", "evaluation", "policies", "slm")
    for path in (ROOT / package).rglob("__init__.py")
)
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
MOST_MODULES = 12


def names_of(path: Path) -> set[str]:
    """The functions of a module, and `Class.method` of its classes."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            methods = (one for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef))
            names |= {f"{node.name}.{method.name}" for method in methods}
    return names


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_folder_is_small_and_says_what_it_owns(folder: Path) -> None:
    """At most twelve modules, and one sentence, which the page on the architecture repeats."""
    modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= MOST_MODULES
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    sentence = " ".join(docstring.split())
    assert re.fullmatch(r"[A-Z][^.]*\.", sentence)
    assert re.search(rf"^{folder.relative_to(ROOT).as_posix()}/ +{re.escape(sentence)}$", PAGE, re.MULTILINE)


def test_the_walk_of_a_request_names_what_there_is() -> None:
    """Every function that the page names stands in the module that it names before it."""
    walk = PAGE.partition("## One chat completion")[2].partition("Rules that hold")[0]
    module: Path | None = None
    found = 0
    for named in re.findall(r"`([^`]+)`", walk):
        if named.endswith(".py"):
            module = ROOT / named
            assert module.is_file(), named
        elif module is not None and re.search(r"[._]", named):
            assert named in names_of(module), (named, module)
            found += 1
    assert found > 20
