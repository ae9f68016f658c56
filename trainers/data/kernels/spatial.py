"""Rotation and scaling of image and labels in one pass, as batchgeneratorsv2's SpatialTransform gives them.

C channels, N slices of all channels, Z Y X voxels of the output. Inputs are a box cut out of the loader's crop; what lies outside the
box is outside the crop. Points are found by the library's operations in float32: the centred grid times the matrix, over half the crop's
size, then torch's grid_sample (align_corners=False, zeros outside). A label's score is 1000 times its interpolated indicator, in float16;
the greatest wins, but the nearest voxel's label where it has the greatest too (batchgeneratorsv2 0.3.6, SpatialTransform).
"""

from typing import Any

import numpy as np

from trainers.data.kernels.compiled import fused_part, kernel, part

_F = np.float32
_ONE, _HALF, _THOUSAND = np.float32(1), np.float32(0.5), np.float32(1000)
_NEXT = np.uint64(1)
_MIXED = np.int16(-32768)


@part
def _as_float16(value: Any) -> Any:
    """A value from 0 to 1000 rounded to the eleven digits of float16, ties to even."""
    bits = np.float32(value).view(np.int32)
    bits = (bits + np.int32(0xFFF) + ((bits >> np.int32(13)) & np.int32(1))) & np.int32(-8192)
    return np.int32(bits).view(np.float32)


@part
def _elected(labels: Any, weights: Any, nearest: Any) -> Any:
    """The label of a point among its corners' `labels` with their `weights`."""
    best_score, nearest_score = _F(-1), _F(-2)
    best = nearest
    for i in range(len(labels)):
        score, is_first = _F(0), True
        for j in range(len(labels)):
            if labels[j] == labels[i]:
                if j < i:
                    is_first = False
                    break
                score += weights[j] * _THOUSAND
        if not is_first:
            continue
        score = _as_float16(score)
        if labels[i] == nearest:
            nearest_score = score
        if score > best_score or (score == best_score and labels[i] < best):
            best_score, best = score, labels[i]
    return nearest if nearest_score == best_score else best


@part
def _points_of_row(points: Any, along: Any, before: Any, factor: Any, size: Any) -> None:
    """Coordinates (voxels of the crop) along one of its axes for a row of output voxels.

    before: the part of the matrix's product that is the same all along the row; factor: what multiplies the row's own offsets `along`.
    """
    half = size * _HALF
    for x in range(len(along)):
        points[x] = (((before + along[x] * factor) / half + _ONE) * size - _ONE) * _HALF


@part
def _grid_of_row(points: Any, along: Any, before: Any, factor: Any, size: Any) -> None:
    """As `_points_of_row`, in units of half the crop from its lower border."""
    half = size * _HALF
    for x in range(len(along)):
        points[x] = (before + along[x] * factor) / half + _ONE


@fused_part
def _cells_of_row(points: Any, size: Any, origin: Any, lower: Any, upper_weight: Any) -> None:
    """From such points to voxels of the crop in place, with the lower corner in the box and the weight of the upper one."""
    half = size * _HALF
    for x in range(len(points)):
        at = points[x] * half - _HALF
        floor = np.floor(at)
        points[x], lower[x], upper_weight[x] = at, np.int32(floor) - origin, at - floor


@part
def _weigh_row(wy: Any, wx: Any, iy: Any, ix: Any, width: Any, first: Any, w0: Any, w1: Any, w2: Any, w3: Any) -> None:
    """The place of the first corner in a slice, and the weights of all four."""
    for x in range(len(first)):
        wy0, wx0 = _ONE - wy[x], _ONE - wx[x]
        w0[x], w1[x], w2[x], w3[x] = wx0 * wy0, wx[x] * wy0, wx0 * wy[x], wx[x] * wy[x]
        first[x] = iy[x] * width + ix[x]


