"""Text to video as a task: loss, axes, cost, exact resume with the real pipeline, export."""

import dataclasses
from unittest import mock

import jax
import numpy as np
import pytest

from sora_jax.data import tokenizers
from sora_jax.data.pipeline import PipelineConfig
from sora_jax.data.prompt_mix import VARIANT_KINDS, PromptMix
from sora_jax.data.records import Clip
from sora_jax.diffusion import times
from sora_jax.nn.dit import DiT
from sora_jax.nn.dit_config import DiTConfig
from sora_jax.nn.text import TextConfig, TextEncoder
from sora_jax.ops import packing
from sora_jax.ops.patchify import cell_channels
from sora_jax.tasks import build, sections
from sora_jax.tasks.clips import Sources
from sora_jax.tasks.text_to_video import DiffusionConfig, TextToVideo
from sora_jax.train import loop, metrics
from sora_jax.train import step as step_lib
from sora_jax.train.optimizer import OptimizerConfig
from sora_jax.weights import folder, store
from sora_jax.weights.folder import Network

Z, F_T = 2, 4


def clips(count, seed=0):
  rng = np.random.default_rng(seed)
  grids = [(1, 4, 4), (3, 2, 4), (2, 4, 2)]
  return [
    Clip(
      id=f"c{i}",
      fps=None if grids[i % 3][0] == 1 else 8.0,
      captions={"short": "a red circle moves right", "long": "A red circle."},
      latent_thwZ=rng.standard_normal((*grids[i % 3], Z)).astype(np.float32),
      pixel_shape=(1 + 4 * (grids[i % 3][0] - 1), 16, 16),
    )
    for i in range(count)
  ]


def make(**changes):
  vocab = tokenizers.load("bytes").vocab_size
  text = TextConfig(vocab_size=vocab, width=16, depth=1, heads=2, head_size=8, mlp_width=32)
  dit = DiTConfig(
    width=16, depth=2, heads=2, in_channels=cell_channels(Z, F_T), out_channels=Z, text_width=16
  )
  pipeline = PipelineConfig(
    rows=2, row_len=16, max_segments=4, text_row_len=128, streams=2, window=8
  )
  given = {
    "dit": DiT(dit),
    "text": TextEncoder(text),
    "diffusion": DiffusionConfig(),
    "pipeline": pipeline,
    "sources": Sources(clips(12), clips(6, seed=1)),
    "vae": Network({"params": {"x": np.ones(3, np.float32)}}, {"network": {}}),
    "frames_per_latent": F_T,
    "tokenizer_name": "bytes",
    "sampling": {"solver": "euler", "steps": 4, "guidance": 2.0, "fps": 8.0},
    "heldout_batches": 2,
  }
  return TextToVideo(**(given | changes))


@pytest.fixture(scope="module")
def task():
  return make()


@pytest.fixture(scope="module")
def params(task):
  """Of every task here whose networks are those of `make()`."""
  return jax.jit(task.init)(jax.random.key(0))


def with_head(params):
  """The output layer starts at zero, and so does every gradient behind it: it is moved."""
  moved = jax.tree.map(lambda p: p, params)
  for part in (moved["dit"]["head"]["linear"], moved["dit"]["blocks"]["cross"]["out"]):
    part["kernel"] = part["kernel"] + 0.1
  return moved


@pytest.mark.parametrize("prediction", ["x", "v", "eps"])
def test_loss_and_gradient_are_finite_and_reach_both_networks(prediction, params):
  task = make(diffusion=DiffusionConfig(prediction=prediction))
  batch = jax.tree.map(jax.numpy.asarray, next(task.batches()))
  gradients = jax.jit(lambda *args: step_lib.accumulated_gradients(task.loss, *args, 1))
  sums, grads = gradients(with_head(params), batch, jax.random.key(1), jax.numpy.zeros(()))
  assert np.isfinite(float(sums["loss"].numerator)) and float(sums["loss"].denominator) > 0
  for name in ("dit", "text"):
    norms = [float(np.abs(g).max()) for g in jax.tree.leaves(grads[name])]
    assert np.isfinite(norms).all() and max(norms) > 0, name


