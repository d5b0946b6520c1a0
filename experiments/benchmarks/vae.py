"""How fast are the video autoencoder and its convolutions, and what memory does decoding take?

  python experiments/benchmarks/vae.py [--size=tiny] [--seconds=2]

Prints: GFLOP/s of each lowering of causal 3x3x3 convolutions, forward and with gradients, at shapes
of small networks; frames per second of encoding and decoding, and the step of training on 16 clips
of 9x32x32; temporary memory of the compiled decoder, whole and in chunks, for 17 and 257 frames.
One JSON object is the last line. Everything is measured in one process, lowerings in turn.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
import numpy as np

from sora_jax.nn import vae, vae_losses, vae_streaming
from sora_jax.nn.causal_conv import LOWERINGS, causal_conv

SHAPES = ((16, 9, 32, 32, 16), (16, 9, 16, 16, 32), (16, 9, 8, 8, 64), (16, 3, 8, 8, 128))
CLIPS = (16, 9, 32, 32, 3)


def fastest(functions, seconds):
  """Least seconds per call of each of several functions, called in turn for so long each."""
  best = dict.fromkeys(functions, float("inf"))
  for function in functions.values():
    jax.block_until_ready(function())
  end = time.perf_counter() + seconds * len(functions)
  while time.perf_counter() < end:
    for name, function in functions.items():
      start = time.perf_counter()
      jax.block_until_ready(function())
      best[name] = min(best[name], time.perf_counter() - start)
  return best


def lowerings(seconds):
  """GFLOP/s [forward, with gradients] of each lowering and shape; zero taps count as work."""
  found = {}
  for shape in SHAPES:
    C = shape[-1]
    x = jax.random.normal(jax.random.key(0), shape)
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, C, C)) / (27 * C) ** 0.5
    work = 2.0 * x.size * 27 * C / 1e9
    timed = {}
    for name in LOWERINGS[1:]:

      def apply(x, kernel, name=name):
        return causal_conv(x, kernel, lowering=name)

      forward = jax.jit(apply)
      both = jax.jit(jax.grad(lambda x, k, f=apply: jnp.sum(f(x, k) ** 2), (0, 1)))
      timed[name, 0] = lambda f=forward, x=x, k=kernel: f(x, k)
      timed[name, 1] = lambda f=both, x=x, k=kernel: f(x, k)
    best = fastest(timed, seconds)
    found["x".join(map(str, shape))] = {
      name: [round(work / best[name, 0]), round(3 * work / best[name, 1])] for name in LOWERINGS[1:]
    }
    print(shape, found["x".join(map(str, shape))], flush=True)
  return found


def rates(config, variables, seconds):
  """Frames per second and seconds per training step on clips of 9x32x32."""
  network = vae.CausalVAE(config)
  video = jax.random.uniform(jax.random.key(0), CLIPS, minval=-1)
  encode = jax.jit(lambda v, x: vae.encode(config, v, x))
  decode = jax.jit(lambda v, z: vae.decode(config, v, z))
  weights = vae_losses.LossConfig(ssim=0.0)

  @jax.jit
  @jax.grad
  def step(params, x):
    mean, logvar = network.apply({"params": params}, x, method="encode")
    latent = vae.sample_posterior(jax.random.key(0), mean, logvar)
    recon = network.apply({"params": params}, latent, method="decode")
    return vae_losses.loss(x, recon, mean, logvar, weights)["loss"]

  latent = encode(variables, video)
  best = fastest(
    {
      "encode": lambda: encode(variables, video),
      "decode": lambda: decode(variables, latent),
      "step": lambda: step(variables["params"], video),
    },
    seconds,
  )
  frames = CLIPS[0] * CLIPS[1]
  flops = CLIPS[0] * vae_losses.flops(config, *CLIPS[1:4])
  return {
    "encode_frames_per_sec": round(frames / best["encode"]),
    "decode_frames_per_sec": round(frames / best["decode"]),
    "train_step_ms": round(1e3 * best["step"], 1),
    "train_gflops": round(flops / best["step"] / 1e9),
  }


def memory(config, variables):
  """Temporary bytes of compiled decoders of 64x64 frames, and how many programs chunks took."""
  h = w = 64 // config.spatial
  found = {}
  run = vae_streaming.programs(config)
  for frames in (17, 257):
    t = 1 + (frames - 1) // config.temporal
    latent = jax.ShapeDtypeStruct((1, t, h, w, config.latent), jnp.float32)
    whole = jax.jit(lambda v, z: vae.decode(config, v, z)).lower(variables, latent).compile()
    found[f"whole_{frames}"] = whole.memory_analysis().temp_size_in_bytes
    stream = (np.zeros((1, h, w, config.latent), np.float32) for _ in range(t))
    decoded = sum(x.shape[1] for x in vae_streaming.decode_stream(config, variables, stream))
    found[f"frames_{frames}"] = decoded
  one = jnp.zeros((1, 1, h, w, config.latent))
  _, state = run["decode_first"](variables, one)
  chunk = run["decode_next"].lower(variables, state, one).compile()
  found["chunk_any_length"] = chunk.memory_analysis().temp_size_in_bytes
  found["chunk_programs"] = run["decode_next"]._cache_size()
  return found


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--size", default="tiny", choices=list(vae.SIZES))
  parser.add_argument("--seconds", type=float, default=2.0, help="per measured function")
  options = parser.parse_args()
  config = vae.SIZES[options.size]
  variables = jax.jit(lambda key: vae.init(config, key))(jax.random.key(0))
  report = {
    "size": options.size,
    "params": sum(x.size for x in jax.tree.leaves(variables["params"])),
    **rates(config, variables, options.seconds),
    "memory_bytes": memory(config, variables),
    "conv_gflops": lowerings(options.seconds),
  }
  print(json.dumps(report))


if __name__ == "__main__":
  main()
