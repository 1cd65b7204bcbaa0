"""Export a run's encoder to PyTorch: python -m musicssl.export --workdir=RUN --output=DIR

DIR is then a model of transformers: AutoModel.from_pretrained(DIR) and
AutoFeatureExtractor.from_pretrained(DIR). PyTorch is not needed to write it. Exit codes: 0 written,
2 a request that cannot be met; then nothing is left in DIR.
"""

import sys
from pathlib import Path

import safetensors
from absl import app, flags, logging

from musicssl.exchange import huggingface, model_config, pretrained
from musicssl.exchange.model_card import model_card

EXIT_REFUSED = 2


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Not at import, where they would clash with another command's."""
    add = {"flag_values": values}
    flags.DEFINE_string("workdir", None, "The run: a workdir of main", required=True, **add)
    flags.DEFINE_string("output", None, "New or empty directory to write", required=True, **add)
    flags.DEFINE_integer("step", None, "Which checkpoint; default: the last", **add)
    flags.DEFINE_bool("ema", False, "data2vec: the EMA teacher, not the student", **add)


def main(argv: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)  # Orbax tells of every file it opens
    try:
        if len(argv) > 1:
            raise ValueError(f"unexpected arguments {argv[1:]}: options are spelt --name=value")
        f = flags.FLAGS
        print(export(Path(f.workdir), Path(f.output), f.step, f.ema))
    except (ValueError, OSError, safetensors.SafetensorError) as error:
        print(f"musicssl: {error}", file=sys.stderr, flush=True)
        sys.exit(EXIT_REFUSED)


def export(workdir: Path, output: Path, step: int | None = None, ema: bool = False) -> str:
    """Write a run's encoder as a Hugging Face directory, with a model card made from the run.

    Args:
      step: None for the last checkpoint.
      ema: data2vec's EMA teacher in place of the student's transformer.

    Returns:
      One line that says what was written.

    Raises:
      FileExistsError: `output` holds something.
      FileNotFoundError: no run, or no checkpoint of that step.
      ValueError: what the run cannot give, or a damaged checkpoint.
    """
    huggingface.refuse_occupied(output)  # before the checkpoint is read
    loaded, config, step = pretrained.load_run(workdir, step, ema)
    model = model_config.model_type(loaded.encoder)
    masking = model_config.Masking(config.mask.probability, config.mask.span, config.mask.min_spans)
    card = model_card(loaded, config, step, ema, workdir, output.name)
    huggingface.write(output, loaded, model, masking, card)
    return f"{output}: {model}, {loaded.source}"


if __name__ == "__main__":
    define_flags()
    app.run(main)
