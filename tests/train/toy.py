"""A task small enough to train in a test: fit a linear map, with a stream that can be resumed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.train.task import Cost, Ratio


class Stream:
  """Random regression rows, a function of (seed, position); state is the position."""

  def __init__(self, rows: int, bad: int | None = None):
    self.rows, self.bad, self.position = rows, bad, 0

  def __iter__(self):
    return self

  def __next__(self):
    rng = np.random.default_rng(self.position)
    x = rng.standard_normal((self.rows, 4)).astype(np.float32)
    if self.position == self.bad:
      x[0, 0] = np.nan
    clip = np.arange(self.rows, dtype=np.int32) + 100 * self.position
    self.position += 1
    return {"x": x, "y": x @ np.arange(12, dtype=np.float32).reshape(4, 3), "clip": clip}

  def get_state(self):
    return {"position": self.position}

  def set_state(self, state):
    self.position = state["position"]


@dataclasses.dataclass(frozen=True)
class Toy:
  """Linear regression with noise on its inputs, so that the random keys matter."""

  rows: int = 8
  bad: int | None = None
  name: str = "toy"
  unlearning: tuple[str, ...] = ()

  def init(self, key):
    kernel = jax.random.normal(key, (4, 3))
    return {"layer": {"kernel": kernel, "bias": jnp.zeros((3,))}}

  def axes(self):
    return None

  def on(self, mesh):
    return self

  def fixed(self):
    return self.unlearning

  def batch_axes(self):
    return {}

  def loss(self, params, batch, key, progress):
    x = batch["x"] + 0.01 * jax.random.normal(key, batch["x"].shape)
    out = x @ params["layer"]["kernel"] + params["layer"]["bias"][None]
    error = jnp.mean((out - batch["y"]) ** 2, axis=1)
    rows = jnp.asarray(error.size, jnp.float32)
    return Ratio(error.sum(), rows), {"progress": Ratio(progress * rows, rows)}

  def batches(self):
    return Stream(self.rows, self.bad)

  def evaluators(self):
    return [Distance()]

  def cost(self, batch):
    return Cost(tokens=batch["x"].shape[0], flops=1e6, clips=batch["x"].shape[0])

  def names(self, batch):
    clips = batch["clip"].tolist()
    return lambda: [f"clip-{i}" for i in clips]

  def export(self, params, folder, provenance):
    return {}


class Distance:
  """How far the kernel is from the truth."""

  name = "toy"

  def __call__(self, params, step, folder):
    truth = jnp.arange(12.0).reshape(4, 3)
    return {"distance": float(jnp.abs(params["layer"]["kernel"] - truth).max())}
