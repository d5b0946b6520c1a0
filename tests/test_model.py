"""The object that load returns, on a small random model: sizes, laws of sampling, errors."""

import dataclasses
import functools
import json
import shutil
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sora_jax
from sora_jax import model as model_lib
from sora_jax.nn import vae, vae_streaming
from sora_jax.nn.dit import DiT
from sora_jax.nn.dit_config import DiTConfig
from sora_jax.nn.text import TextConfig, TextEncoder
from sora_jax.ops import packing
from sora_jax.ops.patchify import cell_channels
from sora_jax.prompting import tasks, timeline, verbs
from sora_jax.tasks import sections
from sora_jax.weights import folder, store
from sora_jax.weights.folder import Network

VAE = vae.VAEConfig(width=8, mult=(1, 1), time_down=(True,), space_down=(True,), latent=4)
DIT = DiTConfig(
  width=24, depth=2, heads=2, out_channels=4, in_channels=cell_channels(4, 2), text_width=16,
  mlp_ratio=2.0, time_features=16, scan_unroll=1,
)  # fmt: skip
TEXT = TextConfig(vocab_size=259, width=16, depth=1, heads=2, head_size=8, mlp_width=16)
PROMPT = "a red circle"


def random_tree(init, seed):
  """Random weights for every leaf, without compiling `init`: zeros would hide mistakes."""
  rng = np.random.default_rng(seed)

  def fill(path, leaf):
    noise = rng.standard_normal(leaf.shape).astype("f")
    if "scale" in jax.tree_util.keystr(path):
      return 1 + 0.1 * noise
    return 0.5 * noise / max(1, leaf.size // max(leaf.shape[-1], 1)) ** 0.5

  return jax.tree_util.tree_map_with_path(fill, nn.meta.unbox(jax.eval_shape(init)))


def networks():
  """A small random model in the form of `weights/folder.py`."""
  key, ids = jax.random.key(0), jnp.zeros((1, 8), jnp.int32)
  layout = packing.layout_of({**packing.place([[((1, 2, 2), 0.0)]], 8, 2), "text_segment": ids})
  inputs = (
    jnp.zeros((1, 8, 4 * DIT.in_channels)), jnp.zeros((1, 2)), layout, jnp.zeros((1, 8, 16)),
  )  # fmt: skip
  stats = {"mean_Z": np.float32([0.1, 0, 0, 0.2]), "std_Z": np.float32([1, 2, 1, 1])}
  variables = {"params": random_tree(lambda: vae.init(VAE, key), 0)["params"], "stats": stats}
  dit = random_tree(lambda: DiT(DIT).init(key, *inputs), 1)["params"]
  text = random_tree(lambda: TextEncoder(TEXT).init(key, ids, ids), 2)["params"]
  dit_config = {
    "network": DIT,
    "diffusion": {
      "prediction": "v", "shift_reference": 8.0, "shift_space": 0.5, "shift_frames": 0.25,
    },
    "rows": {"row_len": 96, "max_segments": 4, "text_row_len": 64},
    "sampling": {"solver": "dpmpp_2m", "steps": 4, "guidance": 2.0, "fps": 8.0},
    "prompts": True, "extent": [0.5, 2.0],
  }  # fmt: skip
  return {
    "vae": Network(variables, {"network": VAE}),
    "text": Network(text, {"network": TEXT, "tokenizer": "bytes"}),
    "dit": Network(dit, dit_config),
  }


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("run") / "model"
  folder.write(path, networks(), None, {"command": "none: random weights"})
  return path


@pytest.fixture(scope="module")
def model(model_folder):
  return sora_jax.load(str(model_folder))


@pytest.mark.parametrize("size,frames", [((12, 8), 3), ((7, 11), 4), ((5, 3), 1), ((24, 16), 6)])
def test_any_size_and_frame_count_come_back_as_asked(model, size, frames):
  video = model.generate(PROMPT, size=size, frames=frames)
  assert video.dtype == np.uint8 and video.shape == (frames, size[1], size[0], 3)
  assert model.sampler.programs <= 2  # the short row and the long one


def test_positions_are_scaled_beyond_the_extent_of_training_alone(model):
  make = {
    name: model.generate([PROMPT] * 2, [(8, 8), (96, 8)], 3, positions=name)
    for name in ("none", "ntk", "interpolate")
  }
  for name in ("ntk", "interpolate"):
    np.testing.assert_array_equal(make[name][0], make["none"][0])
  assert (make["interpolate"][1] != make["none"][1]).any()
  with pytest.raises(ValueError, match="rotary_method='yarn'; allowed: none, interpolate, ntk"):
    model.generate(PROMPT, (8, 8), positions="yarn")
  parts = networks()
  older = {k: v for k, v in parts["dit"].config.items() if k != "extent"}
  parts["dit"] = Network(parts["dit"].tree, older)
  untold = model_lib.Model(parts, model_lib.tokenizers.load("bytes"))
  with pytest.raises(ValueError, match="positions is 'ntk', but this model's file does not tell"):
    untold.generate(PROMPT, (8, 8), 3, positions="ntk")


def test_default_is_17_frames_and_the_same_call_gives_the_same_bits(model):
  a, b = (model.generate(PROMPT, (8, 8), seed=4) for _ in range(2))
  assert len(a) == 17
  np.testing.assert_array_equal(a, b)
  other = model.generate(PROMPT, (8, 8), seed=5)
  assert (a != other).mean() > 0.5


def test_packed_together_equals_alone_within_a_thousandth(model):
  prompts, sizes, frames = [PROMPT, "b", ""], [(16, 8), (8, 12), (12, 12)], [5, 1, 3]
  before = model.sampler.programs
  together = model.generate(prompts, size=sizes, frames=frames, seed=[1, 2, 3])
  assert [v.shape for v in together] == [(5, 8, 16, 3), (1, 12, 8, 3), (3, 12, 12, 3)]
  for i, video in enumerate(together):
    alone = model.generate(prompts[i], size=sizes[i], frames=frames[i], seed=i + 1)
    assert np.abs(alone.astype(int) - video).max() <= 1
  assert model.sampler.programs <= before + 2  # one of several rows, one of a single row


def test_frames_that_fill_no_latent_are_cropped_from_those_that_do(model):
  decoders = vae_streaming.programs(VAE)
  long = model.generate(PROMPT, (8, 8), frames=5)
  counts = [decoders[name]._cache_size() for name in ("decode_first", "decode_next")]
  np.testing.assert_array_equal(long[:4], model.generate(PROMPT, (8, 8), frames=4))
  assert model.generate(PROMPT, (8, 8), frames=11).shape == (11, 8, 8, 3)
  assert counts == [decoders[name]._cache_size() for name in ("decode_first", "decode_next")]


def test_single_values_serve_every_item_of_a_list(model):
  videos = model.generate(PROMPT, size=[(8, 8), (8, 8)], frames=1, seed=[0, 1])
  assert len(videos) == 2 and (videos[0] != videos[1]).any()
  assert isinstance(model.generate([PROMPT], (8, 8), 1), list)
  samples = model.generate(PROMPT, (8, 8), 1, sample=[0, 1])
  np.testing.assert_array_equal(samples[0], videos[0])
  assert (samples[0] != samples[1]).any()


def test_guidance_steps_solver_and_rate_matter(model):
  plain = model.generate(PROMPT, (8, 8), 3)
  for change in ({"guidance": 1.0}, {"steps": 2, "solver": "euler"}, {"fps": 24.0},
                 {"grid": "quadratic"}, {"guidance_interval": (0.5, 1.0)}):  # fmt: skip
    assert (model.generate(PROMPT, (8, 8), 3, **change) != plain).any(), change


@pytest.mark.parametrize("shape", [(1, 8, 8), (4, 7, 9), (6, 12, 10)])
def test_encode_pads_and_decode_crops(model, shape):
  video = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
  T, H, W = shape
  latent = model.encode(video)
  assert latent.shape == (1 + -(-(T - 1) // 2), -(-H // 2), -(-W // 2), 4)
  assert latent.dtype == np.float32
  assert model.decode(latent, T, (W, H)).shape == video.shape
  whole = model.decode(latent)
  np.testing.assert_array_equal(whole[:T, :H, :W], model.decode(latent, T, (W, H)))


def test_draft_is_half_the_size_and_a_start_is_followed(model):
  draft = model.generate(PROMPT, (16, 8), 3, draft=True)
  assert draft.shape == (3, 4, 8, 3)
  wide = np.zeros((3, 8, 16, 3), np.uint8)
  near = model.generate(PROMPT, (16, 8), from_draft=wide, strength=0.01)
  want = model.decode(model.encode(wide))
  assert near.shape == (3, 8, 16, 3)
  assert np.abs(near.astype(int) - want[:3]).mean() < 8
  far = model.generate(PROMPT, (16, 8), from_draft=wide, strength=1.0)
  np.testing.assert_array_equal(far, model.generate(PROMPT, (16, 8), 3))
  shorter = model.generate(PROMPT, (15, 7), 2, from_draft=draft)
  assert shorter.shape == (2, 7, 15, 3)


def clip(frames, width=8, height=8, seed=0):
  return np.random.default_rng(seed).integers(1, 256, (frames, height, width, 3)).astype(np.uint8)


def test_verbs_give_back_what_they_are_given_and_make_the_rest(model):
  one, some = clip(1), clip(5)
  video = model.animate(one[0], PROMPT, frames=4, at=2)
  assert video.shape == (4, 8, 8, 3)
  np.testing.assert_array_equal(video[2], one[0])
  video = model.extend(some, PROMPT, forward=3, backward=2)
  assert video.shape == (10, 8, 8, 3)
  np.testing.assert_array_equal(video[2:7], some)
  video = model.connect(some, clip(3, seed=1), PROMPT, frames=12)
  np.testing.assert_array_equal(video[:5], some)
  np.testing.assert_array_equal(video[-3:], clip(3, seed=1))
  video = model.loop(some, PROMPT, frames=9)
  assert video.shape == (9, 8, 8, 3)
  np.testing.assert_array_equal(video[:5], some)
  mask = np.zeros((8, 8), bool)
  mask[:4] = True
  video = model.inpaint(some, mask, PROMPT)
  np.testing.assert_array_equal(video[:, 4:], some[:, 4:])
  assert (video[:, :4] != some[:, :4]).any()
  np.testing.assert_array_equal(model.outpaint(some, PROMPT, (16, 8))[:, :, 4:12], some)
  np.testing.assert_array_equal(model.interpolate(some, PROMPT, 2)[::2], some)


class Decoded(timeline.Timeline):
  """Gives back what the autoencoder made, as it is."""

  def blended(self, made_THWC, reach):
    return made_THWC

  def finish(self, made_THWC):
    return made_THWC


def test_what_is_made_beside_a_known_region_is_blended_with_it(model):
  mask = np.zeros((1, 8, 8), bool)
  mask[:, :4] = True
  line = tasks.inpaint(clip(5), mask, PROMPT, None, 8.0)
  as_it_is = Decoded(**{f.name: getattr(line, f.name) for f in dataclasses.fields(line)})
  made, decoded = (model.make(each, seed=0, steps=2) for each in (line, as_it_is))
  reach = model.autoencoder.spatial
  np.testing.assert_array_equal(made, line.finish(line.blended(decoded, reach)))
  assert (made != line.finish(decoded)).any()


def test_what_is_known_reaches_the_network_at_its_place(model):
  line = tasks.extend(clip(5), PROMPT, None, 8.0, forward=4)
  request = model._prompted(line, 0, 0, 1.0, 1.0)
  assert request.grid.t == 5 and request.known.shape[0] == 5
  np.testing.assert_array_equal(request.known.any((1, 2, 3)), [1, 1, 1, 0, 0])
  np.testing.assert_allclose(request.canvas[:3], model.encode(clip(5)), atol=1e-4)
  assert not request.canvas[3:].any()
  made = [model.make(line, seed=0, guidance=1.0)]
  for other in (clip(5, seed=3), None):
    changed = line if other is None else tasks.extend(other, PROMPT, None, 8.0, forward=4)
    scale = 30.0 if other is None else 1.0
    made.append(model.make(changed, seed=0, guidance=1.0, image_guidance=scale))
  assert all((made[0][5:] != other[5:]).any() for other in made[1:])


def test_the_text_counts_less_by_default_where_frames_are_known(model):
  known, free = (
    tasks.extend(clip(5), PROMPT, None, 8.0, forward=4),
    tasks.edit(clip(5), "", None, 8.0),
  )
  default = model.defaults["guidance"]
  assert default > model_lib.PROMPTED_GUIDANCE > 1
  for line, given, expected in (
    (known, None, model_lib.PROMPTED_GUIDANCE), (free, None, default), (known, 4.0, 4.0)
  ):  # fmt: skip
    assert model._prompted(line, 0, 0, given, 1.0).guidance == expected


def test_what_is_gone_on_with_may_have_a_grid_of_its_own(model, monkeypatch):
  on = tasks.extend(clip(5), PROMPT, None, 8.0, forward=4)
  edit = tasks.edit(clip(5), PROMPT, None, 8.0)
  even, leap = (
    [model.make(line, grid=grid) for line in (on, edit)] for grid in ("uniform", "leap")
  )
  assert (even[0] != leap[0]).any() and (even[1] != leap[1]).any()
  assert (model.make(on) == even[0]).all()  # a file that names none has one for all
  monkeypatch.setattr(model, "defaults", model.defaults | {"extend_grid": "leap"})
  for made, want in zip(model.make([on, edit]), (leap[0], even[1])):
    np.testing.assert_array_equal(made, want)
  several = [model.make(on, seed=[0, 1], **how)[0] for how in ({}, {"grid": "uniform"})]
  np.testing.assert_array_equal(*several)  # several seeds are to differ


def test_what_is_gone_on_with_may_be_made_from_the_clip_on(model, monkeypatch):
  on = tasks.extend(clip(5), PROMPT, None, 8.0, forward=6)
  edit = tasks.edit(clip(5), PROMPT, None, 8.0)
  at_once, staged = ([model.make(line, stages=n) for line in (on, edit)] for n in (1, 2))
  assert (at_once[0] != staged[0]).any()
  np.testing.assert_array_equal(at_once[1], staged[1])
  np.testing.assert_array_equal(model.make(on, stages=3), model.make([on, edit], stages=3)[0])
  monkeypatch.setattr(model, "defaults", model.defaults | {"extend_stages": 2})
  for made, want in zip(model.make([on, edit]), staged):
    np.testing.assert_array_equal(made, want)
  for how in ({"stages": 1}, {"grid": model.defaults["grid"]}):  # a grid that is asked for
    np.testing.assert_array_equal(model.make(on, **how), at_once[0])
  with pytest.raises(ValueError, match="stages=0; allowed: 1 .all at once. up to steps="):
    model.make(on, stages=0)


@pytest.mark.parametrize(("steps", "stages"), [(1, 1), (2, 1), (3, 2)])
def test_by_default_the_last_latent_frame_takes_more_than_one_step(
  model, monkeypatch, steps, stages
):
  on = tasks.extend(clip(5), PROMPT, None, 8.0, forward=6)
  monkeypatch.setattr(model, "defaults", model.defaults | {"extend_stages": 4})
  want = model.make(on, steps=steps, stages=stages)
  np.testing.assert_array_equal(model.make(on, steps=steps), want)


@pytest.mark.parametrize(("how", "stages"), [({}, 1), ({"stages": 2}, 2)])
def test_several_seeds_of_one_clip_take_the_stages_that_are_asked_for(
  model, monkeypatch, how, stages
):
  on = tasks.extend(clip(5), PROMPT, None, 8.0, forward=6)
  want = model.make([on, on], seed=[0, 1], stages=stages)
  monkeypatch.setattr(model, "defaults", model.defaults | {"extend_stages": 3})
  np.testing.assert_array_equal(model.make(on, seed=[0, 1], **how), want)


def test_how_a_clip_is_gone_on_with_does_not_depend_on_what_is_made_beside_it(model, monkeypatch):
  lines = [tasks.extend(clip(5), PROMPT, None, 8.0, forward=n) for n in (2, 6)]
  seen, decode = [], model.decode
  monkeypatch.setattr(
    model, "decode", lambda latent, *crop: seen.append(latent) or decode(latent, *crop)
  )
  alone = [model.make(line, stages=3) for line in lines]
  before = model.sampler.programs
  together = model.make(lines, stages=3)
  for i in (0, 1):
    assert np.abs(seen[i] - seen[2 + i]).max() < 1e-4
    np.testing.assert_array_equal(together[i], alone[i])
  assert model.sampler.programs == before
  model.make(lines[1], stages=1)
  assert np.abs(seen[1] - seen[4]).max() > 0.01


def test_first_latents_known_wholly_are_not_left_to_the_network(model):
  whole = tasks.extend(clip(5), PROMPT, None, 8.0, forward=4)
  for line, count in (
    (whole, 3), (tasks.extend(clip(4), PROMPT, None, 8.0, forward=5), 2),
    (tasks.extend(clip(5), PROMPT, None, 8.0, backward=4), 0),
    (tasks.outpaint(clip(5), PROMPT, (16, 8), 8.0), 0),
  ):  # fmt: skip
    request = model._prompted(line, 0, 0, 1.0, 1.0, 0.2)  # noise on what is shown changes nothing
    assert request.is_exact.all((1, 2)).sum() == request.is_exact.any((1, 2)).sum() == count
    if count:
      np.testing.assert_allclose(request.exact[:count], model.encode(clip(5))[:count], atol=1e-4)
  method = model._method(None, 3, None, None, "none")
  made = model.sampler(model._params, [model._prompted(whole, 0, 0, 3.0, 2.0, 0.2)], method)[0]
  np.testing.assert_allclose(made[:3], model.encode(clip(5)), atol=1e-4)


def test_what_is_known_is_noised_for_the_network_alone(model):
  line = tasks.extend(clip(5), PROMPT, None, 8.0, forward=4)
  clean, noised, other = (
    model._prompted(line, seed, 0, 1.0, 1.0, noise).canvas
    for seed, noise in ((0, 0.0), (0, 0.2), (1, 0.2))
  )
  there = clean[:3]
  assert not noised[3:].any() and (noised[:3] != other[:3]).any()
  left = (noised[:3] - 0.8 * there) / 0.2
  assert abs(left.mean()) < 0.2 and 0.8 < left.std() < 1.2
  np.testing.assert_array_equal(model.make(line, seed=0, context_noise=0.2)[:5], clip(5))
  calm, stirred = (
    model.sampler(
      model._params,
      [model._prompted(line, 0, 0, 1.0, 1.0, noise)],
      model._method(None, 3, None, None, "none"),
    )[0]
    for noise in (0.0, 0.2)
  )
  np.testing.assert_array_equal(calm[:3], stirred[:3])
  assert np.abs(calm[3:] - stirred[3:]).max() > 0
  with pytest.raises(ValueError, match="context_noise is 1.0"):
    model.make(line, context_noise=1.0)


def test_a_prompt_may_change_along_the_way(model):
  changing = [(0, PROMPT), (5, "a blue square falls over a gray background")]
  request = model._prompted(tasks.extend(clip(5), changing, None, 8.0, forward=4), 0, 0, 1.0, 1.0)
  assert request.later == ((3, tuple(model.tokenizer.tokenize(changing[1][1]))),)
  assert request.text == "\n".join(text for _, text in changing)
  made = model.extend(clip(5), changing, forward=4)
  assert (made[5:] != model.extend(clip(5), PROMPT, forward=4)[5:]).any()
  np.testing.assert_array_equal(made[:5], clip(5))


def test_several_seeds_lead_to_several_videos_of_one_timeline(model):
  videos = model.extend(clip(5), PROMPT, backward=4, seed=[0, 1])
  assert len(videos) == 2 and (videos[0][:4] != videos[1][:4]).any()
  for video in videos:
    np.testing.assert_array_equal(video[4:], clip(5))
  assert len(model.edit(clip(3), PROMPT, 0.0, seed=range(2))) == 2
  with pytest.raises(ValueError, match="seed is -1; it must be a whole number, at least 0"):
    model.edit(clip(3), PROMPT, seed=-1)
  with pytest.raises(ValueError, match="3 seeds for 2 timelines"):
    model.make([tasks.edit(clip(3), "", None, 8.0, 0.5)] * 2, seed=[1, 2, 3])


def test_an_edit_of_strength_0_is_the_autoencoder_s_reconstruction(model):
  some = clip(5)
  want = model.decode(model.encode(some))
  lines = []
  np.testing.assert_array_equal(model.edit(some, PROMPT, 0.0, progress=lines.append), want)
  assert lines == []
  with pytest.raises(ValueError, match="image_guidance is nan"):
    model.edit(some, PROMPT, 0.5, image_guidance=float("nan"))
  assert (model.edit(some, PROMPT, 0.8) != want).any()


def test_sizes_are_the_input_s_own_or_what_a_row_holds(model):
  with mock.patch.object(verbs.logging, "warning") as warned:
    assert model.animate(clip(1, 14, 9), PROMPT, frames=3).shape == (3, 9, 14, 3)
    assert not warned.called
    large = model.animate(clip(1, 640, 320), PROMPT, frames=3)
  line, *values = warned.call_args.args
  assert (line % tuple(values)).startswith(
    f"made at {large.shape[2]}x{large.shape[1]}, because 3 frames of the input's 640x320"
  )
  assert large.shape[1] * large.shape[2] <= 96 // 2 * 16 and large.shape[2] == 2 * large.shape[1]
  assert model.animate(clip(1, 640, 320), PROMPT, size=(12, 12), frames=1).shape == (1, 12, 12, 3)


def test_a_model_trained_on_text_alone_says_so(model_folder):
  parts = networks()
  dit = Network(parts["dit"].tree, {**parts["dit"].config, "prompts": False})
  text_only = model_lib.Model({**parts, "dit": dit}, model_lib.tokenizers.load("bytes"))
  with pytest.raises(ValueError, match="has not seen image or video prompts"):
    text_only.animate(clip(1), PROMPT)
  assert text_only.edit(clip(3), PROMPT, 0.5, steps=1).shape == (3, 8, 8, 3)


def test_progress_is_told(model):
  lines = []
  model.generate(PROMPT, (8, 8), 1, progress=lines.append)
  assert lines[0].startswith("sampling 1") and lines[-1] == "decoding 8x8, 1 frames"


@pytest.mark.parametrize(
  "arguments,message",
  [
    ({"size": (0, 8)}, "width is 0"),
    ({"frames": 0}, "frames is 0"),
    ({"frames": 2, "from_draft": np.zeros((1, 4, 4, 3), np.uint8)}, "2, but the draft has 1; ask"),
    ({"fps": 0.0}, "fps is 0.0"),
    ({"seed": -1}, "seed is -1"),
    ({"guidance": float("nan")}, "guidance is nan"),
    ({"steps": 0}, "steps=0"),
    ({"solver": "rk4"}, "solver='rk4'; allowed: euler"),
    ({"grid": "even"}, "grid='even'; allowed: uniform, quadratic"),
    ({"guidance_interval": (0.5, 2)}, r"guidance_interval is \(0.5, 2\); it must be LOW,HIGH"),
    ({"seed": [1, 2], "frames": [1, 2, 3]}, "lists of different lengths"),
    ({"seed": []}, "empty list"),
    ({"from_draft": np.zeros((1, 4, 4, 3), np.uint8), "strength": 0.0}, "start_time=0.0"),
  ],
)
def test_impossible_arguments_are_named(model, arguments, message):
  with pytest.raises(ValueError, match=message):
    model.generate(PROMPT, **{"size": (8, 8), "frames": 1, **arguments})


def test_wrong_pixels_and_latents_are_named(model):
  with pytest.raises(ValueError, match=r"float64 \(1, 8, 8, 3\).*uint8"):
    model.encode(np.zeros((1, 8, 8, 3)))
  with pytest.raises(ValueError, match=r"expected \[t, h, w, 4\]"):
    model.decode(np.zeros((1, 4, 4, 5)))
  with pytest.raises(ValueError, match="asked for 2 frames of 8x8; these latents hold 1 of 8x8"):
    model.decode(np.zeros((1, 4, 4, 4)), frames=2)
  for frames in (0, -2):
    with pytest.raises(ValueError, match=f"frames is {frames}; it must be a whole number, at le"):
      model.decode(np.zeros((2, 4, 4, 4)), frames)
  with pytest.raises(ValueError, match="height is 0"):
    model.decode(np.zeros((1, 4, 4, 4)), size=(8, 0))


def test_load_takes_work_directories_and_explains_what_it_cannot(model_folder, tmp_path):
  assert sora_jax.load(str(model_folder.parent)).dit.config == DIT
  with pytest.raises(ValueError, match="no model 'tyni'"):
    sora_jax.load("tyni")
  with pytest.raises(ValueError, match="holds no model"):
    sora_jax.load(str(tmp_path))
  broken = tmp_path / "broken"
  shutil.copytree(model_folder, broken)
  (broken / "text.safetensors").unlink()
  with pytest.raises(FileNotFoundError, match="text.safetensors"):
    sora_jax.load(str(broken))


def test_transformers_whose_output_means_something_else_are_refused(model_folder, tmp_path):
  for says, cure in ({}, "train anew"), ({"format": 99}, "install a newer"):
    old = tmp_path / cure.split()[0]
    shutil.copytree(model_folder, old)
    tree, config, _ = store.load(old / "dit.safetensors")
    assert config.pop("format") == folder.FORMAT
    store.save(old / "dit.safetensors", tree, config | says)
    with pytest.raises(ValueError, match=f"dit.safetensors holds a transformer of format .*{cure}"):
      sora_jax.load(str(old))
    with pytest.raises(ValueError, match=cure):
      sections.init_from(
        {"train": {"init_from": str(old), "init_missing": "raise"}}, "dit.safetensors"
      )


def test_folders_are_written_whole_and_over_old_ones(tmp_path):
  parts = networks()
  path = tmp_path / "m"
  folder.write(path, parts, b"pieces", {"seed": 1})
  folder.write(path, parts, b"pieces", {"seed": 2}, store_dtype="float16")
  assert sorted(p.name for p in path.iterdir()) == [
    "dit.safetensors", "provenance.json", "text.safetensors", "tokenizer.model", "vae.safetensors",
  ]  # fmt: skip
  assert json.loads((path / "provenance.json").read_text()) == {"seed": 2}
  assert [p.name for p in tmp_path.iterdir()] == ["m"]
  with pytest.raises(ValueError, match="a model has vae, text, dit"):
    folder.write(path, {"dit": parts["dit"]}, None, {})


def with_second_network(factor=1.3):
  """The small model with a transformer for high noise."""
  parts = networks()
  tree = jax.tree.map(lambda x: factor * x, parts["dit"].tree)
  return parts | {store.HIGH: Network(tree, {"network": DIT, "above": 0.5}, {"legs": ["its own"]})}


def test_a_second_network_is_read_and_used_above_its_boundary(model, tmp_path):
  folder.write(tmp_path / "m", with_second_network(), None, {"seed": 1})
  two = sora_jax.load(str(tmp_path / "m"))
  make = functools.partial(model_lib.Model.generate, prompt=PROMPT, size=(8, 8), frames=3)
  assert (make(two) != make(model)).any()
  draft = make(model)
  edit = functools.partial(make, from_draft=draft, strength=0.4, steps=2)  # begins below 0.5
  np.testing.assert_array_equal(edit(two), edit(model))
  told = {p.stem: store.read_config(p)[1]["provenance"] for p in (tmp_path / "m").glob("*.saf*")}
  assert told == dict.fromkeys(("vae", "text", "dit"), {"seed": 1}) | {
    store.HIGH: {"legs": ["its own"]}
  }
  folder.write(tmp_path / "m", networks(), None, {"seed": 2})  # a model of one network is whole
  assert store.HIGH not in folder.read(tmp_path / "m")


def test_a_second_network_that_does_not_fit_is_refused(tmp_path):
  parts = with_second_network()
  parts[store.HIGH].tree["head"]["linear"]["kernel"] = np.zeros((2, 2), np.float32)
  with pytest.raises(ValueError, match="dit_high, .* does not fit .*head/linear/kernel"):
    model_lib.Model(parts, model_lib.tokenizers.load("bytes"))
  other = with_second_network()
  other[store.HIGH].config["network"] = dataclasses.replace(DIT, heads=3)
  with pytest.raises(ValueError, match="dit_high, .* differs from the first in heads; train it"):
    model_lib.Model(other, model_lib.tokenizers.load("bytes"))
  folder.write(tmp_path / "m", with_second_network(), None, {})
  path = tmp_path / "m" / "dit_high.safetensors"
  tree, config, _ = store.load(path)
  store.save(path, tree, config | {"format": 1})
  with pytest.raises(ValueError, match="dit_high.safetensors holds a transformer of format 1"):
    sora_jax.load(str(tmp_path / "m"))


def test_unknown_keys_of_a_config_are_named():
  parts = networks()
  config = {"network": {**dataclasses.asdict(DIT), "wings": 2}}
  bad = Network(parts["dit"].tree, {**parts["dit"].config, **config})
  with pytest.raises(ValueError, match="unknown keys wings for DiTConfig"):
    model_lib.Model({**parts, "dit": bad}, model_lib.tokenizers.load("bytes"))
