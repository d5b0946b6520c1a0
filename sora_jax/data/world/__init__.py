"""A procedural world: simulator, renderer, grammar and dataset builder with exact ground truth."""

from sora_jax.data.world.build import build
from sora_jax.data.world.config import WorldConfig
from sora_jax.data.world.dataset import World, prompts

__all__ = ["World", "WorldConfig", "build", "prompts"]
