"""Reads weights of diffusers' `DiTTransformer2DModel` and `WanTransformer3DModel` into our DiT.

Both are the same network under other options: DiT has classes instead of text, a modulation per
block and fixed positions; Wan shares its modulation, norms queries and keys over the full width
and turns neighbouring entries (2i, 2i + 1) where we turn (i, i + K/2), so its heads are reordered
here once. Their times count to 1000, ours to 1; Wan attends to padded text, so its text is packed
whole, and its positions are ours at 24 frames a second. A weight that has no place in our network
is refused.

Of DiT's norms diffusers' `norm_eps` sets only those before the MLPs, 1e-5 by default, the others
have 1e-6. Ours all have 1e-6, with which the published weights were trained: outputs differ from
diffusers' default by what 1e-5 adds to a variance.
"""

from collections.abc import Mapping

import jax
import numpy as np

from sora_jax.nn.dit_config import DiTConfig

Weights = Mapping[str, np.ndarray]


def dit_config(theirs: Mapping) -> DiTConfig:
  """Our config for the config of a `DiTTransformer2DModel`.

  Raises: ValueError for options that change the mathematics and that we do not have.
  """
  require(theirs, activation_fn="gelu-approximate", norm_type="ada_norm_zero")
  require(theirs, norm_elementwise_affine=False, attention_bias=True)
  if (eps := theirs.get("norm_eps", 1e-6)) not in (1e-6, 1e-5):
    raise ValueError(f"cannot import norm_eps={eps!r}; only 1e-6 and 1e-5 are taken, as 1e-6")
  p = theirs["patch_size"]
  return DiTConfig(
    width=theirs["num_attention_heads"] * theirs["attention_head_dim"],
    depth=theirs["num_layers"],
    heads=theirs["num_attention_heads"],
    patch=(1, p, p),
    in_channels=theirs["in_channels"],
    out_channels=theirs["out_channels"] or theirs["in_channels"],
    classes=theirs["num_embeds_ada_norm"] + 1,
    modulation="full",
    qk_norm="none",
    qkv_bias=True,
    position="sincos",
    fraction_octaves=0,
    size_condition=False,
    time_shift=1.0,
  )


def wan_config(theirs: Mapping) -> DiTConfig:
  """Our config for the config of a `WanTransformer3DModel` (text to video).

  Raises: ValueError for the image-conditioned variants and other normalisations.
  """
  require(theirs, qk_norm="rms_norm_across_heads", image_dim=None, added_kv_proj_dim=None)
  width = theirs["num_attention_heads"] * theirs["attention_head_dim"]
  return DiTConfig(
    width=width,
    depth=theirs["num_layers"],
    heads=theirs["num_attention_heads"],
    mlp_ratio=theirs["ffn_dim"] / width,
    patch=tuple(theirs["patch_size"]),
    in_channels=theirs["in_channels"],
    out_channels=theirs["out_channels"] or theirs["in_channels"],
    text_width=theirs["text_dim"],
    qk_norm="full",
    qkv_bias=True,
    cross_norm=theirs["cross_attn_norm"],
    fraction_octaves=0,
    size_condition=False,
    time_features=theirs["freq_dim"],
    norm_eps=theirs["eps"],
  )


def require(theirs: Mapping, **wanted) -> None:
  """Raises ValueError if a config asks for what cannot be imported."""
  for name, value in wanted.items():
    if theirs.get(name, value) != value:
      raise ValueError(f"cannot import {name}={theirs[name]!r}; only {value!r} is supported")


class Taken(dict):
  """Weights by name; remembers which were read."""

  def __init__(self, weights: Weights):
    super().__init__(weights)
    self.names = set()

  def __getitem__(self, name: str) -> np.ndarray:
    self.names.add(name)
    return super().__getitem__(name)

  def finish(self) -> None:
    """Raises ValueError if a weight was not read."""
    if left := sorted(set(self) - self.names):
      raise ValueError(f"{len(left)} weights have no place in our network, such as {left[0]}")


def linear(weights: Weights, name: str) -> dict[str, np.ndarray]:
  """A torch linear layer: kernel `[in, out]` and bias."""
  return {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}


def embed(weights: Weights, name: str) -> dict[str, np.ndarray]:
  """A torch convolution over patches `[D, C, pt, ph, pw]` as a linear layer on (pt ph pw C)."""
  kernel = weights[f"{name}.weight"]
  if kernel.ndim == 4:
    kernel = kernel[:, :, None]
  kernel = kernel.transpose(2, 3, 4, 1, 0).reshape(-1, kernel.shape[0])
  return {"kernel": kernel, "bias": weights[f"{name}.bias"]}


def vector_mlp(weights: Weights, name: str) -> dict[str, dict]:
  """Two torch linear layers called linear_1 and linear_2."""
  return {"up": linear(weights, f"{name}.linear_1"), "down": linear(weights, f"{name}.linear_2")}


def modulation(weights: Weights, name: str, parts: int) -> dict[str, dict]:
  """A torch linear layer to `parts` vectors laid end to end."""
  got = linear(weights, name)
  D = got["kernel"].shape[0]
  kernel, bias = got["kernel"].reshape(D, parts, D), got["bias"].reshape(parts, D)
  return {"linear": {"kernel": kernel, "bias": bias}}


