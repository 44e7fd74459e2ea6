"""Numbers, dates and times of day in a text, whatever way they are written.

The text is normalised already (`policies.features.grounding.normalised`). English words and months only; no arithmetic,
no relative dates. Every pattern takes time in proportion to the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

NUMBER = re.compile(r"(?<!\d)-?(?:\d{1,3}(?:,\d{3})+|\d{1,15})(?:\.\d{1,15})?(?:[km%]|\b)", re.ASCII)
_UNITS = {
    word: float(number)
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen".split()
    )
} | {
    word: 10.0 * (2 + place)
    for place, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split())
}
_SCALES = {"hundred": 100.0, "thousand": 1e3, "million": 1e6, "billion": 1e9}
_ALONE = {"half": 0.5, "dozen": 12.0, "once": 1.0, "twice": 2.0, "first": 1.0, "second": 2.0, "third": 3.0}
_COUNTED = re.compile(rf"\b(?:{'|'.join([*_UNITS, *_SCALES, *_ALONE])})\b")
_MONTHS = {
    name: month
    for month, names_of in enumerate(
        "jan,january feb,february mar,march apr,april may jun,june jul,july aug,august sep,sept,september oct,october "
        "nov,november dec,december".split(),
        1,
    )
    for name in names_of.split(",")
}
_MONTH = "|".join(sorted(_MONTHS, key=len, reverse=True))
_ISO = re.compile(r"\b(\d{4})[-/](\d{1,2})[-/](\d{1,2})(?!\d)", re.ASCII)
_SLASHED = re.compile(r"\b(\d{1,2})[/.](\d{1,2})[/.](\d{4})\b", re.ASCII)
_MONTH_DAY = re.compile(
    rf"\b({_MONTH})\.? (?:the )?(\d{{1,2}})(?:st|nd|rd|th)?\b(?!:)(?:,? (?:of )?(\d{{4}})\b)?", re.ASCII
)
_DAY_MONTH = re.compile(rf"\b(\d{{1,2}})(?:st|nd|rd|th)? (?:of )?({_MONTH})\b\.?(?:,? (\d{{4}})\b)?", re.ASCII)
_CLOCK = re.compile(r"\b(\d{1,2})(?::(\d{2}))?(?::\d{2})? ?([ap])\.?m\b", re.ASCII)
_CLOCK_24 = re.compile(r"(?:\b|t)(\d{1,2}):(\d{2})(?::\d{2})?(?! ?[ap]\.?m)(?!\d)", re.ASCII)


def as_float(value: float) -> float:
    """The number as a float; infinity where it is too large for one."""
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def numbers(plain: str) -> Iterator[float]:
    """The numbers of a normalised text, in digits and as English words; `5%` is 5 and 0.05, `5k` 5 and 5000."""
    for match in NUMBER.finditer(plain):
        text = match.group()
        number = float(text.rstrip("km%").replace(",", ""))
        yield number
        if text[-1] in "km%":
            yield number / 100 if text[-1] == "%" else number * {"k": 1e3, "m": 1e6}[text[-1]]
        if number < 0:  # "2020-05": a dash, perhaps
            yield -number
    yield from _counted(plain)


def _counted(plain: str) -> Iterator[float]:
    """Runs of number words: "twenty five", "two hundred thousand"."""
    total, run_end = 0.0, -1
    for match in _COUNTED.finditer(plain):
        word = match.group()
        joined = run_end >= 0 and plain[run_end : match.start()] in (" ", "-", " and ")
        if not joined and run_end >= 0:
            yield total
        if word in _ALONE:
            total = _ALONE[word]
        elif word in _SCALES:
            total = (total if joined and total else 1.0) * _SCALES[word]
        else:
            total = total + _UNITS[word] if joined else _UNITS[word]
        run_end = match.end()
    if run_end >= 0:
        yield total


def moments(plain: str) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Each date, (year or 0, month, day), or time, (hour, minute), with its possible readings: 3/4/2024 has two."""
    for match in _ISO.finditer(plain):
        year, month, day = map(int, match.groups())
        yield ((year, month, day),)
    for match in _SLASHED.finditer(plain):
        one, two, year = map(int, match.groups())
        yield ((year, one, two), (year, two, one))
    for match in _MONTH_DAY.finditer(plain):
        yield ((int(match.group(3) or 0), _MONTHS[match.group(1)], int(match.group(2))),)
    for match in _DAY_MONTH.finditer(plain):
        yield ((int(match.group(3) or 0), _MONTHS[match.group(2)], int(match.group(1))),)
    for match in _CLOCK.finditer(plain):
        yield ((int(match.group(1)) % 12 + (12 if match.group(3) == "p" else 0), int(match.group(2) or 0)),)
    for match in _CLOCK_24.finditer(plain):
        yield ((int(match.group(1)), int(match.group(2))),)
