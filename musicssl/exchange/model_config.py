"""Translates between the encoder's fields and config.json with preprocessor_config.json.

`_FIELDS` and its two companions pair the encoder's fields with the keys of transformers'
Data2VecAudioConfig, HubertConfig and Wav2Vec2Config. A key without a field of the encoder is either
`_FIXED`, with one value that is required and written, or `_ABSENT`, and required to be off.
"""

from pathlib import Path
from typing import Any, NamedTuple

from musicssl.model.encoder import Encoder
from musicssl.model.stem import KERNELS, NORM_EPSILON, STRIDES

MODELS = {
    "data2vec-audio": "Data2VecAudioModel",
    "hubert": "HubertModel",
    "wav2vec2": "Wav2Vec2Model",
}
_HUBERT_LIKE = ("mert_model",)  # MERT's own code is HubertModel where _ABSENT holds
# Encoder field, key of config.json, and the value that transformers takes where the key is absent.
_FIELDS = (
    ("layers", "num_hidden_layers", 12),
    ("width", "hidden_size", 768),
    ("heads", "num_attention_heads", 12),
    ("ffn_width", "intermediate_size", 3072),
    ("stem_bias", "conv_bias", False),
    ("pos_conv_groups", "num_conv_pos_embedding_groups", 16),
    ("dropout", "hidden_dropout", 0.1),
    ("attention_dropout", "attention_dropout", 0.1),
    ("activation_dropout", "activation_dropout", 0.1),
    ("input_dropout", "feat_proj_dropout", 0.0),
    ("layerdrop", "layerdrop", 0.1),
)
_DATA2VEC_FIELDS = (
    ("pos_conv_depth", "num_conv_pos_embeddings", 5),
    ("pos_conv_kernel", "conv_pos_kernel_size", 19),
)
_OTHER_FIELDS = (
    ("stem_norm", "feat_extract_norm", "group"),
    ("pre_norm", "do_stable_layer_norm", False),
    ("pos_conv_kernel", "num_conv_pos_embeddings", 128),
)
# Keys without a field of the encoder: required in a config.json, and written to it.
_FIXED = {
    "conv_kernel": list(KERNELS),
    "conv_stride": list(STRIDES),
    "feat_extract_activation": "gelu",
    "hidden_act": "gelu",
    "layer_norm_eps": NORM_EPSILON,
}
_OTHER_FIXED = {"feat_proj_layer_norm": True, "conv_pos_batch_norm": False}
# Extensions of the family that change what it computes: required to be off.
_ABSENT = {
    "add_adapter": False,
    "adapter_attn_dim": None,
    "deepnorm": False,
    "feature_extractor_cqt": False,
}
_STEM_WIDTH = 512


class Masking(NamedTuple):
    """Span masks of pre-training, kept in config.json; transformers' defaults."""

    probability: float = 0.05
    span: int = 10
    min_spans: int = 2


def read_encoder(config: dict[str, Any], path: Path) -> Encoder:
    """Return the encoder that a config.json describes.

    Raises:
      ValueError: the key, its value, and what is supported.
    """
    model = config.get("model_type")
    if model not in (*MODELS, *_HUBERT_LIKE):
        known = ", ".join((*MODELS, *_HUBERT_LIKE))
        raise ValueError(f"{path}: model_type is {model!r}, but only {known} can be read")
    data2vec = model == "data2vec-audio"
    required = _FIXED | _ABSENT | ({} if data2vec else _OTHER_FIXED)
    for key, value in required.items():
        if config.get(key, value) != value:
            raise ValueError(
                f"{path}: {key} is {config[key]!r}: only models with {value!r} are supported"
            )

    # the fields, by the table of this kind of model
    fields: dict[str, Any] = {"pos_conv_depth": 0, "stem_norm": "layer", "pre_norm": False}
    for field, key, default in _FIELDS + (_DATA2VEC_FIELDS if data2vec else _OTHER_FIELDS):
        fields[field] = read_value(config, key, default, path)

    # what the tables cannot check
    widths = config.get("conv_dim", [_STEM_WIDTH] * len(KERNELS))
    if not isinstance(widths, list) or widths != widths[:1] * len(KERNELS):
        raise ValueError(
            f"{path}: conv_dim is {widths}: only {len(KERNELS)} equal widths are supported"
        )
    if fields["stem_norm"] not in ("group", "layer"):
        raise ValueError(
            f"{path}: feat_extract_norm is {fields['stem_norm']!r}: use 'group' or 'layer'"
        )
    for divisor in ("heads", "pos_conv_groups"):
        if fields["width"] % fields[divisor]:
            raise ValueError(
                f"{path}: hidden_size {fields['width']} is not a multiple of {divisor} "
                f"{fields[divisor]}"
            )
    return Encoder(**fields, stem_width=widths[0], feature_grad_mult=1.0)


