from mim_jax.last_words import last_words

LINES = [
    {'step': 0, 'eval/knn/top1': 0.1, 'eval/knn/top5': 0.5, 'eval/health/rankme': 5.0},
    {'step': 5, 'train/loss': 2.0},
    {'step': 5, 'eval/knn/top1': 0.75, 'eval/knn/top5': 0.9, 'eval/health/rankme': None},
    {'step': 10, 'train/loss': 1.25},
    {'step': 10, 'eval/knn/top1': 0.5, 'eval/knn/top5': 1.0, 'eval/health/rankme': 9.0},
]


def test_last_and_best_headlines_of_every_evaluator_and_where_all_is():
    assert last_words(LINES, total=10, workdir='runs/x') == (
        'done: knn/top1 0.5 (best 0.75 at step 5, at first 0.1), health/rankme 9 (at\n'
        '  first 5), loss 1.25, all in runs/x'
    )


def test_a_run_without_evaluations():
    lines = [line for line in LINES if 'train/loss' in line]
    assert last_words(lines, total=10, workdir='x') == 'done: loss 1.25, all in x'
    assert last_words([], total=10, workdir='x') == 'done: all in x'
