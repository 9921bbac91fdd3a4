"""The one exception a user is meant to read."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

P = ParamSpec("P")

EXIT_USER_ERROR = 2


class MotionPromptError(Exception):
    """Something the user can put right: one sentence that says what is wrong and the remedy."""


def unknown_name(kind: str, name: str, valid: list[str]) -> MotionPromptError:
    """The error for a name no registry holds; lists the valid ones."""
    return MotionPromptError(f"unknown {kind} '{name:.80}'; choose one of: {', '.join(sorted(valid))}")


def exits_cleanly(main: Callable[P, int | None]) -> Callable[P, int]:
    """Wrap a command's main: a MotionPromptError or a missing package is one line on stderr and exit code 2."""

    @wraps(main)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs) or 0
        except MotionPromptError as error:
            print(f"error: {error}", file=sys.stderr)
            return EXIT_USER_ERROR
        except ModuleNotFoundError as error:
            print(f"error: this needs the Python module {error.name}; pip install its package", file=sys.stderr)
            return EXIT_USER_ERROR
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    return guarded
