"""The jitted training step and the loop around it, the optimizer, the operations that they take.

Imports musicssl.objectives and what lies below it; not musicssl.probing, which is beside it.
"""
