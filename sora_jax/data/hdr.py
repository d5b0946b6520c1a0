"""High dynamic range video (PQ and HLG in BT.2020) shown on a standard screen (sRGB).

Without this step such films look grey and flat: their code values mean far more light than sRGB's.
Sources: ITU-R BT.2100-2, tables 4 (PQ) and 5 (HLG); BT.2087-0 (primaries); IEC 61966-2-1 (sRGB).
"""

import functools

import numpy as np

PQ, HLG = 16, 18
"""Transfer characteristics by their number in ISO/IEC 23091-2 (`color_trc` in FFmpeg)."""
WHITE_NITS = 203.0
"""Light of diffuse white (BT.2408), which becomes 1.0 on the screen."""
KNEE = 0.7
"""Light above this share of white is rolled off towards 1; below it is kept."""
_HLG_PEAK_NITS = 1000.0
_TO_BT709 = np.array(  # BT.2020 primaries -> BT.709, linear light
  [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349],
   [-0.018151, -0.100579, 1.118730]], np.float32
)  # fmt: skip


def to_screen(code_HWC: np.ndarray, transfer: int) -> np.ndarray:
  """Full-range 16-bit R'G'B' [H, W, 3] of a PQ or HLG film -> uint8 sRGB.

  Light is decoded to nits, moved to BT.709 primaries, rolled off by its largest channel so that
  the hue stays, and encoded. Raises: ValueError for another type or transfer.
  """
  if code_HWC.dtype != np.uint16 or transfer not in (PQ, HLG):
    raise ValueError(f"got {code_HWC.dtype}, transfer {transfer}; expected uint16, {PQ} or {HLG}")
  light = _light_of_code(transfer)[code_HWC]
  if transfer == HLG:  # the display's system gamma acts on luminance
    luminance = light @ np.array([0.2627, 0.6780, 0.0593], np.float32)
    light = light * np.maximum(luminance, 1e-6)[..., None] ** np.float32(0.2)
    light = light * np.float32(_HLG_PEAK_NITS / WHITE_NITS)
  light = np.maximum(light @ _TO_BT709.T, 0)
  peak = np.maximum(light.max(-1, keepdims=True), 1e-6)
  rolled = np.where(peak > KNEE, KNEE + (1 - KNEE) * np.tanh((peak - KNEE) / (1 - KNEE)), peak)
  return _srgb(light * (rolled / peak))


@functools.cache
def _light_of_code(transfer: int) -> np.ndarray:
  """Linear light for each of 65536 codes: in units of white (PQ), of scene light 0..1 (HLG)."""
  code = np.linspace(0, 1, 1 << 16)
  if transfer == PQ:
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    root = code ** (1 / m2)
    nits = 10_000 * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)
    return (nits / WHITE_NITS).astype(np.float32)
  a, b, c = 0.17883277, 0.28466892, 0.55991073
  return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12).astype(np.float32)


def _srgb(light: np.ndarray) -> np.ndarray:
  light = np.clip(light, 0, 1)
  encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
  return np.rint(encoded * 255).astype(np.uint8)
