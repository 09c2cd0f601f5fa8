"""The parts of bench/serve.py: servers, the load, and what is measured with them."""
