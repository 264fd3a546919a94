"""TensorBoard events."""

from mim_jax.events import EventFile


def test_two_starts_within_a_second_share_no_file(tmp_path):
    for value in (1.0, 2.0):
        events = EventFile(tmp_path)
        events.add_scalar('train/loss', value, 1)
        events.close()
    files = list(tmp_path.iterdir())
    assert len(files) == 2 and all(b'train/loss' in file.read_bytes() for file in files)