def prompted(noise=0.0, **changes):
  """A task whose clips all have a prompt, and a batch of it."""
  mix = PromptMix(
    first=1.0,
    **dict.fromkeys(("head", *VARIANT_KINDS), 0.0),
    dropout=0.0,
    pictures=0.0,
    noise=noise,
    **changes,
  )
  pipeline = dataclasses.replace(make().pipeline, prompts=mix, max_slots=12, frames_per_latent=F_T)
  task = make(pipeline=pipeline)
  return task, jax.tree.map(jax.numpy.asarray, next(task.batches()))


def test_the_network_is_told_what_is_known_and_half_the_prompts_are_noised():
  task, batch = prompted(noise=0.0)
  known, canvas = task.prompts(batch, jax.random.key(0))
  np.testing.assert_array_equal(known, batch["known"])
  np.testing.assert_array_equal(canvas, batch["canvas"])
  assert 0 < np.asarray(known).mean() < 1
  task, batch = prompted(noise=0.25)
  changed, prompts = [], jax.jit(task.prompts)
  for seed in range(20):
    known, canvas = prompts(batch, jax.random.key(seed))
    cell_known = np.asarray(known).reshape(*known.shape[:2], -1, F_T).max(-1) > 0
    moved = np.asarray(canvas != batch["canvas"]).reshape(*cell_known.shape, -1).any(-1)
    assert not moved[~cell_known].any()
    segments = np.asarray(batch["segment"])
    for r, s in np.ndindex(len(segments), segments.max()):
      here = (segments[r] == s + 1)[:, None] & cell_known[r]
      if here.any():
        assert moved[r][here].all() or not moved[r][here].any()
        changed.append(moved[r][here].any())
  assert 0.3 < np.mean(changed) < 0.7


def test_the_loss_hears_of_the_prompt_and_of_every_frame_s_time(params):
  task, batch = prompted(noise=0.0)
  params = with_head(params)
  loss = jax.jit(
    lambda b: task.loss(params, b, jax.random.key(1), jax.numpy.zeros(()))[0].numerator
  )
  base = float(loss(batch))
  for name in ("known", "canvas"):
    assert abs(float(loss(batch | {name: 0 * batch[name]})) - base) > 1e-3, name
  one_time = {"slot": 0 * batch["slot"], "slots": (batch["slots"] > 0).astype("int32")}
  assert (batch["slots"] > 1).any()
  assert abs(float(loss(batch | one_time)) - base) > 1e-3


def test_half_the_prompted_clips_are_trained_near_pure_noise_and_no_others(params):
  jnp = jax.numpy
  task, batch = prompted(near_noise=0.5, frame_times=0.0)
  layout = packing.layout_of(batch, task.pipeline.max_slots)
  shift_RQ = jnp.full(layout.slot_segment_RQ.shape, 4.0)
  low_RQ = jnp.full(shift_RQ.shape, 0.1)
  least = float(times.shift(4.0, jnp.float32(times.NEAR)))
  moved, total = 0, 0
  draw = jax.jit(lambda key: task.prompted_times(key, low_RQ, shift_RQ, batch, layout))
  for seed in range(40):
    found = draw(jax.random.key(seed))
    for r, q in np.argwhere(np.asarray(layout.slot_segment_RQ) > 0):
      here = np.asarray(batch["segment"][r]) == layout.slot_segment_RQ[r, q]
      told = bool(np.asarray(batch["known"][r])[here].any())
      time = float(found[r, q])
      assert time == pytest.approx(0.1) or (told and least - 1e-6 <= time <= 1)
      moved, total = moved + (time > 0.2), total + told
  assert total > 100 and 0.4 < moved / total < 0.6
  heard = [
    float(
      jax.jit(prompted(near_noise=share)[0].loss)(
        params, batch, jax.random.key(1), jnp.zeros(())
      )[0].numerator
    )
    for share in (0.0, 0.9)
  ]  # fmt: skip
  assert abs(heard[0] - heard[1]) > 1e-3


