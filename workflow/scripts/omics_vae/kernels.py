"""The inner loops of the fast training step (fast_step.py), compiled by numba.

Everything between the matrix products, in float32, the few counts above 0 in float64. Each loop
writes one array and calls nothing, so that the compiler can use the processor's vectors: hence the
polynomials for exp and log, and the small passes over a row that stays in the first cache.
``nnan`` and the like speed up sums and lose NaN, so the caller checks what comes out.

The formulas stand in likelihoods.py and model.py, on whose results the tests insist.
"""

import math

import numpy as np

from omics_vae.compiled import compiled

_f = np.float32
_LOG2_E = _f(1.44269504)
# log 2 in two parts, the first exact in few bits: n log 2 is then exact to the last digit.
_LOG2_HIGH, _LOG2_LOW = _f(0.693359375), _f(-2.12194440e-4)
_SQRT_HALF_BITS = np.int32(0x3F3504F3)
_EXPONENT_BIAS = 127
_LOWEST = _f(-87.0)  # exp of less is no normal float32
_HIGHEST = _f(87.0)
_HALF_LOG_2_PI = 0.5 * math.log(2.0 * math.pi)
_LOG_FACTORIAL = np.array([math.lgamma(n + 1.0) for n in range(1024)])
_PRODUCT = 8  # up to so many counts, a ratio of Gammas is a product
# Factors lie in (1e-140, 1e35): share above 1e-13, theta in (5e-5, 2e4). Beyond these bounds a
# product is replaced by its logarithm.
_SMALL, _LARGE = 1e-150, 1e150

_VECTOR = {"contract", "nnan", "ninf", "nsz"}
_SUM = _VECTOR | {"reassoc"}  # sums in any order; not where rounding errors are made up for


@compiled(_SUM)
def _sum(a):
    total = _f(0)
    for i in range(len(a)):
        total += a[i]
    return total


@compiled(_VECTOR)
def _load(row, bias, out, out_bits):
    """out = row + bias; ``row`` float32, or the bits of bfloat16 as uint16."""
    if row.itemsize == 4:
        for i in range(len(out)):
            out[i] = row[i] + bias[i]
    else:
        for i in range(len(out)):
            out_bits[i] = np.int32(row[i]) << 16
        for i in range(len(out)):
            out[i] += bias[i]


@compiled(_VECTOR)
def _store(a, a_bits, row):
    """row = a, rounded to the nearest where ``row`` is of bfloat16; ``a_bits``: a's memory."""
    if row.itemsize == 4:
        for i in range(len(a)):
            row[i] = a[i]
    else:
        for i in range(len(a)):
            row[i] = (a_bits[i] + 0x7FFF + ((a_bits[i] >> 16) & 1)) >> 16


@compiled({"reassoc"})
def _is_finite(a):
    total = _f(0)
    for i in range(len(a)):
        total += a[i] * _f(0)
    return total == _f(0)


@compiled()
def _largest(a_bits):
    """The bits of the largest of some floats, given as int32, which a compiler can do at once."""
    largest = np.int32(-0x80000000)
    for i in range(len(a_bits)):
        bits = a_bits[i]
        # Negative numbers are ordered the other way round.
        largest = max(largest, bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF)))
    return largest ^ ((largest >> 31) & np.int32(0x7FFFFFFF))


@compiled(_VECTOR)
def _exp(a, shift, out, out_bits, power):
    """out = exp(a - shift), relative error 1e-7; ``out_bits``: out's memory as int32."""
    for i in range(len(a)):
        x = min(max(a[i] - shift, _LOWEST), _HIGHEST)
        n = np.floor(x * _LOG2_E + _f(0.5))
        r = x - n * _LOG2_HIGH - n * _LOG2_LOW
        p = _f(1.9875691500e-4)
        p = p * r + _f(1.3981999507e-3)
        p = p * r + _f(8.3334519073e-3)
        p = p * r + _f(4.1665795894e-2)
        p = p * r + _f(1.6666665459e-1)
        p = p * r + _f(5.0000001201e-1)
        out[i] = p * r * r + r + _f(1)
        power[i] = np.int32(n) << 23
    for i in range(len(a)):  # times 2^n: n added to the exponent's bits
        out_bits[i] += power[i]


