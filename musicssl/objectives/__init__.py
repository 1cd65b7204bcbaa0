"""The training objectives, one module each, with the masks and codebooks that they need.

Imports musicssl.exchange and what lies below it. To add an objective, see objective.py, which holds
their contract.
"""
