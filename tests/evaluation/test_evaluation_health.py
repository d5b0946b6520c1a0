"""A run beside healthy ones: what is planted is found, and nothing else."""

import numpy as np
import pytest

from sora_jax.evaluation import health

CONFIG = {"optimizer.lr": 3e-3, "train.seed": 0, "data.rows": 14}


def lines(seed, steps=200, loss=1.0, lr=3e-3, gain=0.02, still=0, skipped=0):
  """Figures of a run, every 5 steps."""
  rng, found = np.random.default_rng(seed), []
  for step in range(5, steps + 1, 5):
    value = loss * (0.1 + 1.5 / step) * np.exp(0.05 * rng.standard_normal())
    found.append({
      "step": step, "loss": value, "grad_norm": value * np.exp(0.2 * rng.standard_normal()),
      "lr": lr * min(1, step / 50), "still": still, "skipped": skipped,
    })  # fmt: skip
    if step % 100 == 0:
      found.append({"step": step, "heldout/loss": value, "heldout/caption_gain": gain})
  return found


@pytest.fixture(scope="module")
def reference():
  return health.make_reference(CONFIG, [lines(seed) for seed in range(3)], every=25)


def bad(found):
  return {one.name for one in found if not one.good}


@pytest.mark.parametrize("seed", range(10, 20))
def test_healthy_runs_are_healthy(reference, seed):
  assert not bad(health.examine(CONFIG, lines(seed), reference))
  assert not bad(health.examine(CONFIG, lines(seed, steps=60), reference))


@pytest.mark.parametrize(
  ("fault", "found"),
  [
    ({"lr": 3e-2}, "learning rate"), ({"loss": 1.5}, "loss"), ({"gain": 0.001}, "captions"),
    ({"still": 1}, "parameters"), ({"skipped": 40}, "spikes"),
  ],
)  # fmt: skip
def test_each_fault_is_found_by_its_own_check(reference, fault, found):
  assert found in bad(health.examine(CONFIG, lines(11, **fault), reference))


def test_a_run_that_logs_seldom_is_judged_by_what_it_tells(reference):
  seldom = [line for line in lines(11) if line["step"] % 100 == 0 or line["step"] == 60]
  assert not bad(health.examine(CONFIG, seldom, reference))
  assert "loss" in bad(health.examine(CONFIG, [x | {"loss": 9.0} for x in seldom], reference))
  silent = [{"step": 50, "heldout/caption_gain": 0.02}]
  assert {one.text for one in health.examine(CONFIG, silent, reference)} >= {"not logged yet"}


def test_what_differs_in_the_config_is_listed(reference):
  found = health.examine(CONFIG | {"optimizer.lr": 0.03, "train.seed": 7}, lines(11), reference)
  assert found[0].text == "optimizer.lr is 0.03, there 0.003"


def test_a_run_that_has_just_begun_is_not_judged(reference):
  with pytest.raises(ValueError, match="has not reached step 25"):
    health.examine(CONFIG, lines(11, steps=20), reference)
