"""CPU only, eight simulated devices: set before anything imports JAX."""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
).strip()

import pytest  # noqa: E402


@pytest.fixture
def tiny_config(tmp_path):
    """Function objective name -> a config of seconds: 32x32 scenes, 4x4 patches, two narrow blocks.

    The methods with a teacher get one with random weights, in a file.
    """

    def make(objective, **train):
        import jax

        from mim_jax import experiment
        from mim_jax.weights import native

        config = experiment.default_config(objective)
        config.data.update(image_size=(32, 32), batch_size=16)
        config.data.crop.mode = 'none'
        config.data.embedded.update(num_train=64, num_test=32)
        mask_tokens = objective in ('dtm', 'simmim')
        config.model.update(
            patch_size=(8, 8), width=32, depth=2, heads=2, mask_token=mask_tokens, drop_path=0.1
        )
        config.train.update({'total_steps': 4, **train})
        config.log.update(every_steps=1, tensorboard=False, progress=False, num_pictures=2)
        if objective == 'dtm':
            config.objective.masking.update(num_masked=6, min_block=2)
            target = config.objective.target
            target.model.update(patch_size=(8, 8), width=16, depth=2, heads=2)
            target.projection = 8
            teacher = experiment.from_config(config).objective.target
            inputs = experiment.make_inputs(experiment.from_config(config), num_classes=10)
            file = tmp_path / 'teacher.safetensors'
            native.save(
                file,
                teacher.init(jax.random.key(7), inputs),
                metadata=native.encoder_metadata(teacher.model),
            )
            target.weights = str(file)
        if objective == 'mae':
            config.objective.decoder.update(width=16, depth=1, heads=2)
        return config

    return make
