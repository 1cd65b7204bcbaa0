"""What all tests share: how JAX is started, and which tests begin."""

import os

import pytest

from tests import compiling

os.environ["XLA_FLAGS"] = compiling.xla_flags()  # here and in the processes that tests start

# Begun first, so that workers end together; each worker gets one of the first two, then one of the
# others: the two with full-size models, configs and musichubert, take their memory in turn.
LONGEST = ("test_main", "test_configs", "test_topologies", "test_musichubert")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))
