"""How much of the machine's matrix rate does a train step of the diffusion transformer reach?

  python experiments/benchmarks/train_step.py [--sizes=tiny,w512] [--seconds=60]

Work is what `tasks/costs.py` counts, as in training: 6 floating-point operations for each entry of
a matrix and each real token that meets it, and attention inside segments. Rate is that over the
time of a whole step (forward, backward, AdamW), the machine's rate a product of two 2048 x 2048
float32 matrices. All of them are timed in turn within one run, so that what else the machine does
falls on each alike; both the best and the middle of the times are reported.
`one_device` is ours with all rows on one device of JAX instead of one a core. `plain` is the same
shape of network written straight down (plain_dit.py), one clip a line: once on clips that all have
the mean length, and once on the packed clips padded to the longest.
`plain_alone` is the first of these in a process of its own, whose C library gives freed memory
back as it does by itself; it too takes its turn. The last line is one JSON object.
"""

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

from sora_jax.train.host_memory import keep_freed_memory

ALONE = "--alone"
KEPT = ALONE not in sys.argv and keep_freed_memory(3 << 30)
ROWS = 16
"""Most devices that are made; a batch is shared out over as many as divide its rows."""

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
import plain_dit  # noqa: E402
from flax import linen as nn  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402
from plain_dit import TEXT_TOKENS, normal  # noqa: E402

from sora_jax import sharding  # noqa: E402
from sora_jax.nn.dit import DiT  # noqa: E402
from sora_jax.nn.dit_config import DiTConfig  # noqa: E402
from sora_jax.nn.text import TextConfig  # noqa: E402
from sora_jax.ops import packing  # noqa: E402
from sora_jax.ops.attention import Attention  # noqa: E402
from sora_jax.tasks import costs  # noqa: E402
from sora_jax.train import processors  # noqa: E402

processors.share_out((-1, 1, 1, 1), ROWS)
GRIDS = [(3, 6, 6), (3, 4, 8), (3, 8, 4), (3, 5, 7), (3, 7, 5), (1, 6, 6), (1, 4, 8), (1, 8, 4),
         (2, 6, 6), (1, 5, 7), (1, 4, 5), (1, 4, 4)]  # fmt: skip
"""Token grids of the clips and pictures that are mixed; five aspect ratios, three durations."""

SIZES = {
  "tiny": dict(
    config=DiTConfig(
      width=192, depth=6, heads=3, in_channels=20, out_channels=8, text_width=128,
      mlp_activation="relu_squared", scan_unroll=6,
    ),
    rows=32, row_len=128, segments=6,
  ),
  "w512": dict(
    config=DiTConfig(
      width=512, depth=4, heads=8, in_channels=20, out_channels=8, text_width=128,
      mlp_activation="relu_squared", scan_unroll=4,
    ),
    rows=16, row_len=128, segments=6,
  ),
}  # fmt: skip


def fill_rows(size: dict, rng: np.random.Generator) -> list[list[tuple]]:
  """Random clips, row by row, until nothing of the mix fits."""
  rows = []
  for _ in range(size["rows"]):
    row, left = [], size["row_len"]
    while len(row) < size["segments"]:
      fitting = [grid for grid in GRIDS if np.prod(grid) <= left]
      if not fitting:
        break
      if left < 60:
        fitting = [max(fitting, key=np.prod)]
      grid = fitting[rng.integers(len(fitting))]
      row.append((grid, 12.0 if grid[0] > 1 else 0.0))
      left -= int(np.prod(grid))
    rows.append(row)
  return rows


def packed_batch(size: dict, rows: list, rng: np.random.Generator) -> dict:
  """Tokens, times, layout and text of packed rows, all random."""
  c, R, L, S = size["config"], size["rows"], size["row_len"], size["segments"]
  tables = packing.place(rows, L, S)
  M = S * TEXT_TOKENS
  text_segment = np.zeros((R, M), np.int32)
  for r, row in enumerate(rows):
    text_segment[r, : len(row) * TEXT_TOKENS] = 1 + np.arange(len(row)).repeat(TEXT_TOKENS)
  return dict(
    tokens=normal(rng, R, L, c.cells * c.in_channels),
    time=jnp.asarray(rng.uniform(size=(R, S)), jnp.float32),
    layout=packing.layout_of({**tables, "text_segment": text_segment}),
    text=normal(rng, R, M, c.text_width),
    target=normal(rng, R, L, c.cells * c.out_channels),
  )


def packed_step(
  config: DiTConfig, params: dict, batch: dict, cores: int = 0, attend: Attention | None = None
) -> "Step":
  """The step of our network, whose rows are shared out over the cores, as in training.

  cores: 0 = as many as the rows can be shared out to. attend: instead of the attention among tokens
  that training takes for such rows.
  """
  rows, devices = batch["tokens"].shape[0], jax.devices()
  cores = cores or max(n for n in range(1, len(devices) + 1) if rows % n == 0)
  mesh = sharding.make_mesh((-1, 1, 1, 1), devices[:cores])
  near, far = sharding.attentions(mesh, config.heads)
  network = DiT(config, attention=attend or near, cross_attention=far)

  def loss(config: DiTConfig, params: dict, batch: dict) -> jax.Array:
    arguments = (batch["tokens"], batch["time"], batch["layout"], batch["text"])
    with sharding.using(mesh):
      out = network.apply({"params": params}, *arguments)
    real = (batch["layout"].segment_RL > 0)[..., None]
    return jnp.where(real, jnp.square(out - batch["target"]), 0).sum() / real.sum()

  batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
  return Step(loss, config, jax.device_put(params, sharding.replicated(mesh)), batch)


