"""Options that come together are one frozen value: a verb takes the value, and typer sees each of its options."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import wraps
from importlib import import_module
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer

from ..signals import quitting
from .verbs import LOADED

Function = TypeVar("Function", bound=Callable[..., None])
OWN_PANEL = "Options"


class Command(typer.core.TyperCommand):
    """A verb, whose help has its options in the groups that they come in."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, the verb's own options, and those of each group."""
        panels: dict[str, list[tuple[str, str]]] = {"Arguments": [], OWN_PANEL: []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                own = getattr(parameter, "rich_help_panel", None) or OWN_PANEL
                panel = "Arguments" if parameter.param_type_name == "argument" else own
                panels.setdefault(panel, []).append(record)
        # --help stands last, after the groups.
        panels[OWN_PANEL] = panels.pop(OWN_PANEL)
        for panel, records in panels.items():
            if records:
                with formatter.section(panel):
                    formatter.write_dl(records)


def verb(name: str, **defaults: Any) -> Callable[[Function], Function]:
    """Make a function the verb ``name``.

    Args:
        name: What is typed.
        defaults: Of options whose default differs from that of their group, such as ``batch_size=64``.
    """

    def register(function: Function) -> Function:
        LOADED.command(name, cls=Command)(expanded(function, defaults))
        return function

    return register


def expanded(function: Callable[..., None], defaults: dict[str, Any]) -> Callable[..., None]:
    """A function of single options that calls one of frozen values.

    A parameter whose annotation is a dataclass stands for the options among the fields: those that are ``Annotated``.
    All other fields keep their defaults. A parameter of any other kind is an option of its own.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Size:
        ...     width: Annotated[int, typer.Option("--width")]
        ...     depth: Annotated[int, typer.Option("--depth")] = 2
        >>> def show(size: Size) -> None:
        ...     print(size)
        >>> call = expanded(show, {"depth": 3})
        >>> [(name, one.default) for name, one in signature(call).parameters.items()][1]
        ('depth', 3)
        >>> call(width=1, depth=3)
        Size(width=1, depth=3)
    """
    groups: dict[str, type] = {}
    parameters: dict[str, Parameter] = {}
    # Not get_type_hints: Python 3.10 hides what is Annotated in an Optional where the default is None.
    for parameter in signature(function, eval_str=True).parameters.values():
        kind = parameter.annotation
        if is_dataclass(kind):
            assert isinstance(kind, type)
            groups[parameter.name] = kind
            parameters |= {field.name: _parameter(kind, field) for field in _options(kind)}
        else:
            own = Parameter(
                parameter.name, Parameter.KEYWORD_ONLY, default=parameter.default, annotation=kind
            )
            parameters[parameter.name] = own
    assert defaults.keys() <= parameters.keys(), defaults
    for name, default in defaults.items():
        parameters[name] = parameters[name].replace(default=default)

    @wraps(function)
    def call(**given: Any) -> None:
        # Every verb needs torch. An import may swallow the exception that Ctrl-C raises, so it is done in quitting.
        with quitting():
            import_module("torch")
        values = {
            name: kind(**{field.name: given.pop(field.name) for field in _options(kind)})
            for name, kind in groups.items()
        }
        function(**values, **given)

    call.__signature__ = Signature(list(parameters.values()))  # type: ignore[attr-defined]
    call.__annotations__ = {one.name: one.annotation for one in parameters.values()}
    return call


def _options(kind: type) -> list[Field[Any]]:
    hints = get_type_hints(kind, include_extras=True)
    return [field for field in fields(kind) if get_origin(hints[field.name]) is Annotated]


def _parameter(kind: type, field: Field[Any]) -> Parameter:
    """The option of a field, in its group's part of the help."""
    plain, *notes = get_args(get_type_hints(kind, include_extras=True)[field.name])
    shown = [copy(note) for note in notes]
    for note in shown:
        note.rich_help_panel = getattr(kind, "panel", None)
    default = Parameter.empty if field.default is MISSING else field.default
    return Parameter(
        field.name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[(plain, *shown)]
    )
