"""The flow discriminator: model, data, training, evaluation, and the discriminator packaged with mp_hooks."""

from pathlib import Path

from mp_hooks.discriminator.model import DiscriminatorConfig, FlowDiscriminator

__all__ = ["DiscriminatorConfig", "FlowDiscriminator", "default_discriminator"]


def default_discriminator() -> Path:
    """The folder of the discriminator packaged with mp_hooks, for `FlowDiscriminator.from_pretrained`."""
    return Path(__file__).parent / "default"
