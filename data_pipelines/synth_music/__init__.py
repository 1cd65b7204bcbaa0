"""Synthetic music with exact annotations, as a TFDS data set."""
