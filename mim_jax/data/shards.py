"""The ArrayRecord files of a prepared dataset, looked at before a run relies on them."""

import os
from collections.abc import Sequence
from concurrent import futures

from mim_jax.errors import UserError

# Opening a file is mostly waiting for the storage.
THREADS = 32


def check_shards(shards: Sequence, *, mend: str) -> None:
    """Opens every shard, reads how many records it holds and closes it.

    shards: objects with `filename` and `examples_in_shard`, as TFDS's `FileInstruction`. mend: what
    to do about a bad one, the end of the sentence.

    Raises:
      UserError: a file is missing, is no whole ArrayRecord file, or holds more or fewer records.
    """
    with futures.ThreadPoolExecutor(THREADS) as pool:
        flaws = list(pool.map(_flaw, shards))
    bad = [i for i, flaw in enumerate(flaws) if flaw]
    if bad:
        more = f' ({len(bad)} of {len(shards)} shards are bad)' if len(bad) > 1 else ''
        raise UserError(
            f'config.data.source.path: the shard {os.fspath(shards[bad[0]].filename)} '
            f'{flaws[bad[0]]}{more}: {mend}'
        )


def _flaw(shard):
    """What is wrong with a shard, in words; '' for a good one."""
    from array_record.python import array_record_module

    path = os.fspath(shard.filename)
    # As its data source opens it: without a buffer of megabytes for reading ahead.
    reader = array_record_module.ArrayRecordReader(
        path, options='readahead_buffer_size:0', file_reader_buffer_size=32768
    )
    opened, count = reader.ok(), reader.num_records()
    try:
        reader.close()  # a reader that could not open its file says here why
    except RuntimeError as error:
        reason = str(error).split(';')[0]
        missing = 'No such file' in reason
        return 'is missing' if missing else f'is truncated or no ArrayRecord file ({reason})'
    if not opened or count != shard.examples_in_shard:
        return f'holds {count} records, its dataset_info.json says {shard.examples_in_shard}'
    return ''
