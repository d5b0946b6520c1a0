"""Every key of every config, once, with its unit and range. Other configs change a few.

  python -m sora_jax.main --config=configs/NAME.py[:SIZE][,smoke] --workdir=runs/NAME

Any key can be set behind it, as in --config.train.steps=100.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
  """Returns the base; it is not a job of its own.  Raises: ValueError if `arg` is not empty."""
  parse(arg, {})
  c = ConfigDict()
  c.task = "text_to_video"  # "text_to_video" or "vae"
  c.data = data()
  c.vae = vae()
  c.text = text()
  c.model = model()
  c.diffusion = diffusion()
  c.optimizer = optimizer()
  c.train = train()
  c.evaluation = evaluation()
  c.lock()  # a misspelt key in another config is an error that names the nearest right one
  return c


def parse(arg: str, sizes) -> tuple[str | None, bool]:
  """Splits a config argument, a comma list of at most one size name and `smoke`.

  Returns: (size or None, smoke).  Raises: ValueError for anything left over.
  """
  words = [word.strip() for word in (arg or "").split(",") if word.strip()]
  left = [word for word in words if word != "smoke"]
  if len(left) > 1 or any(word not in sizes for word in left) or words.count("smoke") > 1:
    choice = f"one of {', '.join(sizes)}" if sizes else "no size"
    raise ValueError(f"config argument {arg!r}: allowed are {choice}, and 'smoke', once each")
  return (left[0] if left else None), "smoke" in words


def data() -> ConfigDict:
  """Where clips come from, and how they become rows."""
  c = ConfigDict()
  c.source = "world"  # "world": rendered into the folder; "clips": made by sora_jax.prepare
  c.folder = ""  # of the shards; "" = WORKDIR/data
  c.world = world()
  c.validation_clips = 256  # clips kept out of training, at least 1
  c.processes = 2  # that render, 1 and up
  c.crop = "none"  # "none" keeps native size and aspect; "square" crops to the short side
  c.rows = 16  # rows of a step, over all devices
  c.row_len = 256  # tokens of a row
  c.max_segments = 16  # clips of a row at most
  c.text_row_len = 256  # text tokens of a row
  c.streams = 16  # logical streams, each with its own packer; part of the order of clips
  c.window = 256  # clips that a packer chooses from
  c.caption_long = 0.0  # share of visits that read the descriptive caption, [0, 1]
  c.caption_shots = 0.0  # of visits to clips with shots, those that read one for each, [0, 1]
  c.caption_dropout = 0.1  # share of visits that read "", for guidance, [0, 1]
  c.drop_to_fill = (
    0.0  # a clip that misses a row's end by this share is cut to fit; 0 = off, to 0.1
  )
  c.token_drop = ConfigDict()  # NaViT token dropping
  c.token_drop.share = 0.0  # share of visits that lose tokens, [0, 1]; 0 = off
  c.token_drop.scale = 0.6  # most that a clip loses, [0, 1)
  c.token_drop.hold = 0.7  # share of training at which it starts to fall, below `end`
  c.token_drop.end = 0.85  # share of training from which nothing is dropped
  c.prompts = prompts()
  c.max_slots = 0  # times of a row; 0 = max_segments, few for frame_times, staged, caption_shots
  c.too_long = "raise"  # clips that fit no row: "raise", "skip" them, or "fit": at a smaller size
  c.workers = 0  # processes that prepare rows; 0 = the training process
  c.encode_batch = 32  # clips that the VAE encodes at once when latents are cached
  return c


def prompts() -> ConfigDict:
  """Image and video prompts, see sora_jax.data.prompt_mix; shares of visits, [0, 1]."""
  c = ConfigDict()
  c.on = False  # False: text alone
  c.first = 0.15  # of videos: the first frame is known
  c.head = 0.10  # the first whole latents, two to two thirds of them
  c.tail = 0.07  # the last frames
  c.ends = 0.06  # the first and the last frame
  c.both = 0.06  # frames at both ends
  c.keyframes = 0.06  # every m-th frame
  c.random = 0.05  # any frames
  c.boxes = 0.05  # a region of all frames
  c.pictures = 0.1  # of pictures: a region
  c.dropout = 0.1  # prompts left out, for guidance
  c.variants = 2  # encoded for each clip beforehand
  c.noise = 0.25  # most noise on what is known, a time
  c.frame_times = 0.15  # visits in which each latent frame has a time of its own
  c.near_noise = 0.0  # of visits with a prompt: times near pure noise, where motion is worked out
  c.staged = 0.0  # of visits with a prompt: what is next to known frames is ahead of the rest
  return c


def world() -> ConfigDict:
  """The procedural world, see docs/world.md; every attribute is drawn evenly from its tuple."""
  c = ConfigDict()
  c.levels = (1,)  # 1 to 4
  c.motions = ()  # () = every motion of the levels
  c.sizes = ((32, 32), (40, 24), (24, 40))  # (width, height), pixels, 8 and up
  c.frames = (9,)  # frame counts, 1 to 65
  c.fps = (8.0,)  # frames per second, 8 to 24
  c.image_fraction = 0.1  # share of clips that are one picture, [0, 1]
  c.seed = 0
  c.num_clips = 8192
  c.colors = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "white")
  c.shapes = ("circle", "square", "triangle", "star")
  c.backgrounds = ("black", "gray", "navy", "cream")
  c.styles = ("plain",)  # plain, outline, hatched, night
  c.directions = (
    "right", "left", "up", "down", "up-right", "up-left", "down-right", "down-left",
  )  # fmt: skip
  c.radius = (0.14, 0.22)  # of a lone object, in short sides, within [0.05, 0.3]
  c.slowest = 1.0  # least share of usual speeds: constant, bounce, cut and morph
  c.slow_fraction = 1.0  # share of clips that may be slower than usual, [0, 1]
  return c


def vae() -> ConfigDict:
  """The video autoencoder: its weights for text_to_video, its size and loss for the task "vae"."""
  c = ConfigDict()
  c.weights = "tiny"  # for text_to_video: a shipped name, a safetensors file or a work directory
  c.size = "tiny"  # for task "vae": a key of sora_jax.nn.vae.SIZES
  c.sizes = ((32, 32),)  # task "vae": (width, height) of the cuts that a batch is made of, pixels
  c.frames = (1, 5, 9)  # task "vae": their lengths, 1 + 4 k; every size comes with every length
  c.batch_pixels = 16 * 9 * 32 * 32  # task "vae": frames x height x width x clips of a batch
  c.latent_noise = 0.05  # noise on latents before decoding, in their standard deviations
  c.noise_from = 0.8  # share of training from which that noise is on
  c.isometric = False  # task "vae": export latents whose errors all cost as many pixels
  c.loss = ConfigDict()  # weights, 0 and up (0 = not computed), see sora_jax.nn.vae_losses
  c.loss.l1 = 1.0
  c.loss.l2 = 0.0
  c.loss.wavelet = 0.5
  c.loss.ssim = 0.2
  c.loss.gradient = 0.1
  c.loss.kl = 1e-6  # of the sum over latents, per sum over pixel values
  c.loss.consistency = 0.0  # latents of the reconstruction against those of the clip
  c.loss.perceptual = 0.0  # needs a function; there is none in a config
  return c


def text() -> ConfigDict:
  """The text encoder, trained together with the transformer."""
  c = ConfigDict()
  c.tokenizer = "tiny"  # "tiny" (SentencePiece, shipped), "bytes", or a .model file
  c.width = 128
  c.depth = 2
  c.heads = 4
  c.head_size = 32
  c.mlp_width = 512
  c.activation = "relu"  # "relu" or "gated_gelu"
  c.shared_bias = True  # one table of relative positions for all layers
  c.buckets = 32  # of the relative positions, even, 4 and up
  c.max_distance = 128  # tokens beyond which positions look alike
  c.norm_eps = 1e-6
  c.dtype = "float32"  # of activations: "float32" or "bfloat16"
  return c


def model() -> ConfigDict:
  """The diffusion transformer, see sora_jax.nn.dit.DiTConfig; its channels follow from the VAE."""
  c = ConfigDict()
  c.width = 128
  c.depth = 6
  c.heads = 4  # width / heads must be even
  c.mlp_ratio = 4.0
  c.patch = (1, 2, 2)  # latent cells of a token, (t, h, w)
  c.modulation = "single"  # "single" or "full" (adaLN-zero in every block)
  c.qk_norm = "head"  # "head", "full" or "none"
  c.qkv_bias = False
  c.cross_norm = True
  c.mlp_activation = "gelu_tanh"  # gelu_tanh, relu, relu_squared, silu
  c.head_width = 0  # hidden layer of a head that reads the noisy token, too; 0 = linear head
  c.position = "rotary"  # "rotary" or "sincos"
  c.rotary_theta = 1e4
  c.rotary_scale = (1.0, 1.0, 1.0)  # of (t, y, x), for longer and larger clips than were trained
  c.rotary_method = "none"  # "none", "interpolate" or "ntk"
  c.fraction_octaves = 4  # detail of fractional positions; 0 = off
  c.size_condition = True
  c.pooled_text = True  # the mean of the text embeddings enters the modulation as well
  c.time_features = 256
  c.time_shift = 0.0
  c.norm_eps = 1e-6
  c.precondition = True  # channels of unit variance in and out; with diffusion.prediction "x"
  c.remat = "none"  # "none", "block" or "dots"
  c.scan_unroll = 1  # blocks per turn of the loop over depth; `depth` is fastest on CPU
  c.dtype = "float32"  # of activations: "float32" or "bfloat16"
  return c


def diffusion() -> ConfigDict:
  """Targets, times and weights of the loss."""
  c = ConfigDict()
  c.prediction = "x"  # what the network predicts: "x", "v" or "eps" (biased, see docs/papers.md)
  c.loss = "v"  # the space in which the error is measured
  c.loss_floor = 0.05  # times below it weigh as much as it does, (0, 1]: 1 / time^2 of "x" in "v"
  c.gamma = (
    0.5  # weight of a clip = its tokens to this power; 0 = every clip alike, 1 = every token
  )
  c.time_mean = 0.0  # of the logit-normal times
  c.time_std = 1.0  # above 0
  c.time_uniform = 0.1  # share of times drawn uniformly, [0, 1]
  c.time_low = 0.0  # least time, before the shift; above 0: of a second network, [0, 1)
  c.time_high = 1.0  # largest; below 1: of the first of two networks, (0, 1]
  c.shift_reference = 64.0  # tokens per latent frame that need no shift
  c.shift_space = 0.5  # exponent of tokens per latent frame
  c.shift_frames = 0.25  # exponent of latent frames
  c.shift_high = 7.0  # the largest shift, 1 and up
  return c


def optimizer() -> ConfigDict:
  """See sora_jax.train.optimizer.OptimizerConfig."""
  c = ConfigDict()
  c.name = "adamw"  # "adamw", or "muon" on matrices with Nesterov's Adam on the rest
  c.lr = 1e-3  # peak, above 0
  c.matrix_lr_ratio = 10.0  # Muon's rate over Adam's
  c.b1 = 0.9
  c.b2 = 0.99
  c.eps = 1e-8
  c.weight_decay = 0.0
  c.warmup_steps = 100
  c.decay = "linear"  # "constant", "cosine" or "linear", from the end of warmup to the last step
  c.final_lr = 0.0  # share of lr at the last step, [0, 1]
  c.clip_norm = 1.0  # global norm of the gradient; 0 = off
  c.adaptive_clip = False  # clip at mean + 3 standard deviations of the recent norms
  c.skip_spikes = 0.0  # leave out steps of so many times the recent mean norm, above 1; 0 = off
  c.ema_decay = 0.9999  # [0, 1); ramps up as (1 + s) / (10 + s)
  return c


def train() -> ConfigDict:
  """See sora_jax.train.loop.LoopConfig."""
  c = ConfigDict()
  c.steps = 100_000
  c.seed = 0
  c.minutes = 0.0  # above 0: the run measures its speed and ends in this time, schedule included
  c.accumulate = 1  # microbatches per step; must divide rows or batch_size
  c.log_every = 50
  c.eval_every = 0  # 0 = only at the end
  c.save_every = 1000
  c.keep = 2  # checkpoints
  c.prefetch = 2  # batches fetched ahead
  c.mesh = (-1, 1, 1, 1)  # devices along (data, fsdp, context, tensor); -1 = those left, or cores
  c.context = "auto"  # how rows split over the context axis attend: "ring", "ulysses" or "auto"
  c.init_from = ""  # a model folder whose weights start this leg; "" = random
  c.init_missing = "raise"  # parameters that init_from lacks: "raise" names them, "new" makes them
  return c


def evaluation() -> ConfigDict:
  """Samples and figures at the end (and every train.eval_every steps)."""
  c = ConfigDict()
  c.prompts = 128  # prompts sampled and scored at the end
  c.sizes = ()  # (width, height) of samples; () = the world's sizes
  c.frames = 0  # of samples; 0 = the world's largest
  c.solver = "dpmpp_2m"  # a key of sora_jax.diffusion.solvers.SOLVERS
  c.steps = 20  # solver steps
  c.grid = "quadratic"  # a key of sora_jax.diffusion.sampler.GRIDS
  c.extend_grid = "quadratic"  # the same where a clip is gone on with; "leap": nearer to the mean
  c.extend_stages = 1  # latent frames take its first step in so many turns, from the clip on
  c.guidance = 3.0  # 1 = off
  c.guidance_interval = (0.3, 1.0)  # times, before the shift, at which guidance acts
  c.batches = 8  # held-out batches of the loss; for the VAE, of 8 clips each
  c.seed = 0
  return c


def smoke(c: ConfigDict) -> ConfigDict:
  """Shrinks a config to about a minute on two cores: few clips, few steps, true code paths."""
  c.data.world.num_clips = 256
  c.data.world.sizes = ((32, 32), (40, 24), (24, 40))
  c.data.world.frames = (9,)
  c.data.validation_clips = 32
  c.data.rows, c.data.row_len, c.data.max_segments, c.data.text_row_len = 2, 128, 4, 128
  c.data.streams = 2
  c.vae.sizes, c.vae.frames, c.vae.batch_pixels = ((32, 24),), (1, 9), 4 * 9 * 32 * 24
  c.train.steps, c.train.minutes, c.train.mesh = 8, 0.0, (-1, 1, 1, 1)
  c.train.log_every, c.train.save_every, c.train.eval_every = 2, 4, 0
  c.optimizer.warmup_steps = 2
  c.evaluation.prompts, c.evaluation.steps, c.evaluation.batches = 6, 4, 1
  return c
