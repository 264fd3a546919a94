"""What the released code of BEiT v2 does that no paper says, and DTM's, which is built on it.

Not a config of its own: the configs that follow this code call `as_released`.
"""


def as_released(config):
    """Tokens start, and mask token and relative position tables are decayed, as in that code."""
    config.model.token_initialization = 'cut'
    config.optimizer.decay_also = ('mask_token', 'relative_position')


def as_by_default(config):
    """Undoes it, and the counting of epochs, where another method borrows such a config."""
    config.model.token_initialization = 'normal'
    config.optimizer.decay_also = ()
    config.train.whole_batches = False