@part
def _inner(iy: Any, ix: Any, by: Any, bx: Any) -> Any:
    """From where to where a row's points have all four corners: a box is convex, so these follow one another."""
    start, stop = 0, len(iy)
    while start < stop and not (0 <= iy[start] < by - 1 and 0 <= ix[start] < bx - 1):
        start += 1
    while stop > start and not (0 <= iy[stop - 1] < by - 1 and 0 <= ix[stop - 1] < bx - 1):
        stop -= 1
    return start, stop


@part
def _nearest(py: Any, px: Any, origin: Any, by: Any, bx: Any) -> Any:
    """The place of the voxel nearest to a point, -1 outside."""
    y, x = np.int64(np.rint(py)) - origin[0], np.int64(np.rint(px)) - origin[1]
    return y * bx + x if 0 <= y < by and 0 <= x < bx else np.int64(-1)


@fused_part
def _interpolated(source: Any, first: Any, width: Any, w0: Any, w1: Any, w2: Any, w3: Any, out: Any, start: Any, stop: Any) -> None:
    """Values of one slice from `start` to `stop` of a row, where points have all four corners."""
    for x in range(start, stop):
        at, below = np.uint64(first[x]), np.uint64(first[x] + width)
        value = _F(0) + source[at] * w0[x]
        value += source[at + _NEXT] * w1[x]
        value += source[below] * w2[x]
        out[x] = value + source[below + _NEXT] * w3[x]


@part
def _corner(k: Any, iy: Any, ix: Any, by: Any, bx: Any) -> Any:
    """The place of one of four corners, -1 outside."""
    y, x = np.int64(iy) + (k >> 1), np.int64(ix) + (k & 1)
    return y * bx + x if 0 <= y < by and 0 <= x < bx else np.int64(-1)


@part
def _mark_cells(labels: Any, width: Any, cells: Any) -> None:
    """The label of each cell of a flat slice, at its first corner's place: that of all four corners, else `_MIXED`.

    One pass in order is cheaper than four labels looked up for each point. Places of the last row and column hold nothing of use.
    """
    right, below, across = labels[1:], labels[width:], labels[width + 1 :]
    for at in range(len(across)):
        label = labels[at]
        differs = (right[at] ^ label) | (below[at] ^ label) | (across[at] ^ label)
        cells[at] = label if differs == 0 else _MIXED


@part
def _offsets(length: Any) -> Any:
    """Offsets of an axis' voxels to its middle."""
    found = np.empty(length, np.float32)
    for index in range(length):
        found[index] = _F(index) - _F(length - 1) * _HALF
    return found


