"""Pre-trained encoders in and out: workdirs, Hugging Face directories, fairseq files, model cards.

This room imports musicssl.model and what lies below it.
"""
