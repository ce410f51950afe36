"""The benchmark of the fused losses, `python -m bench.kernels`: cases, clocks, the table to hold, and its page."""
