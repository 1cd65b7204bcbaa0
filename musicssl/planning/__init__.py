"""What a run will take: its step compiled for machines that need not be there, and timed here.

Imports musicssl.training, musicssl.probing and what lies below them.

A further TPU is a line in `topology.CHIPS`, a further GPU one in `gpus.GPUS`, with its peak rate in
`musicssl.training.flops`; a machine of another kind is a case in `topology.topology`.
"""
