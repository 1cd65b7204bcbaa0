"""The figures of a study."""

from musicssl.study import figures, results


def test_what_a_configuration_varies_is_found_from_the_runs(demo):
    study = results.collect(demo)
    groups = {(x["base"], x["leaf"]): dict(x["models"]) for x in figures.ablations(study)}
    vanilla, first = "music2vec-vanilla", "musichubert-k500"
    assert set(groups) == {
        *((vanilla, x) for x in ("steps", "data.crop_frames", "mask.probability", "mask.span")),
        (vanilla, "data2vec.top_layers"),
        *((first, x) for x in ("teacher.ceps", "teacher.clusters")),
        ("musichubert-k2000_iter1", "teacher.feature"),
    }
    assert list(groups[vanilla, "mask.probability"].values()) == [0.5, 0.65, 0.8]
    assert list(groups["musichubert-k2000_iter1", "teacher.feature"].values()) == ["mfcc", "layer"]
