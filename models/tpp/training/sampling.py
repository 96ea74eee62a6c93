"""Draw sequences from a trained model, by the stream's own encoder and the torch decoder."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from models.tpp.sequences import Sequences
from models.tpp.training.streamable import Model, stream_weights


def _pick(params: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw from mixtures of normals params [n, 3 k], float64[n]."""
    weight, mean, log_sd = np.split(params, 3, axis=1)
    edges = np.cumsum(np.exp(weight), 1)
    which = (rng.random((len(params), 1)) * edges[:, -1:] > edges).sum(1)
    rows = np.arange(len(params)), which.clip(0, mean.shape[1] - 1)
    found: NDArray[np.float64] = rng.normal(mean[rows], np.exp(log_sd[rows]))
    return found


def sample(model: Model, begin: Sequences, events: int, seed: int) -> Sequences:
    """Continue sequences by what the model predicts.

    Args:
        model: trained, with the streamable encoder; without a mark head marks stay those that
            `begin` ended with.
        begin: one event or more of each sequence, the history so far.
        events: how many to draw for each.
        seed: everything random follows from it.

    Returns:
        Only the drawn events, their times on the clock of `begin`.
    """
    rng = np.random.default_rng(seed)
    encoder, scales = stream_weights(model), model.form.scales
    memories = [encoder.new_memory() for _ in range(begin.count)]
    x = np.zeros((begin.count, model.form.memory + model.form.features), np.float32)
    mark = np.zeros(begin.count, np.int64)
    amount = np.ones(begin.count)
    for s in range(begin.count):
        for n in range(begin.starts[s], begin.starts[s + 1]):
            mark[s] = 0 if begin.mark is None else begin.mark[n]
            amount[s] = 1.0 if begin.amount is None else begin.amount[n]
            x[s] = encoder.advance(memories[s], begin.time[n], int(mark[s]), amount[s])
    clock = begin.time[begin.starts[1:] - 1].copy()
    times, marks, amounts = [], [], []
    model.eval()
    with torch.no_grad():
        for _ in range(events):
            z = model.decoder.trunk(torch.from_numpy(x))
            y = _pick(model.decoder.gap_parameters(z).double().numpy(), rng)
            gap = np.exp(y * scales.log_gap_sd + scales.log_gap_mean)
            # A gap below the clock's own grain would not be one.
            clock = np.maximum(clock + gap, np.nextafter(clock, math.inf))
            if model.decoder.mark is not None:
                chance = torch.exp(model.decoder.mark_log_probability(z)).double().numpy()
                edges = np.cumsum(chance, 1)
                draw = rng.random((begin.count, 1)) * edges[:, -1:]
                mark = (draw > edges).sum(1).clip(0, model.form.marks - 1)
            if model.decoder.amount is not None:
                told = torch.from_numpy(y.astype(np.float32)), torch.from_numpy(mark)
                params = model.decoder.amount_parameters(z, *told).double().numpy()
                drawn = _pick(params, rng)
                amount = np.exp(drawn * scales.log_amount_sd + scales.log_amount_mean)
            for s, memory in enumerate(memories):
                x[s] = encoder.advance(memory, clock[s], int(mark[s]), amount[s])
            times.append(clock.copy())
            marks.append(mark.copy())
            amounts.append(amount.copy())
    return Sequences.join(
        list(np.stack(times, 1)),
        list(np.stack(marks, 1)) if model.form.marks else None,
        list(np.stack(amounts, 1)) if model.form.amount else None,
    )
