import types

import pytest
from array_record.python import array_record_module

from mim_jax.data.shards import check_shards
from mim_jax.errors import UserError


def shard(path, *, held, stated):
    """A file of `held` records (None: no file), of which its metadata state `stated`."""
    if held is not None:
        writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
        for i in range(held):
            writer.write(bytes([i]))
        writer.close()
    return types.SimpleNamespace(filename=path, examples_in_shard=stated)


def test_first_bad_shard_is_named_and_the_others_are_counted(tmp_path):
    good = shard(tmp_path / 'a', held=2, stated=2)
    check_shards([good, shard(tmp_path / 'b', held=0, stated=0)], mend='mend it')
    gone = shard(tmp_path / 'c', held=None, stated=3)
    with pytest.raises(UserError, match=f'the shard {tmp_path}/c is missing: mend it'):
        check_shards([good, gone], mend='mend it')
    short = shard(tmp_path / 'd', held=1, stated=4)
    said = r'/d holds 1 records, .* says 4 \(2 of 3 shards are bad\): mend it'
    with pytest.raises(UserError, match=said):
        check_shards([good, short, gone], mend='mend it')
