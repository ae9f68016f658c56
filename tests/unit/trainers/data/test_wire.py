"""Batches between two nodes: fewer bytes, the same bits."""

import pickle

import numpy as np

from trainers.data.batches import Batch, Preparation
from trainers.data.wire import packed, unpacked


def test_targets_cross_nodes_in_few_bytes_and_with_the_same_bits() -> None:
    random = np.random.default_rng(0)
    labels = np.zeros((2, 1, 32, 48, 40), np.int16)
    labels[:, :, 8:20, 10:30, 5:25] = 2
    labels[0, 0, 9, 11, 6] = -1
    targets = [labels, labels[:, :, ::2, ::2, ::2], random.random((2, 3, 5, 7, 3)) > 0.5]  # one of them not contiguous, one of regions
    batch = Batch(random.random((2, 1, 32, 48, 40), np.float32), targets, ("a", "b"), Preparation(1.0, 2.0, 3.0))
    sent = pickle.dumps(packed(batch))
    assert len(sent) < batch.images.nbytes + 0.1 * labels.nbytes
    arrived = unpacked(pickle.loads(sent))
    assert np.array_equal(arrived.images, batch.images)
    assert (arrived.case_ids, arrived.preparation) == (batch.case_ids, batch.preparation)
    for before, after in zip(batch.targets, arrived.targets, strict=True):
        assert (before.dtype, before.shape) == (after.dtype, after.shape)
        assert np.array_equal(before, after)
        assert after.flags.writeable or not before.flags.writeable
