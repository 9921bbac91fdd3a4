"""Optical flow: differentiable estimators by name, warping, drawing."""

from mp_hooks.flow import pyramid, raft  # noqa: F401  (they enter their estimators in the registry)
from mp_hooks.flow.base import FlowEstimator, flow_names, load_flow, register_flow
from mp_hooks.flow.drawing import draw_flow
from mp_hooks.flow.warping import warp

__all__ = ["FlowEstimator", "draw_flow", "flow_names", "load_flow", "register_flow", "warp"]
