"""What surrounds a computation: devices, processes, saved states, timekeeping, compiled programs.

Imports `musicssl.command` and nothing else of this package.
"""