@compiled(_VECTOR)
def _add_log(out, work, work_bits, power):
    """out += log(work), work > 0; ``work`` is spent. ``work_bits``: its memory as int32."""
    for i in range(len(out)):
        power[i] = (work_bits[i] - _SQRT_HALF_BITS) >> 23
    for i in range(len(out)):
        work_bits[i] -= power[i] << 23
    for i in range(len(out)):
        n, m = _f(power[i]), work[i] - _f(1)
        p = _f(7.0376836292e-2)
        p = p * m - _f(1.1514610310e-1)
        p = p * m + _f(1.1676998740e-1)
        p = p * m - _f(1.2420140846e-1)
        p = p * m + _f(1.4249322787e-1)
        p = p * m - _f(1.6668057665e-1)
        p = p * m + _f(2.0000714765e-1)
        p = p * m - _f(2.4999993993e-1)
        p = p * m + _f(3.3333331174e-1)
        out[i] += n * _LOG2_LOW + (p * m * m * m - _f(0.5) * m * m) + m + n * _LOG2_HIGH


@compiled(_VECTOR)
def _log1p(u, out, work, work_bits, power):
    """out = log(1 + u), u >= 0, relative error 1e-7 also where u is tiny."""
    for i in range(len(u)):
        work[i] = _f(1) + u[i]
    for i in range(len(u)):  # what 1 + u rounds away
        out[i] = (u[i] - (work[i] - _f(1))) / work[i]
    _add_log(out, work, work_bits, power)


@compiled()
def _log_gamma_series(s):
    """log Gamma(z) - [(z - 1/2) log z - z + log(2 pi) / 2], s = 1 / z, z >= 8."""
    t = s * s
    return s * (1 / 12 - t * (1 / 360 - t * (1 / 1260 - t * (1 / 1680 - t / 1188))))


@compiled()
def _digamma_series(t):
    """log z - 1 / (2 z) - psi(z), t = 1 / z^2, z >= 6."""
    return t * (1 / 12 - t * (1 / 120 - t * (1 / 252 - t * (1 / 240 - t / 132))))


@compiled()
def _digamma(x):
    """psi(x), x > 0: the asymptotic series above 6."""
    result = 0.0
    while x < 6.0:
        result -= 1.0 / x
        x += 1.0
    return result + math.log(x) - 0.5 / x - _digamma_series(1.0 / (x * x))


@compiled()
def _small_count_terms(x, theta, share):
    """Gamma(x+theta) share^x / (Gamma(theta) x!), and theta (psi(x+theta) - psi(theta)).

    ``share``: mu / (mu + theta); x whole and small: products over k < x of (theta + k) / (1 + k),
    and no logarithm. The factors of a row are multiplied before one is taken.
    """
    factor, slope = theta * share, 1.0
    for k in range(1, int(x)):
        factor *= (theta + k) * share / (k + 1.0)
        slope += theta / (theta + k)
    return factor, slope


@compiled()
def _large_count_terms(x, theta, odds, b, g, of_theta):
    """As :func:`_small_count_terms` of any larger x, the first as its logarithm.

    By Stirling's series. ``odds``: mu / theta; ``of_theta`` (2, batches, genes) keeps
    log Gamma(theta) and psi(theta), NaN until needed.
    """
    if math.isnan(of_theta[0, b, g]):
        of_theta[0, b, g], of_theta[1, b, g] = math.lgamma(theta), _digamma(theta)
    z = x + theta
    log_z, s = math.log(z), 1.0 / z
    log_gamma = (z - 0.5) * log_z - z + _HALF_LOG_2_PI + _log_gamma_series(s)
    is_listed = x < len(_LOG_FACTORIAL) and x == int(x)
    log_factorial = _LOG_FACTORIAL[int(x)] if is_listed else math.lgamma(x + 1.0)
    logarithm = log_gamma - of_theta[0, b, g] - log_factorial - x * math.log1p(1.0 / odds)
    return logarithm, theta * (log_z - 0.5 * s - _digamma_series(s * s) - of_theta[1, b, g])


@compiled(_VECTOR)
def _one_less_share(odds, out):
    """out = theta / (mu + theta)."""
    for g in range(len(odds)):
        out[g] = _f(1) / (_f(1) + odds[g])


