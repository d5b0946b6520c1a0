"""Shipped weights: how they were made is told, they are small, and they do what was measured."""

import json
import pathlib

import jax
import numpy as np
import pytest

import sora_jax
import sora_jax.weights
from sora_jax.data import transforms
from sora_jax.data.world import World, WorldConfig
from sora_jax.evaluation import detectors, release
from sora_jax.nn import vae
from sora_jax.prompting import tasks
from sora_jax.tasks import autoencoder
from sora_jax.weights import store

ROOT = pathlib.Path(sora_jax.weights.__file__).parent
FOLDERS = sorted(path.parent for path in ROOT.glob("*/provenance.json"))
LEG = {"network", "config", "command", "seed", "commit", "hardware", "seconds", "steps", "figures"}
MAX_BYTES = 24 * 1024 * 1024
NOTHING = "no weights are shipped with this version (sora_jax/weights/NAME/ is not there)"


@pytest.fixture(params=FOLDERS or [None], ids=lambda path: path.name if path else "none")
def folder(request):
  if request.param is None:
    pytest.skip(NOTHING)
  return request.param


def story_of(folder):
  return json.loads((folder / "provenance.json").read_text())


def test_provenance_tells_how_the_weights_came_to_be(folder):
  story = story_of(folder)
  assert LEG - {"network"} <= story.keys() and story["validation"] and story["check"]
  assert {leg["network"].split()[-1] for leg in story["legs"]} == story["check"].keys()
  for leg in story["legs"]:
    assert leg.keys() >= LEG and leg["commit"] and leg["command"].startswith("python -m sora_jax.")
    assert leg["steps"] > 0 and leg["seconds"] > 0 and leg["figures"]
  assert story["seconds"] == pytest.approx(sum(leg["seconds"] for leg in story["legs"]), abs=1)


def test_shipped_files_are_small_and_none_is_a_pickle(folder):
  sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
  assert {pathlib.Path(name).suffix for name in sizes} <= {".safetensors", ".json", ".model"}
  assert max(sizes.values()) <= store.MAX_SHIPPED_BYTES and sum(sizes.values()) <= MAX_BYTES, sizes
  everything = [path for path in ROOT.rglob("*") if path.is_file() and path.suffix != ".pyc"]
  assert sum(path.stat().st_size for path in everything) <= MAX_BYTES


def test_files_hold_the_weights_that_were_measured(folder):
  files = story_of(folder)["files"]
  assert files.keys() == {path.name for path in folder.glob("*.safetensors")}
  for name, about in files.items():
    assert store.hash_of(folder / name) == about["hash"], name
    assert (folder / name).stat().st_size == about["bytes"], name


def test_the_autoencoders_recorded_figures_are_reproduced(folder):
  found = autoencoder.load_autoencoder(str(folder))
  encode, decode = (jax.jit(f, static_argnums=0) for f in (vae.encode, vae.decode))

  def reconstruct(video_THWC):
    T, H, W, _ = video_THWC.shape
    video_BTHWC = transforms.to_float(video_THWC)[None]
    latent = encode(found.network.config, found.variables, video_BTHWC)
    recon = decode(found.network.config, found.variables, latent)
    return transforms.to_uint8(np.asarray(recon[0, :T, :H, :W]))

  recorded = {"vae": story_of(folder)["check"]["vae"]}
  assert release.differences({"vae": release.vae_check(reconstruct)}, recorded) == []


def test_recorded_figures_are_reproduced(folder):
  if not (folder / "dit.safetensors").is_file():
    pytest.skip(f"{folder.name} has no transformer yet, so it cannot be loaded whole")
  recorded = story_of(folder)["check"]
  found = release.check(sora_jax.load(str(folder)))
  assert recorded.keys() == {"vae", "dit"}
  assert release.differences(found, recorded) == []


def perfect(wanted, **arguments):
  """Stands for a model that has learned the world: true clips of the prompts, by themselves."""
  videos = []
  for prompt, size, fps in zip(wanted, arguments["size"], arguments["fps"], strict=True):
    for index in range(release.CLIPS):
      world = WorldConfig(
        motions="constant", sizes=(size,), frames=arguments["frames"], fps=fps, split="test",
        seed=release.SEED, num_clips=release.CLIPS,
      )  # fmt: skip
      clip = World(world)[index]
      if clip.captions["short"] == prompt:
        videos.append(clip.video_THWC)
        break
  return videos


