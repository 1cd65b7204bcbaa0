"""What surrounds a computation: devices, processes, states on disk, time, compiled programs.

The lowest floor: it imports nothing of this package.
"""
