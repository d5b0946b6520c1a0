"""Attention over rows split between eight devices: prints how far it is from the definition.

One JSON line a case: its name, the dtype, and the largest difference of output and gradients from
`reference_attention`, each over the largest value.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax import sharding
from sora_jax.ops.attention import reference_attention

R, L, M, A, K = 2, 96, 20, 8, 6
ROW = [1] * 31 + [2] + [3] * 40 + [4] * 2 + [5] + [6] * 9 + [0] * 12
"""Straddles every shard of 12 tokens; one-token segments; a shard of padding alone."""
TEXT = [1] * 3 + [2] * 2 + [3] * 5 + [4] + [5] * 2 + [0] * 7
MESHES = ((1, 1, 8, 1), (1, 1, 2, 4), (1, 2, 4, 1), (2, 1, 2, 2))


def both(attend):
  @jax.jit
  def run(qkv, segments, given):
    out, pull = jax.vjp(lambda *x: attend(*x, *segments), *qkv)
    return out, *pull(given)

  return run


def inputs(dtype, cross):
  keys = jax.random.split(jax.random.key(0), 4)
  draw = lambda key, length: jax.random.normal(key, (R, length, A, K)).astype(dtype)  # noqa: E731
  near = jnp.array([ROW, [1] * L])
  far = jnp.array([TEXT, [1] * M]) if cross else near
  length = M if cross else L
  return (
    (draw(keys[0], L), draw(keys[1], length), draw(keys[2], length)),
    (near, far),
    draw(keys[3], L),
  )


def main():
  for dtype in (jnp.float32, jnp.bfloat16):
    want = {cross: both(reference_attention)(*inputs(dtype, cross)) for cross in (False, True)}
    for shape in MESHES:
      mesh = sharding.make_mesh(shape)
      (ring, words), (ulysses, _) = (sharding.attentions(mesh, A, m) for m in ("ring", "ulysses"))
      for method, attend in (("ring", ring), ("ulysses", ulysses), ("words", words)):
        cross = attend is words
        got = both(attend)(*inputs(dtype, cross))
        error = max(
          float(np.abs(np.float32(a) - np.float32(b)).max() / np.abs(np.float32(b)).max())
          for a, b in zip(got, want[cross])
        )
        name = f"{'x'.join(map(str, shape))} {method}"
        print(json.dumps({"name": name, "dtype": jnp.dtype(dtype).name, "error": error}))
  print(json.dumps(whole_rows()))


def whole_rows():
  """Shapes in the compiled ring and Ulysses programs that hold a whole row of keys."""
  mesh, found = sharding.make_mesh((1, 1, 8, 1)), {}
  for method in ("ring", "ulysses"):
    attend = functools.partial(both, sharding.attentions(mesh, A, method)[0])()
    text = attend.lower(*inputs(jnp.float32, False)).compile().as_text()
    found[method] = sum(f"[{shape}]" in text for shape in (f"2,{L},1,{K}", f"2,{L},{A},{K}"))
  return {"name": "whole rows", **found}


if __name__ == "__main__":
  main()
