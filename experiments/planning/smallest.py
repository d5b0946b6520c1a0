"""The smallest slice that each shipped config trains on, found by compiling its step for one slice
after the other, from one chip on.

  python experiments/planning/smallest.py [--only=dit:b,vae:base] [--largest]

The config stays as it is but for its mesh: all chips on fsdp as far as the width allows, the rest
on data; of an autoencoder, whose batch may be one clip, lines of a frame on context and columns on
tensor. Memory of a chip falls with the number of chips at best, so that slices that could not fit
by that are left out. What was tried, and the plan of the first slice that fits, are written to
results/. --largest compiles for the slices of LARGE instead, on the config's own mesh.
"""

import json
import math
import pathlib
import subprocess
import sys
import tempfile

from absl import app, flags

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = pathlib.Path(__file__).parent / "results"
E = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
P = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
CONFIGS = {
  "tiny": "v5e", "tiny_clips": "v5e",
  **{f"shipped:{leg}": "v5e" for leg in ("plain", "aspects", "large", "prompted", "tasks", "focus",
                                         "mixed", "polish", "motion", "speed", "paths",
                                         "usual", "bounces", "walls", "again", "early",
                                         "onward", "rebounds", "paces", "shots", "late",
                                         "stars", "looks")},
  **{f"vae:{size}": "v5e" for size in ("nano", "tiny", "tiny_second", "base", "xl")},
  **{f"dit:{size}": "v5e" for size in ("tiny", "small", "s", "b", "l", "xl")},
  "dit:3b": "v5p", "dit:10b": "v5p",
}  # fmt: skip
"""Configs and the kind of chip that they are planned on."""
LARGE = {"dit:b": "v6e:2x4", "dit:xl": "v5e:16x16", "dit:3b": "v5p:4x4x8", "dit:10b": "v5p:8x8x8"}

_ONLY = flags.DEFINE_list("only", None, "Configs; default: all.")
_LARGEST = flags.DEFINE_bool("largest", False, "Compile for the slices of LARGE instead.")


def slices(chip: str) -> list[str]:
  """Names of the slices of a chip, smallest first."""
  return [f"{chip}:{shape}" for shape in (P if chip == "v5p" else E)]


def chips_of(topology: str) -> int:
  """Chips of a slice."""
  return math.prod(int(n) for n in topology.split(":")[1].split("x"))


def mesh_for(config: str, chips: int) -> str:
  """The mesh of a config on so many chips."""
  sys.path.insert(0, str(ROOT))
  import importlib

  name, _, size = config.partition(":")
  c = importlib.import_module(f"configs.{name}").get_config(*([size] if size else []))
  if c.task == "vae":
    lines = 2 ** -(-(chips.bit_length() - 1) // 2)
    return f"data=1,context={lines},tensor={chips // lines}"
  most = [n for n in range(1, chips + 1) if chips % n == 0 and c.model.width % (8 * n) == 0][-1]
  return f"data={chips // most},fsdp={most}"


def plan(config: str, topology: str, mesh: str = "") -> dict:
  """Figures of a config's training step on a slice, or {"error": what it said}.

  mesh: "" is the config's own.
  """
  name, _, size = config.partition(":")
  with tempfile.TemporaryDirectory() as folder:
    out = pathlib.Path(folder) / "plan.json"
    done = subprocess.run(
      [sys.executable, "-m", "sora_jax.plan", "--quick", f"--out={out}", f"--mesh={mesh}",
       f"--config=configs/{name}.py{':' if size else ''}{size}", f"--topology={topology}"],
      cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if out.exists():
      return json.loads(out.read_text())
  return {"topology": topology, "error": (done.stderr.strip().splitlines() or ["?"])[-1]}


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
  RESULTS.mkdir(exist_ok=True)
  for config in _ONLY.value or (LARGE if _LARGEST.value else CONFIGS):
    tried, names = [], [LARGE[config]] if _LARGEST.value else slices(CONFIGS[config])
    least = 1
    for topology in names:
      if chips_of(topology) < least:
        continue
      own = "" if _LARGEST.value else mesh_for(config, chips_of(topology))
      found = plan(config, topology, own)
      needed = found.get("hbm_bytes_per_chip") or math.nan
      said = found.get("error") or ("fits" if found["fits"] else "does not fit")
      tried.append({"topology": topology, "hbm_bytes_per_chip": needed, "said": said})
      print(f"{config} on {topology}: {needed / 2**30:.2f} GiB, {said}", flush=True)
      if found.get("fits"):
        break
      if "hbm_limit_bytes" in found:
        least = chips_of(topology) * needed / found["hbm_limit_bytes"]
    kind = "large" if _LARGEST.value else "smallest"
    path = RESULTS / f"{kind}_{config.replace(':', '_')}.json"
    path.write_text(json.dumps({"config": config, "tried": tried, "plan": found}, indent=1) + "\n")


if __name__ == "__main__":
  app.run(main)
