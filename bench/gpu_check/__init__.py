"""One command for all that only a GPU can show: `python -m bench.gpu_check`."""
