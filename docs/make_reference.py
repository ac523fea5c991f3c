"""Writes docs/reference.md from the docstrings: every public name, and every option of every verb.
`python docs/make_reference.py`; a test fails while the page is out of date."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import itertools
import re
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tyro

import camlucida as cl
from camlucida import boxes, cli, maps

PAGE = Path(__file__).with_name("reference.md")
HEAD = """# Reference

Written by `python docs/make_reference.py` from the docstrings; change those, not this page. Shapes: N pictures, K
targets, C classes or channels, H × W pixels.

"""


def text() -> str:
    """The whole page."""
    names = [name for name in cl.__all__ if not name.startswith("__")]
    public = {name: getattr(cl, name) for name in names}
    modules = {name: thing for name, thing in public.items() if isinstance(thing, types.ModuleType)}
    things = {name: thing for name, thing in public.items() if name not in modules}
    by_stage: dict[str, list[str]] = {}
    for name, thing in things.items():
        by_stage.setdefault(_stage(thing), []).append(name)
    lines = ["## Python", ""]
    for stage, members in by_stage.items():
        lines += [f"- `{stage}`: " + ", ".join(f"[{name}](#cl{name.lower()})" for name in members)]
    lines += ["- modules: " + ", ".join(f"[{name}](#cl{name.lower()}-module)" for name in modules), ""]
    for members in by_stage.values():
        for name in members:
            lines += [f"### cl.{name}", "", *_entry(f"cl.{name}", things[name])]
    for name, module in modules.items():
        lines += [f"### cl.{name} (module)", "", _doc(module), ""]
        for inner in getattr(module, "__all__", ()):
            thing = getattr(module, inner)
            if inner not in things and not isinstance(thing, dict):
                lines += [f"**cl.{name}.{inner}**", "", *_entry(f"cl.{name}.{inner}", thing)]
    for title, catalogue in (
        ("Methods", maps.METHODS),
        ("Reconstructions", maps.RECONSTRUCTIONS),
        ("Box rules", boxes.RULES),
    ):
        lines += [f"### {title} by name", "", "| name | class | options |", "|---|---|---|"]
        for spec, place in catalogue.items():
            module, _, cls = place.partition(":")
            fields = dataclasses.fields(getattr(importlib.import_module(module), cls))
            options = ", ".join(f"`{f.name}={_default(f)}`" for f in fields if f.init)
            lines += [f"| `{spec}` | `{cls}` | {_cell(options)} |"]
        lines += [""]
    lines += ["## Command line", "", "Exit codes: 0 done, 1 fault, 2 usage, 3 some inputs rejected, 130 interrupted.", ""]  # fmt: skip
    for words in (one for verb in cli.VERBS for one in _words(verb)):
        module, verb, _ = cli.module_of(words)
        lines += [f"### camlucida {verb}", "", _doc(module), "", "| option | value | default | |", "|---|---|---|---|"]  # fmt: skip
        lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in _options(module.Options)]
        lines += [""]
    page = HEAD + "\n".join(lines).rstrip() + "\n"
    machine = re.search(r"0x[0-9a-f]{6,}|/home/|/tmp/|site-packages", page)
    assert machine is None, f"this would differ from run to run: {page[machine.start() - 80 : machine.end() + 20]}"  # fmt: skip
    return page


def _words(verb: str) -> list[list[str]]:
    """A verb, or each of its kinds."""
    kinds = getattr(importlib.import_module(f"camlucida.cli.{verb}"), "KINDS", None)
    return [[verb]] if kinds is None else [[verb, kind] for kind in kinds]


def _stage(thing: Any) -> str:
    return getattr(thing, "__module__", "camlucida.values").split(".")[1]


def _entry(name: str, thing: Any) -> Iterator[str]:
    """Signature, docstring, fields, properties and methods of a class; the first two of a function."""
    if inspect.isfunction(thing):
        yield from (f"`{name}{_signature(thing)}`", "", _doc(thing), "")
        return
    if not inspect.isclass(thing):
        yield from (f"`{thing!r}`", "")
        return
    if dataclasses.is_dataclass(thing):
        fields = [f for f in dataclasses.fields(thing) if not f.name.startswith("_")]
        given = ", ".join(f"{f.name}: {_type(f.type)}" + _with_default(f) for f in fields if f.init)
        words = _field_docs(thing)
        documented = [f"- `{f.name}`: {words[f.name]}" for f in fields if f.name in words]
        yield from (f"`{name}({given})`", "", _doc(thing), "", *documented, *([""] if documented else []))
    else:
        yield from (_doc(thing), "")
    members = list(_members(thing))
    yield from (*members, *([""] if members else []))


def _members(thing: type) -> Iterator[str]:
    """Public properties and methods, a line each."""
    for member, value in vars(thing).items():
        function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        function = getattr(function, "fget", None) or getattr(function, "func", None) or function
        if member.startswith("_") or not inspect.isfunction(function):
            continue
        called = "" if not callable(value) and not isinstance(value, (classmethod, staticmethod)) else _signature(function)  # fmt: skip
        about = _doc(function)
        yield f"- `.{member}{called}`" + (": " + about.replace("\n\n", " ") if about else "")


def _signature(function: Any) -> str:
    shown, star = [], False
    for p in inspect.signature(function).parameters.values():
        if p.name in ("self", "cls") and not shown:
            continue
        if p.kind is p.KEYWORD_ONLY and not star:
            shown.append("*")
            star = True
        word = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "") + p.name
        word += f": {_type(p.annotation)}" if p.annotation is not p.empty else ""
        shown.append(word + (f" = {_value(p.default)}" if p.default is not p.empty else ""))
        star = star or p.kind is p.VAR_POSITIONAL
    back = function.__annotations__.get("return")
    return f"({', '.join(shown)})" + (f" -> {_type(back)}" if back not in (None, "None") else "")


def _type(annotation: Any) -> str:
    written = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    return written.replace("typing.", "").replace('"', "'")


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _with_default(field: dataclasses.Field[Any]) -> str:
    return f" = {_default(field)}" if _has_default(field) else ""


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return f"{getattr(field.default_factory, '__name__', '…')}()"
    return _value(field.default) if field.default is not dataclasses.MISSING else "…"


def _value(value: Any) -> str:
    """A default as it would be written; an object by its class alone, whose own words may change."""
    plain = value is None or isinstance(value, (bool, int, float, str, tuple))
    return repr(value).replace("'", '"') if plain else f"{type(value).__name__}()"


def _doc(thing: Any) -> str:
    """The thing's own docstring, a line per paragraph; empty for the one that dataclasses make up."""
    written = inspect.cleandoc(thing.__doc__ or "") if isinstance(thing.__doc__, str) else ""
    if inspect.isclass(thing) and written.startswith(f"{thing.__name__}("):
        return ""
    parts = list[str]()
    for paragraph in written.split("\n\n"):
        for stands, group in itertools.groupby(paragraph.splitlines(), _stands):
            lines = [line.strip() for line in group]
            parts.append("\n".join(f"    {line}" for line in lines) if stands else " ".join(lines))
    return "\n\n".join(parts)


