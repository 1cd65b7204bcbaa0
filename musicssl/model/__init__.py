"""The encoder of the wav2vec 2.0 family, and the layers and kernels that it is made of.

Imports `musicssl.audio` and musicssl.runtime.

A family that differs in sizes, norms or positions is a case of `encoder.Encoder`. Another kind of
encoder is a module here that `encoder.make_encoder` chooses. Other rooms call its methods `stem`,
`project`, `mask` and `contextualize`, and the module itself, from audio to hidden states; data2vec
also averages the parameters whose names begin with `layer_` and `encoder_norm`. A new kind also
needs a table in `musicssl.exchange.state_dict`, a reader of its configuration in
`musicssl.exchange.model_config`, and its operations in `musicssl.training.flops`.
"""
