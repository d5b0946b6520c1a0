"""The shipped transformer, leg by leg, from one object in constant motion to everything there is.

  python -m sora_jax.main --config=configs/shipped.py:plain --workdir=runs/dit1 \
    --config.train.minutes=40
  python -m sora_jax.main --config=configs/shipped.py:aspects --workdir=runs/dit2 \
    --config.train.minutes=70 --config.train.init_from=runs/dit1
  python -m sora_jax.main --config=configs/shipped.py:large --workdir=runs/dit3 \
    --config.train.minutes=90 --config.train.init_from=runs/dit2
  python -m sora_jax.main --config=configs/shipped.py:prompted --workdir=runs/dit4 \
    --config.train.minutes=120 --config.train.init_from=runs/dit3
  python -m sora_jax.main --config=configs/shipped.py:tasks --workdir=runs/dit5 \
    --config.train.steps=3400 --config.train.init_from=runs/dit4
  python -m sora_jax.main --config=configs/shipped.py:focus --workdir=runs/dit6 \
    --config.train.steps=900 --config.train.init_from=runs/dit5
  python -m sora_jax.main --config=configs/shipped.py:mixed --workdir=runs/dit7 \
    --config.train.steps=3100 --config.train.init_from=runs/dit6
  python -m sora_jax.main --config=configs/shipped.py:polish --workdir=runs/dit8 \
    --config.train.steps=4200 --config.train.init_from=runs/dit7
  python -m sora_jax.main --config=configs/shipped.py:motion --workdir=runs/dit9 \
    --config.train.steps=1400 --config.train.init_from=runs/dit8
  python -m sora_jax.main --config=configs/shipped.py:speed --workdir=runs/dit10 \
    --config.train.minutes=18 --config.train.init_from=runs/dit9
  python -m sora_jax.main --config=configs/shipped.py:paths --workdir=runs/dit11 \
    --config.train.minutes=28 --config.train.init_from=runs/dit10
  python -m sora_jax.main --config=configs/shipped.py:usual --workdir=runs/dit12 \
    --config.train.minutes=33 --config.train.init_from=runs/dit11

and a second network for high noise, from these (a quarter runs/dit11, see experiments/shipped):

  python -m sora_jax.main --config=configs/shipped.py:bounces --workdir=runs/dit13 \
    --config.train.minutes=18 --config.train.init_from=sora_jax/weights/tiny
  python -m sora_jax.main --config=configs/shipped.py:walls --workdir=runs/dit14 \
    --config.train.minutes=38 --config.train.init_from=runs/dit13
  python experiments/shipped/pair.py --low=sora_jax/weights/tiny --high=runs/dit14 --to=runs/pair
  python -m sora_jax.main --config=configs/shipped.py:early --workdir=runs/dit15 \
    --config.train.minutes=62 --config.train.init_from=runs/pair
  python -m sora_jax.main --config=configs/shipped.py:early --workdir=runs/dit16 \
    --config.train.minutes=28 --config.train.init_from=runs/dit15 --config.data.world.seed=66 \
    --config.optimizer.lr=1e-3 --config.data.prompts.near_noise=0.75
  python -m sora_jax.main --config=configs/shipped.py:onward --workdir=runs/dit17 \
    --config.train.minutes=58 --config.train.init_from=runs/dit16
  python -m sora_jax.main --config=configs/shipped.py:late --workdir=runs/dit18 \
    --config.train.minutes=50 --config.train.init_from=runs/dit16
  python experiments/shipped/pair.py --low=runs/dit18 --high=runs/dit17 --above=0.2 --to=runs/pair2
  python -m sora_jax.main --config=configs/shipped.py:onward --workdir=runs/dit19 \
    --config.train.minutes=65 --config.train.init_from=runs/pair2 --config.data.world.seed=69 \
    --config.diffusion.time_low=0.2 --config.diffusion.time_mean=0.0 \
    --config.data.prompts.near_noise=0.5
  python -m sora_jax.main --config=configs/shipped.py:onward --workdir=runs/dit20 \
    --config.train.minutes=42 --config.train.init_from=runs/dit19 --config.data.world.seed=71 \
    --config.diffusion.time_low=0.2 --config.data.prompts.tail=0.26 \
    --config.data.prompts.head=0.4 --config.optimizer.lr=8e-4
  python -m sora_jax.main --config=configs/shipped.py:stars --workdir=runs/dit21 \
    --config.train.minutes=50 --config.train.init_from=runs/dit20
  python -m sora_jax.main --config=configs/shipped.py:rebounds --workdir=runs/dit22 \
    --config.train.minutes=40 --config.train.init_from=runs/dit21
  python -m sora_jax.main --config=configs/shipped.py:rebounds --workdir=runs/dit23 \
    --config.train.minutes=66 --config.train.init_from=runs/dit22 --config.data.world.seed=74 \
    --config.data.world.slowest=0.4 --config.data.prompts.tail=0.32 \
    --config.data.prompts.head=0.4 --config.optimizer.lr=1.2e-3
  python -m sora_jax.main --config=configs/shipped.py:paces --workdir=runs/dit24 \
    --config.train.minutes=80 --config.train.init_from=runs/dit23
  python -m sora_jax.main --config=configs/shipped.py:shots --workdir=runs/dit25 \
    --config.train.minutes=78 --config.train.init_from=runs/dit24
  python -m sora_jax.main --config=configs/shipped.py:looks --workdir=runs/dit26 \
    --config.train.minutes=34 --config.train.init_from=runs/dit25

plain: all colours, shapes, directions and backgrounds, one object in constant motion, small clips,
many stills. aspects: the sizes that it is asked for beside the small ones, up to 17 frames; some
objects bounce or fall; more stills. large: all styles, motions and levels as well, and rows of 512
tokens, for clips of up to 96x64 pixels; longer ones are left out. prompted: all styles, cuts and
morphs, image and video prompts, on the sizes of aspects and 96x64. tasks: the same, half of it
prompted, more that bounces, falls, swings or is cut, fewer stills, and some captions by shot.
focus: one object, plain, small; all but a few clips prompted with whole latents, near pure noise.
mixed: the same of more kinds, among text alone. polish: tasks again, with more that is cut. motion:
three quarters prompted, half of all with whole latents, most of it near pure noise; speeds from 0.3
of the usual on, so that they have to be seen. speed: that alone, 32x32, 25 clips a step, told their
first latents near pure noise. paths: the same at larger sizes, with last latents, both ends, and
what bounces, falls or swings. usual: all kinds again, at 0.6 to 1 of the usual speed. bounces: as
speed, of what bounces and falls. walls: the same with constant motion, morphs and cuts at all
sizes, 96x64 among them, a fifth of it from text alone. again: all kinds, at all times. early: a
second network, for times above 0.5; it starts from walls and reads text as the first. onward: the
same with more cuts, nearer to pure noise, at half the rate. late: all kinds, for the first network,
at times below 0.5, half of them below 0.1. stars: the same below 0.3, mostly stars, and a third of
it cut. rebounds: onward with more that bounces and falls, at larger sizes, nearly half of what is
prompted one latent frame ahead of another. paces: the same, more of it in constant motion and cut,
most of it at the usual speeds. shots: the same with more stars, more that is cut and more from
text alone. looks: stars with more that bounces and falls. again is not in what is shipped, and none
from bounces to onward, no rebounds, paces and shots in its first network, which has seen plain,
aspects in five starts with a changing recipe, large for an hour, prompted three times, tasks twice,
and each of the others once, 15.5 hours in all, as its provenance tells; what it came to is in
experiments/shipped, why aspects changed in experiments/latents.
Hardware: 2 CPU cores, hours; smallest TPU slices: v5e:1x1. `smoke` takes a minute.
"""

