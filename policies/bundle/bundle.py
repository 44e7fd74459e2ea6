"""A judge, its policy and what was shown of it, as one folder that is never changed: made, checked, loaded whole.

`bundle.json` (see `policies.bundle.manifest`) names every other file by its SHA-256; the bundle's own name is the
SHA-256 of `bundle.json`, which the file `digest` repeats. Loading refuses unknown keys, files that are not named or
differ, links, and anything over the limits. No pickle: a classifier's files are read by
`policies.classifier.classifier`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

import msgspec

from policies.bundle.manifest import (
    Budget,
    Classes,
    ClassifierEntry,
    GainRule,
    GateEntry,
    JudgeSpec,
    KeptFile,
    MadeFor,
    Manifest,
    ScoreEntry,
    Stages,
    Threshold,
    ToolsJudge,
)
from policies.rules.judge import FewTools, Judge, NamedScore
from policies.rules.price_aware import BudgetController, Budgeted, Gain, LargePrices
from policies.rules.thresholds import StagedPolicy, StageGate, ThresholdPolicy
from policies.rules.tool_classes import PerToolClass, ToolClass
from policies.types import Policy, Stage

MANIFEST, DIGEST = "bundle.json", "digest"
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
MAX_FILES = 64
MAX_BYTES = 64 * 1024 * 1024
"""Size limit in bytes of all files beside `bundle.json` together."""


class BundleError(ValueError):
    """A bundle that cannot be made or loaded; the message names the file or the field."""


class LoadedBundle(Protocol):
    """A worker's statement about itself, which `slm.protocol.Info` satisfies."""

    @property
    def weights_sha256(self) -> str: ...
    @property
    def adapter_sha256(self) -> str | None: ...
    @property
    def pattern_version(self) -> str: ...
    @property
    def dtype(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Bundle:
    """A loaded bundle."""

    manifest: Manifest
    digest: str
    judge: Judge
    request_gate: StageGate | None = None
    plan_gate: StageGate | None = None

    def policy(self, controller: Callable[[float, float], BudgetController] | None = None) -> Policy:
        """The policy that the bundle holds.

        Args:
            controller: makes a budget's controller of dollars an hour and a mean request's dollars; needed for a
                policy of kind `budget` only.

        Raises:
            BundleError: values that do not fit together.
        """
        try:
            return self._policy(controller)
        except ValueError as error:
            raise BundleError(f"{MANIFEST}: policy.{error}") from error

    def _policy(self, controller: Callable[[float, float], BudgetController] | None) -> Policy:
        manifest, judge = self.manifest, self.judge
        spec, others = manifest.policy, (manifest.on_no_call, manifest.on_ask)
        match spec:
            case Threshold():
                return ThresholdPolicy(judge, spec.threshold, *others, spec.certificate)
            case Stages():
                after = ThresholdPolicy(judge, spec.threshold, *others, spec.certificate)
                return StagedPolicy(after, self.request_gate, self.plan_gate)
            case Classes():
                classes = [ToolClass(one.pattern, one.alpha, one.threshold, one.certificate) for one in spec.classes]
                return PerToolClass(judge, tuple(classes), *others)
            case GainRule():
                return self._gain(spec.floor, spec.pass_per_usd, spec.pass_per_second, spec.certificate)
            case Budget():
                if controller is None or manifest.prices is None:
                    raise ValueError("usd_per_hour: a budget needs a clock and prices")
                gain = self._gain(spec.floor, 0.0, 0.0, spec.certificate)
                return Budgeted(gain, controller(spec.usd_per_hour, manifest.prices.usd_a_request).price)

    def _gain(self, floor: float | None, per_usd: float, per_second: float, certificate: str | None) -> Gain:
        manifest = self.manifest
        prices = manifest.prices
        assert prices is not None
        if self.judge.probability(0.0) is None:
            raise ValueError("kind: weighing money needs a judge with probabilities")
        large_prices = LargePrices(prices.usd_per_character, prices.usd_of_answer, prices.latency_s)
        passes = {str(kind): rate for kind, rate in prices.large_passes.items()}
        others = (manifest.on_no_call, manifest.on_ask, certificate)
        return Gain(self.judge, floor, passes, large_prices, per_usd, per_second, *others)

    def summary(self) -> dict[str, object]:
        """Return what a list of models shows: digest, policy, judge, certificates as sentences, what is expected."""
        manifest = self.manifest
        return {
            "digest": self.digest,
            "policy": msgspec.to_builtins(manifest.policy),
            "judge": self.judge.name,
            "certificates": [
                {"id": shown.id, "says": shown.sentence(), **msgspec.to_builtins(shown)}
                for shown in manifest.certificates
            ],
            "expected": msgspec.to_builtins(manifest.expected),
        }


def differences(made_for: MadeFor, loaded: LoadedBundle, *, grammar: bool, large_model: str | None) -> tuple[str, ...]:
    """The fields in which what is loaded is not what a bundle was made for; empty where its certificates hold."""
    pairs: Mapping[str, tuple[object, object]] = {
        "weights_sha256": (made_for.weights_sha256, loaded.weights_sha256),
        "adapter_sha256": (made_for.adapter_sha256, loaded.adapter_sha256),
        "pattern_version": (made_for.pattern_version, loaded.pattern_version),
        "dtype": (made_for.dtype, loaded.dtype),
        "grammar": (made_for.grammar, grammar),
    }
    found = [name for name, (then, now) in pairs.items() if then != now]
    if made_for.large_model is not None and (
        large_model is None or bare_name(made_for.large_model) != bare_name(large_model)
    ):
        found.append("large_model")
    return tuple(found)


def bare_name(model: str) -> str:
    """A large model's name without its provider: `openai/gpt-4o` and `gpt-4o` are one."""
    return model.rpartition("/")[2].lower()


def save(folder: Path, manifest: Manifest, classifiers: Mapping[str, Path] | None = None) -> str:
    """Write a bundle into a folder that does not exist yet; its digest. It is there whole or not at all.

    Args:
        classifiers: saved classifiers' folders, to be copied, by the name that the manifest has for each.

    Raises:
        BundleError: the folder exists, or something does not fit together.
        OSError: it cannot be written.
    """
    if folder.exists():
        raise BundleError(f"{folder}: exists; a bundle is never changed")
    given = classifiers or {}
    if given.keys() != {judge.folder for judge in manifest.judges() if isinstance(judge, ClassifierEntry)}:
        raise BundleError("judge: each judge of kind classifier needs its folder, and no other does")
    folder.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=".bundle-", dir=folder.parent))
    try:
        for kind, source in given.items():
            for name, path in _listed(source):
                target = making / kind / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        files = {name: KeptFile(sha256=_sha256(path), size_bytes=path.stat().st_size) for name, path in _listed(making)}
        whole = msgspec.structs.replace(manifest, files=dict(sorted(files.items())))
        _checked(whole)
        text = msgspec.json.format(msgspec.json.encode(whole), indent=1) + b"\n"
        digest = hashlib.sha256(text).hexdigest()
        (making / MANIFEST).write_bytes(text)
        (making / DIGEST).write_text(digest + "\n", encoding="ascii")
        making.chmod(0o755)
        os.rename(making, folder)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise
    return digest


