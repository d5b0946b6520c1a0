"""sora_jax: videos and images of any size as spacetime latent patches, learned by one transformer.

Importing the package is lazy: nothing heavy is imported before `load` is called.
"""

import os
from collections.abc import Sequence

__version__ = "0.1.0"


def load(name_or_dir: str | os.PathLike = "tiny", mesh: Sequence[int] | None = None):
  """Loads a model: shipped weights by name, or a work directory. See `sora_jax.model.load`."""
  from sora_jax import model

  return model.load(name_or_dir, mesh)
