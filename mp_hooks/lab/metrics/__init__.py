"""Measures of a clip's coherence and motion, VBench's and others, and the statistics of paired comparisons."""

from mp_hooks.lab.metrics.comparison import Comparison, GainShare, compare, gain_share, rank_correlation
from mp_hooks.lab.metrics.evaluation import Evaluation, evaluate, groups_of_folders, groups_of_suffixes
from mp_hooks.lab.metrics.measures import MEASURES, MISSING, VBENCH, Measure, Measurer, Settings
from mp_hooks.lab.metrics.temporal import (
    clip_logits,
    dynamic_degree,
    flow_jerk,
    flow_length,
    flow_variation,
    neighbouring_flow,
    temporal_flickering,
    warping_error,
)

__all__ = [
    "MEASURES",
    "MISSING",
    "VBENCH",
    "Comparison",
    "Evaluation",
    "GainShare",
    "Measure",
    "Measurer",
    "Settings",
    "clip_logits",
    "compare",
    "dynamic_degree",
    "evaluate",
    "flow_jerk",
    "flow_length",
    "flow_variation",
    "gain_share",
    "groups_of_folders",
    "groups_of_suffixes",
    "neighbouring_flow",
    "rank_correlation",
    "temporal_flickering",
    "warping_error",
]
