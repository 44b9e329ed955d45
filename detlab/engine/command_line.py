"""The command line of the training tools: flags and settings in any order, and the config that they describe."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from detlab.config.config import CfgNode, get_cfg
from detlab.config.nearest import did_you_mean
from detlab.utils.user_modules import import_user_modules

__all__ = ["SettingsParser", "add_import_flag", "config_from_args", "default_argument_parser"]

_EXAMPLES = """examples:
  one GPU, or the CPU with MODEL.DEVICE cpu
      $ {program} --config-file cfg.yaml
  change settings
      $ {program} --config-file cfg.yaml SOLVER.BASE_LR 0.01 MODEL.WEIGHTS model.pth
  go on with a run that was stopped
      $ {program} --config-file cfg.yaml --resume
  your own datasets, models and hooks
      $ {program} --import my_project.py --config-file cfg.yaml
  eight GPUs
      $ {program} --num-gpus 8 --config-file cfg.yaml
  two machines
      machine0$ {program} --num-gpus 8 --num-machines 2 --machine-rank 0 --dist-url tcp://machine0:29500 ...
      machine1$ {program} --num-gpus 8 --num-machines 2 --machine-rank 1 --dist-url tcp://machine0:29500 ...
  under torchrun, which says the number of processes itself
      $ torchrun --nproc-per-node 8 {program} --config-file cfg.yaml
"""


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """The command line of the training tools: flags and settings, in any order.

    Args:
        epilog: shown at the end of the help, in place of examples.
    """
    parser = SettingsParser(
        epilog=epilog or _EXAMPLES.format(program=os.path.basename(sys.argv[0])),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        settings_help="settings to change: 'KEY VALUE' pairs, for Python configs 'path.key=value'",
    )
    parser.add_argument("--config-file", default="", metavar="FILE", help="the config to start from")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR, if any")
    parser.add_argument("--eval-only", action="store_true", help="do not train, evaluate MODEL.WEIGHTS")
    add_import_flag(parser, "Python code to load before the config is read, in every process")
    parser.add_argument(
        "--num-gpus", type=_from(0), default=1, help="processes on each machine, one for each GPU; 0 is one on the CPU"
    )
    parser.add_argument("--num-machines", type=_from(1), default=1)
    parser.add_argument("--machine-rank", type=_from(0), default=0, help="number of this machine, from 0")
    parser.add_argument(
        "--dist-url",
        default="auto",
        help="where the processes meet, tcp://host:port; 'auto' takes a free port of this machine",
    )
    return parser


def add_import_flag(parser: argparse.ArgumentParser, what_for: str) -> None:
    """Give a parser ``--import``, which collects files and modules in ``imports``, see :func:`import_user_modules`.

    Args:
        parser: of a program that loads them first of all.
        what_for: shown in the help.
    """
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="FILE_OR_MODULE",
        help=f"{what_for}; may be given several times",
    )


def _from(lowest: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number from ``lowest`` on."""

    def read(text: str) -> int:
        if not text.strip().lstrip("+-").isdecimal() or int(text) < lowest:
            raise argparse.ArgumentTypeError(f"must be a whole number from {lowest} on, got {text!r}")
        return int(text)

    return read


def config_from_args(args: argparse.Namespace) -> CfgNode:
    """The frozen config that ``imports``, ``config_file`` and ``opts`` of a command line describe.

    Loads the modules of ``--import`` first, so that what they register is there.
    """
    import_user_modules(args.imports)
    cfg = get_cfg()
    if args.config_file:
        cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    return cfg


class SettingsParser(argparse.ArgumentParser):
    """Flags, and as ``opts`` a list of settings: ``KEY VALUE`` pairs or single ``path.key=value``.

    Flags may stand before, between and behind the settings. What stands in the place of a setting's value is its value,
    whatever it begins with (``SOLVER.BASE_LR -1``), unless it is a flag: then the value was forgotten. Behind ``--``
    there are only settings.

    Args:
        settings_help: of ``opts``.
        kwargs: of ``argparse.ArgumentParser``.
    """

    def __init__(self, *, settings_help: str = "settings to change", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help=settings_help)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:  # type: ignore[override]
        """As ``argparse`` has it; an unknown flag behind a setting is an error.

        Raises:
            SystemExit: with a sentence, for a setting without a value and what ``argparse`` refuses.
        """
        flags, settings = self._divide(list(sys.argv[1:] if args is None else args))
        namespace, unknown = super().parse_known_args(flags, namespace)
        namespace.opts = settings
        return namespace, unknown

    def _divide(self, words: list[str]) -> tuple[list[str], list[str]]:
        """The flags with their arguments, and the settings."""
        flags: list[str] = []
        settings: list[str] = []
        while words:
            word = words[0]
            if word == "--":
                return flags, settings + words[1:]
            if _looks_like_a_flag(word):
                if settings and self._action_of(word) is None:
                    self.error(f"unknown flag {word!r} behind the settings{did_you_mean(word, self._known_flags())}")
                target, count = flags, 1 + self._count_arguments(words)
            else:
                target, count = settings, 1 if _is_whole_setting(word) else 2
                self._refuse_forgotten_value(words[:count])
            target += words[:count]
            del words[:count]
        return flags, settings

    def _refuse_forgotten_value(self, setting: list[str]) -> None:
        key, *value = setting
        if value and value[0].startswith("--") and self._action_of(value[0]) is not None:
            self.error(f"the setting {key} has no value: the flag {value[0]} follows it")

    def _known_flags(self) -> list[str]:
        return [name for action in self._actions for name in action.option_strings]

    def _action_of(self, word: str) -> argparse.Action | None:
        """What a flag stands for: written out, shortened to what is clear, or with its argument behind it."""
        long = word.startswith("--")
        name = word.partition("=")[0] if long else word[:2]
        options = {flag: action for action in self._actions for flag in action.option_strings}
        if name in options or not long or not self.allow_abbrev:
            return options.get(word, options.get(name))
        meant = [action for flag, action in options.items() if flag.startswith(name)]
        return meant[0] if meant and name != "--" else None

    def _count_arguments(self, words: list[str]) -> int:
        """How many of the words behind a flag belong to it."""
        action = self._action_of(words[0])
        holds_argument = "=" in words[0] if words[0].startswith("--") else len(words[0]) > 2
        if action is None or (holds_argument and words[0] not in action.option_strings):
            return 0
        if action.nargs is None or isinstance(action.nargs, int):
            return 1 if action.nargs is None else action.nargs
        following = [_looks_like_a_flag(word) for word in words[1:]]
        count = following.index(True) if True in following else len(following)
        return min(count, 1) if action.nargs == argparse.OPTIONAL else count


def _looks_like_a_flag(word: str) -> bool:
    """Whether a word in the place of a setting's key is a flag; a negative number is none."""
    return word.startswith("-") and len(word) > 1 and not word[1:].replace(".", "", 1).isdecimal()


def _is_whole_setting(word: str) -> bool:
    """Whether a word is a setting by itself: ``path.key=value``, ``+path.key=value`` or ``~path.key``."""
    return "=" in word or word.startswith("~")