def test_check_of_a_perfect_model_finds_everything_right():
  found = release.dit_check(perfect)
  assert [found[name] for name in (*release.ATTRIBUTES, "prompts")] == [8] * 5
  assert len(found["level"]) == 8


def test_check_of_a_vae_measures_each_level_inside_and_outside_objects():
  found = release.vae_check(lambda video: video ^ 1)  # every value one off: 48.13 dB
  assert len(found) == 8
  np.testing.assert_allclose(list(found.values()), 20 * np.log10(255), atol=1e-6)
  assert set(release.vae_check(np.copy).values()) == {release.CAP}


@pytest.mark.parametrize(
  "change,named",
  [
    ({}, None),
    ({"psnr_level1": 34.02, "color": 7, "level": [51.5, 60.0]}, None),
    ({"psnr_level1": 33.9}, "vae/psnr_level1"),
    ({"psnr_level1": float("nan")}, "vae/psnr_level1"),
    ({"color": 6}, "dit/color"),
    ({"level": [50.0, 63.0]}, "dit/level"),
    ({"level": [50.0]}, "dit/level"),
    ({"prompts": 7}, "dit/prompts"),
  ],
)
def test_differences_are_named_beyond_what_machines_do(change, named):
  recorded = {
    "vae": {"psnr_level1": 34.0},
    "dit": {"color": 8, "level": [50.0, 60.0], "prompts": 8},
  }
  found = {
    network: {name: change.get(name, value) for name, value in figures.items()}
    for network, figures in recorded.items()
  }
  lines = release.differences(found, recorded)
  assert [line.split(":")[0] for line in lines] == ([named] if named else [])


def test_a_network_that_was_not_measured_is_a_difference():
  assert release.differences({}, {"vae": {"psnr_level1": 34.0}}) != []


def test_what_is_known_wholly_is_encoded_as_in_the_whole_video(folder):
  if not (folder / "dit.safetensors").is_file():
    pytest.skip(f"{folder.name} has no transformer")
  model, rng = sora_jax.load(str(folder)), np.random.default_rng(0)
  whole = rng.integers(0, 256, (17, 40, 72, 3), dtype=np.uint8)
  latent = model.encode(whole)
  left = np.zeros((1, 40, 72), bool)
  left[..., :32] = True
  for line, frames, cells in (
    (tasks.extend(whole[8:], "", None, 8.0, backward=8), np.s_[3:], np.s_[:]),
    (tasks.connect(whole[:7], whole[10:], "", None, 17, 8.0), [0, 1, 4], np.s_[:]),
    (tasks.inpaint(whole, left, "", None, 8.0), np.s_[:], np.s_[9:]),
  ):
    request, expected = model._prompted(line, 0, 0, 1.0, 1.0), np.zeros(latent.shape[:3], bool)
    expected[frames, :, cells] = True
    np.testing.assert_array_equal(request.is_exact, expected)
    there = np.abs(request.exact - latent)[expected]
    assert there.max() < 1e-4


def test_a_draft_keeps_place_and_size_when_made_at_full_size(folder):
  if not (folder / "dit.safetensors").is_file():
    pytest.skip(f"{folder.name} has no transformer")
  model, size = sora_jax.load(str(folder)), (96, 64)
  prompts = [
    "a red circle moves right over a black background",
    "a blue square moves up over a cream background",
  ]
  drafts = model.generate(prompts, size, 9, steps=12, draft=True)
  videos = model.generate(prompts, size, 9, steps=12, from_draft=drafts)
  for draft, video in zip(drafts, videos, strict=True):
    before = detectors.detect(transforms.resize(draft, size))
    after = detectors.detect(video)
    moved_T = np.linalg.norm(before.centroid_T2 - after.centroid_T2, axis=1)
    assert before.present_T.all() and after.present_T.all()
    assert moved_T.mean() < 0.1, "in short sides"
    assert abs(after.area_T.mean() / before.area_T.mean() - 1) < 0.25
