"""Predicts what a run will take: compiles its step for absent machines, and times it on this one.

Imports musicssl.training, musicssl.probing and what lies below them.

To add a TPU, add a line to `topology.CHIPS`; to add a GPU, add one to `gpus.GPUS`, and its peak
rate to `musicssl.training.flops`. A machine of another kind is a new case in `topology.topology`.
"""
