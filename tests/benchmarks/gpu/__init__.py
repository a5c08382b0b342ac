"""Measures this library on one NVIDIA GPU, beside three PyTorch programs. `__main__` has the command."""
