"""MotionPrompt for ComfyUI, which loads this folder from custom_nodes; `mp-patch comfyui --repo DIR` links it there."""

from .nodes import NODES

NODE_CLASS_MAPPINGS = NODES