def test_some_prompted_clips_are_trained_one_latent_frame_after_the_other(params):
  task, batch = prompted(near_noise=0.0, frame_times=0.0, staged=0.5)
  assert batch["staged"].any() and not batch["staged"][batch["slots"] == 1].any()
  told = [
    batch["known"][r][batch["segment"][r] == s + 1].any() for r, s in np.argwhere(batch["staged"])
  ]
  assert all(told)
  loss = jax.jit(
    lambda b: task.loss(params, b, jax.random.key(1), jax.numpy.zeros(()))[0].numerator
  )
  calm = batch | {"staged": np.zeros_like(batch["staged"])}
  assert abs(float(loss(batch)) - float(loss(calm))) > 1e-3
  assert "staged" not in prompted(frame_times=0.0)[1]


def with_shots():
  some = clips(12)
  for clip in some:
    if clip.fps:
      clip.captions["shots"] = "0 a red circle moves right\n1 a blue star moves left"
  pipeline = dataclasses.replace(
    make().pipeline, caption_shots=1.0, caption_long=0.0, caption_dropout=0.0, max_slots=12,
    frames_per_latent=F_T,
  )  # fmt: skip
  task = make(pipeline=pipeline, sources=Sources(some, clips(6, seed=1)))
  return task, next(task.batches())


def test_the_loss_hears_which_text_a_latent_frame_reads_and_that_a_clip_has_one_time(params):
  task, batch = with_shots()
  rng = np.random.default_rng(0)  # a new network is deaf to text: its last layers are 0
  params = jax.tree.map(lambda p: p + 0.1 * rng.standard_normal(p.shape, np.float32), params)
  loss = jax.jit(
    lambda b: task.loss(params, b, jax.random.key(1), jax.numpy.zeros(()))[0].numerator
  )
  base = float(loss(batch))
  swapped = np.where(batch["slot_text"] == 2, 1, batch["slot_text"])
  assert (batch["slot_text"] == 2).any() and batch["one_time"].any()
  for changes in ({"slot_text": swapped}, {"one_time": ~batch["one_time"]}):
    assert abs(float(loss(batch | changes)) - base) > 1e-5, changes.keys()


def test_cost_pairs_each_token_with_the_text_that_it_reads():
  task, batch = with_shots()
  layout = packing.layout_of(batch)
  text_RL, text_RM = np.asarray(layout.text_RL), batch["text_segment"]
  read = ((text_RL[:, :, None] == text_RM[:, None]) & (text_RL[:, :, None] > 0)).sum()
  own = batch["segment"][:, :, None] == batch["segment"][:, None]
  seen = (own & (batch["segment"][:, :, None] > 0)).sum()
  texts = ((text_RM[:, :, None] == text_RM[:, None]) & (text_RM[:, :, None] > 0)).sum()
  sizes = task.matrix_sizes
  c, t = task.dit.config, task.text.config
  pairs = c.depth * c.width * (seen + read) + t.depth * t.heads * t.head_size * texts
  words = (sizes.text + sizes.encoder) * (text_RM > 0).sum()
  want = 6 * (sizes.token * (batch["segment"] > 0).sum() + words) + 12 * pairs
  assert task.cost(batch).flops == pytest.approx(float(want))


class Counted(list):
  """Clips that count how often one is read."""

  reads = 0

  def __getitem__(self, i):
    self.reads += 1
    return super().__getitem__(i)


def test_clips_of_a_batch_are_read_for_their_names_only_when_asked():
  train = Counted(clips(12))
  task = make(sources=Sources(train, clips(6, seed=1)))
  batch, before = next(task.batches()), train.reads
  names = task.names(batch)
  assert train.reads == before
  kept = [cell.cell_contents for cell in names.__closure__]
  assert batch["patch"].nbytes > 1000 > sum(x.nbytes for x in kept if isinstance(x, np.ndarray))
  assert not any(isinstance(x, dict) for x in kept)
  assert names() == [f"c{i}" for i in sorted(set(batch["clip"].ravel()) - {-1})]


