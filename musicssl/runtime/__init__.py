"""What surrounds a computation: devices, processes, states on disk, time, compiled programs.

Imports `musicssl.command` and nothing else of this package.
"""
