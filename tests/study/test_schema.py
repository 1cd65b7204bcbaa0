"""A study and its plan against their schema."""

import json
import typing
from pathlib import Path
from typing import Any

from musicssl.study import results, schema


def check(wanted: Any, value: Any, path: str) -> None:
    """Fail where a value lacks a field that its schema requires, or has one that it does not name.

    Args:
      wanted: a type of the schema.
    """
    arguments = typing.get_args(wanted)
    if typing.is_typeddict(wanted):
        fields = typing.get_type_hints(wanted)
        assert wanted.__required_keys__ <= set(value) <= set(fields), path
        for name, field in value.items():
            check(fields[name], field, f"{path}.{name}")
    elif typing.get_origin(wanted) is list:
        for number, element in enumerate(value):
            check(arguments[0], element, f"{path}[{number}]")
    elif typing.get_origin(wanted) is dict:
        for name, element in value.items():
            check(arguments[1], element, f"{path}.{name}")
    elif wanted is float:
        assert isinstance(value, float | int), path
    elif type(None) in arguments:
        if value is not None:
            check(arguments[0], value, path)
    elif wanted is not Any:
        assert isinstance(value, wanted), path


def test_a_study_has_the_fields_of_the_schema(demo: Path) -> None:
    study = results.collect(demo)
    check(schema.Study, study, "study")
    check(schema.StudyPlan, json.loads((demo / "study.json").read_text()), "plan")
    assert any(encoder["varies"] for encoder in study["encoders"])
    assert any(score["synth_key"]["from_reference"] for score in study["scores"].values())
