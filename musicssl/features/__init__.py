"""Features of frozen encoders and of signal transforms: cut into windows, extracted, cached.

Imports musicssl.exchange and what lies below it.
"""
