"""A HyenaDNA as a stranger might write it for trust_remote_code: names of tensors and calls as on the hub, shift 0.05.

Copied into a checkpoint's folder by the tests, and run by transformers from there.
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class OtherConfig(PretrainedConfig):
    model_type = "other_hyena"


class Positions(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.register_buffer("z", torch.zeros(1, config.max_seq_len, config.emb_dim))
        self.register_buffer("t", torch.zeros(1, config.max_seq_len, 1))


class Sine(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.freq = nn.Parameter(torch.ones(1, width))

    def forward(self, x):
        return torch.sin(self.freq * x)


class Window(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.register_buffer("deltas", torch.zeros(1, 1, width))

    def forward(self, t, h):
        return h * (torch.exp(-t * self.deltas.abs()) + 0.05)


class Filter(nn.Module):
    calls = 0

    def __init__(self, config):
        super().__init__()
        width, order = config.d_model, config.filter_order
        self.bias = nn.Parameter(torch.zeros(width))
        self.pos_emb = Positions(config)
        sine = Sine(order)
        inner = [m for _ in range(config.num_inner_mlps) for m in (nn.Linear(order, order), sine)]
        self.implicit_filter = nn.Sequential(
            nn.Linear(config.emb_dim, order), sine, *inner, nn.Linear(order, width, bias=False)
        )
        self.modulation = Window(width)

    def filter(self, L, *args, **kwargs):
        Filter.calls += 1
        z, t = self.pos_emb.z[:, :L], self.pos_emb.t[:, :L]
        return self.modulation(t, self.implicit_filter(z.to(self.bias.dtype)))

    def forward(self, x, L, k=None, bias=None, *args, **kwargs):
        k = self.filter(L)[0].T if k is None else k
        y_f = torch.fft.rfft(x.float(), 2 * L) * torch.fft.rfft(k.float(), 2 * L)
        y = torch.fft.irfft(y_f, 2 * L)[..., :L]
        return (y + x * bias[:, None]).to(x.dtype)


class Operator(nn.Module):
    def __init__(self, config):
        super().__init__()
        width = config.d_model
        self.width = width
        self.in_proj = nn.Linear(width, 3 * width)
        self.short_filter = nn.Conv1d(3 * width, 3 * width, config.short_filter_order, groups=3 * width)
        self.filter_fn = Filter(config)
        self.out_proj = nn.Linear(width, width)

    def forward(self, u):
        length, pad = u.shape[1], self.short_filter.kernel_size[0] - 1
        x0, x1, v = self.short_filter(F.pad(self.in_proj(u).transpose(1, 2), (pad, 0))).split(self.width, dim=1)
        k = self.filter_fn.filter(length)[0].transpose(0, 1).reshape(1, self.width, length)
        v = self.filter_fn(v * x1, length, k=k[0], bias=self.filter_fn.bias.reshape(1, self.width)[0])
        return self.out_proj((v * x0).transpose(1, 2))


class Mlp(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.fc1 = nn.Linear(config.d_model, config.d_inner)
        self.fc2 = nn.Linear(config.d_inner, config.d_model)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(config.d_model), nn.LayerNorm(config.d_model)
        self.mixer, self.mlp = Operator(config), Mlp(config)

    def forward(self, x):
        x = x + self.mixer(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Backbone(nn.Module):
    def __init__(self, config):
        super().__init__()
        rows = math.ceil(config.vocab_size / 8) * 8
        self.embeddings = nn.ModuleDict({"word_embeddings": nn.Embedding(rows, config.d_model)})
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.d_model)

    def forward(self, ids):
        x = self.embeddings["word_embeddings"](ids)
        for layer in self.layers:
            x = layer(x)
        return self.ln_f(x)


class OtherForCausalLM(PreTrainedModel):
    config_class = OtherConfig
    base_model_prefix = "hyena"
    _tied_weights_keys: ClassVar = {r"(.*implicit_filter)\.(3|5)\.freq": r"\1.1.freq"}

    def __init__(self, config):
        super().__init__(config)
        self.hyena = nn.Module()
        self.hyena.backbone = Backbone(config)
        self.lm_head = nn.Linear(config.d_model, 16, bias=False)
        self.post_init()

    def forward(self, input_ids, labels=None, **kwargs):
        return CausalLMOutput(logits=self.lm_head(self.hyena.backbone(input_ids)))
