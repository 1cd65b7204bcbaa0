"""The evaluator: tasks, labels, grids of probes, scores and their report.

It imports musicssl.features, `musicssl.host` and what lies below them, but not musicssl.training,
which is beside it. A further task is an entry in `tasks`. If no other task is labelled or scored
alike, it needs an entry in `task_kinds` too. `schema` says what results.json holds.
"""
