"""The command line: a whole job of either task in miniature, resumed; mistakes before any work."""

import dataclasses
import functools
import importlib
import itertools
import json
import pathlib
import shutil
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from sora_jax import load, main
from sora_jax.data import writing
from sora_jax.data.records import ShardSource
from sora_jax.nn import vae as vae_lib
from sora_jax.nn.vae_losses import LossConfig
from sora_jax.tasks import autoencoder, averages, build
from sora_jax.train import metrics, provenance
from sora_jax.weights import folder, store

ROOT = pathlib.Path(__file__).parents[1]
NAN = float("nan")
DROP = {"share": 0.5, "scale": 0.6, "hold": 0.7, "end": 0.8}


@pytest.fixture(scope="module", autouse=True)
def root_on_path():
  sys.path.insert(0, str(ROOT))
  yield
  sys.path.remove(str(ROOT))


@pytest.fixture(scope="module")
def vae_file(tmp_path_factory):
  network = vae_lib.VAEConfig(
    width=8, mult=(1,), res_blocks=0, latent=4, time_down=(), space_down=(), stem_patch=4,
    stem_frames=4,
  )  # fmt: skip
  path = tmp_path_factory.mktemp("vae") / "vae.safetensors"
  variables = jax.device_get(jax.jit(functools.partial(vae_lib.init, network))(jax.random.key(0)))
  more = {"level_Z": np.full(4, 0.8, np.float32), "spread_Z": np.full(4, 0.6, np.float32)}
  variables = {**variables, "stats": {**variables["stats"], **more}}
  store.save(path, variables, {"network": folder.plain(network)}, {"legs": []})
  return path


def config_of(name, vae_file=None, **changes):
  c = importlib.import_module(f"configs.{name}").get_config("smoke")
  w = c.data.world
  w.num_clips, w.sizes, w.frames, w.image_fraction = 12, ((16, 16), (24, 16), (16, 24)), (5,), 0.2
  c.data.validation_clips, c.data.processes = 4, 1
  c.data.rows, c.data.row_len, c.data.max_segments, c.data.text_row_len = 2, 24, 4, 64
  c.model.width, c.model.depth, c.model.heads, c.model.scan_unroll = 16, 1, 2, 1
  c.text.width, c.text.depth, c.text.heads, c.text.head_size, c.text.mlp_width = 16, 1, 2, 8, 16
  c.vae.size, c.vae.sizes, c.vae.frames, c.vae.batch_pixels = "nano", ((16, 16),), (5,), 5 * 512
  c.optimizer.name = "adamw"
  c.train.steps, c.train.log_every, c.train.save_every = 4, 1, 2
  c.evaluation.prompts, c.evaluation.steps = 3, 2
  if vae_file is not None:
    c.vae.weights = str(vae_file)
  if name == "vae":
    w.sizes, w.image_fraction = c.vae.sizes, 0.0  # every shape is compiled for the figures
  for name, value in changes.items():
    section, key = name.split("__")
    c[section][key] = value
  return c.to_dict()


def test_text_to_video_from_world_to_report(tmp_path, vae_file, monkeypatch):
  commits = itertools.chain(["at the start"], itertools.repeat("later"))
  monkeypatch.setattr(provenance, "commit", lambda: next(commits))
  config = config_of("tiny", vae_file)
  about = main.run(config, tmp_path / "run")
  page = tmp_path / "run" / "report" / "index.html"
  assert "://" not in page.read_text().split("<body>")[1]  # base64 has no colon
  found = json.loads((page.parent / "report.json").read_text())
  assert found["scores"][0]["prompts"] == 3 and len(found["scores"]) == 4
  assert found["packing"]["fill"] > 0.5 and found["sampler_programs"] == 1
  assert {p.suffix for p in page.parent.iterdir()} == {".html", ".json", ".png", ".mp4"}
  assert len(list(page.parent.glob("*.mp4"))) == 3
  assert about["provenance"]["legs"][0]["steps"] == 4
  assert about["provenance"]["commit"] == "at the start"
  lines = metrics.read(tmp_path / "run" / "metrics.jsonl")
  again = main.run(config, tmp_path / "run")
  assert again["figures"] == about["figures"]
  assert metrics.read(tmp_path / "run" / "metrics.jsonl")[:4] == lines[:4]
  weights_are_written_from_any_checkpoint(tmp_path / "run", tmp_path)


