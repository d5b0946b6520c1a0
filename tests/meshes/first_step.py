"""One of several processes that take the first step of a small transformer together.

  python first_step.py COORDINATOR PROCESSES PROCESS

Prints, from the first process, one JSON line: the worst difference of the first gradients from
those on one device of this process, the share of rows that it loaded, which are no neighbours (as
on a TPU, where a host's chips are a tile of the torus), how many arrays lie on both processes, the
states of their streams as one, and whether every one says yes where all do and where one does not.
"""

import json
import sys

import gradients
import jax
import numpy as np

from sora_jax import sharding
from sora_jax.train import hosts


def main(coordinator: str, processes: int, process: int) -> None:
  hosts.connect(coordinator, processes, process)
  rows = np.array(jax.devices()).reshape(2, 2, 2)  # process, block of its rows, device
  mesh = sharding.make_mesh((2, 2, 2, 1), rows.swapaxes(0, 1).ravel())
  share = sharding.host_share(mesh)
  task, rows = gradients.task(), gradients.batch()
  on = task.on(mesh)
  mine = {name: value[share.rows(len(value))] for name, value in rows.items()}
  put = sharding.put_batch(mesh, mine, on.batch_axes())
  placed = sharding.of_tree(mesh, on.axes())

  params = jax.device_put(gradients.noisy(task), placed)
  sums, grads = gradients.run(on, params, put, mesh, 2)
  got = hosts.whole((sums, grads))
  whole, merged = hosts.whole(params), hosts.merged({"step": 1, "streams": {str(process): "state"}})
  every = [hosts.every(True), hosts.every(process == 0)]
  if hosts.is_first():
    alone = jax.device_put(whole, jax.local_devices()[0])
    want = jax.device_get(gradients.run(task, alone, rows, None, 2))
    shares = sum(len(x.sharding.device_set) > 4 for x in jax.tree.leaves(params))
    print(json.dumps({
      "error": gradients.worst(got, want), "share": share, "over_both": shares,
      "merged": merged, "every": every,
    }))  # fmt: skip
  hosts.wait("end")


if __name__ == "__main__":
  main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
