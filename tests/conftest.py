"""Set before anything starts JAX, for this process and those that it starts."""

import os

from tests import compiling

os.environ["XLA_FLAGS"] = compiling.xla_flags()
