"""The host wing: audio files to TFRecord shards to batches. Never imports jax."""