from ml_collections import ConfigDict

from configs import base, tiny
from sora_jax.data.prompt_mix import KINDS

TWO = ("early", "onward", "rebounds", "paces", "shots", "late", "stars", "looks")
"""Legs of a network for each part of the way."""
TASKS = (
  "tasks",
  "focus",
  "mixed",
  "polish",
  "motion",
  "speed",
  "paths",
  "usual",
  "bounces",
  "walls",
  "again",
  *TWO,
)
SIZES = ("plain", "aspects", "large", "prompted", *TASKS)
MOTIONS = ("constant",) * 24 + ("bounce", "gravity") * 2 + (
  "collide", "occlude", "leave", "pan", "zoom", "cut", "orbit", "paint", "eat", "game",
)  # fmt: skip
SMALL = ((32, 32), (40, 32), (32, 40), (56, 32), (32, 56))
ASPECTS = ((48, 48), (56, 40), (40, 56), (72, 40), (40, 72))


def get_config(arg: str = "plain") -> ConfigDict:
  size, smoke = base.parse(arg, SIZES)
  c = tiny.get_config()
  d, w, all_of = c.data, c.data.world, base.world()
  for name in ("directions", "shapes", "backgrounds"):
    w[name] = all_of[name]
  w.radius = (0.18, 0.26)
  w.sizes = SMALL
  w.frames = (5, 9, 9)
  w.image_fraction = 0.3
  w.num_clips = 20480
  d.rows, d.row_len, d.max_segments, d.streams = 8, 256, 10, 8
  d.text_row_len = 128
  c.model.head_width = 768
  c.evaluation.sizes = SMALL if size == "plain" else ASPECTS
  c.evaluation.frames = 9
  c.evaluation.extend_grid, c.evaluation.extend_stages = "leap", 4
  c.train.steps, c.train.minutes = 20_000, 0.0
  if size != "plain":
    w.motions = ("constant",) * 6 + ("bounce", "gravity")
    w.sizes = SMALL + ASPECTS
    w.frames = (5, 9, 17)
    w.image_fraction = 0.4
    w.num_clips = 24576
    w.seed = 1
  if size == "large":
    w.levels = (1, 2, 3, 4)
    w.motions = MOTIONS
    w.styles = ("plain",) * 8 + ("outline", "hatched", "night")
    w.sizes = SMALL[:1] + 2 * ASPECTS + ((96, 64), (64, 96))
    w.frames = (9, 9, 17)
    w.image_fraction = 0.2
    w.num_clips = 16384
    w.seed = 2
    c.optimizer.lr = 2e-3
    d.rows, d.row_len, d.too_long = 4, 512, "skip"
  if size in ("prompted", *TASKS):
    w.levels = (1, 3)
    w.motions = ("constant",) * 12 + ("bounce", "gravity", "morph") * 2 + ("cut",)
    w.styles = ("plain",) * 9 + ("outline", "hatched", "night")
    w.shapes += ("star",)  # small stars are what blurs first
    w.sizes = SMALL[:1] + 2 * ASPECTS + ((96, 64), (64, 96))
    w.frames = (9, 17, 17, 25)  # a change from black to cream needs 15 to be gradual
    w.seed = 3
    w.num_clips = 16384
    c.optimizer.lr = 1.5e-3
    d.rows, d.row_len, d.too_long = 4, 512, "skip"
    d.prompts.on, d.max_slots = True, 24
    for name in KINDS:
      d.prompts[name] = round(2 / 3 * d.prompts[name], 3)  # text alone is what falls first
  if size in TASKS:
    w.motions = ("constant",) * 8 + ("bounce", "gravity", "cut") * 4 + ("morph", "swing") * 3
    w.sizes = 4 * SMALL[:1] + 2 * ASPECTS + ((96, 64), (64, 96))  # small ones: more motions seen
    w.image_fraction = 0.15
    w.num_clips = 12288
    w.seed = 7
    d.caption_shots = 0.3
    shares = {"first": 0.06, "head": 0.18, "tail": 0.1, "ends": 0.03, "both": 0.08}
    d.prompts.update(shares | {"keyframes": 0.04, "random": 0.02, "boxes": 0.04})
    d.prompts.near_noise = 0.6  # where motion has to be worked out
    (of_two_networks if size in TWO else last_legs)(c, size)
  return base.smoke(c) if smoke else c


