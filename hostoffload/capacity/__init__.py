"""Capacity: what a workload is, how it is read or watched, and what protecting it would need.

`workload` and `overwrites` hold what was seen, `needs` and `verdicts` reckon from it: these are pure. `trace` reads files of other
programs, `watch` looks at a device or serves a file. `hostoffload plan` is their only caller; docs/planning.md explains every figure.
"""
