"""The encoder of the wav2vec 2.0 family, and the layers and kernels that it is made of.

Imports `musicssl.audio` and musicssl.runtime.
"""
