"""What the lines in a patched host script call: its imports, its arguments, its run, its model.

    entry.before_imports("lavie")         where the host's own imports need shims
    @entry.host("videocrafter2")          around the host's run: shims, early checks, clear errors
    entry.add_arguments(parser)           --motionprompt, --mp-*
    entry.install(model, args)            where the model is ready; with the videos' folder if no argument says it

Without --motionprompt the model is never touched.
"""

from __future__ import annotations

import argparse
import atexit
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

from mp_hooks.errors import EXIT_USER_ERROR, MotionPromptError
from mp_hooks.processes import processes

_session: Session | None = None
_imports = ExitStack()  # what `before_imports` put in place, until the process ends
atexit.register(_imports.close)
_imported: list[str] = []


def before_imports(name: str) -> None:
    """Put in place, until the process ends, the shims that any run of host `name` needs on this machine."""
    from mp_hooks import patching
    from mp_hooks.compat import shims

    _imported.extend(_imports.enter_context(shims(patching.load(name).script.shims)))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --motionprompt, --mp-device, --mp-resume and every --mp-* option to a host's parser.

    An --mp-* option that is none of them is an error also where the host lets unknown arguments pass.
    """
    from mp_hooks.config import add_config_flags

    parse = parser.parse_known_args

    def parse_known_args(*args: Any, **kwargs: Any) -> tuple[argparse.Namespace, list[str]]:
        known, unknown = parse(*args, **kwargs)
        if ours := [word for word in unknown if word.startswith("--mp-")]:
            parser.error(f"unrecognized arguments: {' '.join(ours)}")
        return known, unknown

    parser.parse_known_args = parse_known_args  # type: ignore[method-assign,assignment]
    add_config_flags(parser)
    parser.add_argument("--motionprompt", action="store_true", help="guide the sampling with MotionPrompt")
    parser.add_argument(
        "--mp-device", choices=("cuda", "cpu"), default=None, help="run the host there (its own choice)"
    )
    parser.add_argument(
        "--mp-resume",
        metavar="FOLDER",
        default=None,
        help="keep finished samplings there (of several processes, each in a folder of its own), go on after a kill",
    )


def host(name: str, options: argparse.Namespace | None = None) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate the host's function that runs inference; its first argument is the parsed arguments.

    Where it is an OmegaConf configuration instead, the parsed `options` are merged into it.
    """

    def decorate(run: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(run)
        def guarded(args: Any, *rest: Any, **kwargs: Any) -> Any:
            global _session
            if options is not None:
                from omegaconf import OmegaConf

                args = OmegaConf.merge(args, vars(options))
            try:
                with ExitStack() as stack:
                    _session = Session(name, args, stack, entry=Path(run.__code__.co_filename).resolve())
                    result = run(args, *rest, **kwargs)
                    _session.finish()
                    return result
            except MotionPromptError as error:
                print(f"motionprompt: error: {error}", file=sys.stderr)
                sys.exit(EXIT_USER_ERROR)
            finally:
                _session = None

        return guarded

    return decorate


def install(model: Any, args: Any, output: str | Path | None = None) -> None:
    """Guide `model` until the decorated run ends or installs another, if --motionprompt was given.

    output: the folder of the videos, where none of the host's arguments says it.
    """
    if args.motionprompt:
        if _session is None:
            raise MotionPromptError("the host's run is not decorated; patch it again with mp-patch")
        _session.install(model, output)


class Session:
    """One run of a host script: what it needs is put in place, and checked before the host loads gigabytes."""

    def __init__(self, name: str, args: Any, stack: ExitStack, entry: Path) -> None:
        import torch

        from mp_hooks import patching
        from mp_hooks.compat import shims

        manifest = patching.load(name)
        self.script = manifest.script
        self.stack = stack
        self.samplings: Any = None
        if args.mp_resume is not None and not args.motionprompt:
            raise MotionPromptError("--mp-resume keeps what is sampled with MotionPrompt; add --motionprompt")
        if args.motionprompt:
            patching.require_patched(manifest, manifest.checkout_of(entry))
            self._check(args)
            if args.mp_resume is not None:
                from mp_hooks.backbones.resume import Samplings

                kept = Path(args.mp_resume)
                self.samplings = Samplings(kept / f"rank-{processes().rank}" if processes().world > 1 else kept)
        further = [shim for shim in self.script.shims if shim not in _imported]
        self.shims = [*_imported, *stack.enter_context(shims(further, args.mp_device))]
        if args.motionprompt:
            if args.mp_device != "cpu" and not torch.cuda.is_available():
                visible = os.environ.get("CUDA_VISIBLE_DEVICES")
                hidden = "" if visible is None else f" (CUDA_VISIBLE_DEVICES is '{visible}')"
                raise MotionPromptError(f"torch sees no CUDA device here{hidden}; add --mp-device cpu")
            self.method = self._method(args)
            if self.script.output is not None:
                self._record(Path(getattr(args, self.script.output)))
        self.model: Any = None

    def install(self, model: Any, output: str | Path | None) -> None:
        """Apply the method to the host's model; a script may build several, one after the other."""
        from mp_hooks import backbones

        if self.model is not None:
            backbones.detach(self.model)
        else:
            self.stack.callback(lambda: backbones.remove_patch(self.model))
            if output is not None:
                self._record(Path(output))
        self.model = model
        backbones.attach(model, self.method, self.samplings)

    def finish(self) -> None:
        """The host is done, and its videos are written."""
        if self.samplings is not None:
            self.samplings.discard()
            if processes().world > 1:
                with suppress(OSError):  # while another process keeps something there
                    self.samplings.folder.parent.rmdir()

    def _check(self, args: Any) -> None:
        for argument in self.script.files:
            path = getattr(args, argument)
            if path is None or not Path(path).exists():
                raise MotionPromptError(
                    f"{argument} {f'{path}: no such file' if path else 'is not given'}; give the host's own path"
                )

    def _method(self, args: Any) -> Any:
        """The method with discriminator and flow loaded."""
        from mp_hooks.config import config_from_flags
        from mp_hooks.guidance import MotionPrompt

        config = config_from_flags(args)
        if config.seed is None and self.script.seed is not None:
            config = replace(config, seed=getattr(args, self.script.seed))
        return MotionPrompt(config)

    def _record(self, output: Path) -> None:
        """Save configuration and versions beside the host's videos in `output`, where the trace goes too."""
        from mp_hooks.guidance.trace import Trace
        from mp_hooks.runs import save_configuration

        folder, config = output / "motionprompt", self.method.config
        if config.trace is None:
            config = replace(config, trace=str(folder / "trace.jsonl"))
            self.method.trace = Trace(config.trace)
        shims, arguments = " ".join(self.shims) or "none", " ".join(sys.argv[1:])
        save_configuration(folder, config, shims=shims, arguments=arguments)