def test_inputs_are_the_weights_behind_the_latents_and_the_tokenizer():
  assert make().inputs() == {}
  made = [dataclasses.replace(clip, latent_source="ab" * 32) for clip in clips(2)]
  found = make(sources=Sources(made, made), tokenizer_name="tiny").inputs()
  assert found.keys() == {"vae.weights", "text.tokenizer"}
  assert found["vae.weights"] == "ab" * 32 and len(found["text.tokenizer"]) == 64


def test_every_parameter_has_named_axes(task):
  params = jax.eval_shape(task.init, jax.random.key(0))
  checked = jax.tree.map(lambda p, names: p.ndim == len(names), params, task.axes())
  assert all(jax.tree.leaves(checked))
  assert task.axes()["dit"]["blocks"]["attention"]["qkv"]["kernel"][:2] == ("layers", "width")


def test_cost_counts_real_tokens_and_pairs_within_segments(task):
  task = make(dit=DiT(dataclasses.replace(task.dit.config, pooled_text=True)))
  batch = next(task.batches())
  cost = task.cost(batch)
  assert cost.tokens == (batch["segment"] > 0).sum()
  assert cost.clips == (batch["clip"] >= 0).sum()
  params = jax.eval_shape(task.init, jax.random.key(0))["dit"]
  blocks = params["blocks"]
  size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))  # noqa: E731
  token = size(blocks["attention"]["qkv"]) + size(blocks["attention"]["out"])
  token += size(blocks["cross"]["q"]) + size(blocks["cross"]["out"])
  token += sum(x.size for n, x in _flat(blocks["mlp"]) if n.endswith("kernel"))
  token += params["embed"]["kernel"].size + params["head"]["linear"]["kernel"].size
  token += params["fraction"]["kernel"].size
  assert task.matrix_sizes.token == token


def _flat(tree):
  import flax

  return flax.traverse_util.flatten_dict(tree, sep="/").items()


def test_resume_with_the_pipeline_is_exact_to_the_bit(tmp_path):
  config = loop.LoopConfig(steps=4, log_every=1, save_every=2)
  adam = OptimizerConfig(warmup_steps=1)
  whole = loop.run(make(), config, adam, tmp_path / "whole")
  loop.run(make(), config, adam, tmp_path / "half", lambda step: step == 2)
  rest = loop.run(make(), config, adam, tmp_path / "half")
  jax.tree.map(
    np.testing.assert_array_equal, jax.device_get(whole.state), jax.device_get(rest.state)
  )
  lines = metrics.read(tmp_path / "half" / "metrics.jsonl")
  assert lines[-2]["programs"] == 1
  assert rest.figures == whole.figures and np.isfinite(rest.figures["heldout/loss"])


def test_learns_its_clips(tmp_path):
  config = loop.LoopConfig(steps=60, log_every=20, save_every=1000)
  fast = OptimizerConfig(name="muon", lr=3e-3, warmup_steps=5, ema_decay=0.9)
  loop.run(make(), config, fast, tmp_path)
  losses = [x["loss"] for x in metrics.read(tmp_path / "metrics.jsonl") if "loss" in x]
  assert losses[-1] < 0.8 * losses[0]


def test_export_writes_a_model_folder_and_starts_another_leg(tmp_path, task, params):
  task.export(params, tmp_path / "model", {"seed": 3})
  networks = folder.read(tmp_path / "model")
  assert networks["dit"].config["diffusion"]["prediction"] == "x"
  assert networks["dit"].config["rows"]["row_len"] == 16
  again = jax.jit(make(init_from=tmp_path / "model").init)(jax.random.key(9))
  jax.tree.map(np.testing.assert_array_equal, params, again)
  assert store.load(tmp_path / "model" / "dit.safetensors")[2]["provenance"] == {"seed": 3}


