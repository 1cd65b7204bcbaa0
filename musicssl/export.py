"""Export a run's encoder to PyTorch: python -m musicssl.export --workdir=RUN --output=DIR

transformers then loads it with AutoModel.from_pretrained(DIR) and
AutoFeatureExtractor.from_pretrained(DIR). PyTorch is not needed to write it. --push=ORG/NAME
uploads it to the Hub, with its model card, in one commit; then --output may be left out. Exit
codes: 0 written, 2 a request that cannot be met, 74 a bucket or the Hub does not answer. After 2
and 74 nothing is left half-written, neither in DIR nor on the Hub. RUN and DIR may be on gs://.
"""

import tempfile
from pathlib import Path

import safetensors
from absl import flags, logging

from musicssl import command, environment, host
from musicssl.exchange import hub, huggingface, model_config, pretrained
from musicssl.exchange.model_card import model_card
from musicssl.runtime.workdir import step_of


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Define the flags; at import they would clash with another command's."""
    command.define_path("workdir", "the run's workdir", values)
    command.define_path("output", "a new or empty directory to write", values)
    flags.DEFINE_string("push", None, "ORG/NAME of a model on the Hub", flag_values=values)
    flags.DEFINE_string(
        "step", "", "a number or best; the default is the last checkpoint", flag_values=values
    )
    flags.DEFINE_bool("ema", False, "export data2vec's teacher", flag_values=values)


def main(argv: list[str]) -> None:
    del argv
    f = flags.FLAGS
    with command.refusing(safetensors.SafetensorError):
        environment.require_devices()
        if not f.output and not f.push:
            raise ValueError("--output is missing: give a new or empty directory, or --push")
        if f.push:
            hub.check_push(f.push)
        with tempfile.TemporaryDirectory() as aside:
            output = host.path(f.output or Path(aside) / "model")
            workdir = host.path(f.workdir)
            said = export(workdir, output, step_of(workdir, f.step), f.ema, f.push)
            print(said if f.output else said.partition(": ")[2])
            if f.push:
                print(hub.push(output, f.push, f"Export {workdir.name} with musicssl"))


def export(
    workdir: Path,
    output: Path,
    step: int | None = None,
    ema: bool = False,
    name: str | None = None,
) -> str:
    """Write a run's encoder as a Hugging Face directory, with a model card made from the run.

    Args:
      step: None for the last checkpoint.
      ema: data2vec's EMA teacher in place of the student's transformer.
      name: the name by which the card's example loads the model; None for the directory's.

    Returns:
      One line that says what was written.

    Raises:
      FileExistsError: `output` holds something.
      FileNotFoundError: no run, or no checkpoint of that step.
      ValueError: the run does not have what is asked for, or its checkpoint is damaged.
    """
    huggingface.refuse_occupied(output)  # before the checkpoint is read
    loaded, config, step = pretrained.load_run(workdir, step, ema)
    model = model_config.model_type(loaded.encoder)
    mask = config.mask
    masking = model_config.Masking(mask.probability, mask.span, mask.get("min_spans", 1))
    card = model_card(loaded, config, step, ema, workdir, name or output.name)
    huggingface.write(output, loaded, model, masking, card)
    return f"{output}: {model}, {loaded.source}"


if __name__ == "__main__":
    command.run(  # Orbax logs every file that it opens
        main, define_flags, required=["workdir"], verbosity=logging.ERROR
    )
