"""Hand-written tools and requests in a compact line format, expanded into training rows.

A file is one domain: its tools are offered together. Lines, each an item:

    tool NAME | DESCRIPTION
    p NAME[*] TYPE | DESCRIPTION | DRAWS [| JSON Schema]     a parameter; * marks a required one
    r TEXT with {slots}                                      a request; a slot is filled by a draw of its parameter
    x TEXT => {"name": value}                                a request with its arguments
    m TEXT => tool {…}; tool {…}                             a request for several calls
    n TEXT                                                   a request that none of the file's tools can do

`DRAWS` are separated by semicolons: `words => JSON value`, a value that is said as it is written, or a generator such
as `@date` (`_GENERATORS`). A parameter without a slot is left out of the call; where it is required, the right answer
is to ask back. Rows follow from the text and a fixed seed alone. Not guaranteed: that a request sounds natural with
every draw.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

SOURCE = "authored"
LICENCE = "Apache-2.0"
FILLS = 2
"""Times that a request with slots is filled."""

_INTEGER = re.compile(r"-?\d+")
_SLOT = re.compile(r"\{(\w+)\}")
_CALL = re.compile(r"\s*([a-zA-Z0-9_-]+)\s+")
_DEFAULT = re.compile(r"\b[Dd]efaults?(?: is| to|:)? '?([\w.-]+?)'?(?=[),.;]|$)")
_ASK_BESIDE = 3
"""Other tools that are offered where the right answer is to ask back."""

Draw = tuple[str, Any]
"""Words of a request, and the value that they stand for."""


class AuthoredError(ValueError):
    """A line that cannot be read; the message names the file and the line."""


@dataclass(slots=True)
class _Parameter:
    name: str
    kind: str
    required: bool
    schema: Mapping[str, Any]
    draws: tuple[str, ...]

    def draw(self, rng: random.Random) -> Draw:
        chosen = rng.choice(self.draws)
        if (generator := _GENERATOR.fullmatch(chosen)) is not None:
            return _generated(generator, self.kind, rng)
        words, arrow, value = chosen.rpartition("=>")
        return (words.strip() if arrow else _unquoted(value.strip())), _value(self.kind, value.strip())


@dataclass(slots=True)
class _Tool:
    name: str
    description: str
    parameters: dict[str, _Parameter] = field(default_factory=dict)

    def definition(self) -> dict[str, Any]:
        """The tool as an OpenAI tool definition."""
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {name: dict(parameter.schema) for name, parameter in self.parameters.items()},
        }
        if required := [name for name, parameter in self.parameters.items() if parameter.required]:
            schema["required"] = required
        function = {"name": self.name, "description": self.description, "parameters": schema}
        return {"type": "function", "function": function}


@dataclass(slots=True)
class _Request:
    """`calls` is None for a request with slots of `tool`, empty for one that no tool fits."""

    text: str
    tool: _Tool | None
    calls: list[tuple[str, Mapping[str, Any]]] | None


def authored_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of the project's data format, of a file or of all `.txt` files of a folder in the order of their names.

    Raises:
        AuthoredError: a line cannot be read.
        OSError: a file cannot be read.
    """
    for file in _files(path):
        yield from _rows_of(file)


def authored_sha256(path: Path) -> str:
    """SHA-256 of the file's bytes, or of those of all files of a folder one after another."""
    whole = hashlib.sha256()
    for file in _files(path):
        whole.update(file.read_bytes())
    return whole.hexdigest()


def _files(path: Path) -> list[Path]:
    return sorted(path.glob("*.txt")) if path.is_dir() else [path]


def _rows_of(file: Path) -> Iterator[dict[str, Any]]:
    tools, requests = _read(file)
    rng = random.Random(f"authored/{file.stem}")
    offered = list(tools.values())
    rows = [row for request in requests for row in _filled(request, offered, rng)]
    rng.shuffle(rows)
    for number, (text, names, calls, category) in enumerate(rows):
        yield {
            "id": f"{file.stem}_{number}",
            "source": SOURCE,
            "split": "train",
            "category": category,
            "messages": [{"role": "user", "content": text}],
            "tools": [tools[name].definition() for name in names],
            "gold": _gold(calls),
            "meta": {
                "licence": LICENCE,
                "conversation": file.stem,
                **({"reply": "Could you tell me which one?"} if category == "ask" else {}),
            },
        }


