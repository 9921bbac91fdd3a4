"""The check on a GPU: what a real card does to guidance, line by line, within half an hour; at tiny size on a CPU.

bash scripts/gpu.sh [LINE ...]
"""
