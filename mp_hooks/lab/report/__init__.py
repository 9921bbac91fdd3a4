"""What people look at: clips side by side, flow in colour, trace plots, one self-contained page."""

from mp_hooks.lab.report.page import write_page

__all__ = ["write_page"]
