"""Finished samplings, kept on disk until the run is done, and handed back to a run that starts again after a kill.

The N-th sampling of a run is kept once it is whole. When a later run comes to its N-th and asks for the same, from
the same noise, what was kept is handed back: the host's result, the random generators as the sampling left them, and
its records in the trace, so that everything after is as in an unbroken run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from mp_hooks import __version__
from mp_hooks.errors import MotionPromptError
from mp_hooks.files import replacing

if TYPE_CHECKING:
    from mp_hooks.guidance import MotionPrompt

NAME = "mp-sampling"
OURS = re.compile(rf"{NAME}-\d+\.pt|\.{NAME}-\d+-\w+\.pt")  # the second kind is what a kill left half-written
NUMBERS_A_WEIGHT = 1024  # that tell one checkpoint from another
NOT_RESULTS = ("trace", "progress", "strict")  # options that do not touch what is sampled

Stream = tuple[Callable[[], Any], Callable[[Any], Any]]  # of random numbers: where it stands, and to put it there


class Samplings:
    """The samplings of one run of one process, in `folder`, where nothing else is touched."""

    def __init__(self, folder: str | Path) -> None:
        """Make the folder. Raises MotionPromptError where nothing can be written to it."""
        self.folder = Path(folder).absolute()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MotionPromptError(
                f"cannot keep samplings in {folder}: {error.strerror}; give --mp-resume another folder"
            ) from error
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise MotionPromptError(f"nothing can be written to {folder}; give --mp-resume another folder")

    def once(self, sample: Callable[[], Any], method: MotionPrompt, asked: Fingerprint, arguments: Any) -> Any:
        """The result of `sample()`, from an earlier run if that asked the same; `arguments` are the run site's."""
        streams = _streams(arguments)
        path = self.folder / f"{NAME}-{method.started:05d}.pt"
        before = {name: now() for name, (now, _) in streams.items()}
        kept = _read(path, asked, before) if path.is_file() else None
        if kept is not None:
            for name, (_, after) in kept["streams"].items():
                streams[name][1](after)
            method.resume(kept["records"], kept["loss_scale"])
            return kept["result"]
        with method.trace.copied() as records:
            result = sample()
        after = {name: now() for name, (now, _) in streams.items()}
        moved = {name: (before[name], after[name]) for name in streams if not _equal(before[name], after[name])}
        content = {"asked": asked.facts, "given": asked.tensors, "streams": moved, "records": records}
        self._keep(path, {**content, "loss_scale": method.loss_scale.value}, result)
        return result

    def discard(self) -> None:
        """The run is done: remove what was kept, and the folder if nothing else is in it."""
        with suppress(OSError):
            for path in list(self.folder.iterdir()):
                if OURS.fullmatch(path.name):
                    path.unlink()
            self.folder.rmdir()

    def _keep(self, path: Path, content: dict[str, Any], result: Any) -> None:
        """Where that is not possible, on a full disk say, a warning tells, and the run goes on."""
        whole = BytesIO()
        try:
            torch.save({**content, "result": packed(result)}, whole)
            with replacing(path) as temporary:
                temporary.write_bytes(whole.getbuffer())
        except Exception as error:  # what is sampled is worth more
            warnings.warn(f"this sampling is not kept: {_first_line(error)}; the run goes on", stacklevel=3)


def _read(path: Path, asked: Fingerprint, now: dict[str, Any]) -> dict[str, Any] | None:
    """The sampling in this file if it was asked the same, with the streams it drew from where they are now."""
    try:
        kept = torch.load(path, weights_only=True)
        other = [name for name, fact in asked.facts.items() if fact != kept["asked"][name]]
        if not other and not all(map(_close, kept["given"], asked.tensors)):
            other.append("conditioning")
        if not all(name in now and _equal(now[name], before) for name, (before, _) in kept["streams"].items()):
            other.append("noise")
        if not other:
            return {**kept, "result": unpacked(kept["result"])}
        told = f"{path} is of a run with other {', '.join(other)}"
    except Exception as error:  # whatever it is that lies there
        told = f"{path} cannot be read ({_first_line(error)})"
    warnings.warn(f"{told}; this sampling is made again", stacklevel=3)
    return None


@dataclass(frozen=True)
class Fingerprint:
    """What makes a sampling what it is: facts in plain data, and the tensors it was given."""

    facts: dict[str, Any]
    tensors: list[Tensor]


def fingerprint(host: Any, method: MotionPrompt, prompts: Sequence[str], seed: int, arguments: Any) -> Fingerprint:
    """Of one sampling of `host`; `seed` is that of the frame pairs, `arguments` are the run site's."""
    tensors: list[Tensor] = []
    options = dataclasses.asdict(method.config)
    facts = {
        "versions": [__version__, str(torch.__version__)],
        "prompts": list(prompts),
        "options": {name: value for name, value in options.items() if name not in NOT_RESULTS},
        "seed": seed,
        "model": _model(host, method, tensors),
        "arguments": described(arguments, tensors),
    }
    return Fingerprint(facts, tensors)


