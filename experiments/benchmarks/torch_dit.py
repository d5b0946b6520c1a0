"""A plain diffusion transformer in PyTorch, of the shape of ours, to be timed beside it.

One clip a line of the batch, padded to the longest; attention is PyTorch's own
(`scaled_dot_product_attention`), the optimizer its fused AdamW.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from sora_jax.nn.dit_config import DiTConfig


class RMSNorm(nn.RMSNorm):
  """Over the channels of a head."""

  def __init__(self, config: DiTConfig):
    super().__init__(config.head_size, eps=config.norm_eps)


class SelfAttention(nn.Module):
  def __init__(self, config: DiTConfig):
    super().__init__()
    self.heads = config.heads
    self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
    self.out = nn.Linear(config.width, config.width, bias=False)
    self.q_norm, self.k_norm = RMSNorm(config), RMSNorm(config)

  def forward(self, x, cos, sin, mask):
    q, k, v = split_heads(self.qkv(x), 3, self.heads)
    q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)
    return self.out(join_heads(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)))


class CrossAttention(nn.Module):
  def __init__(self, config: DiTConfig):
    super().__init__()
    self.heads = config.heads
    self.q = nn.Linear(config.width, config.width, bias=False)
    self.kv = nn.Linear(config.width, 2 * config.width, bias=False)
    self.out = nn.Linear(config.width, config.width, bias=False)
    self.q_norm, self.k_norm = RMSNorm(config), RMSNorm(config)

  def forward(self, x, text):
    (q,), (k, v) = split_heads(self.q(x), 1, self.heads), split_heads(self.kv(text), 2, self.heads)
    return self.out(join_heads(F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)))


class Block(nn.Module):
  def __init__(self, config: DiTConfig):
    super().__init__()
    D = config.width
    self.modulation = nn.Parameter(torch.randn(6, D) / D**0.5)
    self.norm1, self.norm3 = (nn.LayerNorm(D, config.norm_eps, False) for _ in range(2))
    self.norm2 = nn.LayerNorm(D, config.norm_eps)
    self.attention, self.cross = SelfAttention(config), CrossAttention(config)
    hidden = int(config.mlp_ratio * D)
    self.up, self.down = nn.Linear(D, hidden), nn.Linear(hidden, D)

  def forward(self, x, modulation_B6D, text, cos, sin, mask):
    shift1, scale1, gate1, shift2, scale2, gate2 = (
      (modulation_B6D + self.modulation).unsqueeze(2).unbind(1)
    )
    x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1, cos, sin, mask)
    x = x + self.cross(self.norm2(x), text)
    h = F.gelu(self.up(self.norm3(x) * (1 + scale2) + shift2), approximate="tanh")
    return x + gate2 * self.down(h)


class DiT(nn.Module):
  """tokens `[B, N, C]`, time `[B]`, text `[B, M, U]` to a prediction for each token."""

  def __init__(self, config: DiTConfig):
    super().__init__()
    D = config.width
    self.embed = nn.Linear(config.cells * config.in_channels, D)
    self.time = nn.Sequential(nn.Linear(config.time_features, D), nn.SiLU(), nn.Linear(D, D))
    self.text = nn.Sequential(
      nn.Linear(config.text_width, D), nn.GELU(approximate="tanh"), nn.Linear(D, D)
    )
    self.modulation = nn.Linear(D, 6 * D)
    self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
    self.head_modulation = nn.Parameter(torch.randn(2, D) / D**0.5)
    self.norm = nn.LayerNorm(D, config.norm_eps, False)
    self.head = nn.Linear(D, config.cells * config.out_channels)
    octaves = torch.arange(config.time_features // 2) / (config.time_features // 2)
    self.register_buffer("frequency", torch.exp(-np.log(10_000) * octaves))

  def forward(self, tokens, time, text, cos, sin, mask):
    angle = 1000 * time[:, None] * self.frequency
    condition = self.time(torch.cat([angle.cos(), angle.sin()], -1))
    modulation = self.modulation(F.silu(condition)).unflatten(-1, (6, -1))
    x, text = self.embed(tokens), self.text(text)
    for block in self.blocks:
      x = block(x, modulation, text, cos, sin, mask)
    shift, scale = (condition[:, None] + self.head_modulation).unsqueeze(2).unbind(1)
    return self.head(self.norm(x) * (1 + scale) + shift)


def split_heads(x, parts: int, heads: int):
  """`[B, N, parts * D]` to `parts` of `[B, heads, N, K]`."""
  return x.unflatten(-1, (parts, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def join_heads(x):
  """`[B, heads, N, K]` to `[B, N, D]`."""
  return x.transpose(1, 2).flatten(2)


def rotate(x, cos, sin):
  """Rotary positions: the halves of a head's channels are the two parts of each number."""
  a, b = x.chunk(2, dim=-1)
  return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class Step:
  """A train step on clips of given lengths, one a line, random throughout; a call runs one."""

  def __init__(self, config: DiTConfig, lengths: list[int], text_tokens: int, compiled: bool):
    B, N, generator = len(lengths), max(lengths), torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    self.model = DiT(config)
    self.parameters = sum(p.numel() for p in self.model.parameters())
    self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-3, fused=True)
    angle = normal(B, 1, N, config.head_size // 2)
    real_BN = torch.arange(N) < torch.tensor(lengths)[:, None]
    self.real_BN1 = real_BN[..., None].float()
    mask = None if min(lengths) == N else real_BN[:, None, None, :].expand(B, 1, N, N)
    self.inputs = (
      normal(B, N, config.cells * config.in_channels), torch.rand(B, generator=generator),
      normal(B, text_tokens, config.text_width), angle.cos(), angle.sin(), mask,
    )  # fmt: skip
    self.target = normal(B, N, config.cells * config.out_channels)
    self.loss = torch.compile(self._loss) if compiled else self._loss

  def _loss(self):
    error = (self.model(*self.inputs) - self.target).square() * self.real_BN1
    return error.sum() / self.real_BN1.sum()

  def __call__(self):
    self.optimizer.zero_grad()
    self.loss().backward()
    self.optimizer.step()
