"""The engines that bench/generate.py compares, each in a module that runs as a process of its own."""