def read_value(config: dict[str, Any], key: str, default: Any, path: Path) -> Any:
    """Return a key of a configuration, of the kind of its default.

    Counts must be positive, and rates not negative.
    """
    value = config.get(key, default)
    kinds = (int, float) if isinstance(default, float) else (type(default),)
    fits = isinstance(value, kinds) and isinstance(value, bool) == isinstance(default, bool)
    if fits and not isinstance(default, bool | str):
        fits = value >= 0 if isinstance(default, float) else value > 0
    if not fits:
        raise ValueError(f"{path}: {key} is {value!r}: expected a value such as {default!r}")
    return value


def read_preprocessor(config: dict[str, Any], path: Path) -> tuple[bool, int]:
    """Return whether clips are normalised, and the sample rate, of a preprocessor_config.json."""
    normalize = read_value(config, "do_normalize", True, path)
    return normalize, read_value(config, "sampling_rate", 16_000, path)


def config_json(encoder: Encoder, model: str, masking: Masking) -> dict[str, Any]:
    """Return config.json with every value of the encoder stated, as it was trained.

    `apply_spec_augment` is off: otherwise transformers would mask frames in training mode by
    itself. The mask values are kept, since the mask embedding exists only if they are positive.

    Raises:
      ValueError: transformers' model has no such encoder.
    """
    data2vec = model == "data2vec-audio"
    if data2vec != bool(encoder.pos_conv_depth):
        depth = encoder.pos_conv_depth
        raise ValueError(f"an encoder with pos_conv_depth {depth} is not a {model}")
    if data2vec and (encoder.stem_norm != "layer" or encoder.pre_norm):
        raise ValueError(
            "encoder.pos_conv_depth > 0 needs stem_norm 'layer' and pre_norm False: "
            "Data2VecAudioModel supports nothing else"
        )

    fields = _FIELDS + (_DATA2VEC_FIELDS if data2vec else _OTHER_FIELDS)
    return {
        "architectures": [MODELS[model]],
        "model_type": model,
        "dtype": "float32",
        **{key: getattr(encoder, field) for field, key, _ in fields},
        "conv_dim": [encoder.stem_width] * len(KERNELS),
        **_FIXED,
        **({} if data2vec else _OTHER_FIXED),
        "apply_spec_augment": False,
        "mask_time_prob": masking.probability,
        "mask_time_length": masking.span,
        "mask_time_min_masks": masking.min_spans,
        "mask_feature_prob": 0.0,
    }


def preprocessor_json(encoder: Encoder, normalize: bool, sample_rate: int) -> dict[str, Any]:
    """Return preprocessor_config.json as data.

    An attention mask is useful with a layer-norm stem only: a group norm includes the padding
    whatever the mask says (transformers' Wav2Vec2FeatureExtractor on return_attention_mask).
    """
    return {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": sample_rate,
        "do_normalize": normalize,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": encoder.stem_norm == "layer",
    }


def model_type(encoder: Encoder) -> str:
    """Return the transformers family of an encoder trained here."""
    return "data2vec-audio" if encoder.pos_conv_depth else "hubert"
