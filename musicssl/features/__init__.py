"""Features of frozen encoders and of signal transforms: cut into windows, extracted, cached.

It imports musicssl.exchange and what lies below it.
"""
