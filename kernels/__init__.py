"""Tensor operations: public functions with their plain PyTorch references (Triton kernels join them)."""
