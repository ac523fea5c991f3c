"""Objects by name with options, `name:option=value,option=value`, for every catalogue: one grammar for
commands, cards and manifests. The options are the fields of the class, so a new field needs no other line
anywhere."""

from __future__ import annotations

import dataclasses
import importlib
import numbers
import types
import typing
from collections.abc import Mapping
from typing import Any

from camlucida.errors import UsageError, nearest

_WORDS = {True: "true", False: "false", None: "none"}
_UNIONS = (typing.Union, types.UnionType)


def build(spec: str, catalogue: Mapping[str, str], kind: str) -> object:
    """The instance that a spec describes: `occlusion:patch=16,stride=4`.

    `catalogue`: name → `module:Class`; only the class asked for is imported. `kind`: what it lists, for
    messages. Values are read as the field's annotation says: int, float, bool (`true`, `false`), str, `none`
    where None is allowed, `Literal[…]`, and tuples with `/` between (`levels=20/100`); no value has a comma.
    UsageError for an unknown name, option or value.
    """
    name, _, rest = (part.strip() for part in spec.partition(":"))
    if name not in catalogue:
        raise UsageError(kind, got=repr(name), do=nearest(name, catalogue))
    module, _, attribute = catalogue[name].partition(":")
    cls = getattr(importlib.import_module(module), attribute)
    fields = {f.name: f for f in _fields(cls)}
    annotations = typing.get_type_hints(cls) if rest else {}
    options: dict[str, Any] = {}
    for item in rest.split(",") if rest else []:
        option, equals, text = (part.strip() for part in item.partition("="))
        field = option.replace("-", "_")
        if not equals or not option:
            raise UsageError(f"{kind} {name}", got=repr(item.strip()), allowed="option=value,option=value")
        if field not in fields:
            known = nearest(field, fields) if fields else "it has none"
            raise UsageError(f"option of {kind} {name}", got=repr(option), do=known)
        if field in options:
            raise UsageError(f"option {option} of {kind} {name}", got="it twice", allowed="once")
        try:
            options[field] = _read(text, annotations[field])
        except ValueError:
            allowed = _allowed(annotations[field]) or "nothing that a spec can hold; set it in Python"
            raise UsageError(f"option {option} of {kind} {name}", got=repr(text), allowed=allowed) from None
    missing = [f for f in fields if f not in options and _default(fields[f]) is dataclasses.MISSING]
    if missing:
        raise UsageError(f"{kind} {name}", got=repr(spec), do=f"give {missing[0]}=…")
    return cls(**options)


def describe(instance: object, catalogue: Mapping[str, str]) -> str:
    """The spec of an instance: its name and the fields that are not at their defaults; `build` reads it back.

    For people and manifests it never fails: a class that is not in the catalogue is called `module:Class`,
    and a value that a spec cannot hold (a module, a tensor) by its type, as in `layer=<Conv2d>`.
    """
    cls = type(instance)
    place = f"{cls.__module__}:{cls.__qualname__}"
    name = next((name for name, listed in catalogue.items() if listed == place), place)
    options = []
    for field in _fields(cls):
        value, default = getattr(instance, field.name), _default(field)
        if _write(value) != _write(default):
            options.append(f"{field.name}={_write(value)}")
    return f"{name}:{','.join(options)}" if options else name


def _fields(cls: type) -> list[dataclasses.Field[Any]]:
    return [f for f in dataclasses.fields(cls) if f.init] if dataclasses.is_dataclass(cls) else []


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _write(value: object) -> str:
    if value is None or isinstance(value, bool):
        return _WORDS[value]
    if isinstance(value, str):
        return value
    if isinstance(value, numbers.Integral):
        return repr(int(value))
    if isinstance(value, numbers.Real):
        return repr(float(value))
    if isinstance(value, tuple):
        return "/".join(_write(item) for item in value)
    return f"<{type(value).__name__}>"


def _read(text: str, annotation: Any) -> Any:
    """The text as a value of that type; ValueError if it is none."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in _UNIONS:
        # str takes any text, so it comes last: `none` in `str | None` is None.
        for member in sorted(arguments, key=lambda a: a is str):
            try:
                return _read(text, member)
            except ValueError:
                continue
    elif origin is tuple:
        pieces = text.split("/") if text else []
        repeated = len(arguments) == 2 and arguments[1] is Ellipsis
        kinds = arguments[:1] * len(pieces) if repeated else arguments
        if len(kinds) == len(pieces):
            return tuple(_read(piece, kind) for piece, kind in zip(pieces, kinds, strict=True))
    elif annotation in (int, float, str):
        return annotation(text)
    else:
        words = {_write(value): value for value in _values(annotation)}
        if text in words:
            return words[text]
    raise ValueError(text)


def _values(annotation: Any) -> tuple[Any, ...]:
    """The few values that a Literal, bool or None allows; empty for anything else."""
    if typing.get_origin(annotation) is typing.Literal:
        return typing.get_args(annotation)
    return {bool: (True, False), types.NoneType: (None,)}.get(annotation, ())


def _allowed(annotation: Any) -> str:
    """An annotation in the words of a spec, empty if a spec cannot hold such a value."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in _UNIONS:
        return " | ".join(filter(None, map(_allowed, arguments)))
    if origin is tuple:
        return "/".join("…" if a is Ellipsis else _allowed(a) for a in arguments)
    words = {int: "an integer", float: "a number", str: "text"}.get(annotation)
    return words or " | ".join(_write(value) for value in _values(annotation))
