"""Hyena models from their formulas in float64 numpy: no torch module, no FFT."""

import math

import numpy as np
import torch


def oracle_filter(w, layer, shift):
    """h (D, K): implicit filter times decay window, None for no window, from the formulas, no torch and no FFT."""
    p = {k.split("filter_fn.")[1]: v for k, v in w.items() if k.startswith(f"backbone.layers.{layer}.mixer.filter_fn.")}
    a, freq = p["pos_emb.z"][0], p["implicit_filter.1.freq"][0]
    for i in (0, 2, 4):
        a = np.sin(freq * (a @ p[f"implicit_filter.{i}.weight"].T + p[f"implicit_filter.{i}.bias"]))
    window = 1 if shift is None else np.exp(-p["pos_emb.t"][0] * np.abs(p["modulation.deltas"][0])) + shift
    return ((a @ p["implicit_filter.6.weight"].T) * window).T


def oracle_hidden(plain, ids, shift):
    """Last hidden states (B, L, D) in float64, each convolution as its defining sum."""
    w = {name: tensor.double().numpy() for name, tensor in plain.items()}

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def affine(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def convolve(k, u):  # (C, K), (B, C, L): row n of the matrix holds the tap at lag n - m in column m
        lag = np.subtract.outer(np.arange(u.shape[-1]), np.arange(u.shape[-1]))
        taps = k[:, lag.clip(0, k.shape[-1] - 1)] * ((lag >= 0) & (lag < k.shape[-1]))
        return np.einsum("cnm,bcm->bcn", taps, u)

    x = w["backbone.embeddings.word_embeddings.weight"][ids.numpy()]
    for i in range(1 + max(int(name.split(".")[2]) for name in w if ".layers." in name)):
        at = f"backbone.layers.{i}"
        z = affine(norm(x, f"{at}.norm1"), f"{at}.mixer.in_proj").transpose(0, 2, 1)
        taps = w[f"{at}.mixer.short_filter.weight"][:, 0, ::-1]  # stored last lag first
        x0, x1, v = np.split(convolve(taps, z) + w[f"{at}.mixer.short_filter.bias"][:, None], 3, axis=1)
        g = x1 * v
        y = x0 * (convolve(oracle_filter(w, i, shift), g) + w[f"{at}.mixer.filter_fn.bias"][:, None] * g)
        x = x + affine(y.transpose(0, 2, 1), f"{at}.mixer.out_proj")
        h = affine(norm(x, f"{at}.norm2"), f"{at}.mlp.fc1")
        h = 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        x = x + affine(h, f"{at}.mlp.fc2")
    return torch.from_numpy(norm(x, "backbone.ln_f"))


def oracle(plain, ids, shift=0.0):
    return oracle_hidden(plain, ids, shift) @ plain["lm_head.weight"].double().T
