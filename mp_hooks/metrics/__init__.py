"""Measures of a clip's coherence and motion, and the statistics of paired comparisons. No measure needs weights."""

from mp_hooks.metrics.paired import Comparison, compare
from mp_hooks.metrics.temporal import (
    dynamic_degree,
    flow_length,
    neighbouring_flow,
    temporal_flickering,
    warping_error,
)

__all__ = [
    "Comparison",
    "compare",
    "dynamic_degree",
    "flow_length",
    "neighbouring_flow",
    "temporal_flickering",
    "warping_error",
]