def load(folder: Path, digest: str | None = None) -> Bundle:
    """Read a bundle, every file of it checked.

    Args:
        digest: the one that it must have.

    Raises:
        BundleError: anything is missing, unknown, too large, or not what its digest says.
    """
    try:
        return _load(folder, digest)
    except OSError as error:
        raise BundleError(f"{folder}: {error.strerror or error}") from error


def _load(folder: Path, digest: str | None) -> Bundle:
    text = _bounded(folder / MANIFEST, MAX_MANIFEST_BYTES)
    found, named = hashlib.sha256(text).hexdigest(), _bounded(folder / DIGEST, 100).decode("ascii", "replace").strip()
    if found != named:
        raise BundleError(f"{folder / MANIFEST}: was changed: it has digest {found[:16]}…, not {named[:16]}…")
    if digest is not None and digest != found:
        raise BundleError(f"{folder}: has digest {found[:16]}…, not {digest[:16]}… as asked for")
    try:
        manifest = msgspec.json.decode(text, type=Manifest)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BundleError(f"{folder / MANIFEST}: {error}") from error
    _checked(manifest)
    there = {name: path for name, path in _listed(folder) if name not in (MANIFEST, DIGEST)}
    if there.keys() != manifest.files.keys():
        odd = min(there.keys() ^ manifest.files.keys())
        raise BundleError(f"{folder / odd}: " + ("does not belong to it" if odd in there else "is missing"))
    for name, kept in manifest.files.items():
        if there[name].stat().st_size != kept.size_bytes or _sha256(there[name]) != kept.sha256:
            raise BundleError(f"{there[name]}: is not the file that the bundle was made with")
    gates: list[StageGate | None] = [None, None]
    if isinstance(manifest.policy, Stages):
        request, plan = manifest.policy.request_gate, manifest.policy.plan_gate
        gates = [_gate(request, folder, Stage.BEFORE), _gate(plan, folder, Stage.DURING)]
    return Bundle(manifest, found, _judge(manifest.judge, folder, Stage.AFTER), *gates)


def _gate(spec: GateEntry | None, folder: Path, stage: Stage) -> StageGate | None:
    return None if spec is None else StageGate(_judge(spec.judge, folder, stage), spec.threshold)


def _judge(spec: JudgeSpec, folder: Path, stage: Stage) -> Judge:
    if isinstance(spec, ToolsJudge):
        return FewTools()
    try:
        if isinstance(spec, ScoreEntry):
            return NamedScore(spec.score, tuple(spec.calibration))
        # A bundle of a named score needs no classifier.
        from policies.classifier.classifier import load_judge
        from policies.features.vector import FEATURES_VERSION

        if spec.features_version != FEATURES_VERSION:
            raise ValueError(f"features_version: {spec.features_version}; this program has {FEATURES_VERSION}")
        return load_judge(folder / spec.folder, stage)
    except ValueError as error:
        raise BundleError(f"{folder / MANIFEST}: judge.{error}") from error


def _checked(manifest: Manifest) -> None:
    problems = manifest.problems()
    if problems:
        raise BundleError(f"{MANIFEST}: {problems[0]}")


def _listed(folder: Path) -> Iterable[tuple[str, Path]]:
    """Regular files below a folder by their relative path, within the limits."""
    found, total = [], 0
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise BundleError(f"{path}: is no regular file")
        if path.is_file():
            found.append((str(PurePosixPath(path.relative_to(folder))), path))
            total += path.stat().st_size
        if len(found) > MAX_FILES + 2 or total > MAX_BYTES + MAX_MANIFEST_BYTES:
            raise BundleError(f"{folder}: more than {MAX_FILES} files or {MAX_BYTES} bytes")
    return found


def _bounded(path: Path, most: int) -> bytes:
    if path.is_symlink():
        raise BundleError(f"{path}: is no regular file")
    with path.open("rb") as file:
        text = file.read(most + 1)
    if len(text) > most:
        raise BundleError(f"{path}: more than {most} bytes")
    return text


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
