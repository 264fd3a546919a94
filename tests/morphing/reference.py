"""Token morphing step by step on features in NumPy float64: the definition, written plainly."""

import numpy as np


def groups(tokens, tokens_per_step, num_steps, *, protect_first, gaps=None):
    """Group numbers [N] of one image's tokens [N, D].

    gaps: a list to which every step appends the smallest difference between cosines whose order
    it may have gone by.
    """
    sums = np.array(tokens, np.float64)
    members = [[i] for i in range(len(sums))]
    for _ in range(num_steps):
        merges = min(tokens_per_step, (len(members) - int(protect_first)) // 2)
        if merges == 0:
            break
        features = sums / np.array([[len(m)] for m in members])
        norms = np.linalg.norm(features, axis=1, keepdims=True)
        unit = np.divide(features, norms, out=np.zeros_like(features), where=norms > 0)
        similarity = unit[0::2] @ unit[1::2].T
        best = similarity.max(axis=1)
        if gaps is not None:
            between_best = np.diff(np.sort(best[int(protect_first) :]))
            first_two = np.diff(np.sort(similarity, axis=1)[:, -2:])
            gaps.append(np.concatenate([between_best, first_two.ravel(), [np.inf]]).min())
        if protect_first:
            best[0] = -np.inf
        order = np.argsort(-best, kind='stable')
        set_a, set_b = members[0::2], [list(m) for m in members[1::2]]
        sums_a, sums_b = sums[0::2], sums[1::2].copy()
        for a in order[:merges]:
            b = similarity[a].argmax()
            set_b[b] += set_a[a]
            sums_b[b] += sums_a[a]
        stay = sorted(order[merges:]) if protect_first else order[merges:]
        members = [set_a[a] for a in stay] + set_b
        sums = np.concatenate([sums_a[stay], sums_b])
    result = np.empty(sum(map(len, members)), np.int32)
    for number, group in enumerate(members):
        result[group] = number
    return result
