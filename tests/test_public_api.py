"""The public surface, listed by hand in api_surface.json: a name that goes or a field that changes is seen here."""

import dataclasses
import inspect
import json
from pathlib import Path

import camlucida as cl

SURFACE = Path(__file__).with_name("api_surface.json")


def surface() -> dict[str, list[str] | str]:
    found: dict[str, list[str] | str] = {}
    for name in sorted(cl.__all__):
        thing = getattr(cl, name)
        if dataclasses.is_dataclass(thing):
            public = [f.name for f in dataclasses.fields(thing) if not f.name.startswith("_")]
            methods = [
                m
                for m in vars(thing)
                if not m.startswith("_") and m not in public and callable(getattr(thing, m))
            ]
            found[name] = [*public, *(f"{m}()" for m in sorted(methods))]
        elif inspect.isfunction(thing):
            found[name] = str(inspect.signature(thing)).replace("camlucida.", "")
        else:
            found[name] = type(thing).__name__
    return found


def test_surface_is_as_listed():
    assert surface() == json.loads(SURFACE.read_text(encoding="utf-8")), (
        "if meant: python tests/test_public_api.py, and a line in CHANGELOG.md"
    )


def test_stub_lists_the_same_names():
    stub = (Path(cl.__file__).parent / "__init__.pyi").read_text(encoding="utf-8")
    missing = [name for name in cl.__all__ if f" {name} as {name}" not in stub and f"{name}: " not in stub]
    assert not missing


if __name__ == "__main__":
    SURFACE.write_text(json.dumps(surface(), indent=1) + "\n", encoding="utf-8")