def test_a_leg_can_start_from_weights_that_lack_a_part(tmp_path, task, params):
  task.export(params, tmp_path / "model", {"seed": 3})
  wider = DiT(dataclasses.replace(task.dit.config, head_width=8))
  with pytest.raises(ValueError, match="head/down/kernel: missing"):
    make(dit=wider, init_from=tmp_path / "model").init(jax.random.key(9))
  grown = make(dit=wider, init_from=tmp_path / "model", grow=True)
  got = jax.device_get(jax.jit(grown.init)(jax.random.key(9)))  # as the loop starts a run
  assert got["dit"]["head"].pop("up")["kernel"].shape[-1] == 8
  assert not got["dit"]["head"].pop("down")["kernel"].any()
  jax.tree.map(np.testing.assert_array_equal, params, got)


def leg_of(part, start, trained, workdir):
  """Two steps of a leg for a part of the way: its parameters, and the folder that it exports."""
  own = part | {"prediction": "x"}
  config = rest_of_config(DiffusionConfig(**own))
  beside = build.networks_beside(config, start, trained.dit.config)
  leg = make(
    diffusion=DiffusionConfig(**own), init_from=start, beside=beside,
    start=sections.start_of(start, own.get("time_low", 0.0)),
  )  # fmt: skip
  fast = OptimizerConfig(name="muon", lr=3e-3, warmup_steps=1, ema_decay=0.0)
  out = loop.run(leg, loop.LoopConfig(steps=2, save_every=2), fast, workdir / "run")
  params = jax.device_get(out.state.params)
  leg.export(params, workdir / "model", {"seed": workdir.name})
  return params, workdir / "model"


def rest_of_config(diffusion, weight_decay=0.0, **prompts):
  """Those sections of a config that tell which networks stay."""
  return {
    "diffusion": dataclasses.asdict(diffusion), "optimizer": {"weight_decay": weight_decay},
    "data": {"prompts": {"near_noise": 0.0, "staged": 0.0} | prompts},
  }  # fmt: skip


def moved(first, second):
  """The largest change of a parameter between two networks."""
  differences = jax.tree.map(lambda a, b: np.abs(a - b).max(), first.tree, second.tree)
  return max(jax.tree.leaves(differences))


def test_a_network_for_a_part_of_the_way_leaves_the_others_as_they_were(tmp_path, task, params):
  first = tmp_path / "first"
  params = jax.device_get(with_head(params))  # or no gradient would reach the text encoder
  task.export(params, first, {"seed": 3})
  trained, second = leg_of({"time_low": 0.5}, first, task, tmp_path / "high")
  jax.tree.map(np.testing.assert_array_equal, trained["text"], params["text"])
  found, before = folder.read(second), folder.read(first)
  assert all(moved(found[name], before[name]) == 0 for name in ("vae", "text", "dit"))
  jax.tree.map(np.testing.assert_array_equal, found[store.HIGH].tree, trained["dit"])
  assert moved(found[store.HIGH], before["dit"]) > 0 and found[store.HIGH].config["above"] == 0.5
  assert found["dit"].story == {"seed": 3} and found[store.HIGH].story == {"seed": "high"}
  again = make(init_from=second, start=sections.start_of(second, 0.5))
  jax.tree.map(np.testing.assert_array_equal, again.init(jax.random.key(0))["dit"], trained["dit"])
  assert sections.start_of(second, 0.0) == sections.start_of(first, 0.5) == "dit"
  assert sections.provenance_of(second, store.HIGH) == {"seed": "high"}
  trained, third = leg_of({"time_high": 0.5, "time_mean": -1.0}, second, task, tmp_path / "low")
  last = folder.read(third)
  assert all(moved(last[name], found[name]) == 0 for name in ("vae", "text", store.HIGH))
  jax.tree.map(np.testing.assert_array_equal, last["dit"].tree, trained["dit"])
  assert moved(last["dit"], found["dit"]) > 0 and last["dit"].story == {"seed": "low"}
  assert {name: network.config for name, network in last.items()} == {
    name: network.config for name, network in found.items()
  }
  _, fourth = leg_of({"time_low": 0.7}, third, task, tmp_path / "on")
  assert folder.boundary(folder.read(fourth)) == 0.5
  whole = rest_of_config(DiffusionConfig())
  with mock.patch.object(build.logging, "warning") as warned:
    assert build.networks_beside(whole, first, task.dit.config) is None and not warned.called
    assert build.networks_beside(whole, second, task.dit.config) is None and warned.called