@compiled(_VECTOR)
def _minus_mean_over(odds, rest, theta, out):
    """out = -mu theta / (mu + theta), the slope of log p(0) of an NB in log mu."""
    for g in range(len(odds)):
        out[g] = -(odds[g] * rest[g] * theta[g])


@compiled(_VECTOR)
def _scale(a, by, out):
    for i in range(len(a)):
        out[i] = a[i] * by


@compiled(_VECTOR)
def _scale_self(a, by):
    for i in range(len(a)):
        a[i] *= by


@compiled(_VECTOR)
def _times(a, b, out):
    for i in range(len(out)):
        out[i] = a[i] * b[i]


@compiled(_VECTOR)
def _multiply(out, by):
    for i in range(len(by)):
        out[i] *= by[i]


@compiled(_VECTOR)
def _add(out, a):
    for i in range(len(out)):
        out[i] += a[i]


@compiled(_VECTOR)
def _subtract_sum(out, a, b):
    for i in range(len(out)):
        out[i] -= a[i] + b[i]


@compiled(_VECTOR)
def _less_scaled(out, a, scale, by):
    for i in range(len(out)):
        out[i] = (out[i] - a[i] * scale) * by


@compiled()
def _rows_of(n):
    """Four arrays, each of its own: rows of a matrix would not be known to be contiguous."""
    return np.empty(n, _f), np.empty(n, _f), np.empty(n, _f), np.empty(n, _f)


@compiled()
def _at_zero(
    logit,
    logit_bits,
    log_scale,
    theta,
    one_over_theta,
    share,
    share_bits,
    odds,
    lost,
    rest,
    d,
    work,
    work_bits,
    power,
):
    """What a cell expects, as if all its counts were 0; the sum of its softmax.

    Written: ``share``, the softmax but for that sum; ``odds``, mu / theta; ``lost``, -log p(0);
    ``rest``, theta / (mu + theta); ``d``, the slope of log p(0) in log mu.
    """
    power[0] = _largest(logit_bits)
    _exp(logit, power.view(_f)[0], share, share_bits, power)
    total = _sum(share)
    _scale(share, _f(math.exp(log_scale)) / total, odds)
    _multiply(odds, one_over_theta)
    _log1p(odds, lost, work, work_bits, power)
    _multiply(lost, theta)
    _one_less_share(odds, rest)
    _minus_mean_over(odds, rest, theta, d)
    return total


@compiled()
def _through_softmax(d, d_bits, share, total, by, d_bias, d_logits):
    """``d`` from the slopes in log mu to those in the logits, times ``by``; stored and summed."""
    d[len(d) - 1] = _f(0)
    _less_scaled(d, share, _sum(d) / total, by)
    _add(d_bias, d)
    _store(d, d_bits, d_logits)


@compiled()
def nb_rows(logits, bias, log_scale, theta, batch, rows, by, log_p, d_logits, d_bias, d_log_theta):
    """log p of cells under the NB with softmax mean, and ``by`` times the gradients of its sum.

    ``logits`` (cells, genes + 1) but for their ``bias``, float32 or the bits of bfloat16;
    ``log_scale`` (cells,): log library size plus headroom; ``theta`` (batches, genes), ``batch``
    (cells,): which row of it; ``rows``: (indptr, indices, counts) of the CSR rows. Written:
    ``log_p`` (cells,) float64, NaN where a logit is no number; ``d_logits``, as the logits. Added
    to: ``d_bias`` (genes + 1,), ``d_log_theta`` (batches, genes).
    """
    indptr, indices, counts = rows
    n_genes, by = theta.shape[1], _f(by)
    share, logit, d = _rows_of(n_genes + 1)[:3]
    odds, lost, rest, work = _rows_of(n_genes)
    d_theta = np.zeros(theta.shape, _f)
    share_bits, logit_bits, d_bits = share.view(np.int32), logit.view(np.int32), d.view(np.int32)
    work_bits, power = work.view(np.int32), np.empty(n_genes + 1, np.int32)
    one_over_theta = _f(1) / theta
    of_theta = np.full((2, len(theta), n_genes), np.nan)
    for i in range(len(logits)):
        th, b = theta[batch[i]], batch[i]
        _load(logits[i], bias, logit, logit_bits)
        if not _is_finite(logit):
            log_p[i] = np.nan
            continue
        total = _at_zero(
            logit,
            logit_bits,
            log_scale[i],
            th,
            one_over_theta[b],
            share,
            share_bits,
            odds,
            lost,
            rest,
            d,
            work,
            work_bits,
            power,
        )
        _subtract_sum(d_theta[b], d, lost)
        product, of_counts = 1.0, 0.0
        for k in range(indptr[i], indptr[i + 1]):
            g, x = indices[k], float(counts[k])
            # Written out in both kernels: as a function of its own it costs two thirds more.
            if x <= _PRODUCT and x == int(x):
                share_of_mean = float(odds[g]) * float(rest[g])
                factor, slope = _small_count_terms(x, float(th[g]), share_of_mean)
                product *= factor
            else:
                logarithm, slope = _large_count_terms(
                    x, float(th[g]), float(odds[g]), b, g, of_theta
                )
                of_counts += logarithm
            if not _SMALL < product < _LARGE:
                of_counts += math.log(product)
                product = 1.0
            pull = x * float(rest[g])
            d[g] += _f(pull)
            d_theta[b, g] += _f(slope - pull)
        log_p[i] = of_counts + math.log(product) - float(_sum(lost))
        _through_softmax(d, d_bits, share, total, by, d_bias, d_logits[i])
    for b in range(len(theta)):
        _scale(d_theta[b], by, work)
        _add(d_log_theta[b], work)


