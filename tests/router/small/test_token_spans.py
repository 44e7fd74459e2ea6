"""A completion's text, divided among tokens that tell it roughly."""

import random

import pytest

from router.small.token_spans import TokenTexts

HOLE = "\N{REPLACEMENT CHARACTER}"
Chunk = tuple[str, list[str]]


def divided(chunks: list[Chunk], *, cut: bool = False) -> list[str]:
    """The parts of all tokens."""
    texts = TokenTexts()
    parts = [part for text, tokens in chunks for part in texts.add(text, tokens)]
    return parts + texts.end(cut=cut)


@pytest.mark.parametrize(
    ("chunks", "parts"),
    [
        ([("ab", ["ab"]), ("c", ["c", "<end>"])], ["ab", "c"]),
        ([("", ["ab"]), ("a", ["c"]), ("bc", ["<end>"])], ["ab", "c"]),  # held back
        ([("a", ["a"]), ("b", ["b\n\n"])], ["a", "b"]),  # cut by a stop
        ([("a", ["a"]), ("b", ["b\n", "\n"])], ["a", "b"]),
        ([("", [HOLE]), ("", [HOLE]), ("東", [HOLE]), ('"', ['"'])], ["", "", "東", '"']),
        ([("", [""]), ("", [""]), ("東", ["東"]), ('"', ['"'])], ["", "", "東", '"']),
        ([("", ["", ""]), ("東", [""]), ('"', ['"'])], ["", "", "東", '"']),
        ([('東京"', [HOLE] * 6 + ['"'])], ["", "", "", "", "", "東京", '"']),
        ([("東京", [*[HOLE] * 3, "京"])], ["", "", "東", "京"]),
        ([('"🎉"}', ['"' + HOLE, HOLE + '"', "}"])], ['"', '🎉"', "}"]),
        ([(" é é", [" " + HOLE, HOLE, " " + HOLE, HOLE])], [" ", "é", " ", "é"]),
        ([("東", [HOLE, HOLE, HOLE, "<end>"])], ["", "", "東"]),
        ([(f"a{HOLE}b", ["a", HOLE, "b"])], ["a", HOLE, "b"]),
        ([("abcd", ["a", "<skipped>", "b", "garbled", "d"])], ["a", "", "b", "c", "d"]),
        ([("abc", ["a", "<skipped>", "bc", "<end>"])], ["a", "", "bc"]),
    ],
)  # fmt: skip
def test_each_token_has_its_part(chunks: list[Chunk], parts: list[str]) -> None:
    """Whole, torn, held back, cut, listed and not written, written and not listed."""
    assert divided(chunks) == parts


def test_at_its_length_a_completion_keeps_torn_tokens_only() -> None:
    """They begin a character that the text will never hold."""
    assert divided([("a", ["a", HOLE, ""])], cut=True) == ["a", "", ""]
    assert divided([("a", ["a", HOLE, "<end>"])], cut=True) == ["a", ""]


def test_text_without_tokens_is_an_error() -> None:
    """Nothing could be judged by."""
    with pytest.raises(ValueError, match="without tokens"):
        divided([("ab", ["a"])])


@pytest.mark.parametrize("seed", range(40))
def test_the_parts_join_to_the_text_whatever_the_tokens_are(seed: int) -> None:
    """Random texts, random tokens and random chunks."""
    chance = random.Random(seed)
    pieces = ["a", "b", '"', " ", "東", "é", HOLE, "", "ab", "<end>"]
    chunks = [
        (
            "".join(chance.choices(pieces[:7], k=chance.randrange(4))),
            chance.choices(pieces, k=chance.randrange(1, 4)),
        )
        for _ in range(12)
    ]
    text, tokens = "".join(one for one, _ in chunks), [own for _, one in chunks for own in one]
    parts = divided([*chunks, ("", [HOLE])])
    assert "".join(parts) == text
    assert len(parts) <= len(tokens) + 1
