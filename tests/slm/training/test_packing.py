"""Trees of rows: nothing is lost, nothing is seen that is not an ancestor, and the budget holds."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from slm.dataset.examples import IGNORED, Encoded
from slm.training.packing import Tree, digest, pack_trees, visible


@st.composite
def encoded_rows(draw: st.DrawFn) -> list[Encoded]:
    """Rows of few different tokens, so that many begin alike."""
    ids = draw(st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=12), min_size=1, max_size=12))
    return [Encoded(tuple(one), draw(st.integers(1, len(one) - 1))) for one in ids]


def paths(tree: Tree) -> dict[tuple[int, ...], bool]:
    """Every token of a tree as the path that leads to it, and whether it is supervised."""
    found: dict[tuple[int, ...], bool] = {}
    ways: list[tuple[int, ...]] = []
    for token, parent, supervised in zip(tree.ids, tree.parents, tree.supervised, strict=True):
        way = (*(ways[parent] if parent >= 0 else ()), token)
        ways.append(way)
        assert way not in found
        found[way] = supervised
    return found


@given(encoded_rows())
def test_a_tree_holds_every_beginning_once_and_supervises_what_its_rows_do(rows: list[Encoded]) -> None:
    """A token is supervised if any row supervises it after the same beginning."""
    tree = Tree()
    for row in rows:
        before = len(tree)
        new = tree.new_tokens(row)
        tree.add(row)
        assert len(tree) == before + new
    wanted: dict[tuple[int, ...], bool] = {}
    for row in rows:
        for end in range(1, len(row.ids) + 1):
            wanted[row.ids[:end]] = wanted.get(row.ids[:end], False) or end > row.prompt_tokens
    assert paths(tree) == wanted
    assert [label != IGNORED for label in tree.labels] == tree.supervised


@given(encoded_rows())
def test_a_token_sees_itself_and_what_stands_before_it_in_its_row(rows: list[Encoded]) -> None:
    """The mask and the depths are those of the rows alone."""
    (tree,) = pack_trees([rows], 10_000)
    mask = visible(tree.parents)
    for index, parent in enumerate(tree.parents):
        seen = set(mask[index].nonzero()[0].tolist())
        before = set(mask[parent].nonzero()[0].tolist()) if parent >= 0 else set()
        assert seen == before | {index}
        assert len(seen) == tree.depths[index] + 1


@given(st.lists(encoded_rows(), max_size=6), st.integers(1, 40))
def test_every_row_is_planted_and_the_budget_holds(groups: list[list[Encoded]], budget: int) -> None:
    """A tree is larger than the budget only where one row alone is."""
    trees = pack_trees(groups, budget)
    assert sum(tree.rows for tree in trees) == sum(len(group) for group in groups)
    rows = {row.ids for group in groups for row in group}
    assert rows <= {path for tree in trees for path in paths(tree)}
    longest = max((len(row.ids) for group in groups for row in group), default=0)
    assert all(len(tree) <= max(budget, longest) for tree in trees)


def test_a_digest_names_tokens_their_places_and_what_is_supervised() -> None:
    """Two sequences have one digest only if they are equal in order, tokens, parents and supervised tokens."""

    def tree(*rows: Encoded) -> Tree:
        made = Tree()
        for row in rows:
            made.add(row)
        return made

    one, two = Encoded((1, 2, 3), 2), Encoded((1, 2, 4), 2)
    sequences: list[list[Any]] = [
        [tree(one)], [tree(two)], [tree(one), tree(two)], [tree(two), tree(one)], [tree(one, two)], [],
        [tree(Encoded((1, 2, 3), 1))],
    ]  # fmt: skip
    assert len({digest(sequence) for sequence in sequences}) == len(sequences)
    assert digest([tree(one)]) == digest([tree(one)])