_Row = tuple[str, list[str], Sequence[tuple[str, Mapping[str, Any]]], str]
"""Text, names of the tools on offer, calls, category."""


def _filled(request: _Request, offered: Sequence[_Tool], rng: random.Random) -> Iterator[_Row]:
    every = [tool.name for tool in offered]
    if request.calls is not None:
        category = "no_call" if not request.calls else "single" if len(request.calls) == 1 else "parallel"
        yield request.text, every, request.calls, category
        return
    tool = request.tool
    assert tool is not None
    slots = dict.fromkeys(_SLOT.findall(request.text))
    lacks = any(parameter.required and name not in slots for name, parameter in tool.parameters.items())
    seen = set()
    for _ in range(1 if lacks else FILLS):
        drawn = {name: tool.parameters[name].draw(rng) for name in slots}
        text = _SLOT.sub(lambda slot, drawn=drawn: drawn[slot[1]][0], request.text)  # type: ignore[misc]
        if text in seen:
            continue
        seen.add(text)
        text = text[:1].upper() + text[1:] if request.text[:1] == "{" else text
        if lacks:
            others = [name for name in every if name != tool.name]
            beside = rng.sample(others, min(len(others), _ASK_BESIDE))
            yield text, [name for name in every if name == tool.name or name in beside], [], "ask"
        else:
            arguments = {name: drawn[name][1] for name in tool.parameters if name in drawn}
            yield text, every, [(tool.name, arguments)], "single"


