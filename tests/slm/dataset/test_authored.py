"""Hand-written domains: what a line says is the row that it becomes, and a wrong line is named."""

from pathlib import Path
from typing import Any

import pytest

from slm.dataset.authored import AuthoredError, authored_rows, authored_sha256
from slm.dataset.examples import example_of
from slm.dataset.rows import read_rows

DOMAIN = """\
# domain: marina berths
tool reserve_berth | Reserve a berth.
p harbour* string | Harbour as 'Town, CC' | Kinsale in Ireland => Kinsale, IE
p arrival* string | Day of arrival, format YYYY-MM-DD | 3 June 2025 => 2025-06-03
p nights int | Number of nights (default 1) | two => 2
p power enum(none,16A,32A) | Shore power | a 16 amp connection => 16A
p extras string[] | Extra services | water; wifi => ["water", "wifi"]
r Book {harbour} from {arrival} for {nights} nights with {power}.
r Book {harbour}, please.
x Kinsale on the 3rd of June 2025. => {"arrival": "2025-06-03", "harbour": "Kinsale, IE"}
tool ping | Is the harbour office there?
n What is a mooring?
m Ping it, and a berth in Vis on 2025-07-01. => ping {}; reserve_berth {"harbour": "Vis, HR", "arrival": "2025-07-01"}
""".replace("water; wifi =>", "water and wifi =>")


def rows_of(tmp_path: Path, text: str) -> dict[str, dict[str, Any]]:
    """The rows of a domain by their request."""
    path = tmp_path / "marina.txt"
    path.write_text(text, encoding="utf-8")
    return {row["messages"][0]["content"]: row for row in authored_rows(path)}


def test_a_request_with_slots_becomes_a_call(tmp_path: Path) -> None:
    """Slots are filled by words, arguments by the values that they stand for; what has no slot is left out."""
    row = rows_of(tmp_path, DOMAIN)["Book Kinsale in Ireland from 3 June 2025 for two nights with a 16 amp connection."]
    example = example_of(row)
    assert example.calls == (
        ("reserve_berth", {"harbour": "Kinsale, IE", "arrival": "2025-06-03", "nights": 2, "power": "16A"}),
    )
    assert [tool["function"]["name"] for tool in example.tools] == ["reserve_berth", "ping"]


def test_a_required_parameter_without_a_slot_is_asked_for(tmp_path: Path) -> None:
    """The right answer to a request that lacks a value is to ask."""
    assert example_of(rows_of(tmp_path, DOMAIN)["Book Kinsale in Ireland, please."]).kind == "ask"


def test_fixed_requests_keep_their_arguments_in_the_schema_s_order(tmp_path: Path) -> None:
    """A call is written in one order, whatever the line's."""
    ((_, arguments),) = example_of(rows_of(tmp_path, DOMAIN)["Kinsale on the 3rd of June 2025."]).calls
    assert list(arguments) == ["harbour", "arrival"]


def test_a_request_for_several_calls_or_none(tmp_path: Path) -> None:
    """`m` lines make every call that they name, `n` lines none."""
    rows = rows_of(tmp_path, DOMAIN)
    assert [name for name, _ in example_of(rows["Ping it, and a berth in Vis on 2025-07-01."]).calls] == [
        "ping",
        "reserve_berth",
    ]
    assert example_of(rows["What is a mooring?"]).kind == "none"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("r Book {berth}.", "no parameter berth"),
        ('x Now. => {"berth": 1}', "no parameter berth"),
        ("p size huge | Size | 1", "'huge' is no type"),
        ("m Both. => nobody {}", "nobody"),
        ("z What", "'z' is no kind of line"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    """The error tells the file, the line and what is wrong with it."""
    with pytest.raises(AuthoredError, match=rf"marina\.txt:14: .*{message}"):
        rows_of(tmp_path, f"{DOMAIN}{line}\n")


@pytest.mark.parametrize("generator", ["date", "time", "int(2,9)", "number(0,4)", "money(5,90)", "percent"])
def test_a_generator_draws_a_value_and_its_words(tmp_path: Path, generator: str) -> None:
    """A drawn value fits the parameter's type, and the same file gives the same rows."""
    kind = "string" if generator in ("date", "time") else "int" if "int" in generator else "number"
    text = f"tool f | Does.\np x* {kind} | A value | @{generator}\nr Take {{x}}.\n"
    made = rows_of(tmp_path, text)
    assert made == rows_of(tmp_path, text)
    for row in made.values():
        ((_, arguments),) = example_of(row).calls
        assert isinstance(arguments["x"], {"string": str, "int": int, "number": int | float}[kind])


SHIPPED = Path("slm/data/authored")


def test_the_shipped_domains_are_read_whole() -> None:
    """No line is wrong and no row refused; the hash is that of all files."""
    rows = read_rows(SHIPPED)
    assert rows.refused == {}
    assert len(rows.examples) > 5_000
    assert rows.sha256 == authored_sha256(SHIPPED)
    assert len({tool["function"]["name"] for example in rows.examples for tool in example.tools}) > 800
