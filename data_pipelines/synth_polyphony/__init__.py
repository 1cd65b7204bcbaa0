"""Controlled stimuli about polyphony, as a TFDS data set."""
