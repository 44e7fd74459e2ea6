"""Options in groups: a command takes a dataclass, and each of the dataclass's fields is an option of the command."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Annotated, Any, get_args, get_type_hints


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer reads it: parameters whose type is a dataclass become options, one for each field.

    Fields are annotated as parameters of a command are. In `--help` the options of a group stand in a panel that is
    named by the first line of the dataclass's docstring.
    """
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {}
    options: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if dataclasses.is_dataclass(parameter.annotation):
            groups[parameter.name] = parameter.annotation
            options += _options_of(parameter.annotation)
        else:
            options.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def called(**given: Any) -> None:
        made = {
            name: group(**{field.name: given.pop(field.name) for field in dataclasses.fields(group)})
            for name, group in groups.items()
        }
        command(**given, **made)

    called.__signature__ = signature.replace(parameters=options)  # type: ignore[attr-defined]
    called.__annotations__ = {option.name: option.annotation for option in options}
    return called


def words(group: Any) -> list[object]:
    """The options of a group that are not at their defaults, as they stand on a command line."""
    found: list[object] = []
    for field in dataclasses.fields(group):
        value = getattr(group, field.name)
        option = "--" + field.name.replace("_", "-")
        if value == field.default:
            continue
        if isinstance(value, bool):
            found.append(option if value else option.replace("--", "--no-", 1))
        else:
            for one in value if isinstance(value, list) else [value]:
                found += [option, one]
    return found


def _options_of(group: Any) -> Iterator[inspect.Parameter]:
    panel = (inspect.getdoc(group) or "").partition("\n")[0].rstrip(".")
    hints = get_type_hints(group, include_extras=True)
    annotated: Any = Annotated
    for field in dataclasses.fields(group):
        kind, option = get_args(hints[field.name])
        option = copy.copy(option)
        option.rich_help_panel = panel
        yield inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=annotated[kind, option],
        )
