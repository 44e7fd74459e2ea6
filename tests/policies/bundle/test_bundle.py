"""Bundles: made whole, loaded checked, void where something differs."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from policies.bundle.bundle import BundleError, bare_name, differences, load, save
from policies.bundle.manifest import (
    Budget,
    Classes,
    ClassifierEntry,
    GainRule,
    GateEntry,
    MadeFor,
    Manifest,
    OneClass,
    ScoreEntry,
    ServingPrices,
    Shown,
    Stages,
    Threshold,
    ToolsJudge,
)
from policies.rules.price_aware import BudgetController
from policies.types import Action, Policy
from tests.policies.rules.test_thresholds import REQUEST, draft

MADE_FOR = MadeFor(
    weights_sha256="0" * 64, adapter_sha256=None, pattern_version="1", dtype="float32", grammar=True,
    large_model="gpt-4o",
)  # fmt: skip
SHOWN = Shown(
    kind="harm", alpha=0.05, delta=0.1, threshold=0.5, rows=400, accepted=200, errors=10, bound=0.04,
    data_sha256="a" * 64,
)  # fmt: skip
PRICES = ServingPrices(
    usd_per_character=1e-6, usd_of_answer=0.001, usd_a_request=0.002, latency_s=1.0, small_usd_per_hour=0.1,
    large_passes={"single": 0.9, "parallel": 0.9, "no_call": 0.9, "ask": 0.9},
)  # fmt: skip
SCORE = ScoreEntry(score="weakest_token", calibration=[(0.0, 0.0), (1.0, 1.0)])


def manifest(policy: Any = None, **changes: Any) -> Manifest:
    """A threshold with a certificate, changed as asked."""
    fields = {
        "judge": SCORE,
        "policy": policy or Threshold(threshold=0.5, certificate=SHOWN.id),
        "certificates": [SHOWN],
        "made_for": MADE_FOR,
        "prices": PRICES,
    }
    return Manifest(**{**fields, **changes})


@pytest.mark.parametrize(
    "policy",
    [
        Threshold(threshold=0.5, certificate=SHOWN.id),
        Threshold(threshold=None),
        Stages(
            threshold=0.5,
            request_gate=GateEntry(judge=ToolsJudge(), threshold=-4.0),
            plan_gate=GateEntry(judge=ScoreEntry(score="least_margin"), threshold=0.1),
            certificate=SHOWN.id,
        ),
        Classes(classes=[OneClass(pattern="*", alpha=0.05, threshold=0.5, certificate=SHOWN.id)]),
        GainRule(floor=0.5, pass_per_usd=3.0, certificate=SHOWN.id),
        Budget(floor=0.5, usd_per_hour=2.0, certificate=SHOWN.id),
    ],
)
def test_what_is_saved_is_what_is_loaded(policy: Any, tmp_path: Path) -> None:
    """Every kind of policy comes back as it was, and judges."""
    digest = save(tmp_path / "b", manifest(policy))
    bundle = load(tmp_path / "b", digest)
    assert bundle.manifest.policy == policy
    assert bundle.manifest.certificates == [SHOWN]
    served: Policy = bundle.policy(lambda budget, mean: BudgetController(budget, mean, lambda: 0.0))
    verdict = served.after(REQUEST, draft(plan=(1.0,), values=(0.95,)))
    answers = not (isinstance(policy, Threshold) and policy.threshold is None)
    assert (verdict.action is Action.ANSWER) == answers
    assert verdict.certificate == (SHOWN.id if answers else None)
    assert bundle.summary()["digest"] == digest


def test_the_name_is_the_content(tmp_path: Path) -> None:
    """The same content has the same digest wherever it lies; another content has another."""
    one, two = save(tmp_path / "a", manifest()), save(tmp_path / "b", manifest())
    assert one == two == hashlib.sha256((tmp_path / "a" / "bundle.json").read_bytes()).hexdigest()
    assert save(tmp_path / "c", manifest(made_by="else")) != one
    with pytest.raises(BundleError, match="never changed"):
        save(tmp_path / "a", manifest(made_by="else"))
    with pytest.raises(BundleError, match="as asked for"):
        load(tmp_path / "a", "f" * 64)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"], "nothing half made is left"


def _edited(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change `bundle.json` and make its digest fit: what only the format's checks can see."""
    content = json.loads((folder / "bundle.json").read_text())
    change(content)
    text = json.dumps(content)
    (folder / "bundle.json").write_text(text)
    (folder / "digest").write_text(hashlib.sha256(text.encode()).hexdigest())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(extra=1), "unknown field `extra`"),
        (lambda c: c["policy"].update(thresold=1), "thresold"),
        (lambda c: c["policy"].update(kind="magic"), "magic"),
        (lambda c: c["judge"].update(score="mood"), "mood"),
        (lambda c: c.update(format=2), "format"),
        (lambda c: c["policy"].update(certificate="nobody"), "no certificate of the bundle"),
        (lambda c: c.update(made_for=None), "made_for"),
        (lambda c: c["certificates"][0].update(alpha=2), "alpha"),
        (lambda c: c["judge"].update(calibration=[[0, 1], [1, 0]]), "calibration"),
        (lambda c: c["files"].update({"x": {"sha256": "0" * 64, "size_bytes": 1}}), "is missing"),
        (lambda c: c.update(policy={"kind": "gain", "floor": 0.5}, prices=None), "prices"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(change: Any, message: str, tmp_path: Path) -> None:
    """Unknown keys, kinds, values out of range and references to nothing."""
    save(tmp_path / "b", manifest())
    _edited(tmp_path / "b", change)
    with pytest.raises(BundleError, match=message):
        load(tmp_path / "b")


def test_what_was_changed_by_hand_is_refused(tmp_path: Path) -> None:
    """The manifest, the digest, a further file, a link, a file of absurd size, and no bundle at all."""
    folder = tmp_path / "b"

    def fresh() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        save(folder, manifest())

    def refused(message: str) -> None:
        with pytest.raises(BundleError, match=message):
            load(folder)
        fresh()

    fresh()
    path = folder / "bundle.json"
    path.write_text(path.read_text().replace("0.5", "0.1", 1))
    refused("was changed")
    (folder / "digest").write_text("f" * 64)
    refused("was changed")
    (folder / "further").write_text("x")
    refused("does not belong")
    (folder / "link").symlink_to("/etc/passwd")
    refused("regular file")
    path.write_bytes(b" " * (4 * 1024 * 1024 + 1))
    refused("more than")
    path.unlink()
    refused("No such file")
    path.write_text("[" * 100_000)
    (folder / "digest").write_text(hashlib.sha256(path.read_bytes()).hexdigest())
    refused("bundle.json")


def test_a_classifiers_files_travel_with_the_bundle_and_are_held_by_their_hashes(tmp_path: Path) -> None:
    """They are copied, and a changed one is refused before anything reads it."""
    source = tmp_path / "classifier"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "trees.json").write_text("{}")
    judged = manifest(judge=ClassifierEntry(features_version=10**6))
    with pytest.raises(BundleError, match="needs its folder"):
        save(tmp_path / "b", judged)
    with pytest.raises(BundleError, match="needs its folder"):
        save(tmp_path / "b", manifest(), {"classifier": source})
    save(tmp_path / "b", judged, {"classifier": source})
    with pytest.raises(BundleError, match="features_version"):
        load(tmp_path / "b")
    (tmp_path / "b" / "classifier" / "inner" / "trees.json").write_text("[]")
    with pytest.raises(BundleError, match="is not the file"):
        load(tmp_path / "b")
    (source / "link").symlink_to("/etc/passwd")
    with pytest.raises(BundleError, match="regular file"):
        save(tmp_path / "c", judged, {"classifier": source})


