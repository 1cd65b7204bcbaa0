"""The jitted training step, the loop around it, the optimizer, and their count of operations.

Imports musicssl.objectives and what lies below it, but not musicssl.probing, on the same floor.
"""
