"""ComfyUI's models, through the wrappers that its samplers call; the nodes are in comfyui/. Tested with 0.3.64."""
