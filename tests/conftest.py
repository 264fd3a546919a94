"""Eight simulated CPU devices and quick compilation: set before anything imports JAX.

`MIM_JAX_TEST_PLATFORM=cuda python -m pytest ...` runs the tests on that platform's devices instead;
tests that need more devices than there are then fail or skip.
"""

import os
import tempfile
from importlib.metadata import version

# Programs compiled by one test serve another, of every worker of pytest-xdist, and nothing is left
# in the user's own cache.
if 'PYTEST_XDIST_WORKER' not in os.environ:
    _COMPILED = tempfile.TemporaryDirectory(prefix='mim_jax_tests_')
    os.environ['JAX_COMPILATION_CACHE_DIR'] = _COMPILED.name
_PLATFORM = os.environ.get('MIM_JAX_TEST_PLATFORM', 'cpu')
# The programs of the tests are compiled more than they run; without the newer emitters of fusions
# that takes half the time.
if _PLATFORM == 'cpu':
    os.environ['JAX_PLATFORMS'] = 'cpu'
    _QUICK = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
    if version('jaxlib').startswith('0.10.'):  # later ones have no choice, and stop at the flag
        _QUICK += ' --xla_cpu_use_fusion_emitters=false'
else:
    os.environ['JAX_PLATFORMS'] = f'{_PLATFORM},cpu'
    # Float32 is meant where a test says float32; several processes may share the device.
    os.environ.setdefault('JAX_DEFAULT_MATMUL_PRECISION', 'highest')
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
    _QUICK = '--xla_gpu_autotune_level=0'
os.environ['XLA_FLAGS'] = (
    f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=8 {_QUICK}'
).strip()

# Simulated devices block a thread each in a collective: fewer threads than devices can deadlock.
os.environ.setdefault('NPROC', '32')

import hypothesis  # noqa: E402
import pytest  # noqa: E402

# Cases of a property; the cases of tests/fuzz grow with them. `--hypothesis-profile=nightly`.
hypothesis.settings.register_profile('ci', max_examples=100)
hypothesis.settings.register_profile('nightly', max_examples=2000, deadline=None)
hypothesis.settings.load_profile('ci')

TEACHER = dict(patch_size=(8, 8), width=16, depth=2, heads=2)
TEACHER_PROJECTION = 8


@pytest.fixture(scope='session')
def teacher_file(tmp_path_factory):
    """Weights of a tiny teacher, drawn at random."""
    import jax

    from mim_jax.inputs import Inputs
    from mim_jax.models.vit import ViT
    from mim_jax.targets import Teacher
    from mim_jax.weights import native

    inputs = Inputs((32, 32), 3, (0.5,) * 3, (0.25,) * 3)
    teacher = Teacher(model=ViT(**TEACHER), projection=TEACHER_PROJECTION)
    teacher = teacher.bind(teacher.model, inputs)
    path = tmp_path_factory.mktemp('teacher') / 'teacher.safetensors'
    params = jax.jit(teacher.init)(jax.random.key(7))
    native.save(path, params, metadata=native.encoder_metadata(teacher.model))
    return path


@pytest.fixture
def tiny_config(teacher_file):
    """Function objective name -> a config of seconds: 32x32 scenes, 8x8 patches, two blocks."""

    def make(objective, **train):
        from mim_jax import experiment
        from mim_jax.objectives import OBJECTIVES
        from mim_jax.objectives.token_prediction import MaskTokenPrediction

        config = experiment.default_config(objective)
        config.data.update(image_size=(32, 32), batch_size=16)
        config.data.crop.mode = 'none'
        config.data.source.update(num_train=64, num_test=32)
        config.model.update(
            patch_size=(8, 8),
            width=32,
            depth=2,
            heads=2,
            mask_token=issubclass(OBJECTIVES[objective], MaskTokenPrediction),
            drop_path=0.1,
        )
        config.train.update({'total_steps': 4, **train})
        config.log.update(every_steps=1, tensorboard=False, progress=False, num_pictures=2)
        config.log.health = False  # another program to compile
        if objective == 'dtm':
            config.objective.masking.update(num_masked=6, min_block=2)
            config.objective.target.model.update(TEACHER)
            config.objective.target.projection = TEACHER_PROJECTION
            config.objective.target.weights = str(teacher_file)
        if objective == 'mae':
            config.objective.decoder.update(width=16, depth=1, heads=2)
        return config

    return make


@pytest.fixture
def store():
    """A folder in an object store that is the memory of this process."""
    pytest.importorskip('upath')
    from mim_jax import storage

    folder = storage.path('memory://bucket/run')
    yield folder
    folder.fs.store.clear()
    folder.fs.pseudo_dirs[:] = ['']


@pytest.fixture(scope='module', autouse=True)
def _compiled_programs_end_with_their_module():
    """Every compiled program holds some of the memory mappings that a process may have (65,530 by
    default on Linux): with those of all modules together the compiler has crashed.
    """
    yield
    import jax

    jax.clear_caches()