def _gold(calls: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    if not calls:
        return {"kind": "no_call"}
    gold = [{"name": name, "arguments": {key: [value] for key, value in given.items()}} for name, given in calls]
    return {"kind": "calls", "calls": gold, "ordered": False}


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _read(file: Path) -> tuple[dict[str, _Tool], list[_Request]]:
    domain = _Domain()
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            try:
                domain.read(line)
            except (ValueError, KeyError, AttributeError, IndexError) as exc:
                raise AuthoredError(f"{file.name}:{number}: {exc}") from exc
    return domain.tools, domain.requests


class _Domain:
    """The tools and requests read so far from the lines of a file."""

    def __init__(self) -> None:
        self.tools: dict[str, _Tool] = {}
        self.requests: list[_Request] = []
        self._current: _Tool | None = None

    def read(self, line: str) -> None:
        """Read one line. Raises ValueError or KeyError if it cannot be read."""
        kind, _, rest = line.partition(" ")
        text, _, given = (part.strip() for part in rest.partition(" => "))
        if kind == "tool":
            name, _, description = (part.strip() for part in rest.partition("|"))
            self._current = self.tools[name] = _Tool(name, description)
        elif kind == "n":
            self.requests.append(_Request(rest.strip(), None, []))
        elif kind == "m":
            self.requests.append(_Request(text, None, list(_calls(given, self.tools))))
        elif self._current is not None:
            self._of_tool(self._current, kind, rest.strip(), text, given)
        else:
            raise ValueError("no tool stands before it")

    def _of_tool(self, tool: _Tool, kind: str, rest: str, text: str, given: str) -> None:
        if kind == "p":
            parameter = _parameter(rest)
            tool.parameters[parameter.name] = parameter
        elif kind == "r":
            _check_slots(rest, tool)
            self.requests.append(_Request(rest, tool, None))
        elif kind == "x":
            self.requests.append(_Request(text, None, [(tool.name, _ordered(given, tool))]))
        else:
            raise ValueError(f"{kind!r} is no kind of line")


def _check_slots(text: str, tool: _Tool) -> None:
    if unknown := [name for name in _SLOT.findall(text) if name not in tool.parameters]:
        raise ValueError(f"{tool.name} has no parameter {', '.join(unknown)}")


def _ordered(arguments: str, tool: _Tool) -> Mapping[str, Any]:
    given = json.loads(arguments)
    if unknown := given.keys() - tool.parameters.keys():
        raise ValueError(f"{tool.name} has no parameter {', '.join(sorted(unknown))}")
    return {name: given[name] for name in tool.parameters if name in given}


def _calls(text: str, tools: Mapping[str, _Tool]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    decoder, at = json.JSONDecoder(), 0
    while at < len(text):
        found = _CALL.match(text, at)
        if found is None:
            raise ValueError("a call is a tool's name and its arguments as JSON")
        _, end = decoder.raw_decode(text, found.end())
        yield found[1], _ordered(text[found.end() : end], tools[found[1]])
        at = end + len(text[end:]) - len(text[end:].lstrip("; "))


def _parameter(text: str) -> _Parameter:
    head, description, draws, *schema = re.split(r"\s\|\s", text, maxsplit=3)
    name, _, kind = head.strip().partition(" ")
    plain, kind = name.rstrip("*"), kind.strip()
    declared: dict[str, Any] = json.loads(schema[0]) if schema else {}
    described = {**_schema(kind, declared), "description": description.strip()}
    if default := _DEFAULT.search(description):
        # Half of the authors of schemas say it in the keyword too.
        value = _default(kind, default[1])
        if value is not None and hashlib.sha256(text.encode()).digest()[0] % 2:
            described["default"] = value
    return _Parameter(plain, kind, name.endswith("*"), described, tuple(_split(draws)))


_TYPES = {"string": "string", "int": "integer", "number": "number", "bool": "boolean", "object": "object"}


def _schema(kind: str, declared: Mapping[str, Any]) -> dict[str, Any]:
    if kind.startswith("enum("):
        values = [value.strip() for value in kind[5:-1].split(",")]
        if all(map(_INTEGER.fullmatch, values)):
            return {"type": "integer", "enum": [int(value) for value in values]}
        return {"type": "string", "enum": values}
    if kind.endswith("[]"):
        inner = _schema(kind[:-2], {})
        if declared:
            inner = dict(declared.get("items", declared)) if declared.get("type") == "array" else dict(declared)
        return {"type": "array", "items": inner}
    if kind not in _TYPES:
        raise ValueError(f"{kind!r} is no type")
    return {"type": _TYPES[kind], **declared}


def _default(kind: str, text: str) -> Any:
    if kind in ("int", "number"):
        return json.loads(text) if re.fullmatch(r"-?\d+(\.\d+)?", text) else None
    if kind.startswith("enum("):
        return next((value for value in _schema(kind, {})["enum"] if str(value) == text), None)
    if kind == "bool":
        return {"true": True, "false": False}.get(text.lower())
    return None


def _split(text: str) -> Iterator[str]:
    """The draws of a parameter; a semicolon inside brackets or quotes separates nothing."""
    depth, quoted, current = 0, False, ""
    for index, character in enumerate(text):
        if character == '"' and text[index - 1 : index] != "\\":
            quoted = not quoted
        if not quoted:
            depth += (character in "[{(") - (character in ")]}")
        if character == ";" and not depth and not quoted:
            yield current.strip()
            current = ""
        else:
            current += character
    if current.strip():
        yield current.strip()


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text


def _value(kind: str, text: str) -> Any:
    if _schema(kind, {})["type"] == "string":
        return _unquoted(text)
    return json.loads(text)


# ── generators ───────────────────────────────────────────────────────────────────────────────────────────────────────

_MONTHS = "January February March April May June July August September October November December".split()
_NAMES = (
    "Amara Okafor;Liam Brennan;Sofia Marchetti;Hiroshi Tanaka;Priya Raman;Jonas Lindqvist;Chloe Dubois;Mateo Alvarez;"
    "Ingrid Solberg;Omar Haddad;Grace Whitfield;Tomasz Nowak;Leila Farouk;Ben Carter;Mei Lin Chow;Rafael Souza;"
    "Hannah Vogel;Dmitri Volkov;Aisha Bello;Noah Fitzgerald;Elena Petrova;Samuel Mensah;Yara Costa;Viktor Horvath"
).split(";")
_CITIES = (
    "Lisbon;Osaka;Leeds;Tucson;Porto Alegre;Gdansk;Lyon;Cork;Bergen;Nairobi;Quito;Hanoi;Adelaide;Winnipeg;Utrecht;Graz;"
    "Savannah;Boise;Valencia;Izmir;Pune;Busan;Accra;Tampere;Ghent;Split;Malmö;Cardiff;Santa Fe;Halifax"
).split(";")
_WORDS = (
    "aurora;basalt;cinder;delta;ember;falcon;granite;harbor;indigo;juniper;kestrel;lantern;meadow;nimbus;onyx;pioneer;"
    "quartz;raven;saffron;tundra;umber;vertex;willow;zephyr"
).split(";")
_DIGITS = "one two three four five six seven eight nine ten eleven twelve".split()
_DOMAINS = ("example.com", "example.org", "mail.example", "acme.example")


def _date(rng: random.Random) -> Draw:
    day = date(2023, 1, 1) + timedelta(days=rng.randrange(4 * 365))
    month, number = _MONTHS[day.month - 1], day.day
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10 if number not in (11, 12, 13) else 0, "th")
    words = rng.choice(
        (
            day.isoformat(),
            f"{number} {month} {day.year}",
            f"{month} {number}, {day.year}",
            f"{month} {number}{ending}, {day.year}",
            f"the {number}{ending} of {month} {day.year}",
            f"{month[:3]} {number} {day.year}",
        )
    )
    return words, day.isoformat()


def _time(rng: random.Random) -> Draw:
    hour, minute = rng.randrange(6, 23), rng.choice((0, 0, 15, 30, 45, 5, 20))
    twelve, half = (hour - 1) % 12 + 1, "am" if hour < 12 else "pm"
    exact = f"{hour:02d}:{minute:02d}"
    spoken = [exact, f"{twelve}:{minute:02d} {half}", f"{twelve}.{minute:02d} {half}"]
    if minute == 0:
        spoken += [f"{twelve} {half}", f"{twelve}{half}"]
    if minute in (15, 30):
        part = "in the morning" if hour < 12 else "in the afternoon" if hour < 18 else "in the evening"
        spoken.append(f"{'quarter' if minute == 15 else 'half'} past {_DIGITS[twelve - 1]} {part}")
    return rng.choice(spoken), exact


def _int(rng: random.Random, low: str, high: str) -> Draw:
    number = rng.randint(int(float(low)), int(float(high)))
    words = _DIGITS[number - 1] if 1 <= number <= 12 and rng.random() < 0.35 else str(number)
    return words, number


def _number(rng: random.Random, low: str, high: str) -> Draw:
    number = round(rng.uniform(float(low), float(high)), rng.choice((1, 1, 2, 0)))
    number = int(number) if number == int(number) else number
    return f"{number}", number


def _money(rng: random.Random, low: str, high: str) -> Draw:
    number = round(rng.uniform(float(low), float(high)), rng.choice((0, 0, 2)))
    number = int(number) if number == int(number) else number
    return (f"{number:,}" if rng.random() < 0.4 else f"{number}"), number


def _percent(rng: random.Random) -> Draw:
    number = rng.choice((2, 5, 7.5, 10, 12, 15, 20, 25, 33, 40, 50, 65, 80, 90))
    return f"{number}{rng.choice(('%', ' percent', ' %'))}", number


def _email(rng: random.Random) -> Draw:
    first, *_, last = rng.choice(_NAMES).lower().split()
    address = rng.choice((f"{first}.{last}", f"{first[0]}{last}", first)) + "@" + rng.choice(_DOMAINS)
    return address, address


def _id(rng: random.Random, prefix: str = "") -> Draw:
    made = prefix + str(rng.randint(10 ** (size := rng.choice((2, 3, 4))), 10 ** (size + 1) - 1))
    return made, made


def _one_of(values: Sequence[str]) -> Callable[[random.Random], Draw]:
    def draw(rng: random.Random) -> Draw:
        chosen = rng.choice(values)
        return chosen, chosen

    return draw


_GENERATORS: Mapping[str, Callable[..., Draw]] = {
    "date": _date,
    "time": _time,
    "int": _int,
    "number": _number,
    "money": _money,
    "percent": _percent,
    "email": _email,
    "id": _id,
    "name": _one_of(_NAMES),
    "city": _one_of(_CITIES),
    "word": _one_of(_WORDS),
}


_GENERATOR = re.compile(rf"@({'|'.join(_GENERATORS)})(?:\((.*)\))?")


def _generated(generator: re.Match[str], kind: str, rng: random.Random) -> Draw:
    given = [part.strip() for part in generator[2].split(",")] if generator[2] else []
    words, value = _GENERATORS[generator[1]](rng, *given)
    if kind == "string" and not isinstance(value, str):
        return words, words
    if kind in ("int", "number") and isinstance(value, str):
        number = re.sub(r"\D", "", value)
        return number, int(number)
    if kind == "int":
        return str(int(value)) if words.replace(",", "") != str(int(value)) and not words.isalpha() else words, int(
            value
        )
    return words, value
