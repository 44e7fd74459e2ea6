"""`smallcall keys`: virtual keys in the ledger's database.

A running gateway heeds a change after `Constants.refresh_s` at the latest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from evaluation.report.sheet import Sheet
from router.cli.output.tables import AsForm, AsJson, Form, show, write_data
from router.settings import SettingsError, load_settings

keys_app = typer.Typer(no_args_is_help=True)
console = Console()
T = TypeVar("T")

Config = Annotated[Path | None, typer.Option("--config", help="a YAML file; SMALLCALL_* variables win over it")]
_COLUMNS = ("id", "name", "tenant", "key", "state", "spent $", "budget", "a minute", "models")

_WINDOWS = {"day": " a day", "month": " a month", "total": " in all"}


def _fail(message: str, code: int) -> typer.Exit:
    console.print(message, highlight=False, markup=False, soft_wrap=True)
    return typer.Exit(code)


def _with_store(config: Path | None, work: Callable[[Any], Awaitable[T]]) -> T:
    """Run `work` on the keys of the configured database. Exit code 2: the configuration; 1: the database."""
    from router.access.store import KeyStore, KeysUnavailableError, TooManyKeysError
    from router.ledger.store import Ledger, LedgerUnavailableError

    try:
        settings = load_settings(config)
    except SettingsError as error:
        raise _fail(f"configuration: {error}", 2) from None

    async def run() -> T:
        async with Ledger.open(settings.ledger.url) as ledger:
            return await work(KeyStore(ledger.engine))

    try:
        return asyncio.run(run())
    except (LedgerUnavailableError, KeysUnavailableError, TooManyKeysError) as error:
        raise _fail(str(error), 1) from None


@keys_app.command()
def create(
    name: Annotated[str, typer.Option(help="for people; need not be unique")],
    tenant: Annotated[str | None, typer.Option(help="whose it is")] = None,
    expires: Annotated[str | None, typer.Option(help="such as 30d, 12h, 90m or 2027-01-31T00:00:00Z")] = None,
    hard_usd: Annotated[float | None, typer.Option(help="budget; where it is spent, requests are refused")] = None,
    soft_usd: Annotated[
        float | None, typer.Option(help="budget; where it is spent, answers and the log say so")
    ] = None,
    window: Annotated[
        str, typer.Option(help="of the budgets: day, month or total; days and months are UTC's")
    ] = "month",
    rpm: Annotated[int | None, typer.Option(help="requests a minute")] = None,
    tpm: Annotated[int | None, typer.Option(help="tokens a minute")] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="glob of a model name that may be asked for; repeatable")
    ] = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Make a key, and show it: it is kept as a digest only, so nobody can show it again."""
    from router.access.keys import KeyFieldsError, expiry, new_key

    now = datetime.now(UTC)
    try:
        asked = new_key(
            {
                "name": name,
                "tenant": tenant,
                "expires_at": expiry(expires, now) if expires else None,
                "hard_usd": hard_usd,
                "soft_usd": soft_usd,
                "window": window,
                "requests_per_minute": rpm,
                "tokens_per_minute": tpm,
                "models": model or [],
            }
        )
    except KeyFieldsError as error:
        raise _fail(str(error), 2) from None
    key, secret = _with_store(config, lambda store: store.create(asked, now))
    if as_json:
        console.print_json(data={**key.to_public_dict(0), "key": secret})
        return
    console.print(secret, highlight=False, markup=False, soft_wrap=True)
    console.print(f"{key.key_id}: keep the key now, it cannot be shown again", highlight=False)


@keys_app.command("list")
def list_keys(form: AsForm = Form.TABLE, as_json: AsJson = False, config: Config = None) -> None:
    """All keys, revoked ones too, and what each has spent in its current window."""
    from router.access.store import spent_by

    now = datetime.now(UTC)

    async def read(store: Any) -> list[dict[str, Any]]:
        ring, sums = await store.ring(), await store.spent(now)
        shown = [(key, key.to_public_dict(spent_by(key, sums, now))) for key in ring.by_id.values()]
        return [{**fields, "state": _state(key.refusal(now))} for key, fields in shown]

    keys = _with_store(config, read)
    if write_data(form, as_json, keys, keys):
        return
    show(
        Sheet(_COLUMNS, [_cells(key) for key in keys], folds=("name", "tenant", "budget", "a minute", "models")),
        console,
    )


@keys_app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="as `keys list` shows it")],
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Shut a key for ever. Exit code 1: there is no such key."""
    key = _with_store(config, lambda store: store.revoke(key_id, datetime.now(UTC)))
    if key is None:
        raise _fail(f"{key_id}: there is no such key", 1)
    if as_json:
        console.print_json(data=key.to_public_dict())
        return
    console.print(f"{key.key_id} ({key.name}) is revoked", highlight=False, markup=False)


def _state(refusal: str | None) -> str:
    return "open" if refusal is None else refusal.rpartition(" ")[2]


def _cells(key: dict[str, Any]) -> list[str]:
    budget = [f"{kind} {key[f'{kind}_usd']:g}" for kind in ("hard", "soft") if key[f"{kind}_usd"] is not None]
    rates = [
        f"{key[f'{kind}_per_minute']} {kind}"
        for kind in ("requests", "tokens")
        if key[f"{kind}_per_minute"] is not None
    ]
    return [
        key["id"],
        key["name"],
        key["tenant"] or "",
        key["hint"],
        key["state"],
        f"{key['spent_usd']:.6f}",
        ", ".join(budget) + (_WINDOWS[key["window"]] if budget else ""),
        ", ".join(rates),
        " ".join(key["models"]) or "any",
    ]