def weights_are_written_from_any_checkpoint(run, out):
  """Of a run of 4 steps that has ended; what is asked of it leaves the run as it was."""
  files = lambda: {p: p.stat().st_mtime_ns for p in sorted(run.rglob("*"))}  # noqa: E731
  before = files()
  with pytest.raises(ValueError, match="has ended, and .*model holds its weights"):
    averages.write(run)
  with pytest.raises(ValueError, match="has ended, and .*name another folder with --out"):
    averages.write(run, 2)  # an older checkpoint would replace what the run made
  assert averages.write(run, out=out / "last") == (4, out / "last")
  assert averages.write(run, 2, out / "half")[0] == 2
  last, half, own = (folder.read(p) for p in (out / "last", out / "half", run / "model"))
  for name in ("vae", "text", "dit"):
    jax.tree.map(np.testing.assert_array_equal, last[name].tree, own[name].tree)
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), half["dit"].tree, own["dit"].tree)
  assert max(jax.tree.leaves(moved)) > 0 and half["dit"].config == own["dit"].config
  story = json.loads((out / "half" / "provenance.json").read_text())
  assert story["steps"] == 2 and story["commit"] is None
  assert story["config"] == json.loads((run / "config.json").read_text())
  with pytest.raises(ValueError, match="step 3 is saved in .*there are those of steps 2, 4"):
    averages.write(run, 3)
  assert files() == before
  # as in a run that goes on: no model yet, and the newest checkpoint is not whole
  shutil.rmtree(run / "model")
  shutil.rmtree(run / "checkpoints" / "4" / "state")
  with pytest.raises(ValueError, match="python -m sora_jax.export --workdir="):
    load(run)
  assert averages.write(run) == (2, run / "model")
  jax.tree.map(
    np.testing.assert_array_equal, folder.read(run / "model")["dit"].tree, half["dit"].tree
  )
  assert (run / "checkpoints" / "4").is_dir()
  with pytest.raises(ValueError, match="holds no run: it has no config.json"):
    averages.write(out / "elsewhere")
  # and as in one that had ended and goes on for longer: its model is not the last
  config = json.loads((run / "config.json").read_text())
  config["train"]["steps"] = 8
  (run / "config.json").write_text(json.dumps(config))
  assert averages.write(run, 2) == (2, run / "model")


def test_a_run_that_is_named_like_a_shipped_model_samples_its_own(tmp_path, vae_file, monkeypatch):
  def read(path):
    raise LookupError(str(path))

  monkeypatch.setattr(folder, "read", read)
  monkeypatch.chdir(tmp_path)
  (tmp_path / "clips.index.json").write_text("{}")
  config = config_of("tiny_clips", vae_file, data__folder=str(tmp_path))
  plan = build.check(config, tmp_path)
  task = types.SimpleNamespace(sources=types.SimpleNamespace(validation=[]))
  with pytest.raises(LookupError, match="^tiny/model$"):
    main.sample(plan, task, pathlib.Path("tiny"), {})


def test_a_folder_of_films_is_prepared_and_trained_on(tmp_path, vae_file):
  rng = np.random.default_rng(0)
  for i, (width, height) in enumerate([(16, 16), (24, 16), (64, 48), (16, 16)]):
    video = rng.integers(0, 256, (5, height, width, 3), dtype=np.uint8)
    writing.write_video(tmp_path / "films" / f"{i}.mkv", video, 12.0)
    (tmp_path / "films" / f"{i}.txt").write_text(f"film {i}")
  command = [sys.executable, "-m", "sora_jax.prepare", f"--input={tmp_path / 'films'}"]
  command += [f"--output={tmp_path / 'clips'}", "--processes=1", "--short_side=48"]
  subprocess.run(command, check=True, capture_output=True)
  config = config_of(
    "tiny_clips", vae_file, data__folder=str(tmp_path / "clips"), data__validation_clips=1
  )
  main.run(config, tmp_path / "run")
  model = load(tmp_path / "run")
  assert model.defaults["fps"] == 12.0 and not model.prompted
  latents = next((tmp_path / "clips").glob("latents-*-fit24.index.json"))
  source = ShardSource(tmp_path / "clips", latents.name.removesuffix(".index.json"))
  shrunk = [clip for clip in source if "shrunk" in clip.truth]
  assert len(shrunk) == 1 and shrunk[0].pixel_shape[2] / shrunk[0].pixel_shape[1] == 4 / 3


