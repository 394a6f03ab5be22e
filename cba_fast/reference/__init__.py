"""The specification of each op: short, plain PyTorch or NumPy, never optimized."""