def last_legs(c: ConfigDict, size: str) -> None:
  """What the legs from focus on change of tasks."""
  d, w = c.data, c.data.world
  if size in ("focus", "mixed", "speed", "paths", "bounces", "walls"):
    d.prompts.update(dict.fromkeys(KINDS, 0.0))
  if size in ("focus", "mixed"):
    w.frames = (17,) if size == "focus" else (17, 17, 25)
    d.rows, d.row_len, d.max_segments = 8, 256, 8
    c.optimizer.lr = 2e-3
  if size == "focus":
    w.levels, w.styles = (1,), ("plain",)
    w.motions = ("constant",) * 6 + ("bounce", "gravity", "swing")
    w.sizes = ((32, 32), (32, 32), (48, 48), (56, 40), (40, 56))
    w.image_fraction, w.num_clips, w.seed = 0.0, 6144, 21
    d.prompts.update({"head": 0.75, "tail": 0.15, "both": 0.1})
    d.prompts.update({"near_noise": 1.0, "dropout": 0.02, "noise": 0.1, "frame_times": 0.0})
    d.caption_dropout, d.caption_shots = 0.05, 0.0
  if size == "mixed":
    w.motions = ("constant",) * 10 + ("bounce", "gravity", "swing", "cut") * 3 + ("morph",) * 2
    w.sizes = 3 * SMALL[:1] + ASPECTS
    w.image_fraction, w.num_clips, w.seed = 0.1, 10240, 22
    shares = {"head": 0.3, "tail": 0.12, "both": 0.12, "first": 0.04}
    d.prompts.update(shares | {"ends": 0.02, "keyframes": 0.03, "random": 0.02, "near_noise": 0.7})
  if size == "polish":
    w.motions = ("constant",) * 10 + ("cut",) * 8
    w.motions += ("bounce", "gravity") * 4 + ("morph", "swing") * 3
    w.styles = ("plain",) * 7 + ("outline", "hatched", "night")
    w.num_clips, w.seed = 16384, 31
  if size == "motion":
    w.motions = ("constant",) * 12 + ("bounce", "gravity", "cut") * 6 + ("morph", "swing") * 2
    w.frames, w.image_fraction, w.num_clips, w.seed = (17, 17, 25), 0.1, 16384, 41
    w.slowest = 0.3  # or how fast a thing is follows from where it is, and nothing learns to see it
    shares = {"head": 0.4, "tail": 0.12, "both": 0.12, "first": 0.03, "boxes": 0.03}
    d.prompts.update(shares | {"ends": 0.02, "keyframes": 0.02, "random": 0.02})
    d.prompts.near_noise = 0.75
  if size in ("speed", "paths", "bounces"):
    w.levels, w.styles, w.motions = (1,), ("plain",), ("constant",)
    w.sizes, w.frames, w.slowest = ((32, 32),), (17,), 0.3
    w.image_fraction, w.num_clips, w.seed = 0.0, 12288, 51
    d.rows, d.row_len, d.max_segments = 8, 240, 4
    d.prompts.update({"head": 1.0, "near_noise": 1.0, "dropout": 0.0, "noise": 0.0})
    d.prompts.update({"frame_times": 0.0, "variants": 1})
    d.caption_dropout, d.caption_shots = 0.0, 0.0
    c.optimizer.lr = 2e-3
  if size == "paths":
    w.motions = ("constant",) * 6 + ("bounce", "gravity") * 2 + ("swing",)
    w.sizes, w.seed, w.slowest = 3 * SMALL[:1] + ASPECTS, 52, 0.4
    d.rows, d.row_len, d.max_segments = 4, 512, 8
    d.prompts.update({"head": 0.6, "tail": 0.2, "both": 0.2, "dropout": 0.05, "noise": 0.1})
    d.caption_dropout = 0.05
  if size == "usual":
    w.motions = ("constant",) * 10 + ("bounce", "gravity", "cut") * 5
    w.motions += ("morph",) * 2 + ("swing",) * 3
    w.frames, w.image_fraction, w.num_clips, w.seed = (17, 17, 25), 0.1, 10240, 53
    w.slowest = 0.6
    shares = {"head": 0.3, "tail": 0.15, "both": 0.12, "first": 0.04, "boxes": 0.04}
    d.prompts.update(shares | {"ends": 0.03, "keyframes": 0.03, "random": 0.02})
  if size == "again":
    w.motions = ("constant",) * 8 + ("bounce", "gravity") * 6 + ("cut",) * 4
    w.motions += ("morph",) * 2 + ("swing",) * 3
    w.frames, w.image_fraction, w.num_clips, w.seed = (17, 17, 17, 25), 0.08, 10240, 64
    w.slowest = 0.6
    shares = {"head": 0.36, "tail": 0.16, "both": 0.12, "first": 0.03, "boxes": 0.03}
    d.prompts.update(shares | {"ends": 0.03, "keyframes": 0.03, "random": 0.02, "near_noise": 0.4})
  if size == "bounces":
    w.motions = ("constant",) + ("bounce",) * 4 + ("gravity",) * 3
    w.seed, w.slowest = 62, 0.4
    d.prompts.update({"head": 0.8, "tail": 0.2})
  if size == "walls":
    w.levels, w.styles = (1, 3), ("plain",)
    w.motions = ("constant",) * 5 + ("bounce", "gravity") * 4 + ("cut", "morph") * 2 + ("swing",)
    w.frames, w.image_fraction, w.num_clips, w.seed = (17,), 0.0, 10240, 63
    w.slowest = 0.5
    shares = {"head": 0.42, "tail": 0.22, "both": 0.12, "ends": 0.02, "boxes": 0.02}
    d.prompts.update(shares | {"near_noise": 0.85, "dropout": 0.05, "noise": 0.1})
    c.optimizer.lr = 2e-3


