"""A user study of two ways to make the same clips: a static page for blind votes, a small server, the tally."""

from mp_hooks.lab.study.make import make
from mp_hooks.lab.study.tally import tally

__all__ = ["make", "tally"]
