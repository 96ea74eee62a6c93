"""What an entity's event times, as a sequence, say against its model: the tests, and one answer.

`models.tpp.sequence` keeps the counts and sums of the last WINDOW expected events. Here each family
of departures gets a statistic with a null that is known, its two tails become an e-value, and the
weighted mean of the e-values is the one statistic (Vovk and Wang, E-values: calibration,
combination and applications, Annals of Statistics 2021): half of the weight on a change of rate,
half spread over changes of shape. An average of e-values is an e-value whatever the dependence
between them, so no family is chosen by looking. `models.tpp.sequence_null` gives its p-value.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from models.baselines.renewal import log_normal_log_survival
from models.tpp.gamma import log_gamma_tails, log_poisson_tails
from models.tpp.sequence import (
    BLOCK,
    BLOCKS,
    CELL,
    CELLS,
    EDGE,
    FAST,
    LEVELS,
    SHORTEST,
    SLOW,
    blocks_passed,
)

# What each family is for. Two-sided ones tell both directions.
FAMILIES = (
    "rate",  # more or fewer events than expected
    "silence",  # nothing since the last event
    "lull",  # the longest spacing
    "place",  # more or fewer events in some part of the window than in the rest
    "arrival_ks",  # times not uniform over the window
    "spacing_ks",  # spacings not exponential
    "dispersion",  # spacings too regular or too irregular
    "bunching",  # events within FAST of each other: too many or too few
    "clustering",  # the same within SLOW
    "regulation",  # the count keeps too close to its expectation
    "serial",  # long and short spacings alternate, or keep together
)
CELLS_IN_ALL = BLOCKS * CELLS
# Half on a change of rate, which no other family sees as well; the other half on the rest alike.
LOG_WEIGHT = np.log([0.5] + [0.5 / (len(FAMILIES) - 1)] * (len(FAMILIES) - 1))
X_LOG_X = np.array([n * math.log(n) if n else 0.0 for n in range(1024)])
_SPANS = (1, 2, 3, 4, 6, 8, 10)  # cells
_LOG_2 = math.log(2.0)
_EULER = 0.5772156649015329


@njit(cache=True)
def log_e_value(log_p):  # type: ignore[no-untyped-def]
    """Turn a p-value into an e-value: the integral of k p^(k-1) over k in (0, 1).

    It spreads its bets over how strong the evidence may be: 1 / (p log(p)^2) far in the tail, 1/2
    at p = 1 (Vovk and Wang 2021, equation 2).
    """
    u = -log_p
    if u < 1e-3:
        return -_LOG_2 + u / 3.0
    # (1 - p + p log p) / (p log(p)^2)
    return math.log(1.0 - math.exp(-u) * (1.0 + u)) + u - 2.0 * math.log(u)


@njit(cache=True)
def two_sided(lower, upper):  # type: ignore[no-untyped-def]
    """Log of twice the smaller of two tails, given as logs."""
    return min(_LOG_2 + min(lower, upper), 0.0)


@njit(cache=True)
def skewed_tails(z, skew):  # type: ignore[no-untyped-def]
    """Log tails of a standardised variable with skewness `skew` > 0.

    The right tail is that of a shifted gamma variable with that skewness (shape 4 / skew^2). Its
    left tail ends too early, the normal's falls too slowly: in simulations of 5 to 100 expected
    events the geometric mean of both lies nearest.
    """
    shape = 4.0 / (skew * skew)
    # Near its end the gamma's left tail would claim any certainty.
    lower, upper = log_gamma_tails(shape, max(shape + z * math.sqrt(shape), 0.05 * shape))
    return 0.5 * (lower + log_normal_log_survival(-z)), upper


@njit(cache=True)
def dispersion_tails(events, total, logs):  # type: ignore[no-untyped-def]
    """Log tails of Moran's (1951) statistic: events * log of the mean spacing - the sum of logs.

    It is the log likelihood ratio's part that tells gamma spacings of any shape from exponential
    ones, whatever their rate; small means regular. Its null is taken for gamma with its exact mean
    and variance. Bartlett's chi-squared, made for few groups with many degrees of freedom, is off
    by .08 standard deviations at 100 spacings.
    """
    if events < 2.0:
        return 0.0, 0.0
    # Spacings count as SHORTEST at least, in `logs` too. The floor keeps a clockwork's log finite.
    mean = max(total / events, SHORTEST)
    moran = max(events * math.log(mean) - logs, 1e-6 * events)
    # The mean of n exponentials is independent of their ratios, so that its part is subtracted:
    # digamma(n) - log n and trigamma(n) by their asymptotic series, to 1e-4 from n = 2 on.
    i = 1.0 / events
    digamma_less_log = -i * (0.5 + i * (1.0 / 12.0 - i * i / 120.0))
    trigamma = i * (1.0 + i * (0.5 + i * (1.0 / 6.0 - i * i / 30.0)))
    expected = events * (_EULER + digamma_less_log)
    variance = events * (math.pi * math.pi / 6.0 - events * trigamma)
    return log_gamma_tails(expected * expected / variance, moran * expected / variance)


@njit(cache=True)
def pairs_z(pairs, events, length, reach, slid):  # type: ignore[no-untyped-def]
    """Standardise the sum of exp(-distance / reach) over pairs of events, given their number.

    The score of Hawkes's (1971) excitation with an exponential kernel. Given their number, events
    are uniform over the window, so mean and variance are those of a U-statistic (Hoeffding 1948).
    In a window that has slid, an event also pairs with those before the window.
    """
    q = math.exp(-length / reach)
    share = reach / length
    mean = 2.0 * share * (1.0 - share * (1.0 - q))
    square = share * (1.0 - 0.5 * share * (1.0 - q * q))
    inner = share * share * (4.0 - 8.0 * share * (1.0 - q) + share * (1.0 - q * q) + 2.0 * q)
    couples = events * (events - 1.0)
    variance = couples * (
        0.5 * (square - mean * mean) + max(events - 2.0, 0.0) * max(inner - mean * mean, 0.0)
    )
    expected = couples * share if slid else 0.5 * couples * mean
    return (pairs - expected) / math.sqrt(max(variance, 1e-9))


@njit(cache=True)
def pairs_skew(events, length, reach):  # type: ignore[no-untyped-def]
    """Skewness of `pairs_z`: third cumulants of pairs and of triangles, over the variance's.

    For a kernel of reach 1 the triangles' integral of the three kernels is 3/2. The last factor is
    for the window's ends, fitted to simulations of 10 to 100 expected events.
    """
    density = events / length
    inside = (1.0 / 3.0 + 1.5 * density * reach) * math.sqrt(8.0 / (reach * length)) / density
    # Less than the floor makes no difference, and would make the gamma's shape large.
    return max(inside / (1.0 + 6.0 * reach / length), 0.05)


@njit(cache=True)
def regulation_log_p(mean_square):  # type: ignore[no-untyped-def]
    """Log P that the integral of squared Brownian motion over [0, 1] is below `mean_square`.

    The first term of Cameron and Martin's (1944) series; it bounds the rest, which alternates.
    """
    z = 0.5 / math.sqrt(mean_square)
    return min(0.5 * _LOG_2 + _LOG_2 + log_normal_log_survival(z), 0.0)


@njit(cache=True)
def _log_ks(distance):  # type: ignore[no-untyped-def]
    """Log of the first term of Kolmogorov's (1933) tail; distances seen on a grid are smaller."""
    return min(_LOG_2 - 2.0 * distance * distance, 0.0)


