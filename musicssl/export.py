"""Export a run's encoder to PyTorch: python -m musicssl.export --workdir=RUN --output=DIR

DIR is then a model of transformers: AutoModel.from_pretrained(DIR) and
AutoFeatureExtractor.from_pretrained(DIR). PyTorch is not needed to write it. Exit codes: 0 written,
2 a request that cannot be met, 74 a bucket that did not answer; then nothing is left in DIR. Both
may be on gs://.
"""

from pathlib import Path

import safetensors
from absl import flags, logging

from musicssl import command, environment, host
from musicssl.exchange import huggingface, model_config, pretrained
from musicssl.exchange.model_card import model_card


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Not at import, where they would clash with another command's."""
    command.define_path("workdir", "the run's workdir", values)
    command.define_path("output", "a new or empty directory to write", values)
    flags.DEFINE_integer("step", None, "which checkpoint; default: the last", flag_values=values)
    flags.DEFINE_bool("ema", False, "data2vec: the teacher, not the student", flag_values=values)


def main(argv: list[str]) -> None:
    del argv
    f = flags.FLAGS
    with command.refusing(safetensors.SafetensorError):
        environment.require_devices()
        print(export(host.path(f.workdir), host.path(f.output), f.step, f.ema))


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
    mask = config.mask
    masking = model_config.Masking(mask.probability, mask.span, mask.get("min_spans", 1))
    card = model_card(loaded, config, step, ema, workdir, output.name)
    huggingface.write(output, loaded, model, masking, card)
    return f"{output}: {model}, {loaded.source}"


if __name__ == "__main__":
    command.run(  # Orbax tells of every file it opens
        main, define_flags, required=["workdir", "output"], verbosity=logging.ERROR
    )
