"""The one configuration: a dataclass, a YAML file, and the `--mp-*` flags are the same set of names."""

from __future__ import annotations

import argparse
import math
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mp_hooks.errors import MotionPromptError, unknown_name
from mp_hooks.files import replacing

VERSION = 1  # of saved configurations; rises when an option changes its meaning
PLACEMENTS = ("end", "front")
VARIATIONS = ("absolute", "relative")  # of the flow, in guidance.objective
CHECKPOINTING = ("auto", "none", "attention", "all")  # in guidance.memory
PRECISIONS = ("auto", "host", "float32")
OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD"}  # name: class in torch.optim

# "exact" is the paper's algorithm with this project's photometric term. "paper" is what of the paper's settings was
# available to us; its flow is RAFT's, but a discriminator knows only the flow it was trained with, so that stays.
# The others approximate "exact" and are cheaper: docs/cost.md has each one's price and gain.
PRESETS: dict[str, dict[str, Any]] = {
    "exact": {},
    "paper": {
        "tokens": 1,
        "placement": "end",
        "init_word": "authentic",
        "iterations": 3,
        "start": 0.08,
        "stop": 0.30,
        "lambda_photo": 0.0,
    },
    "balanced": {"subclip": 4, "iterations": 4},
    "fast": {"subclip": 4, "iterations": 4, "decoder": "taesd"},
}


def _option(default: Any, help: str, **limits: Any) -> Any:
    return field(default=default, metadata={"help": help, **limits})


@dataclass(frozen=True)
class MotionPromptConfig:
    """Everything that steers guidance.

    Token count, word, place, iterations and window are the paper's defaults (arXiv 2411.15540). Loss weights, learning
    rate, optimiser, pairs and flow size are this project's own: the paper has a table of its hyper-parameters for each
    model (its Table 5), whose cells were not available to us. The photometric term is this project's too.
    Raises MotionPromptError for a value out of range.
    """

    tokens: int = _option(1, "number of learnable tokens", at_least=1)
    placement: str = _option("end", "where the tokens go in the prompt", choices=PLACEMENTS)
    init_word: str = _option("authentic", "word the tokens start from")
    iterations: int = _option(3, "updates per guided step (K)", at_least=1)
    start: float = _option(0.08, "first guided step, as a fraction of the schedule (4 of 50)", at_least=0, at_most=1)
    stop: float = _option(0.30, "end of the guided window, as a fraction (15 of 50)", at_least=0, at_most=1)
    pairs: int = _option(1, "frame pairs per iteration", at_least=1)
    min_interval: int = _option(1, "least distance of a pair, in frames", at_least=1)
    max_interval: int = _option(3, "greatest distance of a pair, in frames", at_least=1)
    optimizer: str = _option("adam", "optimiser of the tokens, fresh at each guided step", choices=OPTIMIZERS)
    relative_rate: float = _option(0.1, "learning rate, in units of the initial embedding's RMS", at_least=0)
    learning_rate: float | None = _option(
        None, "learning rate in the embedding's own numbers, as older files have it, in place of that", at_least=0
    )
    lambda_disc: float = _option(1.0, "weight of log(1 - phi(flow))", at_least=0)
    lambda_tv: float = _option(0.1, "weight of the flow's total variation", at_least=0)
    variation: str = _option(
        "absolute", "total variation as it is, or relative to the flow's own size", choices=VARIATIONS
    )
    lambda_reg: float = _option(
        0.003, "weight of the squared distance to the initial tokens, in the learning rate's unit", at_least=0
    )
    lambda_photo: float = _option(30.0, "weight of the photometric error; 0 is the paper's loss", at_least=0)
    discriminator: str | None = _option(None, "folder of the flow discriminator; the packaged one if not given")
    flow: str | None = _option(None, "flow estimator; the one the discriminator was trained with if not given")
    flow_weights: str | None = _option(None, "file of the flow estimator's weights; its hub weights if not given")
    subclip: int | None = _option(None, "frames that an update looks at; the whole clip if not given", at_least=2)
    decoder: str | None = _option(
        None, "a tiny decoder for the pairs: taesd, or a file of its weights; the host's VAE if not given"
    )
    checkpointing: str = _option(
        "auto", "blocks computed again in the backward pass; auto goes by the free memory", choices=CHECKPOINTING
    )
    precision: str = _option(
        "auto",
        "of updates on a half-precision host: its own, or float32, which auto takes for bfloat16",
        choices=PRECISIONS,
    )
    loss_scale: float = _option(2.0**16, "first loss scale when the host runs in float16", at_least=1)
    seed: int | None = _option(None, "seed of the frame pairs; the host's own seed if not given")
    deterministic: bool = _option(False, "torch's deterministic algorithms in guided steps, where it has them")
    strict: bool = _option(False, "an error, not a warning, where a sampling was not guided")
    trace: str | None = _option(None, "JSON-lines file with a record per iteration")
    descent: bool = _option(False, "compare the loss on fixed pairs before and after the updates of a guided step")
    progress: bool = _option(True, "show a progress bar that tells guided from plain steps")

    def __post_init__(self) -> None:
        for option in fields(self):
            _check(option, getattr(self, option.name))
        if self.start >= self.stop:
            raise MotionPromptError(f"start ({self.start}) must lie before stop ({self.stop})")
        if self.min_interval > self.max_interval:
            raise MotionPromptError(
                f"min_interval ({self.min_interval}) must not exceed max_interval ({self.max_interval})"
            )

    def save(self, path: str | Path) -> None:
        """Write the configuration and its version as YAML, whole or not at all."""
        from omegaconf import OmegaConf

        with replacing(path) as temporary:
            OmegaConf.save(OmegaConf.create({"version": VERSION, **asdict(self)}), temporary)


