"""The residuals of `engine.geometry.bundle`, their Jacobians and their normal equations, in compiled loops."""

import numpy as np
from numba import njit


@njit(cache=True)
def residual(c2w, log_scale, anchor, ray, log_depth, log_focal, lens, f, p, uv, log_measured, r, J, Jp, derive):
    """One observation: residuals r [3] (pixels, pixels, log depth) and, when `derive`, Jacobians J [3,14] by (frame 7,
    anchor rotation and centre 6, focal 1) and Jp [3,3] by (ray, log depth). False when the point is behind the camera.

    Written out by component: small arrays and matrix products would cost more than the arithmetic.
    """
    a = anchor[p]
    factor = np.exp(log_focal)
    inverse = np.exp(-log_depth[p])
    m0, m1 = ray[p, 0] / factor, ray[p, 1] / factor
    d0, d1, d2 = c2w[a, 0, 3] - c2w[f, 0, 3], c2w[a, 1, 3] - c2w[f, 1, 3], c2w[a, 2, 3] - c2w[f, 2, 3]
    w0 = c2w[a, 0, 0] * m0 + c2w[a, 0, 1] * m1 + c2w[a, 0, 2] + inverse * d0
    w1 = c2w[a, 1, 0] * m0 + c2w[a, 1, 1] * m1 + c2w[a, 1, 2] + inverse * d1
    w2 = c2w[a, 2, 0] * m0 + c2w[a, 2, 1] * m1 + c2w[a, 2, 2] + inverse * d2
    q0 = c2w[f, 0, 0] * w0 + c2w[f, 1, 0] * w1 + c2w[f, 2, 0] * w2
    q1 = c2w[f, 0, 1] * w0 + c2w[f, 1, 1] * w1 + c2w[f, 2, 1] * w2
    q2 = c2w[f, 0, 2] * w0 + c2w[f, 1, 2] * w1 + c2w[f, 2, 2] * w2
    if q2 < 1e-4:
        return False
    fx, fy = lens[0] * factor, lens[1] * factor
    x, y, iz = q0 / q2, q1 / q2, 1 / q2
    has_depth = not np.isnan(log_measured)
    r[0] = fx * x + lens[2] - uv[0]
    r[1] = fy * y + lens[3] - uv[1]
    r[2] = np.log(q2) + log_depth[p] - log_measured - log_scale[f] if has_depth else 0.0
    if not derive:
        return True
    for k in range(16):
        # dq by frame rotation ([q]x), frame centre, anchor rotation (-B [m]x), anchor centre, focal, ray, log depth
        if k < 3:
            e0, e1, e2 = (0.0, q2, -q1) if k == 0 else ((-q2, 0.0, q0) if k == 1 else (q1, -q0, 0.0))
        elif k < 6 or 9 <= k < 12:
            gain = -inverse if k < 6 else inverse
            e0, e1, e2 = gain * c2w[f, k % 3, 0], gain * c2w[f, k % 3, 1], gain * c2w[f, k % 3, 2]
        else:
            if k == 6:
                v0, v1, v2 = 0.0, -1.0, m1
            elif k == 7:
                v0, v1, v2 = 1.0, 0.0, -m0
            elif k == 8:
                v0, v1, v2 = -m1, m0, 0.0
            elif k == 12:
                v0, v1, v2 = -m0, -m1, 0.0
            elif k == 13:
                v0, v1, v2 = 1 / factor, 0.0, 0.0
            elif k == 14:
                v0, v1, v2 = 0.0, 1 / factor, 0.0
            else:
                v0, v1, v2 = 0.0, 0.0, 0.0
            if k < 15:
                u0 = c2w[a, 0, 0] * v0 + c2w[a, 0, 1] * v1 + c2w[a, 0, 2] * v2
                u1 = c2w[a, 1, 0] * v0 + c2w[a, 1, 1] * v1 + c2w[a, 1, 2] * v2
                u2 = c2w[a, 2, 0] * v0 + c2w[a, 2, 1] * v1 + c2w[a, 2, 2] * v2
            else:
                u0, u1, u2 = -inverse * d0, -inverse * d1, -inverse * d2
            e0 = c2w[f, 0, 0] * u0 + c2w[f, 1, 0] * u1 + c2w[f, 2, 0] * u2
            e1 = c2w[f, 0, 1] * u0 + c2w[f, 1, 1] * u1 + c2w[f, 2, 1] * u2
            e2 = c2w[f, 0, 2] * u0 + c2w[f, 1, 2] * u1 + c2w[f, 2, 2] * u2
        g0, g1 = fx * iz * (e0 - x * e2), fy * iz * (e1 - y * e2)
        g2 = iz * e2 if has_depth else 0.0
        if k < 6:
            J[0, k], J[1, k], J[2, k] = g0, g1, g2
        elif k < 13:
            J[0, k + 1], J[1, k + 1], J[2, k + 1] = g0, g1, g2
        else:
            Jp[0, k - 13], Jp[1, k - 13], Jp[2, k - 13] = g0, g1, g2
    J[0, 6], J[1, 6], J[2, 6] = 0.0, 0.0, -1.0 if has_depth else 0.0
    J[0, 13] += fx * x
    J[1, 13] += fy * y
    if has_depth:
        Jp[2, 2] += 1.0
    return True


