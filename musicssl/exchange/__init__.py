"""Reads and writes pre-trained encoders: workdirs, Hugging Face and fairseq files, model cards.

This room imports musicssl.model and what lies below it.
"""
