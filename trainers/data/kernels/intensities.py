"""Changes of the values of one channel: statistics in one pass, and a low resolution simulated.

Z Y X voxels; images of two axes are given as one slice. Sums are kept in float64 for each of some lanes, so that their order is fixed.
"""

from typing import Any

import numpy as np

from trainers.data.kernels.compiled import kernel, part

_F = np.float32
_LANES = 16


@kernel("void(float32[::1], float32, float32, float64[::1])")
def scaled_moments(values: Any, factor: Any, offset: Any, found: Any) -> None:
    """Multiply each value and add `offset`; `found` becomes the mean, the deviation (n - 1), the least and the greatest value then."""
    sums, squares = np.zeros(_LANES), np.zeros(_LANES)
    lows, highs = np.full(_LANES, np.inf, np.float32), np.full(_LANES, -np.inf, np.float32)
    pivot = np.float64(values[0] * factor + offset)  # deviations from it are small, so that their squares lose no digits
    count = len(values)
    whole = count - count % _LANES
    for start in range(0, whole, _LANES):
        for lane in range(_LANES):
            value = values[start + lane] * factor + offset
            values[start + lane] = value
            apart = np.float64(value) - pivot
            sums[lane] += apart
            squares[lane] += apart * apart
            lows[lane] = value if value < lows[lane] else lows[lane]
            highs[lane] = value if value > highs[lane] else highs[lane]
    for index in range(whole, count):
        value = values[index] * factor + offset
        values[index] = value
        apart = np.float64(value) - pivot
        sums[0] += apart
        squares[0] += apart * apart
        lows[0], highs[0] = min(lows[0], value), max(highs[0], value)
    total, total_squares = sums.sum(), squares.sum()
    found[0] = pivot + total / count
    found[1] = np.sqrt(max(total_squares - total * total / count, 0.0) / (count - 1))
    found[2], found[3] = lows.min(), highs.max()


@kernel("void(float32[::1], float32, float32, float32)")
def scale_about(values: Any, centre: Any, factor: Any, offset: Any) -> None:
    """Replace each value v by (v - centre) * factor + offset."""
    for index in range(len(values)):
        values[index] = (values[index] - centre) * factor + offset


@part
def _upsampled(size: Any, coarse: Any, lower: Any, upper: Any, weights: Any, kept: Any) -> None:
    """Where an axis' voxels come from when it is sampled at `coarse` places, the nearest ones (`kept`), and interpolated again."""
    ratio = _F(size) / _F(coarse)
    for index in range(coarse):
        kept[index] = min(np.int64(np.floor((_F(index) + _F(0.5)) * ratio)), size - 1)
    back = _F(coarse) / _F(size)
    for index in range(size):
        at = max((_F(index) + _F(0.5)) * back - _F(0.5), _F(0))
        lower[index] = min(np.int64(at), coarse - 1)
        upper[index] = min(lower[index] + 1, coarse - 1)
        weights[index] = at - _F(lower[index])


@kernel("void(float32[:,:,::1], int64, int64, int64, float32[:,:,::1])")
def lower_resolution(image: Any, coarse_z: Any, coarse_y: Any, coarse_x: Any, out: Any) -> None:
    """The nearest voxels of a coarser grid of so many voxels, interpolated linearly back to the shape of `image`."""
    Z, Y, X = image.shape
    z0, z1, wz, kz = np.empty(Z, np.int64), np.empty(Z, np.int64), np.empty(Z, np.float32), np.empty(coarse_z, np.int64)
    y0, y1, wy, ky = np.empty(Y, np.int64), np.empty(Y, np.int64), np.empty(Y, np.float32), np.empty(coarse_y, np.int64)
    x0, x1, wx, kx = np.empty(X, np.int64), np.empty(X, np.int64), np.empty(X, np.float32), np.empty(coarse_x, np.int64)
    _upsampled(Z, coarse_z, z0, z1, wz, kz)
    _upsampled(Y, coarse_y, y0, y1, wy, ky)
    _upsampled(X, coarse_x, x0, x1, wx, kx)
    kept = np.empty((coarse_z, coarse_y, coarse_x), np.float32)
    for z in range(coarse_z):
        for y in range(coarse_y):
            row = image[kz[z], ky[y]]
            for x in range(coarse_x):
                kept[z, y, x] = row[kx[x]]
    plane, line = np.empty((coarse_y, coarse_x), np.float32), np.empty(coarse_x, np.float32)
    for z in range(Z):
        below, above, weight = kept[z0[z]], kept[z1[z]], wz[z]
        for y in range(coarse_y):
            for x in range(coarse_x):
                plane[y, x] = below[y, x] * (_F(1) - weight) + above[y, x] * weight
        for y in range(Y):
            first, second, share = plane[y0[y]], plane[y1[y]], wy[y]
            for x in range(coarse_x):
                line[x] = first[x] * (_F(1) - share) + second[x] * share
            target = out[z, y]
            for x in range(X):
                target[x] = line[x0[x]] * (_F(1) - wx[x]) + line[x1[x]] * wx[x]