def load_config(path: str | Path | None = None, preset: str = "exact", **overrides: Any) -> MotionPromptConfig:
    """Defaults, then the preset's, then the YAML file, then `overrides`.

    Raises MotionPromptError for a missing or unreadable file, one of a newer version, an unknown name, or a value of
    the wrong type.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if preset not in PRESETS:
        raise unknown_name("preset", preset, list(PRESETS))
    merged = OmegaConf.structured(MotionPromptConfig)
    OmegaConf.set_readonly(merged, False)  # a frozen dataclass becomes a read-only node
    try:
        merged = OmegaConf.merge(merged, PRESETS[preset])
        if path is not None:
            merged = OmegaConf.merge(merged, _read(Path(path)))
        merged = OmegaConf.merge(merged, OmegaConf.create(overrides))
        return OmegaConf.to_object(merged)
    except (OmegaConfBaseException, ValueError, TypeError, AttributeError, OverflowError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0][:200]
        names = ", ".join(option.name for option in fields(MotionPromptConfig))
        raise MotionPromptError(
            f"bad configuration{f' {path}' if path else ''}: {first_line}; names are {names}"
        ) from error


def _read(path: Path) -> dict[str, Any]:
    """The values in a YAML file, which must be names with plain values, of a version that is known."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MotionPromptError(f"cannot read the configuration {path}: {error.strerror or error}") from error
    except (ValueError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())[:500]
        raise MotionPromptError(f"the configuration {path} is not YAML: {said}") from error
    if values is None:
        return {}
    if not isinstance(values, dict) or any(isinstance(value, (dict, list, set, tuple)) for value in values.values()):
        raise MotionPromptError(f"the configuration {path} must hold lines of the form 'name: value'")
    if values.pop("version", 1) not in range(1, VERSION + 1):
        raise MotionPromptError(f"{path} is of a version that this mp_hooks does not know; install a newer one")
    return values


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--mp-config FILE` and one `--mp-NAME` per option; flags not given stay out of the namespace's way."""
    group = parser.add_argument_group("MotionPrompt")
    group.add_argument("--mp-config", metavar="FILE", default=None, help="YAML file of the options below")
    group.add_argument(
        "--mp-preset",
        choices=PRESETS,
        default="exact",
        help="exact: the exact algorithm with this project's photometric term; paper: the paper's settings as far as "
        "they are known here, with the discriminator's own flow; balanced, fast: cheaper approximations of exact "
        "(default: exact)",
    )
    for option in fields(MotionPromptConfig):
        flag = "--mp-" + option.name.replace("_", "-")
        kind = option.type.split(" | ")[0]
        if kind == "bool":
            extra: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
        else:
            extra = {"type": {"int": int, "float": float, "str": str}[kind], "choices": option.metadata.get("choices")}
        default = "" if option.default in (None, MISSING) else f" (default: {option.default})"
        group.add_argument(flag, default=None, help=option.metadata["help"] + default, **extra)


def config_from_flags(args: argparse.Namespace) -> MotionPromptConfig:
    """The configuration that `add_config_flags` collected: defaults, `--mp-preset`, `--mp-config`, then flags."""
    given = {option.name: getattr(args, f"mp_{option.name}") for option in fields(MotionPromptConfig)}
    return load_config(
        args.mp_config, args.mp_preset, **{name: value for name, value in given.items() if value is not None}
    )


def _check(option: Field, value: Any) -> None:
    limits = option.metadata
    if value is None:
        return
    if "choices" in limits and value not in limits["choices"]:
        raise MotionPromptError(f"{option.name} is '{value:.80}'; choose one of: {', '.join(limits['choices'])}")
    if isinstance(value, float) and not math.isfinite(value):
        raise MotionPromptError(f"{option.name} is {value}; it must be a finite number")
    if "at_least" in limits and not value >= limits["at_least"]:
        raise MotionPromptError(f"{option.name} is {value}; it must be at least {limits['at_least']}")
    if "at_most" in limits and not value <= limits["at_most"]:
        raise MotionPromptError(f"{option.name} is {value}; it must be at most {limits['at_most']}")
