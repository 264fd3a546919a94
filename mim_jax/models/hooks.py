"""What may be done to the tokens inside a stack of blocks, between attention and MLP of each.

Shapes stay: a stack of blocks is one scanned program. Tokens that a hook removes keep their places
and vanish from attention by a bias of -inf.
"""

from typing import Any

import flax
import jax
import jax.numpy as jnp

from mim_jax.losses import unit


class Hook:
    """The protocol. Hooks are `flax.struct.dataclass`es, so that their numbers may be traced.

    Tokens are [B,S,D]: class token, registers, patches. The state is any pytree of arrays of fixed
    shapes; it goes from block to block, and its last value is `Encoded.hook_state`.
    """

    def start(self, tokens: jax.Array) -> Any:
        """The state before the first block, from the tokens that enter it."""
        raise NotImplementedError

    def bias(self, state: Any) -> jax.Array | None:
        """What is added to the attention logits of a block, float32, broadcast to [B,heads,S,S]."""
        return None

    def between(
        self, tokens: jax.Array, keys: jax.Array, state: Any, index: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Tokens and state after block `index` (from 0, int32, traced) has attended.

        keys: [B,S,heads,head width], those of the block's attention.
        """
        raise NotImplementedError


@flax.struct.dataclass
class TokenDropping(Hook):
    """In chosen blocks the patches most similar to the others leave.

    A patch's similarity is the mean of its cosines to the other patches that are still there; a
    draw goes to the earlier place. From the next block on no token attends to those that left. They
    are computed still, and their values mean nothing; `present(state)` says which patches stayed.

    counts: integers, one a block, may be traced: how many patches leave there; in blocks beyond
      the last of them none. One patch always stays.
    prefix: `ViT.prefix`, the number of tokens before the patches, which neither leave nor count.
    """

    counts: Any
    prefix: int = flax.struct.field(pytree_node=False)

    def start(self, tokens):
        return jnp.ones(tokens.shape[:2], bool)

    def bias(self, state):
        # No row is -inf throughout, since one patch always stays: no NaN in softmax or gradient.
        return jnp.where(state, 0.0, -jnp.inf)[:, None, None, :]

    def between(self, tokens, keys, state, index):
        present = self.present(state)
        patches = unit(jax.lax.stop_gradient(tokens[:, self.prefix :]).astype(jnp.float32))
        # The sum over present patches is one vector; each one's own cosine of 1 changes no order.
        total = jnp.sum(jnp.where(present[..., None], patches, 0.0), axis=1)
        cosines = jnp.einsum('bnd,bd->bn', patches, total, precision=jax.lax.Precision.HIGHEST)
        order = jnp.argsort(-jnp.where(present, cosines, -jnp.inf), axis=1)
        rank = jnp.argsort(order, axis=1)
        count = jnp.asarray(self.counts).at[index].get(mode='fill', fill_value=0)
        count = jnp.minimum(count, present.sum(axis=1) - 1)
        return tokens, state.at[:, self.prefix :].set(present & (rank >= count[:, None]))

    def present(self, state):
        """Bool [B,N]: the patches that have not left."""
        return state[:, self.prefix :]
