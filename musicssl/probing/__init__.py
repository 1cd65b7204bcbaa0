"""The evaluator: tasks, labels, grids of probes, scores and their report.

It imports musicssl.features, `musicssl.host` and what lies below them, but not musicssl.training,
which is beside it. A further task is an entry in `tasks`; one that is labelled or scored as no other
is has a kind in `task_kinds`. `schema` says what results.json holds.
"""
