"""Steps on a GPU by Triton kernels: what generated kernels call, and how they are launched."""
