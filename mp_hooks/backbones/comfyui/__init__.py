"""ComfyUI's models, through the wrappers that its own samplers call; the node pack is in comfyui/. Tested with 0.3.64."""