def test_a_model_trained_on_prompts_is_prompted(tmp_path, vae_file):
  config = config_of("tiny", vae_file, data__max_slots=8)
  config["data"]["prompts"]["on"] = True
  main.run(config, tmp_path / "run")
  model = load(tmp_path / "run")
  world = config["data"]["world"]
  assert model.extent[0] == max(world["frames"]) / 8
  assert model.extent[1] == max(side for size in world["sizes"] for side in size) / 8
  picture = np.full((16, 16, 3), 7, np.uint8)
  video = model.animate(picture, "a red circle", frames=5, steps=1)
  assert video.shape == (5, 16, 16, 3)
  np.testing.assert_array_equal(video[0], picture)


def test_vae_trains_then_serves_a_second_leg(tmp_path, monkeypatch):
  small = vae_lib.VAEConfig(
    width=8, mult=(1, 2), res_blocks=0, latent=4, time_down=(True,), space_down=(True,)
  )
  monkeypatch.setitem(vae_lib.SIZES, "nano", small)
  first = main.run(config_of("vae"), tmp_path / "first")
  tree, config, metadata = store.load(tmp_path / "first" / "model" / "vae.safetensors")
  assert (tree["stats"]["std_Z"] > 0).all() and config["network"]["latent"] == 4
  assert metadata["provenance"]["legs"][0]["figures"]["vae/psnr"] == first["figures"]["vae/psnr"]
  second = main.run(config_of("vae", train__init_from=str(tmp_path / "first")), tmp_path / "second")
  assert len(second["provenance"]["legs"]) == 2
  assert np.isfinite(second["figures"]["vae/psnr"])
  assert autoencoder.load_autoencoder(str(tmp_path / "first")).network.config.latent == 4


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"data__row_len": 4}, r"row_len is 4, but a clip of 16x16 and 5 frames takes 8 tokens"),
    ({"model__heads": 3}, r"config.model: width 16 over 3 heads"),
    (
      {
        "data__token_drop": {"share": 0.5, "scale": 0.6, "hold": 0.7, "end": 0.8},
        "train__minutes": 1.0,
      },
      r"token_drop.share is 0.5 with train.minutes of 1",
    ),
    (
      {"data__token_drop": DROP | {"scale": 2.0}},
      r"scale=2.0; it is a share",
    ),
    ({"data__source": "films"}, r"data.source is 'films'"),
    ({"data__rows": 0}, r"config.data: rows=0"),
    ({"evaluation__solver": "rk4"}, r"config.evaluation: solver is 'rk4'"),
    (
      {"evaluation__grid": "even"},
      r"config.evaluation: grid is 'even'; allowed: uniform, quadratic",
    ),
    (
      {"evaluation__guidance_interval": (1.0, 0.5)},
      r"config.evaluation: guidance_interval is \(1.0",
    ),
    ({"optimizer__lr": -1.0}, r"config.optimizer: .*lr is -1.0"),
    ({"train__steps": 0}, r"config.train: train.steps is 0"),
    ({"vae__weights": "nowhere"}, r"config.vae.weights is 'nowhere'"),
    ({"text__tokenizer": "words"}, r"no tokenizer 'words'"),
    ({"diffusion__prediction": "v"}, r"precondition is for networks that predict data"),
    ({"diffusion__prediction": "z"}, r"config.diffusion: prediction is 'z'"),
    ({"train__init_from": "nowhere"}, r"no model 'nowhere'"),
    ({"evaluation__frames": 200}, r"config.evaluation: frames: got \(200,\); must be .* 1 to 65"),
    ({"evaluation__sizes": ((4, 4),)}, r"config.evaluation: sizes: got 4x4; .* at least 8 pixels"),
    ({"evaluation__sizes": (32, 32)}, r"config.evaluation: sizes is \(32, 32\); give .* pairs"),
    (
      {"evaluation__sizes": ((32, -1),)},
      r"config.evaluation: sizes is \(\(32, -1\),\); give .* pairs",
    ),
    ({"evaluation__seed": -1}, r"config.evaluation: seed is -1; it must be at least 0"),
    ({"evaluation__guidance": float("nan")}, r"config.evaluation: guidance is nan; it must be"),
    ({"train__accumulate": 3}, r"config.train.accumulate is 3.*config.data.rows is 2.*divides"),
    ({"train__mesh": (7, 1, 1, 1)}, r"config.train.mesh: mesh \(7, 1, 1, 1\) .* does not fit"),
    ({"model__depth": 0}, r"config.model: depth is 0; it must be at least 1"),
    ({"model__heads": 0}, r"config.model: heads is 0; it must be at least 1"),
    ({"model__scan_unroll": 0}, r"config.model: scan_unroll is 0; it must be at least 1"),
    ({"model__time_features": 0}, r"config.model: time_features is 0; it must be at least 1"),
    ({"model__mlp_ratio": 0.0}, r"config.model: mlp_ratio is 0.0; it must be above 0"),
    ({"model__patch": (2, 2)}, r"config.model: patch is \(2, 2\); it must be three whole"),
    ({"model__patch": (1, 0, 2)}, r"config.model: patch is \(1, 0, 2\); it must be three"),
    ({"model__norm_eps": -1.0}, r"config.model: norm_eps is -1.0; it must be above 0"),
    ({"text__dtype": "foo"}, r"config.text: text.dtype='foo'; allowed: 'float32', 'bfloat16'"),
    ({"text__norm_eps": -1.0}, r"config.text: text.norm_eps=-1.0; it must be above 0"),
    ({"optimizer__weight_decay": NAN}, r"config.optimizer.weight_decay is nan; .* finite number"),
    ({"optimizer__clip_norm": NAN}, r"config.optimizer.clip_norm is nan; .* finite number"),
    ({"model__rotary_theta": NAN}, r"config.model.rotary_theta is nan; .* finite number"),
    ({"data__encode_batch": 0}, r"config.data.encode_batch is 0; it must be at least 1"),
    ({"train__context": "foo"}, r"config.train.context is 'foo'; allowed: auto, ring, ulysses"),
  ],
)
def test_impossible_configs_fail_before_anything_is_built(tmp_path, vae_file, changes, message):
  with pytest.raises(ValueError, match=message):
    main.run(config_of("tiny", vae_file, **changes), tmp_path / "run")
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"vae__sizes": ((16, 14),)}, r"config.vae.sizes has \(16, 14\).*multiples of \d"),
    ({"vae__sizes": (16, 16)}, r"config.vae.sizes has 16; .*\(width, height\)"),
    ({"vae__batch_pixels": 0}, r"config.vae: batch_pixels=0; it must be at least 1"),
    ({"vae__latent_noise": NAN}, r"config.vae.latent_noise is nan; .* finite number"),
    ({"train__context": "foo"}, r"config.train.context is 'foo'; allowed: auto, ring, ulysses"),
    (
      {"vae__loss": dataclasses.asdict(LossConfig(perceptual=0.1))},
      r"config.vae.loss.perceptual is 0.1.*set it to 0",
    ),
    ({"train__accumulate": 3}, r"config.train.accumulate is 3.*batch.* of 2 clips.*divides"),
  ],
)
def test_impossible_configs_of_the_vae_fail_before_anything_is_built(tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    main.run(config_of("vae", **changes), tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_start_of_another_shape_is_refused_before_clips_are_made(tmp_path, vae_file):
  config = config_of("vae", train__init_from=str(vae_file), train__init_missing="new")
  with pytest.raises(ValueError, match=f"^{vae_file} does not fit the network: params/.*expected"):
    main.run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_model_of_another_shape_is_refused_before_clips_are_made(tmp_path, vae_file):
  config = config_of("tiny", vae_file, train__init_from="tiny")
  with pytest.raises(ValueError, match="tiny does not fit the network: dit/.*expected"):
    main.run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


KINDS = """
from configs import tiny, vae
from sora_jax.tasks import build

for maker, section, key, value in (
  (vae, "vae", "sizes", 3), (vae, "vae", "frames", 3), (tiny, "evaluation", "sizes", 3),
  (tiny, "model", "rotary_scale", 3), (tiny, "model", "rotary_scale", ("a", 1.0, 1.0)),
  (tiny, "data", "encode_batch", "many"),
):
  config = maker.get_config("smoke").to_dict()
  config[section][key] = value
  try:
    build.check(config, "nowhere")
  except ValueError as error:
    print(error)
"""


def test_values_of_another_kind_are_named():
  command = [sys.executable, "-c", KINDS]  # here their types would be checked
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
  assert [line.split(";")[0] for line in done.stdout.splitlines()] == [
    "config.vae.sizes is 3",
    "config.vae: sizes=((32, 24),), frames=3",
    "config.evaluation: sizes is 3",
    "config.model: rotary_scale is 3",
    "config.model: rotary_scale is ('a', 1.0, 1.0)",
    "config.data.encode_batch is 'many'",
  ]


@pytest.mark.parametrize(
  "names", [("data",), ("train", "mesh"), ("diffusion", "time_low"), ("model", "precondition"),
            ("data", "prompts", "on"), ("evaluation", "batches")]
)  # fmt: skip
def test_a_key_that_a_config_lacks_is_named(tmp_path, vae_file, names):
  config = config_of("tiny", vae_file)
  del functools.reduce(dict.get, names[:-1], config)[names[-1]]
  with pytest.raises(ValueError, match=f"config.{'.'.join(names)} is missing; configs start from"):
    main.run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_samples_of_prepared_clips_are_checked_too(tmp_path, vae_file):
  (tmp_path / "clips.index.json").write_text("{}")
  config = config_of("tiny_clips", vae_file, data__folder=str(tmp_path))
  config["evaluation"]["sizes"] = ((0, 8),)
  with pytest.raises(ValueError, match=r"config.evaluation: sizes is \(\(0, 8\),\); give .* pairs"):
    build.check(config, tmp_path)


def test_a_shipped_size_that_is_missing_says_how_to_train_it():
  with pytest.raises(ValueError, match="'base'.*train configs/vae.py:base.*--config.vae.weights"):
    autoencoder.load_autoencoder("base")


def test_preconditioning_without_statistics_of_the_latents_is_refused(tmp_path, vae_file):
  tree, config, _ = store.load(vae_file)
  del tree["stats"]["level_Z"]
  path = tmp_path / "vae.safetensors"
  store.save(path, tree, config, {"legs": []})
  with pytest.raises(ValueError, match="level_Z of the latents.*vae.safetensors lacks.*to False"):
    build.check(config_of("tiny", path), tmp_path)
  build.check(config_of("tiny", path, model__precondition=False), tmp_path)


@pytest.mark.parametrize("section", ["model", "data", "vae", "optimizer", "train", "evaluation"])
def test_an_unknown_key_is_named_with_the_nearest(tmp_path, vae_file, section):
  config = config_of("tiny", vae_file)
  right = sorted(config[section])[-1]
  config[section][right + "x"] = 1
  with pytest.raises(ValueError, match=rf"config.{section}.{right}x is unknown. Did you mean"):
    main.run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_another_config_in_the_same_folder_is_refused(tmp_path, vae_file):
  from sora_jax.train import checkpoint

  checkpoint.keep_config(tmp_path, config_of("tiny", vae_file))
  (tmp_path / "checkpoints" / "2").mkdir(parents=True)
  with pytest.raises(ValueError, match="model.width: 16 -> 32"):
    main.run(config_of("tiny", vae_file, model__width=32), tmp_path)


def test_a_work_directory_that_cannot_be_written_ends_the_command_with_a_line(tmp_path):
  (tmp_path / "file").write_text("")
  command = [sys.executable, "-m", "sora_jax.main", "--config=configs/dit.py:tiny,smoke"]
  command += [f"--workdir={tmp_path / 'file' / 'run'}"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  last = done.stderr.strip().splitlines()[-1]
  assert done.returncode == 1 and last.startswith(f"main: {tmp_path / 'file' / 'run'} cannot be")
  assert "Traceback" not in done.stderr and last.endswith("or choose another --workdir")


def test_a_misspelt_flag_names_the_right_one(tmp_path):
  command = [sys.executable, "-m", "sora_jax.main", "--config=configs/tiny.py"]
  command += [f"--workdir={tmp_path / 'run'}", "--config.model.widht=3"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  line = done.stderr.strip()
  assert done.returncode == 1 and line.startswith("main: ") and "\n" not in line
  assert "--config.model.widht" in line and line.endswith("Did you mean 'width'?")
  assert not (tmp_path / "run").exists()


def test_a_process_without_the_others_ends_the_command_with_a_line(tmp_path):
  command = [sys.executable, "-m", "sora_jax.main", "--config=configs/tiny.py", "--process=0"]
  command += [f"--workdir={tmp_path / 'run'}"]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  last = done.stderr.strip().splitlines()[-1]
  assert done.returncode == 1 and "Traceback" not in done.stderr
  assert last.startswith("main: coordinator=''") and "give all three" in last
