"""The contract of an objective, held to the modules that keep it."""

import inspect

import pytest

from musicssl.objectives.objective import Objective
from musicssl.training import step

FUNCTIONS = [name for name, x in vars(Objective).items() if inspect.isfunction(x)]
FUNCTIONS = [name for name in FUNCTIONS if not name.startswith("_")]


def test_the_contract_names_all_that_the_step_and_the_loop_call():
    expected = {"init", "first_teacher", "loss", "after_update", "health", "collapse"}
    assert set(FUNCTIONS) == expected


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("method", step.OBJECTIVES)
def test_every_objective_has_each_function_with_the_arguments_of_the_contract(method, function):
    own = inspect.signature(getattr(step.OBJECTIVES[method], function))
    contract = inspect.signature(getattr(Objective, function))
    assert list(own.parameters) == list(contract.parameters)[1:]  # without self
