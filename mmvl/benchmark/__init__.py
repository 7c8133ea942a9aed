"""How fast the kernels are: each operation beside its peers, checked against a reference before it is timed."""