@njit(cache=True)
def lull_log_p(longest, length):  # type: ignore[no-untyped-def]
    """Log P that a spacing of `longest` begins anywhere in a window of `length`.

    Such spacings begin at the window's start or after an event early enough, at a rate of
    exp(-longest): Poisson in the limit (Aldous 1989), and an upper bound by the union.
    """
    expected = (1.0 + max(length - longest, 0.0)) * math.exp(-longest)
    if expected > 1e-9:
        return math.log(-math.expm1(-expected))
    return math.log(1.0 + max(length - longest, 0.0)) - longest


@njit(cache=True)
def serial_log_p(products, events):  # type: ignore[no-untyped-def]
    """Log of the two-sided p-value of the sum of products of successive centred survivals.

    They are uniform, so each product has variance 1/144; the sum's excess kurtosis, some 5 / events
    since neighbours share a factor, is taken out of z.
    """
    z = abs(products) * 12.0 / math.sqrt(events - 1.0)
    z /= math.sqrt(1.0 + 0.4 * z * z / events)
    return min(_LOG_2 + log_normal_log_survival(z), 0.0)


@njit(cache=True)
def gather(entity, waited, count, level):  # type: ignore[no-untyped-def]
    """Sum up the window as it stands `waited` expected events after the last event.

    Args:
        entity: SEQUENCE record.
        waited: expected events since the last event, the censored last spacing, >= 0.
        count: float64[CELLS_IN_ALL], filled with the events of each cell, oldest first.
        level: float64[LEVELS], filled with the spacings of each level.

    Returns:
        (length, slid, sums): of the window in expected events; whether a block has left it; and
        (sum, squares, logs, longest, fast pairs, slow pairs, serial) over the spacings that ended.
    """
    position = entity.position + waited
    passed = min(blocks_passed(position), BLOCKS)
    full = entity.full + passed
    slid = entity.slid != 0 or full > BLOCKS - 1
    oldest = max(BLOCKS - 1 - passed, -1)  # how many blocks back are still in the window
    length = min(full, BLOCKS - 1) * BLOCK + position - blocks_passed(position) * BLOCK
    total = squares = logs = longest = fast = slow = serial = 0.0
    level[:] = 0.0
    count[:] = 0.0
    cell = 0
    for back in range(min(entity.full, oldest), -1, -1):
        b = (entity.block - back) % BLOCKS
        for j in range(CELLS):
            count[cell] = entity.events[b * CELLS + j]
            cell += 1
        total += entity.total[b]
        squares += entity.squares[b]
        logs += entity.logs[b]
        longest = max(longest, entity.longest[b])
        fast += entity.fast_pairs[b]
        slow += entity.slow_pairs[b]
        serial += entity.serial[b]
        for j in range(LEVELS):
            level[j] += entity.levels[b, j]
    return length, slid, (total, squares, logs, longest, fast, slow, serial)


