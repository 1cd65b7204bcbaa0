"""The defaults of every configuration, and the meaning of each leaf.

Values only: derived numbers (samples of a crop, FLOPs, schedule lengths) are computed in the code
that needs them. The dictionary is locked, so a misspelt override is an error.
"""

import ml_collections

from configs import probe as probe_config


def get_config() -> ml_collections.ConfigDict:
    """Return the leaves that all methods share; a method still has to fill in some values."""
    config = ml_collections.ConfigDict()
    config.name = ""  # the file's name, and the first part of the default workdir
    config.variant = ""  # the file's variant, and the second part of the default workdir
    config.then = ""  # the variant to run after this one, with this one as its teacher
    config.method = "data2vec"
    config.seed = 1  # for initial values, order of the data, crops, masks and dropout
    config.steps = 400_000
    config.start_from = ""  # a workdir, Hugging Face directory, hf:ORG/NAME or fairseq file
    config.batch_size = 112  # clips in the global batch
    config.accumulate = 1  # parts in which a batch is computed, one after another
    config.precision = "bfloat16"  # of activations; parameters and losses are float32
    config.nonfinite = "stop"  # or "skip": what to do if a loss or gradient is not finite
    config.log_every = 200  # steps between lines of progress and metrics
    config.profile = ""  # START:STOP, the steps to trace, for TensorBoard and xprof
    config.tracker = ""  # or "wandb": log to Weights & Biases as well as TensorBoard

    config.data = data = ml_collections.ConfigDict()
    data.name = "music_folder"  # a builder of data_pipelines/, or builder/config
    data.mix = ""  # or several with their weights, such as "synth_music:1,music_folder:4"
    data.data_dir = "data"  # where data sets are built
    data.sample_rate = 16_000  # Hz
    data.crop_frames = 1496  # 20 ms encoder frames in a crop
    data.normalize = True  # zero mean, unit variance per clip
    data.on_damage = "stop"  # or "skip": what to do about a damaged record
    data.order = "shuffled"  # or "blocks": read neighbouring records together, for remote data
    data.mirror = ""  # a folder on each host, such as /dev/shm/data, to copy the data to

    config.encoder = encoder = ml_collections.ConfigDict()  # fields of model.encoder.Encoder
    encoder.layers = 12  # transformer layers
    encoder.width = 768  # of the hidden states
    encoder.heads = 12  # attention heads; a divisor of the width
    encoder.ffn_width = 3072  # hidden units of a feed-forward block
    encoder.stem_width = 512  # channels of the seven convolutions on the waveform
    encoder.stem_norm = "layer"  # after each convolution; or "group", after the first only
    encoder.stem_bias = False  # whether these convolutions have biases
    encoder.stem_start = "random"  # or "filterbank": initial values that distinguish pitches
    encoder.pos_conv_depth = 5  # positional convolutions; 0 for a single weight-normed one
    encoder.pos_conv_kernel = 19  # frames that each positional convolution covers
    encoder.pos_conv_groups = 16  # groups of channels in each; a divisor of the width
    encoder.pre_norm = False  # layer norms before attention and feed-forward, as in large models
    encoder.dropout = 0.1  # of the outputs of attention and feed-forward
    encoder.attention_dropout = 0.1  # of attention weights
    encoder.activation_dropout = 0.0  # inside a feed-forward block
    encoder.input_dropout = 0.0
    encoder.layerdrop = 0.05  # the probability that a step leaves out a whole layer
    encoder.feature_grad_mult = 1.0  # factor on the gradient that reaches the stem

    config.mask = mask = ml_collections.ConfigDict()  # arguments of objectives.masking.span_mask
    mask.probability = 0.65
    mask.span = 10
    mask.min_spans = 1
    mask.equal_counts = 7

    config.optim = optim = ml_collections.ConfigDict()
    optim.schedule = "tri_stage"
    optim.learning_rate = 5e-4  # the peak
    optim.beta1 = 0.9  # decay of Adam's average of gradients
    optim.beta2 = 0.98  # decay of Adam's average of squared gradients
    optim.epsilon = 1e-6
    optim.weight_decay = 0.01  # decoupled, as in AdamW
    optim.clip_norm = 0.0  # 0: no clipping

    config.checkpoint = checkpoint = ml_collections.ConfigDict()
    checkpoint.every = 2_000  # steps between saves
    checkpoint.keep = 3  # how many of the newest saves are kept
    checkpoint.keep_every = 100_000  # saves at multiples of this step are kept forever
    checkpoint.on_damage = "stop"  # or "older": if the newest save is damaged, use an earlier one

    config.probe = probe = probe_config.settings()  # linear probes of the encoder
    probe.update(probe_config.QUICK)
    probe.every = 0  # steps between probes during training; 0 for none
    probe.at_end = False  # probe the complete run, random initial values and log-mel

    config.validate = validate = ml_collections.ConfigDict()
    validate.every = 0  # steps between validations; 0 for none
    validate.clips = 64  # validation crops, the same each time; rounded up to whole batches
    validate.score = "loss"  # or masked_accuracy and others: the score of the best checkpoint

    config.mesh = ml_collections.ConfigDict({"fsdp": 1})  # devices that share one copy of the state
    return config
