"""Benchmarks: `python -m bench` measures the agent and the whole way to the replica, side by side with nbdkit, in one run.

Nothing here is part of the product. How each figure is measured, and what it must be, stands in `bench/README.md`.
"""
