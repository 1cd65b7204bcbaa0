"""What an encoder is trained for, a module each, with the masks and codebooks that they need.

Imports musicssl.exchange and what lies below it. A further objective is a file here that keeps the
contract in objective.py.
"""