def described(value: Any, given: list[Tensor]) -> Any:
    """`value` in plain data that is the same in every process; its tensors go into `given`.

    Of other objects only the class counts, as they may show addresses; generators are streams.
    """
    if value is None:
        return None
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):  # OmegaConf's too; names like diffusers' _use_default_values are in no fixed order
        return {str(name): described(value[name], given) for name in value if not str(name).startswith("_")}
    if isinstance(value, Sequence):
        return [described(item, given) for item in value]
    if isinstance(value, Tensor):
        given.append(value.detach().cpu().clone())
        return f"{value.dtype} {list(value.shape)} {value.device.type}"
    if hasattr(value, "__array_interface__"):  # numpy's arrays, PIL's pictures
        array = np.asarray(value)
        return f"{array.dtype} {list(array.shape)} {hashlib.sha256(array.tobytes()).hexdigest()}"
    return f"{type(value).__module__}.{type(value).__qualname__}"


def packed(value: Any) -> Any:
    """A host's result in what torch loads without running code: tuples are (kind, content), the rest is itself.

    Raises TypeError for a kind of result that cannot be kept.
    """
    if isinstance(value, Tensor):
        return value.detach().clone()  # of what may be a part of a larger one
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is list:
        return [packed(item) for item in value]
    if type(value) is tuple:
        return "tuple", [packed(item) for item in value]
    if type(value) is dict:
        return "dict", {name: packed(item) for name, item in value.items()}
    if _is_output(type(value)):
        names = [field.name for field in dataclasses.fields(value)]
        return _place(type(value)), {name: packed(getattr(value, name)) for name in names}
    raise TypeError(f"a result with a {_place(type(value))} in it")


def unpacked(value: Any) -> Any:
    """What `packed` was given. An output's class must be one of the host's that is loaded already."""
    if isinstance(value, list):
        return [unpacked(item) for item in value]
    if not isinstance(value, tuple):
        return value
    kind, content = value
    if kind == "tuple":
        return tuple(map(unpacked, content))
    items = {name: unpacked(item) for name, item in content.items()}
    if kind == "dict":
        return items
    module, _, name = kind.partition(":")
    output: Any = getattr(sys.modules.get(module), name, None)
    if not _is_output(output):
        raise TypeError(f"no output is called {kind}")
    return output(**items)


def _is_output(kind: Any) -> bool:
    """Whether this is a class of pipelines' outputs: diffusers' BaseOutput and transformers' ModelOutput are dicts."""
    return isinstance(kind, type) and issubclass(kind, dict) and dataclasses.is_dataclass(kind)


def _place(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _model(host: Any, method: MotionPrompt, given: list[Tensor]) -> dict[str, Any]:
    """What tells this host, and the discriminator, from others: weights, scheduler, settings."""
    parts = {name: part for name, part in vars(host).items() if not name.startswith("_")}
    settings = {name: part for name, part in parts.items() if isinstance(part, (bool, int, float, str))}
    configs = {name: (part, getattr(part, "config", None)) for name, part in parts.items()}
    modules = [host, *parts.values(), method.objective.discriminator, method.objective.flow, method.decoder]
    return {
        "settings": described(settings, given),
        "configurations": described({n: pair for n, pair in configs.items() if isinstance(pair[1], Mapping)}, given),
        "weights": _digest([module for module in modules if isinstance(module, nn.Module)]),
    }


def _digest(modules: Sequence[nn.Module]) -> str:
    """Of some numbers of every weight, to the bit."""
    digest = hashlib.sha256()
    for module in modules:
        for name, weight in [*module.named_parameters(), *module.named_buffers()]:
            digest.update(f"{name} {weight.dtype} {list(weight.shape)}".encode())
            if not weight.is_meta:  # offloaded layer by layer
                numbers = weight.detach().flatten()
                numbers = numbers[:: max(1, len(numbers) // NUMBERS_A_WEIGHT)].cpu().contiguous()
                digest.update(numbers.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _streams(arguments: Any) -> dict[str, Stream]:
    """The random generators that a sampling may draw from."""
    generators = {"torch": torch.default_generator}
    if torch.cuda.is_initialized():
        generators |= {f"cuda {number}": one for number, one in enumerate(torch.cuda.default_generators)}
    generators |= {f"given {number}": one for number, one in enumerate(_generators(arguments))}
    streams: dict[str, Stream] = {name: (one.get_state, one.set_state) for name, one in generators.items()}
    return streams | {"numpy": (_numpy_state, np.random.set_state), "python": (random.getstate, random.setstate)}


def _generators(value: Any) -> list[torch.Generator]:
    if isinstance(value, torch.Generator):
        return [value]
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return [one for item in items for one in _generators(item)]


def _numpy_state() -> tuple[Any, ...]:
    """numpy's, in plain data."""
    name, key, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 (the one that hosts draw from)
    return name, list(map(int, key)), *rest


def _equal(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


def _close(kept: Tensor, now: Tensor) -> bool:
    """The same but for rounding: what an encoder makes of a text or picture may differ in its last bits."""
    if not kept.is_floating_point():
        return torch.equal(kept, now)
    difference = torch.linalg.vector_norm(kept.double() - now.double())
    return bool(difference <= torch.finfo(kept.dtype).eps ** 0.5 * torch.linalg.vector_norm(kept.double()))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
