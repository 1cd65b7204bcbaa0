"""What a configuration's targets are, and which it cannot have."""

import json

import ml_collections
import pytest

from configs import musichubert
from musicssl.objectives import targets
from musicssl.objectives.targets import Target


def config_of(**leaves: object) -> ml_collections.ConfigDict:
    config = musichubert.get_config("k500")
    given = {f"teacher.{name}": value for name, value in leaves.items()}
    config.update_from_flattened_dict({"teacher.feature": ""} | given)
    return config


def test_a_feature_alone_is_one_target():
    assert targets.of(musichubert.get_config("k2000_iter2")) == (
        Target("layer", "layer", "kmeans", 2000, 1.0),
    )


def test_several_are_read_in_their_order():
    config = config_of(
        targets="mel:random:2x512, chroma:kmeans:200,layer:random,onset", weights=(1.0, 0.5, 2, 3)
    )
    wanted = (
        Target("mel_1", "mel", "random", 512, 0.5),
        Target("mel_2", "mel", "random", 512, 0.5),
        Target("chroma", "chroma", "kmeans", 200, 0.5),
        Target("layer", "layer", "random", 500, 2.0),
        Target("onset", "onset", "kmeans", 500, 3.0),
    )
    assert targets.of(config) == wanted
    as_saved = ml_collections.ConfigDict(json.loads(config.to_json()))  # tuples become lists
    assert targets.of(as_saved) == wanted


def test_one_may_be_written_in_the_list():
    wanted = targets.of(musichubert.get_config("k500"))
    assert targets.of(config_of(targets="mfcc")) == wanted
    assert targets.of(config_of(targets="mfcc:kmeans:500", weights=(1.0,))) == wanted


def test_weights_may_be_emptied_on_the_command_line():
    """ml_collections reads --config.teacher.weights= as one empty word."""
    for emptied in ((), ("",)):
        wanted = targets.of(config_of(targets="mel,chroma", weights=emptied))
        assert [target.weight for target in wanted] == [1.0, 1.0]


def test_widths_are_those_of_the_features():
    config = config_of(targets=",".join(targets.FEATURES), ceps=20)
    widths = {x.name: targets.width(config, x) for x in targets.of(config)}
    assert widths == {
        "mfcc": 60,
        "partials": 140,
        "mel": 80,
        "cqt": 84,
        "chroma": 12,
        "onset": 8,
        "layer": 768,
    }


@pytest.mark.parametrize(
    "leaves, said",
    [
        ({}, "teacher.feature is '': use one of mfcc, partials, mel, cqt, chroma, onset, layer"),
        ({"feature": "pitch"}, "teacher.feature is 'pitch': use one of mfcc"),
        ({"feature": "mel", "targets": "mel"}, "give one of them, and leave the other empty"),
        ({"feature": "mel", "weights": (1.0,)}, "there are no teacher.targets: leave it empty"),
        ({"feature": "mel", "clusters": 0}, "teacher.clusters is 0: use 2 or more"),
        ({"targets": "mel", "clusters": 1}, "'mel', whose number of codes is 1: use 2 or more"),
        ({"targets": "mel:kmeans:0"}, "'mel:kmeans:0', whose number of codes is 0: use 2 or more"),
        ({"targets": "mel:random:2x1"}, "whose number of codes is 1: use 2 or more"),
        ({"targets": "mel,pitch"}, "has a feature 'pitch': use some of mfcc"),
        ({"targets": "mel,"}, "has a feature ''"),
        ({"targets": "mel,chroma,mel"}, "names mel twice: name it once; mel:random:2x512 has two"),
        ({"targets": "mel:kmeans:9,mel:random:9"}, "names mel twice"),
        ({"targets": "mel:lookup:9"}, "a quantiser 'lookup' in 'mel:lookup:9': use mel:kmeans or"),
        ({"targets": "mel:9"}, "a quantiser '9' in 'mel:9'"),
        ({"targets": "mel:random:many"}, "has 'mel:random:many': write FEATURE:QUANTIZER:CODES"),
        ({"targets": "mel:random:0x9"}, "has 'mel:random:0x9': write FEATURE:QUANTIZER:CODES"),
        ({"targets": "mel:random:-9"}, "has 'mel:random:-9': write FEATURE:QUANTIZER:CODES"),
        ({"targets": "mel:random:9:1"}, "has 'mel:random:9:1': write FEATURE:QUANTIZER:CODES"),
        ({"targets": "mel:kmeans:2x9"}, "so 2 would be alike; use mel:kmeans:9, or mel:random:2x9"),
        ({"targets": "mel,cqt", "weights": (1.0,)}, "has 1 numbers for 2 targets"),
        (
            {"targets": "mel:random:4x64,cqt", "weights": (1.0, 1.0, 1.0)},
            "has 3 numbers for 2 targets",
        ),
        ({"targets": "mel,cqt", "weights": (1.0, 0.0)}, "teacher.weights has 0.0: use numbers abo"),
        ({"targets": "mel", "weights": (-1,)}, "teacher.weights has -1: use numbers above 0"),
        ({"targets": "mel", "weights": (float("nan"),)}, "teacher.weights has nan: use numbers"),
        ({"targets": "mel", "weights": ("1;2",)}, "teacher.weights has '1;2': use numbers above"),
        ({"targets": "mel:random", "projection": 0}, "teacher.projection is 0: use 1 dimension"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(leaves, said):
    with pytest.raises(ValueError) as caught:
        targets.of(config_of(**leaves))
    assert said in str(caught.value) and "\n" not in str(caught.value)
