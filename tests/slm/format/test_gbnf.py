"""The grammar for other servers: it writes the rules of what may be drafted, and no model library is needed for it."""

import subprocess
import sys

import pytest

from slm.format.gbnf import MAX_GRAMMAR_SYMBOLS, draft_grammar, symbols
from slm.format.pattern import MAX_CALLS
from tests.slm.conftest import TIME, WEATHER, schema, tool


def rules(text: str) -> dict[str, str]:
    """Rules by name; each stands on a line of its own and names rules that exist."""
    made = dict(line.split(" ::= ", 1) for line in text.splitlines() if line)
    assert len(made) == sum(bool(line) for line in text.splitlines())
    return made


def test_keys_come_in_order_and_required_ones_always() -> None:
    """An optional key may be left out wherever it stands; a comma stands between keys and nowhere else."""
    made = rules(
        draft_grammar([tool("f", schema(["b"], a={"type": "string"}, b={"type": "integer"}, c={"enum": [1]}))])
    )
    begin = made["call"].rpartition('("{" ')[2].split()[0]
    with_a, without_a = made[begin].split(" | ")
    assert with_a.startswith('"\\"a\\": " (string) ')
    after_a = made[with_a.split()[-1]]
    assert after_a.startswith('", " "\\"b\\": " (integer) ')
    assert made[without_a].startswith('"\\"b\\": " (integer) ')
    last = made[after_a.split()[-1]]
    assert last == '", " "\\"c\\": " ("1") "" | ""'


def test_what_may_be_planned_follows_the_choice() -> None:
    """Without a call only where the choice is free; one tool where it is named; one call where none are parallel."""
    free, required = (rules(draft_grammar([WEATHER, TIME], choice)) for choice in ("auto", "required"))  # type: ignore[arg-type]
    assert "none" in free["root"]
    assert "ask" in free["root"]
    assert "none" not in required["root"]
    assert f"{{0,{MAX_CALLS - 1}}}" in required["root"]
    assert required["name"] == '"get_weather" | "get_time"'
    named = rules(draft_grammar([WEATHER, TIME], "named", "get_time"))
    assert named["name"] == '"get_time"'
    for single in (named, rules(draft_grammar([WEATHER], "required", parallel=False))):
        assert single["root"] == r'"Thought: " (name "\n" call)'
    with pytest.raises(ValueError, match="no tool"):
        draft_grammar([], "required")


def test_references_alternatives_and_hostile_names() -> None:
    """References become rules of the tool's own, recursion included; quotes in names and values are escaped."""
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"}, "v": {"anyOf": [{"type": "null"}, {}]}}}
    made = rules(draft_grammar([tool('a"b', {**node, "$defs": {"n": node}}), tool("none", {"enum": ['"']})]))
    assert '\\"b"' in made["name"]
    assert '"none."' in made["name"]
    assert any(name.startswith("t0-") and "t0-" in "".join(made.values()) for name in made)
    assert "(null) | value" in "".join(made.values())


def test_a_grammar_of_many_tools_keeps_to_the_bound_that_is_read() -> None:
    """Where tools are many, the last ones' arguments are any object; the first ones' stay."""
    many = draft_grammar([tool(f"t{n}", schema(**{f"k{m}": {} for m in range(9)})) for n in range(300)])
    assert MAX_GRAMMAR_SYMBOLS * 0.8 < symbols(many) <= MAX_GRAMMAR_SYMBOLS
    assert '"\\"k8\\": "' in many
    assert 'Action: " "t299" "\\nAction Input: " object' in many


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ('root ::= "a b" | [a-z]+ # no (more)\n', 2 + 1 + 1 + 5 + 1 + 1),
        (r'x-1 ::= ("\"" y{0,2})?', 2 + 1 + 1 + 1 + 4 + 1 + 1),
        ('"' + r"\"" * 100_000, 1),
    ],
)
def test_symbols_of_a_grammar_are_counted(text: str, count: int) -> None:
    """Escaped quotes, classes, comments and what is not closed; any text once through."""
    assert symbols(text) == count


def test_no_model_library_is_imported() -> None:
    """The gateway may use it."""
    code = "import sys, slm.format.gbnf; print(sorted({'torch', 'transformers', 'llguidance'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