def heads_of(c: DiTConfig, array: np.ndarray, halves: bool) -> np.ndarray:
  """Splits the last axis into heads; `halves` moves entries 2i to i and 2i + 1 to i + K/2."""
  array = array.reshape(*array.shape[:-1], c.heads, c.head_size)
  if halves:
    array = np.concatenate([array[..., 0::2], array[..., 1::2]], axis=-1)
  return array


def attention(c: DiTConfig, weights: Weights, name: str, cross: bool, halves: bool) -> dict:
  """The projections and norms of one attention."""
  got = {part: linear(weights, f"{name}.to_{part}") for part in ("q", "k", "v")}
  for part in got:
    turned = halves and part != "v"
    got[part] = {key: heads_of(c, value, turned) for key, value in got[part].items()}
  out = linear(weights, f"{name}.to_out.0")
  out["kernel"] = out["kernel"].reshape(c.heads, c.head_size, -1)
  joined = ("k", "v") if cross else ("q", "k", "v")
  params = {"kv" if cross else "qkv": {
    "kernel": np.stack([got[part]["kernel"] for part in joined], axis=1),
    "bias": np.stack([got[part]["bias"] for part in joined], axis=0),
  }, "out": out}  # fmt: skip
  if cross:
    params["q"] = got["q"]
  if c.qk_norm == "full":
    for part in ("q", "k"):
      gain = heads_of(c, weights[f"{name}.norm_{part}.weight"], halves)
      params[f"{part}_norm"] = {"scale": gain}
  return params


def mlp(weights: Weights, name: str) -> dict:
  """The two linear layers of a diffusers feed-forward."""
  return {"up": linear(weights, f"{name}.net.0.proj"), "down": linear(weights, f"{name}.net.2")}


def stack_blocks(blocks: list[dict]) -> dict:
  """Stacks the parameters of equal blocks along a new first axis."""
  return jax.tree.map(lambda *arrays: np.stack(arrays), *blocks)


def from_dit(c: DiTConfig, weights: Weights) -> dict:
  """Parameters of our DiT from a `DiTTransformer2DModel`'s state.

  Its blocks each hold a copy of one embedder of time and class, as in the published weights.

  Args:
    c: from `dit_config`. weights: flat names to float arrays.
  Raises: ValueError if the blocks' embedders differ or a weight is left over; KeyError if one is
    missing.
  """
  weights = Taken(weights)
  name = "transformer_blocks.{}.norm1.emb"
  layers = [f"timestep_embedder.linear_{i}.{part}" for i in (1, 2) for part in ("weight", "bias")]
  for key in (*layers, "class_embedder.embedding_table.weight"):
    first = weights[f"{name.format(0)}.{key}"]
    for i in range(1, c.depth):
      if not np.array_equal(weights[f"{name.format(i)}.{key}"], first):
        raise ValueError(f"block {i} embeds time or class unlike block 0; one embedder is shared")
  blocks = []
  for i in range(c.depth):
    at = f"transformer_blocks.{i}"
    blocks.append({
      "modulation": modulation(weights, f"{at}.norm1.linear", 6),
      "attention": attention(c, weights, f"{at}.attn1", cross=False, halves=False),
      "mlp": mlp(weights, f"{at}.ff"),
    })  # fmt: skip
  emb = name.format(0)
  params = {
    "embed": embed(weights, "pos_embed.proj"),
    "time": {"mlp": vector_mlp(weights, f"{emb}.timestep_embedder")},
    "classes": weights[f"{emb}.class_embedder.embedding_table.weight"],
    "blocks": stack_blocks(blocks),
    "head": {
      "modulation": modulation(weights, "proj_out_1", 2),
      "linear": linear(weights, "proj_out_2"),
    },
  }
  weights.finish()
  return params


def from_wan(c: DiTConfig, weights: Weights) -> dict:
  """Parameters of our DiT from a `WanTransformer3DModel`'s state.

  Args:
    c: from `wan_config`. weights: flat names to float arrays.
  Raises: KeyError if a weight is missing, ValueError if one is left over.
  """
  weights = Taken(weights)
  blocks = []
  for i in range(c.depth):
    at = f"blocks.{i}"
    block = {
      "modulation": weights[f"{at}.scale_shift_table"][0],
      "attention": attention(c, weights, f"{at}.attn1", cross=False, halves=True),
      "cross": attention(c, weights, f"{at}.attn2", cross=True, halves=False),
      "mlp": mlp(weights, f"{at}.ffn"),
    }
    if c.cross_norm:
      gain, offset = weights[f"{at}.norm2.weight"], weights[f"{at}.norm2.bias"]
      block["cross_norm"] = {"scale": gain, "bias": offset}
    blocks.append(block)
  condition = "condition_embedder"
  params = {
    "embed": embed(weights, "patch_embedding"),
    "time": {"mlp": vector_mlp(weights, f"{condition}.time_embedder")},
    "modulation": modulation(weights, f"{condition}.time_proj", 6),
    "text": vector_mlp(weights, f"{condition}.text_embedder"),
    "blocks": stack_blocks(blocks),
    "head": {
      "modulation": weights["scale_shift_table"][0],
      "linear": linear(weights, "proj_out"),
    },
  }
  weights.finish()
  return params
