"""Packaging of `sora_jax`: what it installs, and the extras that tests and builders need."""

from setuptools import find_packages, setup

setup(
  name="sora_jax",
  version="0.1.0",
  description="Video generation as a world simulator: an open JAX/Flax reimplementation",
  license="Apache-2.0",
  packages=find_packages(include=["sora_jax", "sora_jax.*"]),
  package_data={"sora_jax.weights": ["*.model", "*/*.safetensors", "*/*.json", "*/*.model"]},
  python_requires=">=3.11",
  install_requires=[
    "absl-py",
    "array_record",
    "av>=14",
    "clu",
    "flax>=0.12",
    "grain>=0.2.18",
    "jax>=0.10,<0.12",
    "jaxtyping",
    "matplotlib",
    "ml_collections",
    "numpy",
    "optax",
    "orbax-checkpoint>=0.11",
    "pillow",
    "safetensors>=0.8",
    "scipy",
    "sentencepiece",
  ],
  extras_require={
    "test": [
      "beartype",
      "hypothesis",
      "nbclient",
      "nbformat",
      "ipykernel",
      # JAX names the TPU compiler that fits it: the newest one ends the process in the profiler.
      "jax[tpu]; sys_platform == 'linux' and platform_machine == 'x86_64'",
      "pytest",
      "pytest-xdist",
    ],
    "oracle": ["diffusers", "torch==2.13.0", "transformers"],
    "tpu": ["jax[tpu]"],
    "tfds": ["importlib_resources", "tensorboard", "tensorflow", "tensorflow-datasets"],
    "dev": ["ruff"],
  },
)