def _stands(line: str) -> bool:
    """Whether a line of a docstring is an example or a row of a list, to be kept as it stands."""
    return line.startswith("  ") or bool(re.match(r"camlucida \w+ ", line))


def _field_docs(cls: type) -> dict[str, str]:
    """The string below each field of a class and of what it inherits from."""
    found: dict[str, str] = {}
    for one in reversed(cls.__mro__[:-1]):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(one)))
        except (OSError, TypeError):
            continue
        body = tree.body[0].body  # type: ignore[attr-defined]
        for field, below in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):  # fmt: skip
                found[field.target.id] = " ".join(str(below.value.value).split())  # type: ignore[union-attr]
    return found


def _options(cls: type) -> Iterator[tuple[str, str, str, str]]:
    """The options of a verb, positional ones first as they are declared; those of a nested dataclass in its place."""
    hints, words = typing.get_type_hints(cls, include_extras=True), _field_docs(cls)
    for field in dataclasses.fields(cls):
        annotation, marks = hints[field.name], ()
        while typing.get_origin(annotation) is typing.Annotated:
            annotation, *more = typing.get_args(annotation)
            marks = (*marks, *more)
        if dataclasses.is_dataclass(annotation):
            yield from _options(typing.cast(type, annotation))
            continue
        shown = next((m.metavar for m in marks if getattr(m, "metavar", None)), None)
        flag = f"--{field.name.replace('_', '-')}"
        if tyro.conf.Positional in marks:
            flag = shown or field.name.upper()
            shown = "one or more" if typing.get_origin(annotation) is tuple else "one"
        default = _default(field).strip('"') if _has_default(field) else "required"
        default = "" if default in ("None", "False", "") else default
        yield f"`{flag}`", shown or _kind(annotation), default and f"`{default}`" if default != "required" else default, words.get(field.name, "")  # fmt: skip


def _kind(annotation: Any) -> str:
    """What may follow an option."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " | ".join(f"`{value}`" for value in inner)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_kind(one) for one in inner if one is not types.NoneType)
    if origin is tuple:
        return f"{_kind(inner[0])}, several"
    return {bool: "(flag)", int: "number", float: "number", str: "text"}.get(annotation, _type(annotation))


def _cell(words: str) -> str:
    return words.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
