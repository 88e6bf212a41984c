"""Benchmarks of tierstore: ``python -m bench [NAME ...] [--smoke] [--json] [--out FILE]`` from the repository root.

One question per file. Each figure is measured beside what it is compared with, in the same run, in turns (A B A B), and
is reported as the median with its spread; docs/BENCHMARKS.md says how to read and to repeat them.
"""
