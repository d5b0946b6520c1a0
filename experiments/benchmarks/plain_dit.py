"""The block of `nn.dit` as one would write it first, in JAX, to be timed beside ours.

GELU-tanh, no fences, one clip a line of the batch, padded to the longest; attention is dense. It
uses the parameters of our network that do the work per token, and its conditioning by time.
"""

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.nn.dit_config import DiTConfig

TEXT_TOKENS = 16
"""Of each clip's text."""


def normal(rng: np.random.Generator, *shape: int) -> jax.Array:
  """Random numbers."""
  return jnp.asarray(rng.standard_normal(shape, np.float32))


def batch_of(config: DiTConfig, lengths: list[int], rng: np.random.Generator) -> dict:
  """One clip a line, padded to the longest."""
  B, N = len(lengths), max(lengths)
  angle = normal(rng, B, N, config.head_size // 2)
  return dict(
    tokens=normal(rng, B, N, config.cells * config.in_channels),
    time=jnp.asarray(rng.uniform(size=(B,)), jnp.float32),
    text=normal(rng, B, TEXT_TOKENS, config.text_width),
    target=normal(rng, B, N, config.cells * config.out_channels),
    real=jnp.asarray(np.arange(N)[None] < np.asarray(lengths)[:, None]),
    cos=jnp.cos(angle), sin=jnp.sin(angle),
  )  # fmt: skip


def attend(q, k, v, real):
  """Dense attention, all keys of the line that are real."""
  score = jnp.einsum("blak,bmak->balm", q, k) * q.shape[-1] ** -0.5
  score = jnp.where(real[:, None, None, :], score, -1e30)
  return jnp.einsum("balm,bmak->blak", jax.nn.softmax(score), v)


def norm(x):
  x = x - x.mean(-1, keepdims=True)
  return x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)


def rms(x, gain):
  return x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6) * gain


def rotate(x, cos, sin):
  a, b = jnp.split(x, 2, axis=-1)
  cos, sin = cos[:, :, None], sin[:, :, None]
  return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def block(config: DiTConfig, x, w, batch, modulation_B6D, text_BMD):
  """The block of `nn.dit` as one would write it first."""
  shift1, scale1, gate1, shift2, scale2, gate2 = (
    part[:, None] for part in jnp.moveaxis(modulation_B6D + w["modulation"], 1, 0)
  )
  heads = lambda y: y.reshape(*y.shape[:2], -1, config.heads, config.head_size)  # noqa: E731
  h = norm(x) * (1 + scale1) + shift1
  qkv = heads(h @ w["attention"]["qkv"]["kernel"].reshape(config.width, -1))
  q = rms(qkv[:, :, 0], w["attention"]["q_norm"]["scale"])
  k = rms(qkv[:, :, 1], w["attention"]["k_norm"]["scale"])
  q, k = (rotate(y, batch["cos"], batch["sin"]) for y in (q, k))
  h = attend(q, k, qkv[:, :, 2], batch["real"])
  x = x + gate1 * jnp.einsum("blak,akd->bld", h, w["attention"]["out"]["kernel"])
  h = norm(x) * w["cross_norm"]["scale"] + w["cross_norm"]["bias"]
  q = heads(h @ w["cross"]["q"]["kernel"].reshape(config.width, -1))[:, :, 0]
  kv = heads(text_BMD @ w["cross"]["kv"]["kernel"].reshape(config.width, -1))
  q = rms(q, w["cross"]["q_norm"]["scale"])
  k = rms(kv[:, :, 0], w["cross"]["k_norm"]["scale"])
  h = attend(q, k, kv[:, :, 1], jnp.ones(kv.shape[:2], bool))
  x = x + jnp.einsum("blak,akd->bld", h, w["cross"]["out"]["kernel"])
  h = norm(x) * (1 + scale2) + shift2
  h = jax.nn.gelu(h @ w["mlp"]["up"]["kernel"] + w["mlp"]["up"]["bias"], approximate=True)
  return x + gate2 * (h @ w["mlp"]["down"]["kernel"] + w["mlp"]["down"]["bias"])


def loss_of(config: DiTConfig, params: dict, batch: dict) -> jax.Array:
  """Uses the parameters of `DiT` that do the work per token, and its conditioning by time."""
  dense = lambda w, x: x @ w["kernel"] + w["bias"]  # noqa: E731
  angle = 1000 * batch["time"][:, None] * jnp.exp(-jnp.arange(128) / 14.0)
  features = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)
  time_mlp = params["time"]["mlp"]
  condition = dense(time_mlp["down"], jax.nn.silu(dense(time_mlp["up"], features)))
  shared = params["modulation"]["linear"]
  modulation = jnp.einsum("bd,dpe->bpe", jax.nn.silu(condition), shared["kernel"]) + shared["bias"]
  text = dense(params["text"]["down"], jax.nn.gelu(dense(params["text"]["up"], batch["text"])))
  x = dense(params["embed"], batch["tokens"])
  for i in range(config.depth):
    w = jax.tree.map(lambda leaf, i=i: leaf[i], params["blocks"])
    x = block(config, x, w, batch, modulation, text)
  shift, scale = condition[:, None] + params["head"]["modulation"][:, None, None]
  out = dense(params["head"]["linear"], norm(x) * (1 + scale) + shift)
  error = jnp.square(out - batch["target"])
  return jnp.where(batch["real"][..., None], error, 0).sum() / batch["real"].sum()
