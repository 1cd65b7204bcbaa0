"""The digest of a loaded encoder."""

import numpy as np

from musicssl.exchange import huggingface
from musicssl.exchange.loaded import with_digest


def test_the_digest_is_of_what_features_depend_on(saved):
    loaded = huggingface.read_directory(saved)
    encoder, params = loaded.encoder, loaded.params

    def digest(**options) -> str:
        fields = {"normalize": True, "sample_rate": 16_000} | options
        chosen = fields.pop("encoder", encoder), fields.pop("params", params)
        return with_digest(*chosen, source="elsewhere", **fields).digest

    assert digest() == loaded.digest
    assert digest(encoder=encoder.clone(dropout=0.7, layerdrop=0.7)) == loaded.digest
    nudged = params | {"mask_embedding": np.nextafter(params["mask_embedding"], np.float32(9))}
    others = [{"normalize": False}, {"sample_rate": 24_000}, {"encoder": encoder.clone(heads=2)}]
    assert len({digest(), *(digest(**x) for x in [*others, {"params": nudged}])}) == 5
