"""musicssl: self-supervised pre-training of music encoders in JAX."""
