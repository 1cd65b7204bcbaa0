"""The host wing: audio files to TFRecord shards to batches. Never imports jax."""

import os

# How many bytes TensorFlow requests from gs:// in one read; its default is 64 MiB. It looks this
# variable up when it is imported.
os.environ.setdefault("GCS_READAHEAD_BUFFER_SIZE_BYTES", str(1 << 20))

# tensorstore waits for ever for a bucket that takes a connection and then says nothing.
os.environ.setdefault("TENSORSTORE_CURL_CONNECT_TIMEOUT_SECONDS", "60")
os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", "60")
os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")
