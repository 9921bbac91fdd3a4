"""Published figures to hold results against: the poster and paper of MotionPrompt (arXiv 2411.15540, CVPR 2025)."""

from mp_hooks.lab.metrics.measures import VBENCH

# model: (baseline, with MotionPrompt), in the order of VBENCH
PAPER = {
    "LaVie": (
        (0.9599, 0.9739, 0.9487, 0.9690, 0.5150, 0.2506),
        (0.9646, 0.9781, 0.9625, 0.9765, 0.3963, 0.2415),
    ),
    "AnimateDiff": (
        (0.9488, 0.9755, 0.9228, 0.9578, 0.4700, 0.2532),
        (0.9528, 0.9763, 0.9258, 0.9599, 0.4125, 0.2529),
    ),
    # the baseline's background consistency may be a misprint: it equals its flickering
    "VideoCrafter2": (
        (0.9736, 0.9559, 0.9559, 0.9750, 0.4088, 0.2498),
        (0.9745, 0.9774, 0.9588, 0.9759, 0.3938, 0.2451),
    ),
}


def published(model: str) -> tuple[dict[str, float], dict[str, float]]:
    """{measure: value} of a model's baseline, and with MotionPrompt."""
    baseline, guided = (dict(zip(VBENCH, values, strict=True)) for values in PAPER[model])
    return baseline, guided
