"""A tiny random instance of a host: for the conformance kit in this process, for `motionprompt doctor` in its own."""

from __future__ import annotations

import importlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mp_hooks import backbones
from mp_hooks.config import MotionPromptConfig
from mp_hooks.errors import MotionPromptError


@dataclass(frozen=True)
class Command:
    """A host's own command on tiny random weights, in four steps; --motionprompt and --mp-* options may follow.

    script, options: its words. folder: where it is run. output: where its videos go, with motionprompt/ beside them,
    or a folder a run where `dated`.
    """

    script: list[str]
    options: list[str]
    folder: Path
    output: Path
    dated: bool = False

    @property
    def results(self) -> Path:
        """Where the last run put its videos."""
        return max(self.output.iterdir(), key=lambda run: run.stat().st_mtime) if self.dated else self.output


class MissingPackage(MotionPromptError):
    """The host cannot be built here before something is installed."""


def require(package: str, extra: str) -> ModuleType:
    """Import what a host needs; where it is missing, `extra` of mp_hooks brings it."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise MissingPackage(f"{error.name} is not installed; pip install 'mp_hooks[{extra}]'") from error


@contextmanager
def importable(*folders: Path) -> Iterator[None]:
    """What is in these folders can be imported inside; afterwards it is forgotten, as hosts share names."""
    path = list(sys.path)
    sys.path[:0] = map(str, folders)
    try:
        yield
    finally:
        theirs = [name for name, module in list(sys.modules.items()) if _lies_in(module, folders)]
        for name in theirs:
            del sys.modules[name]
        sys.path[:] = path


def _lies_in(module: ModuleType | None, folders: Sequence[Path]) -> bool:
    known = {} if module is None else vars(module)  # None keeps a name from being imported
    places = [known.get("__file__") or "", *(known.get("__path__") or [])]
    return any(Path(place).is_relative_to(folder) for place in places for folder in folders)


DISCRIMINATOR = Path(__file__).parent / "mp-tiny-discriminator"  # random; of flow at 32 pixels, which takes a third
PROMPTS = ["a tiger walks in the forest", "a boat on the sea"]


class HostCase(ABC):
    """A tiny random instance of a host, in float32, and how to sample it."""

    name: ClassVar[str]  # of the adapter
    device = "cpu"  # on which it is opened
    prompts: list[str] = PROMPTS
    not_in_float64: ClassVar[str] = ""  # why the host cannot compute in it, where it cannot
    # Half of the steps guided, with moves large enough to show in a random network. Plain gradient descent, because
    # Adam turns the rounding of a near-zero gradient into a step of full size.
    config = MotionPromptConfig(
        discriminator=str(DISCRIMINATOR),
        start=0.25,
        stop=0.75,
        iterations=2,
        optimizer="sgd",
        learning_rate=5.0,
        progress=False,
    )

    @abstractmethod
    def open(self) -> AbstractContextManager[Any]:
        """Build the host (seeded) and put in place what it needs; MissingPackage where it cannot run."""

    @abstractmethod
    def sample(self, host: Any, prompts: list[str], seed: int) -> Tensor:
        """Sample through the host's public path in four steps, drawing noise from the global generator."""

    @abstractmethod
    def own_predictions(self, host: Any, prompts: list[str], seed: int) -> list[Tensor]:
        """z0_hat [b, c, t, h, w] of every step as the host itself computes it in `sample`; t may lack given frames."""

    @abstractmethod
    def own_decode(self, host: Any, clean: Tensor) -> Tensor:
        """The host's own decoding of all frames, [b, 3, t, h, w]."""

    def command(self, folder: Path) -> Command:
        """Write tiny weights and all else the host's own script reads into `folder`; the command that runs on it.

        A host without a script is sampled as the kit does it, in a process of its own.
        """
        script = [sys.executable, "-m", "mp_hooks.testing.sample", self.name]
        return Command(script, ["--out", str(folder)], folder, folder)

    def everything(self, host: Any) -> list[nn.Module]:
        """All that computes in a sampling."""
        return backbones.adapter_for(host).modules()

    @contextmanager
    def in_float64(self, host: Any) -> Iterator[None]:
        """Compute in float64, also where the host's code asks for float32."""
        modules = self.everything(host)
        single, to = torch.Tensor.float, torch.Tensor.to

        def widened(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        def to_float64(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return to(tensor, *map(widened, args), **{name: widened(value) for name, value in kwargs.items()})

        torch.Tensor.float, torch.Tensor.to = torch.Tensor.double, to_float64
        torch.set_default_dtype(torch.float64)
        for module in modules:
            module.double()
        try:
            yield
        finally:
            torch.Tensor.float, torch.Tensor.to = single, to
            torch.set_default_dtype(torch.float32)
            for module in modules:
                module.float()
