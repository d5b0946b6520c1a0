"""A run beside healthy ones: what is planted is found, and nothing else."""

import dataclasses
import json
import math

import numpy as np
import pytest

from sora_jax.evaluation import health

CONFIG = {"optimizer.lr": 3e-3, "train.seed": 0, "data.rows": 14}


def lines(seed, steps=200, loss=1.0, lr=3e-3, gain=0.02, still=0, skipped=0):
  """Figures of a run, every 5 steps; the loss falls steeply at first."""
  rng, found = np.random.default_rng(seed), []
  for step in range(5, steps + 1, 5):
    value = loss * (0.1 + 1.5 * np.exp(-step / 20)) * np.exp(0.05 * rng.standard_normal())
    found.append({
      "step": step, "loss": value, "grad_norm": value * np.exp(0.2 * rng.standard_normal()),
      "lr": lr * min(1, step / 50), "still": still, "skipped": skipped,
    })  # fmt: skip
    if step % 100 == 0:
      found.append({"step": step, "heldout/loss": value, "heldout/caption_gain": gain})
  return found


def seldom(lines, every):
  """The same run as it would have logged every so many steps: the loss is the mean since the line
  before, the rest is what the last step tells."""
  found, losses = [], []
  for line in lines:
    if "loss" not in line:
      found.append(line)
      continue
    losses.append(line["loss"])
    if line["step"] % every == 0:
      found.append(line | {"loss": float(np.mean(losses))})
      losses = []
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


@pytest.mark.parametrize("every", [10, 20, 40, 50, 100, 200])
def test_a_run_that_logs_seldom_is_judged_by_what_it_tells(reference, every):
  """At every step of it: no line is compared with other steps than those it is the mean of."""
  for seed in range(10, 15):
    run = seldom(lines(seed), every)
    for step in range(40, 201, 20):
      so_far = [line for line in run if line["step"] <= step]
      if so_far and so_far[-1]["step"] >= 25:
        assert not bad(health.examine(CONFIG, so_far, reference)), (seed, step)
  found = health.examine(CONFIG, [x | {"loss": 9.0} for x in run], reference)
  assert "loss" in bad(found)


def test_what_is_not_logged_is_not_compared(reference):
  silent = [{"step": 50, "heldout/caption_gain": 0.02}]
  assert {one.text for one in health.examine(CONFIG, silent, reference)} >= {"not logged yet"}
  late = [{"step": 250, "loss": 0.1, "grad_norm": 0.1, "lr": 3e-3}]
  found = health.examine(CONFIG, late, reference)
  assert found[2].text == "no line of the log up to step 200, where the reference ends"


@pytest.mark.parametrize("steps", [320, 1000])
def test_past_the_reference_a_run_is_compared_with_itself(reference, steps):
  run = lines(11, steps)
  found = health.examine(CONFIG, run, reference)
  assert not bad(found)
  assert f"the comparison with the reference ends at step 200 of {steps}" in found[-3].text
  blown = [x | {"loss": 10 * x["loss"]} if "loss" in x and x["step"] > 250 else x for x in run]
  assert bad(health.examine(CONFIG, blown, reference)) == {"later loss"}
  assert len(health.examine(CONFIG, lines(11), reference)) == len(found) - 1


def scattered(seed, count, spike=0):
  """A run that was in its stride before: batches of few clips, one of them far off."""
  losses = 0.08 * np.exp(0.12 * np.random.default_rng(seed).standard_normal(count))
  losses[spike - 1 : spike] *= 12
  return [{"step": 20 * i, "loss": float(x)} for i, x in enumerate(losses, 1)]


def test_alone_a_run_that_scatters_is_healthy_at_every_step():
  """Of the prefixes at most one in a hundred raises a false alarm."""
  alarms = [
    bool(bad(health.examine_alone(run[:count])))
    for seed in range(20)
    for run in [scattered(seed, 60, spike=seed)]
    for count in range(5, 61)
  ]
  assert np.mean(alarms) <= 0.01


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("times", [2, 10])
def test_alone_a_run_that_goes_wrong_is_found(seed, times):
  run = [x | {"loss": times * x["loss"]} if x["step"] > 300 else x for x in scattered(seed, 25)]
  assert bad(health.examine_alone(run)) == {"loss"}
  risen = [x | {"loss": x["loss"] * times ** (x["step"] / 200)} for x in scattered(seed, 20)]
  assert bad(health.examine_alone(risen)) == {"loss"}


@pytest.mark.parametrize("seed", range(5))
def test_alone_a_run_that_has_diverged_is_not_excused_by_its_scatter(seed):
  run, rng = scattered(seed, 40), np.random.default_rng(seed)
  wild = [x | {"loss": x["loss"] * 8 * np.exp(rng.standard_normal())} for x in run[8:]]
  assert bad(health.examine_alone(run[:8] + wild)) == {"loss"}


def test_one_run_makes_no_reference(reference, tmp_path):
  with pytest.raises(ValueError, match="reference of 1 runs: expected two or more"):
    health.make_reference(CONFIG, [lines(0)], every=25)
  told = dataclasses.asdict(reference)
  told["curves"]["loss"][1] = [math.nan] * len(told["steps"])
  (tmp_path / "old.json").write_text(json.dumps(told | {"runs": 1}))
  with pytest.raises(ValueError, match="old.json is no reference .* two runs or more"):
    health.read_reference(tmp_path / "old.json")


def test_what_differs_in_the_config_is_listed(reference):
  found = health.examine(CONFIG | {"optimizer.lr": 0.03, "train.seed": 7}, lines(11), reference)
  assert found[0].text == "optimizer.lr is 0.03, there 0.003"


def test_a_run_that_has_just_begun_is_not_judged(reference):
  with pytest.raises(ValueError, match="has not reached step 25"):
    health.examine(CONFIG, lines(11, steps=20), reference)
