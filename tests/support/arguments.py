"""Arguments for a method, made of its type hints: the least that its types allow."""

from __future__ import annotations

import inspect
import types
import typing
from typing import TYPE_CHECKING, Any, Literal, TypeAliasType, Union

import typing_extensions

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["required", "value"]

FILES = {"audio_sample", "data", "file", "files", "image", "input_reference", "recording", "video"}
"""Parameters that take a file; what their types say is all that can be one."""

_REQUIRED = (typing.Required, typing_extensions.Required)  # `__required_keys__` misses those whose annotations are text


def required(method: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """The required arguments; `given` by name, for each parameter of the method with such a name."""
    method = next(iter(typing.get_overloads(method)), method)
    hints = typing.get_type_hints(method, include_extras=True)
    parameters = {name: it for name, it in inspect.signature(method).parameters.items() if name != "self"}
    made = {
        name: ("a.bin", b"bytes", "application/octet-stream") if name in FILES else value(hints[name], given)
        for name, parameter in parameters.items()
        if parameter.default is inspect.Parameter.empty
    }
    return made | {name: it for name, it in given.items() if name in parameters}


def value(hint: Any, given: dict[str, Any]) -> Any:
    """A value of that type; of a union the first, of a dictionary the required members."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, TypeAliasType):
        return value(hint.__value__, given)
    if origin in (typing.Annotated, typing.NotRequired, typing_extensions.NotRequired, *_REQUIRED):
        return value(arguments[0], given)
    if origin is Literal:
        return arguments[0]
    if origin in (Union, types.UnionType):
        return value(next(it for it in arguments if it is not type(None)), given)
    if typing_extensions.is_typeddict(hint):
        members = typing.get_type_hints(hint, include_extras=True)
        names = [name for name in members if name in hint.__required_keys__ or typing.get_origin(members[name]) in _REQUIRED]
        return {name: given.get(name) or value(members[name], given) for name in names}
    if origin is dict or hint is object:
        return {}
    if origin is not None:  # a list, or what a list is to a caller
        return [value(arguments[0], given)]
    return {str: "x", int: 1, float: 1.0, bool: False, bytes: b"x"}[hint]
