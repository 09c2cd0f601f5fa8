"""What bench/fuzz.py is made of: good bundles, ways to spoil them, and a process that opens what came of it."""
