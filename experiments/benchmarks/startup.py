"""How long until the first training step, with and without the compilation cache?

  python experiments/benchmarks/startup.py [--config=configs/tiny.py] [--rounds=3]

Starts the trainer in a process of its own on data that are there, and takes the time from the start
of the process to the first line of figures (`--config.train.log_every=1`): without a cache of
compiled programs, with an empty one, with a full one. Also the seconds of `import sora_jax` and of
`sora_jax.load("tiny")`. The last line is one JSON object.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]


def first_step(config, workdir, cache):
  """Seconds from the start of the trainer to its first figures; it is ended then."""
  shutil.rmtree(workdir / "checkpoints", ignore_errors=True)
  (workdir / "metrics.jsonl").unlink(missing_ok=True)
  environment = dict(os.environ)
  environment.pop("JAX_COMPILATION_CACHE_DIR", None)
  if cache is not None:
    environment |= {
      "JAX_COMPILATION_CACHE_DIR": str(cache),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
  start = time.perf_counter()
  process = subprocess.Popen(
    [sys.executable, "-m", "sora_jax.main", f"--config={config}", f"--workdir={workdir}",
     "--config.train.log_every=1"],
    cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip
  for line in process.stderr:
    if " loss " in line:
      seconds = time.perf_counter() - start
      process.terminate()
      break
  else:
    raise RuntimeError(f"the trainer ended with {process.wait()} before its first step")
  process.stderr.close()
  process.wait()
  return seconds


def of_python(code):
  """Seconds of a Python process that runs this."""
  start = time.perf_counter()
  subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
  return time.perf_counter() - start


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--config", default="configs/tiny.py")
  parser.add_argument("--rounds", type=int, default=3)
  flags = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    workdir = pathlib.Path(folder) / "run"
    with_data = first_step(flags.config, workdir, None)
    found = {"python": [], "import": [], "load": [], "no cache": [], "empty": [], "full": []}
    for number in range(flags.rounds):
      cache = pathlib.Path(folder) / f"cache{number}"
      found["python"].append(of_python("pass"))
      found["import"].append(of_python("import sora_jax"))
      found["load"].append(of_python("import sora_jax; sora_jax.load('tiny')"))
      found["no cache"].append(first_step(flags.config, workdir, None))
      found["empty"].append(first_step(flags.config, workdir, cache))
      found["full"].append(first_step(flags.config, workdir, cache))
  print(json.dumps({
    "benchmark": "startup", "config": flags.config, "cores": os.cpu_count(),
    "first start, data made": round(with_data, 1),
    "least_seconds": {name: round(min(times), 2) for name, times in found.items()},
    "all_seconds": {name: [round(t, 2) for t in times] for name, times in found.items()},
  }))  # fmt: skip


if __name__ == "__main__":
  main()
