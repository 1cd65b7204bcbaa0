"""The host wing: audio files to TFRecord shards to batches. Never imports jax."""

import os

# TensorFlow asks gs:// for so many bytes whenever it reads, 64 MiB if nobody says otherwise, and
# looks this up as it is imported.
os.environ.setdefault("GCS_READAHEAD_BUFFER_SIZE_BYTES", str(1 << 20))