@compiled(_VECTOR)
def _mixed_zero(lost, kept, zero_odds, d_zero, log_p, work):
    """log p(0) = log((o + e^t) / (1 + o)), t = -lost; kept: e^t, then its share of p(0)."""
    for g in range(len(lost)):
        work[g] = (zero_odds[g] + kept[g]) / (_f(1) + zero_odds[g])
    for g in range(len(lost)):
        kept[g] = kept[g] / (zero_odds[g] + kept[g])
    for g in range(len(lost)):
        d_zero[g] = _f(1) / (_f(1) + zero_odds[g]) - kept[g]
    for g in range(len(lost)):
        log_p[g] = _f(0)


@compiled()
def zinb_rows(
    logits,
    zero_logits,
    bias,
    zero_bias,
    log_scale,
    theta,
    batch,
    rows,
    by,
    log_p,
    d_logits,
    d_zero_logits,
    d_bias,
    d_zero_bias,
    d_log_theta,
):
    """As :func:`nb_rows` for the ZINB; ``zero_logits`` (cells, genes): those of a lost count."""
    indptr, indices, counts = rows
    n_genes, by = theta.shape[1], _f(by)
    share, logit, d = _rows_of(n_genes + 1)[:3]
    odds, lost, rest, work = _rows_of(n_genes)
    kept, zero_odds, at_zero, d_zero = _rows_of(n_genes)
    d_theta = np.zeros(theta.shape, _f)
    share_bits, logit_bits, d_bits = share.view(np.int32), logit.view(np.int32), d.view(np.int32)
    kept_bits, zero_bits = kept.view(np.int32), zero_odds.view(np.int32)
    d_zero_bits = d_zero.view(np.int32)
    work_bits, power = work.view(np.int32), np.empty(n_genes + 1, np.int32)
    one_over_theta = _f(1) / theta
    of_theta = np.full((2, len(theta), n_genes), np.nan)
    for i in range(len(logits)):
        th, b = theta[batch[i]], batch[i]
        _load(logits[i], bias, logit, logit_bits)
        _load(zero_logits[i], zero_bias, work, work_bits)
        if not (_is_finite(logit) and _is_finite(work)):
            log_p[i] = np.nan
            continue
        _exp(work, _f(0), zero_odds, zero_bits, power)
        total = _at_zero(
            logit,
            logit_bits,
            log_scale[i],
            th,
            one_over_theta[b],
            share,
            share_bits,
            odds,
            lost,
            rest,
            d,
            work,
            work_bits,
            power,
        )
        _scale(lost, _f(-1), work)
        _exp(work, _f(0), kept, kept_bits, power)
        _mixed_zero(lost, kept, zero_odds, d_zero, at_zero, work)
        _add_log(at_zero, work, work_bits, power)
        # What a count of 0 says, by the share of it that was not lost; counts take theirs back.
        for k in range(indptr[i], indptr[i + 1]):
            kept[indices[k]] = _f(1)
        _multiply(d, kept)
        _times(lost, kept, work)
        _subtract_sum(d_theta[b], d, work)
        product, of_counts = 1.0, 0.0
        for k in range(indptr[i], indptr[i + 1]):
            g, x = indices[k], float(counts[k])
            if x <= _PRODUCT and x == int(x):
                share_of_mean = float(odds[g]) * float(rest[g])
                factor, slope = _small_count_terms(x, float(th[g]), share_of_mean)
                product *= factor
            else:
                logarithm, slope = _large_count_terms(
                    x, float(th[g]), float(odds[g]), b, g, of_theta
                )
                of_counts += logarithm
            was_kept = 1.0 / (1.0 + float(zero_odds[g]))
            product *= was_kept
            of_counts -= float(lost[g]) + float(at_zero[g])
            if not _SMALL < product < _LARGE:
                of_counts += math.log(product)
                product = 1.0
            pull = x * float(rest[g])
            d[g] += _f(pull)
            d_theta[b, g] += _f(slope - pull)
            d_zero[g] = _f(was_kept - 1.0)
        log_p[i] = of_counts + math.log(product) + float(_sum(at_zero))
        _through_softmax(d, d_bits, share, total, by, d_bias, d_logits[i])
        _scale_self(d_zero, by)
        _add(d_zero_bias, d_zero)
        _store(d_zero, d_zero_bits, d_zero_logits[i])
    for b in range(len(theta)):
        _scale(d_theta[b], by, work)
        _add(d_log_theta[b], work)


