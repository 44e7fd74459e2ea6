"""Signals of inner states: by their definition, and told at the draft's own places."""

import pytest
import torch

from slm.engine.engine import DraftEngine
from slm.engine.signals import HIDDEN_SIZE, Distribution, Lens, Marks, Pass
from slm.format.pattern import DraftSpan
from slm.protocol import Done, Token
from tests.slm.conftest import WEATHER, command


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_layer_agreement_is_the_share_of_layers_that_put_the_token_first() -> None:
    """Against the definition, spelt out: logits of each inner state over the 16 most probable tokens."""
    head, states = drawn(50, 8), drawn(4, 6, 8)
    states[1] = states[3]
    logits = states[3] @ head.T
    written = [int(row.argmax()) for row in logits[:5]] + [int(logits[5].argmin())]
    made = Distribution(Pass(logits, states), Lens(head)).signals(range(6), written, [None] * 6)
    for row, (token, signals) in enumerate(zip(written, made, strict=True)):
        few = logits[row].topk(16).indices
        firsts = [int(few[(states[layer, row] @ head[few].T).argmax()]) for layer in range(3)]
        assert signals.layer_agreement == pytest.approx(sum(first == token for first in firsts) / 3)
    assert all((signals.layer_agreement or 0) >= 1 / 3 for signals in made[:5])
    assert made[5].layer_agreement == 0


def test_without_states_there_are_no_such_signals(opt: DraftEngine) -> None:
    """A model whose insides are not read gives neither; everything else stands."""
    events = list(opt.draft(command(max_tokens=8)))
    assert isinstance(events[-1], Done)
    assert events[-1].hidden == []
    assert {event.layer_agreement for event in events if isinstance(event, Token)} == {None}


def test_the_marks_are_the_first_token_the_names_the_values_and_the_last_token() -> None:
    """First state of all, of the plan and of a name, mean of the values' states, last state; no numbers where there is
    none."""
    marks, states = Marks(), drawn(7, HIDDEN_SIZE)
    assert marks.rows() == []
    spans = [
        DraftSpan.SYNTAX,
        DraftSpan.PLAN,
        DraftSpan.NAME,
        DraftSpan.NAME,
        DraftSpan.VALUE,
        DraftSpan.VALUE,
        DraftSpan.SYNTAX,
    ]
    marks.add(states[0], spans[0])
    assert marks.rows() == [states[0].tolist(), [], [], [], states[0].tolist()]
    for state, span in zip(states[1:], spans[1:], strict=True):
        marks.add(state, span)
    first, plan, name, values, last = marks.rows()
    assert (first, plan, name) == (states[0].tolist(), states[1].tolist(), states[2].tolist())
    assert values == pytest.approx(((states[4] + states[5]) / 2).tolist())
    assert last == states[6].tolist()


def test_a_draft_tells_its_inner_signals(llama: DraftEngine) -> None:
    """Every token has a share between 0 and 1, and the end holds five rows that any process computes alike."""
    asked = command(tools=[WEATHER], tool_choice="required", max_tokens=60)
    first, again = (list(engine.draft(asked)) for engine in (llama, DraftEngine(llama._loaded, prompt_lookup=False)))
    shares = [event.layer_agreement for event in first if isinstance(event, Token)]
    assert all(share in (0.0, 1.0) for share in shares)  # One probed layer in a model of two.
    assert len(set(shares)) == 2
    ends = [events[-1] for events in (first, again)]
    rows = [torch.tensor(end.hidden) for end in ends if isinstance(end, Done)]
    assert rows[0].shape == (5, HIDDEN_SIZE)
    assert rows[0].abs().sum(dim=1).min() > 0
    torch.testing.assert_close(rows[0], rows[1], atol=1e-4, rtol=1e-3)
