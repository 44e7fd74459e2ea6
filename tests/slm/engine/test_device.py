"""A model on a GPU, by code path: there is none here, so one is played by marking tensors.

`Gpu` intercepts every call of torch's Python interface. What is made with `device="cuda"`, or moved there, is computed
on the CPU and remembered as lying on the GPU; an operation over tensors of both kinds is an error, as it would be
there. What it cannot show is what a real GPU computes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from slm.engine.engine import DraftEngine
from slm.engine.model import LoadError, load
from slm.engine.shortlist import Embedding
from slm.protocol import CompleteCommand, Done, DraftCommand, Token
from tests.slm.conftest import command, tool

CUDA = torch.device("cuda", 0)
BOTH = ("_has_compatible_shallow_copy_type", "__set__")
"""What `Module.to` does with a parameter of one device and its copy on the other."""


class Gpu(TorchFunctionMode):
    """See the module. While it is entered, tensors say which device they lie on."""

    def __init__(self) -> None:
        super().__init__()
        self._there: dict[int, torch.Tensor] = {}
        """By the address of their memory; kept, so that no address is given out twice."""
        self.made = 0

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor lies on the GPU."""
        with torch._C.DisableTorchFunction():
            return tensor.untyped_storage().data_ptr() in self._there

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        flat = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, torch.Tensor)]
        if func == torch.Tensor.device.__get__:
            return CUDA if self.holds(args[0]) else func(*args)
        there = {self.holds(one) for one in flat if one.dim() and one.numel()}
        name = getattr(func, "__name__", str(func))
        if name in ("to", "cpu") and (True in there or "cuda" in map(_device, (*args, *kwargs.values()))):
            return self._moved(name, args[0], (*args[1:], *kwargs.values()))
        assert len(there) < 2 or name in BOTH, f"{name} over tensors of two devices"
        assert name != "numpy" or True not in there, "numpy() of a tensor on the GPU"
        wanted = _device(kwargs.get("device"))
        if wanted == "cuda":
            kwargs["device"] = "cpu"
        made = func(*args, **kwargs)
        if wanted == "cuda" or (wanted is None and True in there):
            self._mark(made)
        return made

    def _moved(self, name: str, tensor: torch.Tensor, asked: Sequence[Any]) -> torch.Tensor:
        assert not any(isinstance(one, torch.Tensor) for one in asked), "to(tensor) is not played"
        there = self.holds(tensor)
        named = next((device for device in map(_device, asked) if device), None)
        to_there = name != "cpu" and (there if named is None else named == "cuda")
        made = tensor
        for dtype in asked:
            made = made.to(dtype) if isinstance(dtype, torch.dtype) else made
        made = made if to_there == there else made.clone()
        return self._mark(made) if to_there else made

    def _mark(self, made: Any) -> Any:
        with torch._C.DisableTorchFunction():
            for one in tree_flatten(made)[0]:
                if isinstance(one, torch.Tensor) and one.numel():
                    self.made += 1
                    self._there[one.untyped_storage().data_ptr()] = one
        return made


def _device(value: Any) -> str | None:
    """The device that an argument names."""
    if isinstance(value, torch.device):
        return value.type
    return value if value in ("cpu", "cuda") else None


def tokens_of(engine: DraftEngine, asked: DraftCommand | CompleteCommand) -> tuple[list[Token], list[list[float]]]:
    """The tokens of a draft and its hidden states."""
    events = list(engine.draft(asked))
    assert isinstance(events[-1], Done)
    return [event for event in events if isinstance(event, Token)], events[-1].hidden


ASKED = [
    command(tool_choice="required", max_tokens=24),
    command(grammar=False, max_tokens=8),
    CompleteCommand(prompt="Say", grammar='root ::= [a-z]+ "."', alternatives=2, max_tokens=8),
]


@pytest.mark.parametrize("architecture", ["llama_folder", "opt_folder"])
def test_whole_drafts_mix_no_devices(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    """Loaded onto the GPU, prompts, decoding, guesses, signals, grammar and shared prefixes keep to it, by the lean
    pass and by transformers' own, and say what they say on the CPU."""
    folder: Path = request.getfixturevalue(architecture)
    here = DraftEngine.load(folder)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with Gpu() as gpu:
        there = DraftEngine.load(folder, device="cuda")
        assert all(gpu.holds(parameter) for parameter in there._loaded.model.parameters())
        for asked in (*ASKED, ASKED[0]):
            expected, states = tokens_of(here, asked)
            before = gpu.made
            got, got_states = tokens_of(there, asked)
            assert gpu.made > before + len(got)
            assert [token.id for token in got] == [token.id for token in expected]
            assert [token.layer_agreement for token in got] == [token.layer_agreement for token in expected]
            for row, as_here in zip(got_states, states, strict=True):
                np.testing.assert_allclose(row, as_here, atol=1e-4)


def test_a_shortlist_by_embeddings_is_made_there(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tools are ranked by states that are computed on the model's device."""
    texts = [str(tool(name)) for name in ("get_weather", "get_time", "book")]
    expected = Embedding(load(llama_folder)).scores("weather", texts)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with Gpu():
        got = Embedding(load(llama_folder, device="cuda")).scores("weather", texts)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_mixing_devices_is_noticed() -> None:
    """The played GPU refuses what a real one would."""
    with Gpu():
        there = torch.ones(3, device="cuda")
        assert (there.to("cpu") + torch.ones(3)).tolist() == [2.0, 2.0, 2.0]
        with pytest.raises(AssertionError, match="two devices"):
            there + torch.ones(3)
        with pytest.raises(AssertionError, match="two devices"):
            there[1:].masked_fill(torch.ones(2, dtype=torch.bool), 0.0)
        with pytest.raises(AssertionError, match="numpy"):
            there.numpy()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(llama_folder: Path) -> None:
    """By name, before anything is loaded."""
    with pytest.raises(LoadError, match="device cuda: torch finds no CUDA GPU"):
        DraftEngine.load(llama_folder, device="cuda")


def test_int8_is_refused_on_a_gpu(llama_folder: Path) -> None:
    """Its kernels are the CPU's."""
    with pytest.raises(LoadError, match="int8 runs on the CPU only"):
        load(llama_folder, dtype="int8", device="cuda")
