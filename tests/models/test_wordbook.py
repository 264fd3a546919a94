"""The queue of visual words over several steps, against a list."""

import jax
import numpy as np
import pytest

from mim_jax.models.wordbook import WordQueue

QUEUE = WordQueue(num_words=6, num_new=2, border=1)
GRID = (3, 4)


def test_words_are_replaced_in_turn_by_tokens_within_the_border():
    rng = np.random.default_rng(0)
    book = QUEUE.init(jax.random.key(0), 5)
    np.testing.assert_allclose(np.linalg.norm(book['words'], axis=1), 1, rtol=1e-5)
    assert (book['words'] >= 0).all() and book['spread'] == 0.5
    np.testing.assert_array_equal(QUEUE.inner(GRID), [5, 6])
    update = jax.jit(lambda *given, key: QUEUE.update(*given, key=key, grid=GRID))
    for step in range(4):
        tokens = rng.normal(size=(3, 12, 5)).astype(np.float32)
        before, key = book, jax.random.fold_in(jax.random.key(1), step)
        book = update(before, tokens, [np.float32(step)], key=key)
        replaced = [2 * step % 6, 2 * step % 6 + 1]
        kept = [i for i in range(6) if i not in replaced]
        np.testing.assert_array_equal(
            book['words'][np.array(kept)], before['words'][np.array(kept)]
        )
        inner = tokens[:, [5, 6]] / np.linalg.norm(tokens[:, [5, 6]], axis=-1, keepdims=True)
        images = []
        for word in np.asarray(book['words'])[replaced]:
            distance = np.abs(inner - word).max(axis=-1)
            assert distance.min() < 1e-6
            images.append(int(distance.min(axis=1).argmin()))
        assert images[0] != images[1]
        np.testing.assert_allclose(book['spread'], 0.99 * before['spread'] + 0.01 * step, rtol=1e-6)
    assert book['oldest'] == 2


def test_a_batch_smaller_than_the_new_words_gives_several_of_an_image():
    book = QUEUE.init(jax.random.key(0), 5)
    tokens = np.ones((1, 12, 5), np.float32)
    words = QUEUE.update(book, tokens, [], key=jax.random.key(0), grid=GRID)['words']
    np.testing.assert_allclose(words[:2], np.full((2, 5), 5**-0.5), rtol=1e-5)


def test_patches_of_one_word_are_alike_and_a_bag_leaves_out_the_border():
    codes = np.zeros((1, 12, 6), np.float32)
    words = [3, 3, 0, 1, 1, 0, 5, 3, 3, 0, 1, 5]
    codes[0, np.arange(12), words] = 1
    np.testing.assert_array_equal(QUEUE.alike(codes)[0], [0, 0, 2, 3, 3, 2, 6, 0, 0, 2, 3, 6])
    np.testing.assert_allclose(QUEUE.bag(codes, grid=GRID)[0], [0.5, 0, 0, 0, 0, 0.5])


def test_a_number_of_words_that_is_no_multiple_is_refused():
    with pytest.raises(ValueError, match='num_words = 6 is not a multiple of num_new = 4'):
        WordQueue(num_words=6, num_new=4)
