"""The command line: one file per verb. Nothing heavy is imported before the verb is known."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from camlucida import __version__
from camlucida.errors import (
    CamlucidaError,
    InputError,
    LayerError,
    NetworkError,
    TargetError,
    UsageError,
    nearest,
)

VERBS: dict[str, str] = {
    "localize": "photographs → classes, maps, boxes: a result folder and a page",
    "explain": "maps of one picture side by side: classes × methods and layers, as page and picture",
    "doctor": "is it the model or the map: a picture and a network checked, a verdict in words",
    "evaluate": "how good on labelled pictures: classes by one view, ten crops or densely; boxes and maps",
    "train": "the papers' networks, or yours, on your pictures, by a recipe; resumable",
    "probe": "what units see: receptive fields, strongest pictures, invariance, occlusion, filters, ablation",
    "features": "a new task without training: vectors of a network, linear SVMs, their maps",
    "pack": "your own weights and their card → one safetensors file",
    "layers": "a network's layers: size, stride, receptive field, gradient, thumbnails",
    "networks": "the names that --network and --arch know, and their cards",
}
RESUMABLE = ("localize", "train", "features extract")
KINDED = ("probe", "features")  # verbs whose next word is a kind
DONE, FAULT, USAGE, REJECTED, INTERRUPTED = 0, 1, 2, 3, 130

HELP = f"""camlucida {__version__}: what a convolutional network sees in a picture, and where.

usage: camlucida VERB [options]

{chr(10).join(f"  {verb:<10} {about}" for verb, about in VERBS.items())}

  camlucida localize photos/ --out seen/          localize with the network that ships in the package
  camlucida train pictures/train --recipe googlenet-twin --out runs/googlenet-twin
  camlucida evaluate pictures/val --task localization --network runs/googlenet-twin/network.safetensors
  camlucida VERB --help                           all options of a verb
  camlucida --version

exit codes: 0 done, 1 fault, 2 usage, 3 some inputs rejected, 130 interrupted (--resume goes on)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return DONE
    if given[0] in ("-V", "--version"):
        print(__version__)
        return DONE
    verb, rest = given[0], given[1:]
    try:
        if verb not in VERBS:
            raise UsageError(f"there is no verb {verb!r}", do=nearest(verb, VERBS))
        code = _verb(verb, rest)
        sys.stdout.flush()
        return code
    except UsageError as error:
        print(f"camlucida {verb}: {error}", file=sys.stderr)
        return USAGE
    except InputError as error:
        print(f"camlucida {verb}: {error}", file=sys.stderr)
        return REJECTED
    except CamlucidaError as error:
        print(f"camlucida {verb}: {error}", file=sys.stderr)
        return USAGE if isinstance(error, (NetworkError, TargetError, LayerError)) else FAULT
    except KeyboardInterrupt:
        goes_on = (
            "; the same command with --resume goes on" if {verb, " ".join(given[:2])} & {*RESUMABLE} else ""
        )
        print(f"\ncamlucida {verb}: interrupted{goes_on}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _forget_stdout()
        return FAULT
    except OSError as error:  # a disk or a terminal that refuses
        print(f"camlucida {verb}: {error}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:
            _forget_stdout()
        return FAULT


def _forget_stdout() -> None:
    """What cannot be written must not be tried again when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def module_of(words: Sequence[str]) -> tuple[Any, str, Sequence[str]]:
    """The module with the `Options` and `run` of a command, what the command is called, and the rest of its words. A verb
    with `KINDS` names the kind next. Raises UsageError for one that is not there."""
    module, name, rest = importlib.import_module(f"camlucida.cli.{words[0]}"), words[0], words[1:]
    if hasattr(module, "KINDS"):
        if not rest or rest[0] not in module.KINDS:
            asked = rest[0] if rest else ""
            raise UsageError(f"there is no {name} {asked!r}", do=nearest(asked, module.KINDS))
        name, module, rest = f"{name} {rest[0]}", importlib.import_module(module.module_of(rest[0])), rest[1:]
    return module, name, rest


def _verb(verb: str, arguments: Sequence[str]) -> int:
    """Reads a verb's options from its `Options` dataclass and runs it. Raises SystemExit(2) for unknown options."""
    if verb in KINDED and (not arguments or arguments[0] in ("-h", "--help", "help")):
        print(importlib.import_module(f"camlucida.cli.{verb}").HELP, end="")
        return DONE
    module, name, rest = module_of([verb, *arguments])
    import tyro

    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)
    options = tyro.cli(
        module.Options, prog=f"camlucida {name}", description=module.__doc__, args=rest, config=config
    )
    return module.run(options, [f"camlucida {name}", *rest])
