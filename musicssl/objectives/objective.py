"""The contract of an objective: what the training step needs from a module such as hubert.

An objective is a plain module with the functions of `Objective`; there is no class to inherit from.
To add one, write a file beside this one, a line in `musicssl.training.step.OBJECTIVES`, a
configuration and a test. These places branch on a method's name, and need a case for a new one:
`training.flops.train_parts`, `planning.compilation.frozen`, `planning.benchmark` (labels and head),
`exchange.model_card`, and `main.train` for a frozen teacher.
"""

from typing import Protocol

import jax
import ml_collections

from musicssl.model.encoder import Encoder
from musicssl.objectives.masking import Batch

Tree = dict  # parameters by name, nested: the leaves are arrays


class Objective(Protocol):
    """The functions that an objective has.

    The teacher is a tree of arrays. `init` makes the part of it that training changes (an average
    of the student, for instance); `loss` sees that part merged with the part that training does not
    change, such as a codebook.
    """

    def init(
        self, key: jax.Array, encoder: Encoder, config: ml_collections.ConfigDict, samples: int
    ) -> tuple[Tree, Tree]:
        """Return the initial parameters {"encoder", "head"} and the teacher that belongs to them.

        Args:
          samples: the length of any clip that the encoder accepts; the values do not depend on it.

        Raises:
          ValueError: the configuration does not fit the encoder.
        """

    def first_teacher(self, params: Tree) -> Tree:
        """Return the teacher before any update; of `params`, only "encoder" is needed."""

    def loss(
        self,
        encoder: Encoder,
        config: ml_collections.ConfigDict,
        params: Tree,
        teacher: Tree,
        batch: Batch,
        rngs: dict[str, jax.Array],
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the loss of a batch, or of a part of it, and sums for `health`.

        Both are added up over the parts of a batch, so each is a share of the global batch's value.

        Args:
          rngs: a key for "dropout" and one for "layerdrop".
        """

    def after_update(
        self, config: ml_collections.ConfigDict, params: Tree, teacher: Tree, updates: jax.Array
    ) -> Tree:
        """Return the teacher after the parameters' update number `updates`."""

    def health(
        self,
        config: ml_collections.ConfigDict,
        sums: dict[str, jax.Array],
        masked: jax.Array,
        updates: jax.Array,
    ) -> dict[str, jax.Array]:
        """Return the scalars to log.

        Args:
          sums: what `loss` returned, added over the parts of the batch.
          masked: the number of masked frames in the global batch.
          updates: how many updates came before this one.
        """

    def collapse(
        self, config: ml_collections.ConfigDict, metrics: dict[str, float], step: int
    ) -> str | None:
        """Return what is wrong with the logged metrics and what helps, or None if all is well."""