@pytest.mark.parametrize(
  ("change", "what"),
  [
    ({}, None),
    ({"start": None}, "name the model that has one for the rest"),
    ({"weight_decay": 0.1}, "weight_decay is 0.1"),
    ({"prediction": "v"}, "config.diffusion.prediction are not as in"),
    ({"heads": 1}, "config.model.heads are not as in"),
  ],
)
@pytest.mark.parametrize("part", [{"time_low": 0.5}, {"time_high": 0.5}])
def test_a_network_for_a_part_of_the_way_needs_one_like_it_that_stays(
  part, change, what, tmp_path, task, params
):
  start = second_at(0.5, tmp_path, task, params)
  diffusion = DiffusionConfig(prediction=change.get("prediction", "x"), **part)
  config = rest_of_config(diffusion, change.get("weight_decay", 0.0))
  network = dataclasses.replace(task.dit.config, heads=change.get("heads", 2), scan_unroll=2)
  start = change.get("start", start)
  if what is None:
    found = build.networks_beside(config, start, network)
    assert found.keys() == {"text", "dit", store.HIGH}
    return
  with pytest.raises(ValueError, match=what):
    build.networks_beside(config, start, network)


def second_at(above, folder_of, task, params):
  """A model whose second network begins at a time; None = it has one network."""
  task.export(params, folder_of / "model", {})
  if above is not None:
    found = folder.read(folder_of / "model")
    second = folder.Network(found["dit"].tree, found["dit"].config | {"above": above})
    folder.write(folder_of / "model", found | {store.HIGH: second}, None, {})
  return folder_of / "model"


@pytest.mark.parametrize(
  ("above", "prompts", "what"),
  [
    (None, {}, "time_high is 0.4, but .*model has one network for all times"),
    (0.5, {}, "time_high is 0.4, but .*model has its second above 0.5"),
    (0.4, {"near_noise": 0.3}, "near_noise is 0.3, which draws times near pure .* but .*is 0.4"),
    (0.4, {"staged": 0.2}, "staged is 0.2, which draws times near pure noise, but .*is 0.4"),
    (0.3, {}, None),
  ],
)
def test_a_network_for_low_noise_needs_one_for_the_rest(
  above, prompts, what, tmp_path, task, params
):
  start = second_at(above, tmp_path, task, params)
  config = rest_of_config(DiffusionConfig(time_high=0.4), **prompts)
  if what is None:
    assert store.HIGH in build.networks_beside(config, start, task.dit.config)
    return
  with pytest.raises(ValueError, match=what):
    build.networks_beside(config, start, task.dit.config)


def test_export_tells_the_sampler_the_whole_shift_of_training(tmp_path, params):
  config = DiffusionConfig(
    shift_reference=2.0, shift_space=0.4, shift_frames=0.1, shift_high=9.0
  )  # fmt: skip
  task = make(diffusion=config)
  task.export(params, tmp_path / "model", {})
  found = folder.read(tmp_path / "model")["dit"].config["diffusion"]
  shift = {n.removeprefix("shift_"): v for n, v in found.items() if n.startswith("shift_")}
  assert times.ShiftConfig(**shift) == config.shift_config


@pytest.mark.parametrize(
  "change",
  [
    {"prediction": "z"},
    {"gamma": 2.0},
    {"time_std": 0.0},
    {"loss_floor": 0.0},
    {"time_high": 0.0},
    {"time_high": 0.4, "time_low": 0.4},
  ],  # fmt: skip
)
def test_impossible_values_are_refused(change):
  with pytest.raises(ValueError, match=next(iter(change)).split("_")[-1]):
    DiffusionConfig(**change)
