"""The check on a GPU: what a real card does to guidance, line by line, in ten minutes; at tiny size on a CPU.

bash scripts/gpu.sh [LINE ...]
"""
