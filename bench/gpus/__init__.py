"""The measuring processes of bench/gpu.py and what it makes and checks before them."""
