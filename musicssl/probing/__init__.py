"""The evaluator: tasks, labels, grids of probes, scores and their report.

Imports musicssl.features, `musicssl.host` and what lies below them; not musicssl.training, which is
beside it. A further task is a line in `tasks`.
"""
