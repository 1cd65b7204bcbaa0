"""What a run will take: its step compiled for machines that need not be there, and timed here.

Imports musicssl.training, musicssl.probing and what lies below them.
"""
