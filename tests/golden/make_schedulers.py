"""Writes schedulers.npz: where diffusers' schedulers end on an exact denoiser.

Run `python tests/golden/make_schedulers.py` with the `oracle` extra. The model is evaluated at the
scheduler's own sigmas, not at its integer timesteps. Stored in flow coordinates: the times of each
[N + 1], where it ends [1, 2, 3, 4], the noise all start from, and the fresh noise of each step.
"""

import pathlib

import numpy as np

CENTRES, DEVIATIONS, SHARES = (-0.8, 0.9), (0.25, 0.4), (0.35, 0.65)
STEPS = 8
SHAPE = (1, 2, 3, 4)


def mixture_mean(x, time, exp):
  """E[x0 | x] of a two-part Gaussian mixture; `exp` is the array library's."""
  a, weights, means = 1.0 - time, [], []
  for centre, deviation, share in zip(CENTRES, DEVIATIONS, SHARES):
    variance = a * a * deviation**2 + time * time
    gap = x - a * centre
    weights.append(share / variance**0.5 * exp(-0.5 * gap * gap / variance))
    means.append(centre + a * deviation**2 / variance * gap)
  return (weights[0] * means[0] + weights[1] * means[1]) / (weights[0] + weights[1])


def flow_path(scheduler, noise):
  """Runs a flow scheduler; one that evaluates a time twice lists it twice."""
  import torch

  scheduler.set_begin_index(0)
  sigmas, x = scheduler.sigmas.numpy(), torch.tensor(noise)
  for i, timestep in enumerate(scheduler.timesteps):
    sigma = torch.tensor(sigmas[i])
    velocity = (x - mixture_mean(x, sigma, torch.exp)) / sigma
    x = scheduler.step(velocity, timestep, x, return_dict=False)[0]
  return np.unique(sigmas)[::-1], x.numpy()


def ddim_path(scheduler, noise, eta, fresh):
  """Runs DDIM on its variance-preserving process and maps the path to the flow's coordinates."""
  import torch

  scheduler.set_timesteps(STEPS)
  square = [float(scheduler.alphas_cumprod[t]) for t in scheduler.timesteps] + [1.0]
  a, s = np.sqrt(square), np.sqrt(1.0 - np.asarray(square))
  times = (s / (a + s)).astype(np.float32)
  x = torch.tensor(noise) * float(a[0] + s[0])
  for i, timestep in enumerate(scheduler.timesteps):
    x0 = mixture_mean(x / float(a[i] + s[i]), torch.tensor(times[i]), torch.exp)
    draw = torch.tensor(fresh[i]) if eta > 0 else None
    x = scheduler.step(x0, timestep, x, eta=eta, variance_noise=draw, return_dict=False)[0]
  return times, x.numpy()


def paths() -> dict[str, np.ndarray]:
  """All paths, as NAME/times and NAME/end, beside noise and fresh."""
  from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
  )

  rng = np.random.default_rng(0)
  noise = rng.standard_normal(SHAPE).astype(np.float32)
  fresh = rng.standard_normal((STEPS, *SHAPE)).astype(np.float32)
  even = np.linspace(1.0, 0.0, STEPS + 1)[:-1]
  shifted = 3.0 * even / (1.0 + 2.0 * even)
  found = {}

  scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
  scheduler.set_timesteps(sigmas=shifted.tolist())
  found["euler"] = flow_path(scheduler, noise)
  scheduler = FlowMatchHeunDiscreteScheduler(shift=1.0)
  scheduler.set_timesteps(STEPS)
  found["heun"] = flow_path(scheduler, noise)
  scheduler = DPMSolverMultistepScheduler(
    prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=2.0
  )
  scheduler.set_timesteps(STEPS)
  found["dpmpp_2m"] = flow_path(scheduler, noise)
  for order in (2, 3):
    scheduler = UniPCMultistepScheduler(
      solver_order=order, prediction_type="flow_prediction", use_flow_sigmas=True
    )
    scheduler.set_timesteps(sigmas=shifted.copy())
    found[f"unipc{order}"] = flow_path(scheduler, noise)
  for name, eta in (("ddim", 0.0), ("ddim_noisy", 0.7)):
    scheduler = DDIMScheduler(
      clip_sample=False,
      set_alpha_to_one=True,
      timestep_spacing="trailing",
      rescale_betas_zero_snr=True,
      prediction_type="sample",
    )
    found[name] = ddim_path(scheduler, noise, eta, fresh)

  out = {}
  for name, (times, end) in found.items():
    out[f"{name}/times"] = times.astype(np.float32)
    out[f"{name}/end"] = end.astype(np.float32)
  return out | {"noise": noise, "fresh": fresh}


if __name__ == "__main__":
  np.savez_compressed(pathlib.Path(__file__).with_name("schedulers.npz"), **paths())