def of_two_networks(c: ConfigDict, size: str) -> None:
  """What the legs of the network for high noise, early and onward, and that of the other one, late,
  change of tasks."""
  d, w = c.data, c.data.world
  w.levels, w.styles = (1, 3), ("plain",) * 12 + ("outline", "hatched", "night")
  w.motions = ("constant",) * 10 + ("bounce", "gravity") * 8 + ("cut", "morph", "swing") * 3
  w.sizes = 3 * SMALL[:1] + 3 * ASPECTS[:3] + ASPECTS[3:] + ((96, 64), (64, 96))
  w.frames, w.image_fraction, w.num_clips, w.seed = (9, 17, 17, 17, 25), 0.05, 12288, 65
  w.slowest = 0.5
  shares = {"head": 0.46, "tail": 0.18, "both": 0.1, "first": 0.03, "boxes": 0.03, "ends": 0.03}
  d.prompts.update(shares | {"keyframes": 0.02, "random": 0.01, "pictures": 0.03})
  d.prompts.update({"near_noise": 0.6, "noise": 0.1, "frame_times": 0.03})
  c.diffusion.time_low, c.diffusion.time_mean, c.diffusion.time_std = 0.5, 0.3, 1.0
  c.optimizer.lr = 2e-3
  if size == "onward":
    w.motions += ("cut",) * 4
    w.seed, d.prompts.head, d.prompts.near_noise = 67, 0.42, 0.75
    c.optimizer.lr = 1e-3
  if size in ("rebounds", "paces", "shots"):
    w.motions = ("constant",) * 10 + ("bounce",) * 16 + ("gravity",) * 12
    w.motions += ("cut",) * 5 + ("morph", "swing") * 2
    w.sizes = 2 * SMALL[:1] + 3 * ASPECTS[:3] + ASPECTS[3:] + ((96, 64), (64, 96)) * 2
    w.frames, w.seed = (9, 17, 17, 17, 17, 25), 72
    d.prompts.update({"head": 0.42, "tail": 0.28, "both": 0.06, "near_noise": 0.75})
    d.prompts.staged, d.max_slots = 0.45, 40
    c.diffusion.time_low = 0.2
    c.optimizer.lr = 1e-3
  if size == "paces":
    w.motions = ("constant",) * 14 + ("bounce",) * 14 + ("gravity",) * 11
    w.motions += ("cut",) * 9 + ("morph", "swing") * 2
    w.slowest, w.slow_fraction, w.seed = 0.4, 0.4, 76
    d.prompts.update({"head": 0.38, "tail": 0.38, "staged": 0.5})
    c.optimizer.lr = 1.2e-3
  if size == "shots":
    w.shapes += ("star",)
    w.motions = ("constant",) * 11 + ("bounce",) * 14 + ("gravity",) * 13
    w.motions += ("cut",) * 12 + ("morph", "swing") * 2
    w.slowest, w.slow_fraction, w.seed = 0.4, 0.3, 78
    d.prompts.update({"head": 0.36, "tail": 0.28, "staged": 0.5})
    c.optimizer.lr = 1.2e-3
  if size in ("late", "stars", "looks"):
    w.styles = ("plain",) * 6 + ("outline", "hatched", "night")
    w.motions = ("constant",) * 10 + ("bounce", "gravity", "cut") * 4 + ("morph", "swing") * 3
    w.image_fraction, w.seed = 0.1, 68
    shares = {"head": 0.3, "tail": 0.15, "both": 0.1, "first": 0.04, "boxes": 0.05, "ends": 0.03}
    d.prompts.update(shares | {"keyframes": 0.03, "random": 0.02, "near_noise": 0.0})
    c.diffusion.time_low, c.diffusion.time_high = 0.0, 0.5
    c.diffusion.time_mean, c.diffusion.time_std, c.diffusion.time_uniform = -1.5, 1.2, 0.2
    c.optimizer.lr = 1e-3
  if size in ("stars", "looks"):
    w.shapes += ("star",) * 2
    w.motions = ("constant",) * 8 + ("cut",) * 11 + ("bounce", "gravity") * 5
    w.motions += ("morph", "swing") * 2
    w.sizes = 2 * SMALL[:1] + 3 * ASPECTS[:3] + ASPECTS[3:] + ((96, 64), (64, 96)) * 2
    w.styles, w.seed = ("plain",) * 7 + ("outline",) * 2 + ("hatched", "night"), 73
    c.diffusion.time_high, c.diffusion.time_mean = 0.3, -1.0
    c.optimizer.lr = 1.2e-3
  if size == "looks":
    w.motions = ("constant",) * 8 + ("cut", "bounce") * 10 + ("gravity",) * 8
    w.motions += ("morph", "swing") * 2
    w.slowest, w.slow_fraction, w.seed = 0.4, 0.3, 79