@kernel(
    "void(float32[:,:,:,::1], int16[:,:,::1], float32[:,::1], int64[::1], int64[::1], boolean, boolean, int16,"
    " float32[:,:,:,::1], int16[:,:,::1])"
)
def resample_3d(
    image: Any,
    labels: Any,
    matrix: Any,
    crop: Any,
    origin: Any,
    image_nearest: Any,
    labels_nearest: Any,
    outside: Any,
    out: Any,
    out_labels: Any,
) -> None:
    """Fill `out` (C, Z, Y, X) and `out_labels` (Z, Y, X) from a box (C, z, y, x) at `origin` of a crop of shape `crop`.

    matrix: (3, 3), from offsets to the output's middle to those to the crop's. outside: the label there; the image is 0.
    """
    channels, bz, by, bx = image.shape
    Z, Y, X = out_labels.shape
    zs, ys, xs = _offsets(Z), _offsets(Y), _offsets(X)
    pz, py, px = np.empty(X, np.float32), np.empty(X, np.float32), np.empty(X, np.float32)
    corner_labels, corner_weights, corner_places = np.empty(8, np.int16), np.empty(8, np.float32), np.empty(8, np.int64)
    flat_labels, flat_out_labels = labels.reshape(-1), out_labels.reshape(-1)
    flat, flat_out = image.reshape((channels, -1)), out.reshape((channels, -1))
    is_linear = not image_nearest and not labels_nearest
    for row in range(Z * Y):
        gz, gy = zs[row // Y], ys[row % Y]
        _points_of_row(pz, xs, gz * matrix[0, 0] + gy * matrix[0, 1], matrix[0, 2], _F(crop[0]))
        _points_of_row(py, xs, gz * matrix[1, 0] + gy * matrix[1, 1], matrix[1, 2], _F(crop[1]))
        _points_of_row(px, xs, gz * matrix[2, 0] + gy * matrix[2, 1], matrix[2, 2], _F(crop[2]))
        for x in range(X):
            place = row * X + x
            fz, fy, fx = pz[x], py[x], px[x]
            lz, ly, lx = np.floor(fz), np.floor(fy), np.floor(fx)
            iz, iy, ix = np.int64(lz) - origin[0], np.int64(ly) - origin[1], np.int64(lx) - origin[2]
            wz1, wy1, wx1 = fz - lz, fy - ly, fx - lx
            wz0, wy0, wx0 = (lz + _ONE) - fz, (ly + _ONE) - fy, (lx + _ONE) - fx
            is_inner = is_linear and 0 <= iz < bz - 1 and 0 <= iy < by - 1 and 0 <= ix < bx - 1
            if is_inner:  # all eight corners are there
                signed = (iz * by + iy) * bx + ix  # numba takes a signed index for one that may count from the end
                at, at01 = np.uint64(signed), np.uint64(signed + bx)
                at10, at11 = np.uint64(signed + by * bx), np.uint64(signed + by * bx + bx)
                w00, w01, w10, w11 = wx0 * wy0, wx1 * wy0, wx0 * wy1, wx1 * wy1
                for c in range(channels):
                    value = flat[c, at] * (w00 * wz0)
                    value += flat[c, at + _NEXT] * (w01 * wz0)
                    value += flat[c, at01] * (w10 * wz0)
                    value += flat[c, at01 + _NEXT] * (w11 * wz0)
                    value += flat[c, at10] * (w00 * wz1)
                    value += flat[c, at10 + _NEXT] * (w01 * wz1)
                    value += flat[c, at11] * (w10 * wz1)
                    value += flat[c, at11 + _NEXT] * (w11 * wz1)
                    flat_out[c, place] = value
                label = flat_labels[at]
                differs = (flat_labels[at + _NEXT] ^ label) | (flat_labels[at01] ^ label) | (flat_labels[at01 + _NEXT] ^ label)
                differs |= (flat_labels[at10] ^ label) | (flat_labels[at10 + _NEXT] ^ label)
                differs |= (flat_labels[at11] ^ label) | (flat_labels[at11 + _NEXT] ^ label)
                if differs == 0:
                    flat_out_labels[place] = label
                    continue
            for k in range(8):
                cz, cy, cx = iz + (k >> 2), iy + ((k >> 1) & 1), ix + (k & 1)
                corner_weights[k] = (wx1 if k & 1 else wx0) * (wy1 if k & 2 else wy0) * (wz1 if k & 4 else wz0)
                is_there = 0 <= cz < bz and 0 <= cy < by and 0 <= cx < bx
                corner_places[k] = (cz * by + cy) * bx + cx if is_there else -1
                corner_labels[k] = flat_labels[corner_places[k]] if is_there else outside
            nz, ny, nx = np.int64(np.rint(fz)) - origin[0], np.int64(np.rint(fy)) - origin[1], np.int64(np.rint(fx)) - origin[2]
            nearest = (nz * by + ny) * bx + nx if 0 <= nz < bz and 0 <= ny < by and 0 <= nx < bx else -1
            label = flat_labels[nearest] if nearest >= 0 else outside
            flat_out_labels[place] = label if labels_nearest else _elected(corner_labels, corner_weights, label)
            if is_inner:
                continue
            for c in range(channels):
                value = _F(0)
                if image_nearest:
                    value = flat[c, nearest] if nearest >= 0 else value
                else:
                    for k in range(8):
                        if corner_places[k] >= 0:
                            value += flat[c, corner_places[k]] * corner_weights[k]
                flat_out[c, place] = value


@kernel(
    "void(float32[:,:,::1], int16[:,:,::1], float32[:,::1], int64[::1], int64[::1], boolean, boolean, int16,"
    " float32[:,:,::1], int16[:,:,::1])",
    fused=True,
)
def resample_2d(
    image: Any,
    labels: Any,
    matrix: Any,
    crop: Any,
    origin: Any,
    image_nearest: Any,
    labels_nearest: Any,
    outside: Any,
    out: Any,
    out_labels: Any,
) -> None:
    """As `resample_3d` for slices that all turn alike: `image` (N, y, x), `labels` (M, y, x), matrix (2, 2).

    A row of all slices is made at a time: call it for a few slices, so that what they touch stays in the cache.
    """
    slices, by, bx = image.shape
    Y, X = out.shape[1:]
    ys, xs = _offsets(Y), _offsets(X)
    py, px, wy, wx = np.empty(X, np.float32), np.empty(X, np.float32), np.empty(X, np.float32), np.empty(X, np.float32)
    w0, w1, w2, w3 = np.empty(X, np.float32), np.empty(X, np.float32), np.empty(X, np.float32), np.empty(X, np.float32)
    iy, ix, first = np.empty(X, np.int32), np.empty(X, np.int32), np.empty(X, np.int32)
    corner_labels, corner_weights = np.empty(4, np.int16), np.empty(4, np.float32)
    flat, flat_labels = image.reshape((slices, -1)), labels.reshape((labels.shape[0], -1))
    cells = np.empty(flat_labels.shape, np.int16)
    for m in range(labels.shape[0]):
        _mark_cells(flat_labels[m], bx, cells[m])
    for y in range(Y):
        _grid_of_row(py, xs, ys[y] * matrix[0, 0], matrix[0, 1], _F(crop[0]))
        _grid_of_row(px, xs, ys[y] * matrix[1, 0], matrix[1, 1], _F(crop[1]))
        _cells_of_row(py, _F(crop[0]), np.int32(origin[0]), iy, wy)
        _cells_of_row(px, _F(crop[1]), np.int32(origin[1]), ix, wx)
        _weigh_row(wy, wx, iy, ix, np.int32(bx), first, w0, w1, w2, w3)
        start, stop = _inner(iy, ix, by, bx)
        for n in range(slices):
            source, target = flat[n], out[n, y]
            if image_nearest:
                for x in range(X):
                    at = _nearest(py[x], px[x], origin, by, bx)
                    target[x] = source[at] if at >= 0 else _F(0)
                continue
            _interpolated(source, first, bx, w0, w1, w2, w3, target, start, stop)
            for outer in range(start + X - stop):
                x = outer if outer < start else outer - start + stop
                value = _F(0)
                for k in range(4):
                    weight = (w0[x] if k == 0 else w1[x]) if k < 2 else (w2[x] if k == 2 else w3[x])
                    at = _corner(k, iy[x], ix[x], by, bx)
                    if at >= 0:
                        value += source[at] * weight
                target[x] = value
        for m in range(labels.shape[0]):
            source_labels, target_labels, cells_of_slice = flat_labels[m], out_labels[m, y], cells[m]
            target_labels[:] = _MIXED
            if not labels_nearest:
                for x in range(start, stop):
                    target_labels[x] = cells_of_slice[np.uint64(first[x])]
            for x in range(X):
                if target_labels[x] != _MIXED:
                    continue
                place = _nearest(py[x], px[x], origin, by, bx)
                label = source_labels[place] if place >= 0 else outside
                if not labels_nearest:
                    for k in range(4):
                        place = _corner(k, iy[x], ix[x], by, bx)
                        corner_labels[k] = source_labels[place] if place >= 0 else outside
                    corner_weights[0], corner_weights[1], corner_weights[2], corner_weights[3] = w0[x], w1[x], w2[x], w3[x]
                    label = _elected(corner_labels, corner_weights, label)
                target_labels[x] = label
