"""The host wing: audio files to TFRecord shards to batches. Never imports jax."""

import contextlib
import importlib.util
import os
import sys

# TensorFlow 2.20 and 2.21 put their LLVM among the symbols of the whole process, and Triton, which
# PyTorch's CUDA builds bring and load when they need it, crashes where it finds that one instead of
# its own (tensorflow/tensorflow#124205). Loaded first, it finds its own.
if "tensorflow" not in sys.modules and importlib.util.find_spec("triton") is not None:
    with contextlib.suppress(Exception):  # not usable here: PyTorch will say so if it needs it
        importlib.import_module("triton")

# How many bytes TensorFlow requests from gs:// in one read; its default is 64 MiB. It looks this
# variable up when it is imported.
os.environ.setdefault("GCS_READAHEAD_BUFFER_SIZE_BYTES", str(1 << 20))

# tensorstore waits for ever for a bucket that takes a connection and then says nothing.
os.environ.setdefault("TENSORSTORE_CURL_CONNECT_TIMEOUT_SECONDS", "60")
os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", "60")
os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")
