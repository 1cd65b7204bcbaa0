"""Defaults of every configuration, and what each leaf means.

Values only: derived numbers (samples of a crop, FLOPs, schedule lengths) are derived in the code
that needs them. The dictionary is locked, so a misspelt override is an error.
"""

import ml_collections

from configs import probe as probe_config


def get_config() -> ml_collections.ConfigDict:
    """Return the leaves that all methods share, with values that a method still has to fill in."""
    config = ml_collections.ConfigDict()
    config.name = ""  # the file's name, and the first part of the default workdir
    config.variant = ""  # of that file, and the second part of the default workdir
    config.then = ""  # the variant that follows when this is complete, with it as its teacher
    config.method = "data2vec"
    config.seed = 1  # of initial values, order of the data, crops, masks and dropout
    config.steps = 400_000
    config.start_from = ""  # a workdir, Hugging Face directory, hf:ORG/NAME or fairseq file
    config.batch_size = 112  # clips in the global batch
    config.accumulate = 1  # parts that a batch is computed in, one after another
    config.precision = "bfloat16"  # of activations; parameters and losses are float32
    config.nonfinite = "stop"  # or "skip": what a loss or gradient that is not finite does
    config.log_every = 200  # steps between lines of progress and metrics
    config.profile = ""  # START:STOP, the steps of a trace in the workdir for TensorBoard and xprof
    config.tracker = ""  # or "wandb": Weights & Biases beside TensorBoard

    config.data = data = ml_collections.ConfigDict()
    data.name = "music_folder"  # a builder of data_pipelines/, or builder/config
    data.mix = ""  # in its place: several and their shares, such as "synth_music:1,music_folder:4"
    data.data_dir = "data"  # where data sets are built
    data.sample_rate = 16_000  # Hz
    data.crop_frames = 1496  # 20 ms encoder frames in a crop
    data.normalize = True  # zero mean, unit variance per clip
    data.on_damage = "stop"  # or "skip": what a damaged record does
    data.order = "shuffled"  # or "blocks": neighbours are read at once, where a read takes long
    data.mirror = ""  # a folder of each host, such as /dev/shm/data, that the data are copied to

    config.encoder = encoder = ml_collections.ConfigDict()  # fields of model.encoder.Encoder
    encoder.layers = 12  # transformer layers
    encoder.width = 768  # of the hidden states
    encoder.heads = 12  # of attention; they divide the width
    encoder.ffn_width = 3072  # hidden units of a feed-forward block
    encoder.stem_width = 512  # channels of the seven convolutions on the waveform
    encoder.stem_norm = "layer"  # after each convolution; or "group", after the first alone
    encoder.stem_bias = False  # whether these convolutions have biases
    encoder.stem_start = "random"  # or "filterbank": initial values that tell pitch
    encoder.pos_conv_depth = 5  # positional convolutions; 0 for a single weight-normed one
    encoder.pos_conv_kernel = 19  # frames that each of them reaches over
    encoder.pos_conv_groups = 16  # groups of channels in them; they divide the width
    encoder.pre_norm = False  # layer norms before attention and feed-forward, as in large models
    encoder.dropout = 0.1  # of the outputs of attention and feed-forward
    encoder.attention_dropout = 0.1  # of attention weights
    encoder.activation_dropout = 0.0  # inside a feed-forward block
    encoder.input_dropout = 0.0
    encoder.layerdrop = 0.05  # the probability that a whole layer is left out of a step
    encoder.feature_grad_mult = 1.0  # factor on the gradient that reaches the stem

    config.mask = mask = ml_collections.ConfigDict()  # arguments of objectives.masking.span_mask
    mask.probability = 0.65
    mask.span = 10
    mask.min_spans = 1
    mask.equal_counts = 7

    config.optim = optim = ml_collections.ConfigDict()
    optim.schedule = "tri_stage"
    optim.learning_rate = 5e-4  # at its highest
    optim.beta1 = 0.9  # of Adam's average of gradients
    optim.beta2 = 0.98  # of Adam's average of squared gradients
    optim.epsilon = 1e-6
    optim.weight_decay = 0.01  # decoupled, as in AdamW
    optim.clip_norm = 0.0  # 0: no clipping

    config.checkpoint = checkpoint = ml_collections.ConfigDict()
    checkpoint.every = 2_000  # steps between saves
    checkpoint.keep = 3  # the newest saves that are kept
    checkpoint.keep_every = 100_000  # saves at multiples of this are kept for good
    checkpoint.on_damage = "stop"  # where the newest save is damaged; "older": the newest whole one

    config.probe = probe = probe_config.settings()  # linear probes of the encoder
    probe.update(probe_config.QUICK)
    probe.every = 0  # steps between probes of the encoder as it is; 0 for none
    probe.at_end = False  # probe the complete run, beside random initial values and log-mel

    config.validate = validate = ml_collections.ConfigDict()
    validate.every = 0  # steps between looks at the validation split; 0 for none
    validate.clips = 64  # crops of it, the same each time; rounded up to whole batches
    validate.score = "loss"  # or such as masked_accuracy: what the best checkpoint is best in

    config.mesh = ml_collections.ConfigDict({"fsdp": 1})  # devices that share a copy
    return config