@njit(cache=True)
def place_log_e(count, events, length, x_log_x):  # type: ignore[no-untyped-def]
    """Log of the mean likelihood ratio of a changed rate over segments of the window.

    For each segment of cells of the lengths in _SPANS, the events in it against those outside,
    given their sum (binomial). The likelihood ratio is averaged over a normal prior with sd 1 of
    the log ratio of both rates, by Laplace's method; the mean over segments is the average
    likelihood ratio of Chan and Walther (2013), which pays less than a maximum for looking around.

    Args:
        count: float64[CELLS_IN_ALL], events by cell.
        events: their sum.
        length: of the window.
        x_log_x: float64[k], of 0 to k - 1; more events are computed.
    """
    cells = min(math.ceil((length - EDGE) / CELL), CELLS_IN_ALL)
    if events < 1.0 or cells < 2:
        return 0.0
    whole = _x_log_x(events, x_log_x)
    last = length - (cells - 1) * CELL
    largest = 0.0
    scaled = 0.0
    segments = 0
    for s in range(len(_SPANS)):
        span = _SPANS[s]
        if span >= cells:
            break
        inside = 0.0
        for j in range(span):
            inside += count[j]
        for first in range(cells - span + 1):
            if first > 0:
                inside += count[first + span - 1] - count[first - 1]
            at_end = first + span == cells
            if first == 0 or at_end:
                share = ((span - 1) * CELL + last if at_end else span * CELL) / length
                log_in, log_out = math.log(share), math.log1p(-share)
                prior = events * share * (1.0 - share)
                shrink, width = prior / (1.0 + prior), 0.5 * math.log1p(prior)
            fit = (
                _x_log_x(inside, x_log_x) + _x_log_x(events - inside, x_log_x) - whole
                - inside * log_in - (events - inside) * log_out
            )  # fmt: skip
            term = shrink * max(fit, 0.0) - width
            segments += 1
            if term > largest:
                scaled = scaled * math.exp(largest - term) + 1.0
                largest = term
            else:
                scaled += math.exp(term - largest)
    return largest + math.log(scaled / segments)