BEHIND = 50.0  # pixels: what a point behind a camera costs


@njit(cache=True)
def accumulate(
    c2w,
    log_scale,
    anchor,
    ray,
    log_depth,
    log_focal,
    lens,
    frame,
    point,
    uv,
    measured,
    pixel_sigma,
    depth_sigma,
    cauchy,
    derive,
    H,
    g,
    W,
    V,
    gp,
):
    """The robust cost of all observations; when `derive`, their weighted normal equations are added in place to H, g,
    W, V, gp (shapes: `bundle._normal_equations`), which are not looked at otherwise.

    Cauchy's loss c^2 / 2 log(1 + (r / c)^2) in sigmas, c = cauchy for pixels and 2 cauchy for log depth; its weight is
    1 / (1 + (r / c)^2)."""
    r, J, Jp = np.zeros(3), np.zeros((3, 14)), np.zeros((3, 3))
    column = np.zeros(14, np.int64)
    weight = np.zeros(3)
    total = 0.0
    for o in range(len(frame)):
        f, p, m = frame[o], point[o], measured[o]
        if not residual(c2w, log_scale, anchor, ray, log_depth, log_focal, lens, f, p, uv[o], m, r, J, Jp, derive):
            total += 0.5 * cauchy**2 * np.log1p((BEHIND / (cauchy * pixel_sigma)) ** 2)
            continue
        square = (r[0] ** 2 + r[1] ** 2) / (cauchy * pixel_sigma) ** 2
        deep = (r[2] / (2 * cauchy * depth_sigma)) ** 2
        total += cauchy**2 * (0.5 * np.log1p(square) + 2 * np.log1p(deep))
        if not derive:
            continue
        weight[0] = weight[1] = 1 / (pixel_sigma**2 * (1 + square))
        weight[2] = 1 / (depth_sigma**2 * (1 + deep))
        for k in range(7):
            column[k] = 7 * f + k
        for k in range(6):
            column[7 + k] = 7 * anchor[p] + k
        column[13] = H.shape[0] - 1
        for k in range(14):
            x, y, z = weight[0] * J[0, k], weight[1] * J[1, k], weight[2] * J[2, k]
            row = column[k]
            g[row] += x * r[0] + y * r[1] + z * r[2]
            for l in range(14):
                H[row, column[l]] += x * J[0, l] + y * J[1, l] + z * J[2, l]
            for l in range(3):
                W[p, l, row] += x * Jp[0, l] + y * Jp[1, l] + z * Jp[2, l]
        for k in range(3):
            x, y, z = weight[0] * Jp[0, k], weight[1] * Jp[1, k], weight[2] * Jp[2, k]
            gp[p, k] += x * r[0] + y * r[1] + z * r[2]
            for l in range(3):
                V[p, k, l] += x * Jp[0, l] + y * Jp[1, l] + z * Jp[2, l]
    return total
