"""Filters of one channel (Z, Y, X): Gaussian blur, sharpening and median. Images of two axes are given as one slice.

Sources: batchgeneratorsv2 0.3.6, transforms/noise: gaussian_blur (a convolution along each axis in turn, borders reflected without their
voxel), sharpen (a Laplacian, borders repeated), median_filter (scipy's, borders reflected with their voxel).
"""

from typing import Any

import numpy as np

from trainers.data.kernels.compiled import kernel, part

_F = np.float32
_GREATEST = 2**31 - 1
_SECANT_STEPS = 8


@part
def _mirrored(index: Any, length: Any) -> Any:
    """The voxel that stands for one outside, reflected about the border voxel."""
    if index < 0:
        index = -index
    return 2 * (length - 1) - index if index >= length else index


@part
def _reflected(index: Any, length: Any) -> Any:
    """The same, reflected about the border itself, as often as an axis shorter than the filter needs."""
    index %= 2 * length
    return 2 * length - 1 - index if index >= length else index


@part
def _add_row(target: Any, source: Any, weight: Any) -> None:
    for x in range(len(target)):
        target[x] += source[x] * weight


@kernel("void(float32[:,:,::1], float32[::1], float32[::1], float32[::1], float32[:,:,::1])")
def blur(image: Any, along_z: Any, along_y: Any, along_x: Any, out: Any) -> None:
    """Convolve with a kernel of odd length along each axis; none is longer than 2 n - 1 along an axis of n voxels."""
    Z, Y, X = image.shape
    rz, ry, rx = len(along_z) // 2, len(along_y) // 2, len(along_x) // 2
    plane, row = np.empty((Y, X), np.float32), np.empty(X + 2 * rx, np.float32)
    for z in range(Z):
        plane[:] = _F(0)
        for k in range(len(along_z)):
            source = image[_mirrored(z + k - rz, Z)]
            for y in range(Y):
                _add_row(plane[y], source[y], along_z[k])
        for y in range(Y):
            row[:] = _F(0)
            middle = row[rx : rx + X]
            for k in range(len(along_y)):
                _add_row(middle, plane[_mirrored(y + k - ry, Y)], along_y[k])
            for x in range(rx):
                row[x] = row[2 * rx - x]
                row[rx + X + x] = row[rx + X - 2 - x]
            target = out[z, y]
            target[:] = _F(0)
            for k in range(len(along_x)):
                _add_row(target, row[k : k + X], along_x[k])


@kernel("void(float32[:,:,::1], float32, boolean, float32[:,:,::1])")
def sharpen(image: Any, strength: Any, is_plane: Any, out: Any) -> None:
    """Add the Laplacian times `strength`; of a plane (1, Y, X) that of two axes."""
    Z, Y, X = image.shape
    centre = _F(4) if is_plane else _F(6)
    for z in range(Z):
        above, below = image[max(z - 1, 0)], image[min(z + 1, Z - 1)]
        for y in range(Y):
            here, target = image[z, y], out[z, y]
            up, down = image[z, max(y - 1, 0)], image[z, min(y + 1, Y - 1)]
            for x in range(X):
                target[x] = centre * here[x] - up[x] - down[x]
            if not is_plane:
                for x in range(X):
                    target[x] -= above[y, x] + below[y, x]
            target[0] -= here[0]
            for x in range(1, X):
                target[x] -= here[x - 1]
            for x in range(X - 1):
                target[x] -= here[x + 1]
            target[X - 1] -= here[X - 1]
            for x in range(X):
                target[x] = target[x] * strength + here[x]


@part
def _key(value: Any) -> Any:
    """An integer that is ordered as float32 numbers are."""
    bits = np.float32(value).view(np.int32)
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@part
def _value(key: Any) -> Any:
    """The number of a key."""
    return np.int32(key ^ ((key >> np.int32(31)) & np.int32(0x7FFFFFFF))).view(np.float32)


@part
def _count_below(keys: Any, limit: Any) -> Any:
    count = np.int32(0)
    for k in range(len(keys)):
        count += np.int32(keys[k] < limit)
    return count


@part
def _least_from(keys: Any, limit: Any) -> Any:
    """The smallest key that is at least `limit`."""
    found = np.int32(_GREATEST)
    for k in range(len(keys)):
        found = min(found, keys[k] if keys[k] >= limit else np.int32(_GREATEST))
    return found


@part
def _greatest_below(keys: Any, limit: Any) -> Any:
    """The greatest key that is below `limit`."""
    found = np.int32(-_GREATEST)
    for k in range(len(keys)):
        found = max(found, keys[k] if keys[k] < limit else np.int32(-_GREATEST))
    return found


@part
def _selected(keys: Any, rank: Any, value: Any, spread: Any) -> Any:
    """The number of rank `rank` (from 0) among `keys`, and how far apart numbers of neighbouring ranks are about there.

    value, spread: the same of the window before. Few steps of the secant come close, then one number after the other is passed.
    """
    below = _count_below(keys, _key(value))
    for _ in range(_SECANT_STEPS):
        wanted = rank - below
        if -2 <= wanted <= 2:
            break
        other = value + _F(wanted) * spread
        if other == value:
            break
        count = _count_below(keys, _key(other))
        if count != below:
            slope = (other - value) / _F(count - below)
            spread = min(max(slope, spread * _F(0.25)), spread * _F(4))
        else:
            spread *= _F(2)
        value, below = other, count
    limit = _key(value)
    while below > rank:
        limit = _greatest_below(keys, limit)
        below = _count_below(keys, limit)
    while True:
        limit = _least_from(keys, limit)
        if _count_below(keys, limit + np.int32(1)) > rank:
            return _value(limit), spread
        limit += np.int32(1)


@part
def _fill(columns: Any, height: Any, slot: Any, row: Any, before: Any) -> None:
    """Write a row of the image into place `slot` of each column, reflected at both ends."""
    for x in range(len(columns) // height):
        columns[x * height + slot] = _key(row[_reflected(x - before, len(row))])


@kernel("void(float32[:,:,::1], int64, boolean, float32[:,:,::1])")
def median(image: Any, size: Any, is_plane: Any, out: Any) -> None:
    """The median of the cube of `size` about each voxel (of a plane, the square); of an even number the upper one, as scipy has it."""
    Z, Y, X = image.shape
    before = size // 2
    deep = 1 if is_plane else size
    height = deep * size
    # the window's rows side by side: a window is `size` columns that follow one another, and the next one begins a column later
    columns = np.empty((X + size - 1) * height, np.int32)
    rank = np.int32(height * size // 2)
    low, high = _key(image.min()), _key(image.max())
    first_spread = max((_value(high) - _value(low)) / _F(height * size), _F(1e-30))
    for z in range(Z):
        for y in range(1 - size, Y):
            entering = y + size - 1 - before
            for k in range(deep):
                source = image[_reflected(z + k - before, Z) if deep > 1 else z, _reflected(entering, Y)]
                _fill(columns, height, k * size + (y + size - 1) % size, source, before)
            if y < 0:
                continue
            value, spread = (out[z, y - 1, 0] if y else image[z, y, 0]), first_spread
            for x in range(X):
                keys = columns[x * height : (x + size) * height]
                value, spread = _selected(keys, rank, value, spread)
                out[z, y, x] = value