class Step:
  """A compiled train step with its state; calling it runs one step to its end."""

  def __init__(self, loss, config: DiTConfig, params: dict, batch: dict):
    optimizer = optax.adamw(1e-3)

    def step(params, moments, batch):
      value, gradient = jax.value_and_grad(lambda p: loss(config, p, batch))(params)
      update, moments = optimizer.update(gradient, moments, params)
      return optax.apply_updates(params, update), moments, value

    self.batch = batch
    self.state = jax.jit(lambda params: (params, optimizer.init(params)))(params)
    self.compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*self.state, batch).compile()

  def __call__(self):
    *self.state, value = self.compiled(*self.state, self.batch)
    value.block_until_ready()


class Alone:
  """The plain step in another process, one step a call."""

  def __init__(self, name: str):
    self.process = subprocess.Popen(
      [sys.executable, __file__, "--sizes", name, ALONE], text=True,
      stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    if self.process.stdout.readline() != "ready\n":
      raise RuntimeError(f"the plain step of {name} did not start in a process of its own")

  def __call__(self) -> tuple[float, float]:
    """Returns: seconds and CPU seconds, as the other process took them."""
    print(file=self.process.stdin, flush=True)
    return tuple(float(word) for word in self.process.stdout.readline().split())

  def stop(self):
    self.process.stdin.close()
    self.process.wait()


def timed(run) -> tuple[float, float]:
  """Seconds and CPU seconds of a call, or what the call itself says they were."""
  wall, cpu = time.perf_counter(), time.process_time()
  found = run()
  alone = isinstance(found, tuple)
  return found if alone else (time.perf_counter() - wall, time.process_time() - cpu)


def serve(name: str):
  """Runs a plain step for every line that comes in; says how long it took."""
  plain = setup(name)[0]["plain"]
  plain()
  print("ready", flush=True)
  for _ in sys.stdin:
    print(*timed(plain), flush=True)


def time_in_turn(runs: dict, seconds: float) -> dict[str, np.ndarray]:
  """Seconds and CPU seconds of every call: name -> `[n, 2]`.

  All functions are called once a round, in another order each time: what one leaves in the caches,
  or lets the cores cool down by, falls on each of the others alike.
  """
  times, order = collections.defaultdict(list), np.random.default_rng(0)
  for run in runs.values():
    run()
    run()
  end = time.perf_counter() + seconds
  while time.perf_counter() < end or len(times["matmul"]) < 9:
    for name in order.permutation(list(runs)):
      times[name].append(timed(runs[name]))
  return {name: np.array(values) for name, values in times.items()}


def work(config: DiTConfig, params: dict, lengths: list[int]) -> float:
  """Floating-point operations of a step on clips of these lengths, wherever they lie, as the
  trainer counts them: see `costs.real_flops`."""
  batch = {
    "segment": np.arange(max(lengths)) < np.array(lengths)[:, None],
    "grid": np.zeros((len(lengths), 1, 3)),
    "text_segment": np.ones((len(lengths), TEXT_TOKENS)),
  }  # one clip a row: products are those of the same clips packed
  return 3 * costs.real_flops(costs.sizes_of({"dit": params}), config, TextConfig(), batch).dit


def attention_work(config: DiTConfig, lengths: list[int]) -> float:
  """Of these, products inside attention: 4 forward, 8 backward, for each pair of tokens."""
  return 12 * config.width * config.depth * sum(n * n + n * TEXT_TOKENS for n in lengths)


CLASSES = (
  ("attention: products of heads", r"(attention|cross)/dot_general.*heads"),
  ("matrix products", r"dot_general|transpose\b.*dot"),
  ("attention: softmax, norms, rotation, transposes", r"/(attention|cross)/"),
  ("MLP: activation and biases", r"/mlp/"),
  ("norms, modulation, gates, residuals", r"/blocks"),
  ("conditions, embedding, head", r"DiT"),
)


def profile(step: Step, calls: int = 10) -> dict[str, float]:
  """Share of the time of compiled operations by kind, from a trace; AdamW is what is left."""
  text = step.compiled.as_text()
  found = re.finditer(
    r'^\s*(?:ROOT )?%?([\w.\-]+) = (\S+) ([\w\-]+)\(.*?(?:op_name="([^"]*)")?(?: stack|}|$)',
    text, re.M,
  )  # fmt: skip
  names = {m[1]: ((m[4] or ""), m[2], m[3]) for m in found}
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      for _ in range(calls):
        step()
    (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
    data = jax.profiler.ProfileData.from_file(str(path))
  total = collections.Counter()
  for plane in data.planes:
    for line in plane.lines:
      for event in line.events:
        op = dict(event.stats).get("hlo_op")
        if op:
          name, shape, _ = names.get(op, ("", "", ""))
          heads = " heads" if re.search(r"\[\d+,\d+,\d+,\d+\]", shape) else ""
          kinds = (kind for kind, pattern in CLASSES if re.search(pattern, name + heads))
          total[next(kinds, "AdamW and the rest")] += event.duration_ns
  return {kind: round(value / sum(total.values()), 3) for kind, value in total.most_common()}


def matmul():
  """A product of two square matrices of 2048, to be called."""
  square = jnp.ones((2048, 2048))
  product = jax.jit(lambda a, b: a @ b)
  return lambda: product(square, square).block_until_ready()


def setup(name: str) -> tuple[dict, dict, dict]:
  """Returns: what is to be timed, its floating-point operations, and figures of the size."""
  size, rng = SIZES[name], np.random.default_rng(0)
  config = size["config"]
  rows = fill_rows(size, rng)
  lengths = [int(np.prod(grid)) for row in rows for grid, _ in row]
  batch = packed_batch(size, rows, rng)
  arguments = (batch["tokens"], batch["time"], batch["layout"], batch["text"])
  params = nn.meta.unbox(jax.jit(DiT(config).init)(jax.random.key(0), *arguments))["params"]
  num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
  mean = round(np.mean(lengths))
  equal = [mean] * (size["rows"] * size["row_len"] // mean)
  runs = {"plain": Step(plain_dit.loss_of, config, params, plain_dit.batch_of(config, equal, rng))}
  flops = {"plain": work(config, params, equal)}
  if ALONE in sys.argv:
    return runs, flops, {}
  gelu = dataclasses.replace(config, mlp_activation="gelu_tanh")
  runs |= {
    "matmul": matmul(),
    "ours": packed_step(config, params, batch),
    "one_device": packed_step(config, params, batch, 1),
    "gelu": packed_step(gelu, params, batch),
    "plain_padded": Step(
      plain_dit.loss_of, config, params, plain_dit.batch_of(config, lengths, rng)
    ),
    "plain_alone": Alone(name),
  }
  same = dict.fromkeys(
    ("ours", "one_device", "gelu", "plain_padded"), work(config, params, lengths)
  )
  flops |= same | {"matmul": 2 * 2048**3, "plain_alone": flops["plain"]}
  tokens = sum(lengths)
  return runs, flops, {
    "size": name, "width": config.width, "depth": config.depth, "parameters": num_params,
    "real_tokens": tokens, "fill": round(tokens / size["rows"] / size["row_len"], 4),
    "segments": len(lengths),
    "attention_share_of_work": round(attention_work(config, lengths) / flops["ours"], 4),
  }  # fmt: skip


def measure(name: str, seconds: float) -> dict:
  """All figures of one size."""
  runs, flops, about = setup(name)
  times = time_in_turn(runs, seconds)
  rates = {
    kind: {run: flops[run] / reduce(times[run][:, column]) for run in runs}
    for kind, reduce, column in (("best", np.min, 0), ("middle", np.median, 0), ("cpu", np.min, 1))
  }
  runs["plain_alone"].stop()
  ratio = lambda other: {  # noqa: E731
    kind: round(rate["ours"] / rate[other], 3) for kind, rate in rates.items()
  }
  return about | {
    "steps_timed": len(times["ours"]),
    "matmul_gflops": {kind: round(rate["matmul"] / 1e9, 1) for kind, rate in rates.items()},
    "fraction_of_matmul": {
      kind: {run: round(rate[run] / rate["matmul"], 3) for run in runs if run != "matmul"}
      for kind, rate in rates.items()
    },
    "times_one_device": ratio("one_device"),
    "times_plain": ratio("plain"), "times_plain_alone": ratio("plain_alone"),
    "times_plain_padded": ratio("plain_padded"),
    "tokens_per_sec": round(about["real_tokens"] / np.min(times["ours"][:, 0])),
    "profile": profile(runs["ours"]),
  }  # fmt: skip


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--sizes", default="tiny,w512")
  parser.add_argument("--seconds", type=float, default=60)
  parser.add_argument(ALONE, action="store_true", help="serve plain steps to another process")
  flags = parser.parse_args()
  names = flags.sizes.split(",")
  if not SIZES.keys() >= set(names):
    raise SystemExit(
      f"train_step: --sizes={flags.sizes}; allowed, comma-separated: {', '.join(SIZES)}"
    )
  if flags.alone:
    return serve(flags.sizes)
  results = []
  for name in names:
    results.append(measure(name, flags.seconds))
    print(json.dumps(results[-1], indent=2), flush=True)
  print(json.dumps({
    "benchmark": "train_step", "jax": jax.__version__, "cores": os.cpu_count(),
    "load_average": os.getloadavg()[0], "memory_kept": KEPT, "results": results,
  }))  # fmt: skip


if __name__ == "__main__":
  main()