@dataclass
class Loaded:
    weights_sha256: str = "0" * 64
    adapter_sha256: str | None = None
    pattern_version: str = "1"
    dtype: str = "float32"


@pytest.mark.parametrize(
    ("changed", "others", "found"),
    [
        ({}, {}, ()),
        ({}, {"large_model": "openai/gpt-4o"}, ()),
        ({"weights_sha256": "1" * 64}, {}, ("weights_sha256",)),
        ({"adapter_sha256": "1" * 64}, {}, ("adapter_sha256",)),
        ({"pattern_version": "2"}, {}, ("pattern_version",)),
        ({"dtype": "int8"}, {}, ("dtype",)),
        ({}, {"grammar": False}, ("grammar",)),
        ({}, {"large_model": "gpt-4o-mini"}, ("large_model",)),
        ({}, {"large_model": None}, ("large_model",)),
        ({"dtype": "int8"}, {"grammar": False}, ("dtype", "grammar")),
    ],
)
def test_a_certificate_holds_for_what_it_was_made_for_and_nothing_else(
    changed: dict[str, str], others: dict[str, Any], found: tuple[str, ...]
) -> None:
    """Each hash, the precision, the grammar and the large model, by name."""
    given = {"grammar": True, "large_model": "gpt-4o", **others}
    assert differences(MADE_FOR, replace(Loaded(), **changed), **given) == found


def test_harm_counted_against_a_model_that_is_always_right_holds_for_any() -> None:
    """Nothing is said of the large model's name then."""
    any_model = msgspec.structs.replace(MADE_FOR, large_model=None)
    assert differences(any_model, Loaded(), grammar=True, large_model="anthropic/claude") == ()
    assert bare_name("openai/GPT-4o") == "gpt-4o"


def test_a_certificate_says_what_it_shows() -> None:
    """The sentence holds the rate, the confidence and the counts; its id changes with any of them."""
    assert "at most 5.00% of all requests are made worse (10 of 400)" in SHOWN.sentence()
    risk = msgspec.structs.replace(SHOWN, kind="risk", scope="delete_*")
    assert "accepted small are wrong among calls of delete_* (10 of 200)" in risk.sentence()
    assert len({SHOWN.id, risk.id, msgspec.structs.replace(SHOWN, errors=11).id}) == 3