@njit(cache=True)
def _x_log_x(n, table):  # type: ignore[no-untyped-def]
    if n < len(table):
        return table[int(n)]
    return n * math.log(n)


@njit(cache=True)
def _path(count, events, length):  # type: ignore[no-untyped-def]
    """Return how far the count strays: mean square from time, most from its own rate.

    Both by cells' ends. The mean square is in units of Brownian motion on [0, 1] and has the part
    added that a grid cannot see: CELL / 6 at each moment, the variance of a Brownian bridge.
    """
    cells = min(math.ceil((length - EDGE) / CELL), CELLS_IN_ALL)
    seen = 0.0
    begun = 0.0
    square = length * CELL / 6.0
    stray = 0.0
    for j in range(cells):
        ended = min((j + 1) * CELL, length)
        seen += count[j]
        square += (seen - ended) ** 2 * (ended - begun)
        stray = max(stray, abs(seen - events * ended / length))
        begun = ended
    return square / (length * length), stray / math.sqrt(max(events, 1.0))


@njit(cache=True)
def judge(entity, waited, count, level, x_log_x, log_e):  # type: ignore[no-untyped-def]
    """Fill log_e, float64[F], with the log e-value of each family; return the length."""
    length, slid, sums = gather(entity, waited, count, level)
    total, _, logs, longest, fast, slow, serial = sums
    events = count.sum()
    log_e[:] = 0.0
    if length <= EDGE:
        return 0.0
    lower, upper = log_poisson_tails(events, length)
    log_e[0] = log_e_value(two_sided(lower, upper))
    log_e[1] = log_e_value(-waited)
    log_e[2] = log_e_value(lull_log_p(max(longest, waited), length))
    log_e[3] = place_log_e(count, events, length, x_log_x)
    mean_square, stray = _path(count, events, length)
    log_e[4] = log_e_value(_log_ks(stray))
    log_e[9] = log_e_value(regulation_log_p(mean_square))
    if events < 2.0:
        return length
    below = 0.0
    distance = 0.0
    for j in range(LEVELS - 1):
        below += level[j]
        distance = max(distance, abs(below - events * (j + 1) / LEVELS))
    log_e[5] = log_e_value(_log_ks(distance / math.sqrt(events)))
    lower, upper = dispersion_tails(events, total, logs)
    log_e[6] = log_e_value(two_sided(lower, upper))
    for k in range(2):
        pairs, reach = (fast, FAST) if k == 0 else (slow, SLOW)
        z = pairs_z(pairs, events, length, reach, slid)
        lower, upper = skewed_tails(z, pairs_skew(events, length, reach))
        log_e[7 + k] = log_e_value(two_sided(lower, upper))
    log_e[10] = log_e_value(serial_log_p(serial, events))
    return length


@njit(cache=True)
def combine(log_e, log_weight):  # type: ignore[no-untyped-def]
    """Log of the weighted mean of e-values given as logs: itself an e-value."""
    largest = -math.inf
    for k in range(len(log_e)):
        largest = max(largest, log_e[k] + log_weight[k])
    total = 0.0
    for k in range(len(log_e)):
        total += math.exp(log_e[k] + log_weight[k] - largest)
    return largest + math.log(total)
