"""The command line: one file per verb. Nothing heavy is imported before the verb is known."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

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
    "doctor": "is it the model or the map: a picture and a network checked, a verdict in words",
    "evaluate": "how good: top-1, top-5 and ground-truth-known localization on labelled pictures",
    "train": "a network by a recipe, resumable",
    "networks": "the names that --network knows",
}
DONE, FAULT, USAGE, REJECTED, INTERRUPTED = 0, 1, 2, 3, 130

HELP = f"""camlucida {__version__}: what a convolutional network sees in a picture, and where.

usage: camlucida VERB [options]

{chr(10).join(f"  {verb:<10} {about}" for verb, about in VERBS.items())}

  camlucida localize photos/ --out seen/          localize with the network that ships in the package
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
        return _verb(verb, rest)
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
        print(f"\ncamlucida {verb}: interrupted; the same command with --resume goes on", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAULT


def _verb(verb: str, arguments: Sequence[str]) -> int:
    """Reads a verb's options from its `Options` dataclass and runs it. Raises SystemExit(2) for unknown options."""
    import tyro

    module = importlib.import_module(f"camlucida.cli.{verb}")
    config = (tyro.conf.FlagCreatePairsOff,)
    options = tyro.cli(
        module.Options, prog=f"camlucida {verb}", description=module.__doc__, args=arguments, config=config
    )
    return module.run(options, [f"camlucida {verb}", *arguments])
