"""The class of a converted block: made for the class that the block had, of which it is a subclass."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import nn

from ..errors import TiledSEError, first_line

_MISSING = object()


class Signature(NamedTuple):
    """How a block is called: the name of its map, and of what it takes beside it, with the defaults."""

    names: tuple[str, ...]
    defaults: dict[str, Any]

    @classmethod
    def of(cls, source: type[nn.Module]) -> Signature:
        """That of a class.

        Raises:
            TiledSEError: its forward takes no map.
        """
        try:
            _, *parameters = inspect.signature(source.forward).parameters.values()
        except (TypeError, ValueError) as error:
            raise TiledSEError(
                f"the forward of {source.__qualname__} has no signature: {first_line(error)}"
            ) from error
        if not parameters or parameters[0].kind in (
            inspect.Parameter.KEYWORD_ONLY,
            inspect.Parameter.VAR_KEYWORD,
        ):
            raise TiledSEError(f"the forward of {source.__qualname__} takes no map")
        positional = [p for p in parameters if p.kind <= inspect.Parameter.POSITIONAL_OR_KEYWORD]
        names = tuple(p.name for p in positional) or (parameters[0].name,)
        return cls(names, {p.name: p.default for p in parameters if p.default is not p.empty})

    def first_of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The map of a call, whatever comes with it.

        Raises:
            TypeError: there is none.
        """
        if not args and self.names[0] not in kwargs:
            raise TypeError(f"forward() takes ({', '.join(self.names)}), got {list(kwargs)}")
        return args[0] if args else kwargs[self.names[0]]

    def map_of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The map among the arguments of a call.

        Raises:
            TypeError: there is none.
            TiledSEError: there is more, and no default.
        """
        given = {**dict(zip(self.names, args)), **kwargs}
        if len(args) > len(self.names) or self.names[0] not in given:
            raise TypeError(
                f"forward() takes ({', '.join(self.names)}), got {len(args)} arguments and {list(kwargs)}"
            )
        x = given.pop(self.names[0])
        for name, value in given.items():
            default = self.defaults.get(name, _MISSING)
            if value is not default and not (type(value) is type(default) and value == default):
                raise TiledSEError(
                    f"a converted block takes its map '{self.names[0]}' and defaults, but was called with '{name}'; "
                    "leave this block as it is, with the tile HxW"
                )
        return x


def tiled_class(source: type[nn.Module], base: type[nn.Module], given: Mapping[str, Any]) -> type[nn.Module]:
    """A subclass of ``base`` and ``source``, the same one for the same arguments.

    Args:
        source: The class of a block.
        base: What comes before it in the order of classes.
        given: Names that the block has not, and what they are to be.

    Raises:
        TiledSEError: Python makes no subclass of it.

    Example:
        >>> class Base(nn.Module):
        ...     _tiledse_forward = nn.Identity.forward
        >>> made = tiled_class(nn.ReLU, Base, {})
        >>> made.__name__, made is tiled_class(nn.ReLU, Base, {}), issubclass(made, nn.ReLU)
        ('TiledReLU', True, True)
    """
    names = tuple(sorted(given))
    for known in source.__subclasses__():
        if vars(known).get("_tiledse_given") == (base, names):
            return known
    space = {
        **given,
        "forward": _forward_of(source),
        "_tiledse_given": (base, names),
        "__module__": source.__module__,
        "__qualname__": f"Tiled{source.__qualname__}",
        "__doc__": source.__doc__,
    }
    try:
        made = types.new_class(f"Tiled{source.__name__}", (base, source), {}, lambda body: body.update(space))
    except TypeError as error:
        raise TiledSEError(
            f"no subclass can be made of {source.__qualname__}: {first_line(error)}; "
            "leave its blocks as they are, with the tile HxW"
        ) from error
    return made


def _forward_of(source: type[nn.Module]) -> Callable[..., Any]:
    """A forward with the signature of the class's own, for the map alone."""
    signature = Signature.of(source)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs:
            return self._tiledse_forward(args[0])
        if self.tiledse.dialect.valid is not None:
            return self._tiledse_valid(*args, **kwargs)
        return self._tiledse_forward(signature.map_of(args, kwargs))

    functools.update_wrapper(forward, source.forward)
    return forward
