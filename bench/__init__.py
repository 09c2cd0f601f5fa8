"""Benchmarks, run from the repository root: `python -m bench.embed`, `bench.coldstart`, `bench.sts13`,
`bench.export_time`. Each states what it measures, prints a table and, last, one line of JSON with units in its keys.

Not part of what is installed.
"""