@compiled()
def sparse_rows(x):
    """Dense rows as CSR: indptr, indices, values."""
    indptr = np.zeros(len(x) + 1, np.int64)
    for i in range(len(x)):
        n = 0
        for g in range(x.shape[1]):
            n += x[i, g] != 0
        indptr[i + 1] = indptr[i] + n
    indices, values = np.empty(indptr[-1], np.int32), np.empty(indptr[-1], _f)
    for i in range(len(x)):
        k = indptr[i]
        for g in range(x.shape[1]):
            if x[i, g] != 0:
                indices[k], values[k] = g, x[i, g]
                k += 1
    return indptr, indices, values


@compiled()
def gather_rows(indptr, indices, counts, cells, to_common_depth, out):
    """CSR rows of some cells, and log(1 + counts at the common depth) of their entries.

    ``to_common_depth`` (some cells,). Written to the front of ``out``: indptr, indices, counts,
    log counts, and two arrays for work, which are not new memory at every step.
    """
    out_indptr, out_indices, out_counts, seen, at_depth, bits = out
    out_indptr[0] = 0
    for i in range(len(cells)):
        start, to, scale = indptr[cells[i]], out_indptr[i], _f(to_common_depth[i])
        n = indptr[cells[i] + 1] - start
        out_indptr[i + 1] = to + n
        for k in range(n):
            out_indices[to + k] = indices[start + k]
        for k in range(n):
            out_counts[to + k] = counts[start + k]
        for k in range(n):
            at_depth[to + k] = counts[start + k] * scale
    n = out_indptr[len(cells)]
    work = bits[0, :n].view(_f)
    _log1p(at_depth[:n], seen[:n], work, bits[0, :n], bits[1, :n])


@compiled(_VECTOR)
def sparse_product(indptr, indices, values, weight, bias, out):
    """out = X weight + bias; X: CSR rows (cells, genes), ``weight`` (genes, hidden)."""
    for i in range(len(out)):
        row, stop = out[i], indptr[i + 1]
        for j in range(len(row)):
            row[j] = bias[j]
        k = indptr[i]
        while k + 4 <= stop:  # four at a time: the row is read and written once for all
            a, b, c, d = values[k], values[k + 1], values[k + 2], values[k + 3]
            wa, wb = weight[indices[k]], weight[indices[k + 1]]
            wc, wd = weight[indices[k + 2]], weight[indices[k + 3]]
            for j in range(len(row)):
                row[j] += a * wa[j] + b * wb[j] + c * wc[j] + d * wd[j]
            k += 4
        for rest in range(k, stop):
            a, wa = values[rest], weight[indices[rest]]
            for j in range(len(row)):
                row[j] += a * wa[j]


@compiled(_VECTOR)
def sparse_product_gradient(indptr, indices, values, d_out, d_weight):
    """d_weight += X' d_out, with X as in :func:`sparse_product`."""
    for i in range(len(d_out)):
        row = d_out[i]
        for k in range(indptr[i], indptr[i + 1]):
            a, w = values[k], d_weight[indices[k]]
            for j in range(len(row)):
                w[j] += a * row[j]


@compiled(_SUM)
def hidden_units(x, gain, shift, kept, scale, epsilon, normal, inverse_sd, out):
    """Layer norm (``gain`` of length 0: none), ReLU and dropout of rows (cells, hidden).

    ``kept`` (cells, hidden) uint8: units not dropped, which grow by ``scale``. Written for the way
    back: ``normal``, the normalised rows, ``inverse_sd`` (cells,); and ``out``.
    """
    n = x.shape[1]
    has_norm = len(gain) > 0
    for i in range(len(x)):
        row, xhat, to, keep = x[i], normal[i], out[i], kept[i]
        if has_norm:
            mean = _sum(row) / _f(n)
            variance = _f(0)
            for j in range(n):
                variance += (row[j] - mean) * (row[j] - mean)
            inverse = _f(1) / np.sqrt(variance / _f(n) + epsilon)
            inverse_sd[i] = inverse
            for j in range(n):
                xhat[j] = (row[j] - mean) * inverse
            for j in range(n):
                to[j] = max(xhat[j] * gain[j] + shift[j], _f(0)) * (_f(keep[j]) * scale)
        else:
            for j in range(n):
                to[j] = max(row[j], _f(0)) * (_f(keep[j]) * scale)


@compiled(_SUM)
def hidden_units_gradient(out, d_out, gain, scale, normal, inverse_sd, d_gain, d_shift, d_x):
    """The way back through :func:`hidden_units`; adds to ``d_gain`` and ``d_shift``."""
    n = out.shape[1]
    has_norm = len(gain) > 0
    for i in range(len(out)):
        row, xhat, d, to = out[i], normal[i], d_out[i], d_x[i]
        for j in range(n):
            to[j] = d[j] * scale if row[j] > _f(0) else _f(0)
        if has_norm:
            for j in range(n):
                d_gain[j] += to[j] * xhat[j]
            for j in range(n):
                d_shift[j] += to[j]
            for j in range(n):
                to[j] *= gain[j]
            mean, slope = _f(0), _f(0)
            for j in range(n):
                mean += to[j]
            for j in range(n):
                slope += to[j] * xhat[j]
            mean, slope = mean / _f(n), slope / _f(n)
            for j in range(n):
                to[j] = (to[j] - mean - xhat[j] * slope) * inverse_sd[i]


@compiled()
def sample_posterior(q, noise, lowest, highest, z, kl):
    """z = m + sqrt(v) noise, and the KL of N(m, v) from N(0, 1), mean over the cells.

    ``q`` (cells, 2 latent): means, then log variances, which are clamped. Written: the first
    columns of ``z``; ``kl`` (latent,) float64.
    """
    n, n_latent = noise.shape
    for i in range(n):
        for j in range(n_latent):
            mean, log_variance = q[i, j], min(max(q[i, n_latent + j], lowest), highest)
            sd = math.exp(0.5 * log_variance)
            z[i, j] = mean + sd * noise[i, j]
            kl[j] += 0.5 * (mean * mean + sd * sd - 1.0 - log_variance)
    for j in range(n_latent):
        kl[j] /= n


@compiled()
def sample_posterior_gradient(q, noise, lowest, highest, d_z, push, d_q):
    """The way back through :func:`sample_posterior`; ``push`` (latent,): the KL's weight a cell."""
    n, n_latent = noise.shape
    for i in range(n):
        for j in range(n_latent):
            raw = q[i, n_latent + j]
            variance = math.exp(raw)
            d_q[i, j] = d_z[i, j] + push[j] * q[i, j]
            slope = d_z[i, j] * math.sqrt(variance) * noise[i, j] + push[j] * (variance - 1.0)
            d_q[i, n_latent + j] = 0.5 * slope if lowest <= raw <= highest else 0.0
