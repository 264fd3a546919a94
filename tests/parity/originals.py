"""The encoders of the original projects, restated in PyTorch under those projects' own names."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class FeedForward(nn.Module):
    """Two linear layers under the names `first` and `second`."""

    def __init__(self, width, names, activation):
        super().__init__()
        self.names, self.activation = names, activation
        self.add_module(names[0], nn.Linear(width, 2 * width))
        self.add_module(names[1], nn.Linear(2 * width, width))

    def forward(self, x):
        first, second = (getattr(self, name) for name in self.names)
        return second(self.activation(first(x)))


def quick_gelu(x):
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {
    'gelu': functional.gelu,
    'gelu_tanh': lambda x: functional.gelu(x, approximate='tanh'),
    'quick_gelu': quick_gelu,
}


class OpenAIBlock(nn.Module):
    """CLIP's: torch's own attention, whose three projections are one `in_proj_weight`."""

    def __init__(self, width, heads, activation):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = FeedForward(width, ('c_fc', 'c_proj'), activation)

    def forward(self, x, mask=None):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class OpenAITransformer(nn.Module):
    def __init__(self, width, heads, depth, activation):
        super().__init__()
        self.resblocks = nn.ModuleList(OpenAIBlock(width, heads, activation) for _ in range(depth))


class OpenAIVision(nn.Module):
    def __init__(self, width, heads, depth, patch, grid, projection, activation):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(grid[0] * grid[1] + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = OpenAITransformer(width, heads, depth, activation)
        self.proj = nn.Parameter(torch.zeros(width, projection))

    def forward(self, images):
        """(tokens after every block with the class token first, the projected class token)."""
        x = self.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1)
        states = [self.ln_pre(x + self.positional_embedding)]
        for block in self.transformer.resblocks:
            states.append(block(states[-1]))
        return states, self.ln_post(states[-1][:, 0]) @ self.proj


class OpenAICLIP(nn.Module):
    """Both towers; the text tower's names stand without a prefix, as in the original."""

    def __init__(
        self, *, width=64, heads=1, depth=2, patch=8, grid=(4, 4), projection=16, act=quick_gelu
    ):
        super().__init__()
        self.visual = OpenAIVision(width, heads, depth, patch, grid, projection, act)
        self.transformer = OpenAITransformer(64, 1, 2, act)
        self.token_embedding = nn.Embedding(30, 64)
        self.positional_embedding = nn.Parameter(torch.zeros(10, 64))
        self.ln_final = nn.LayerNorm(64)
        self.text_projection = nn.Parameter(torch.zeros(64, projection))
        self.logit_scale = nn.Parameter(torch.ones([]))

    def encode_text(self, ids):
        length = ids.shape[1]
        mask = torch.full((length, length), float('-inf')).triu(1)
        x = self.token_embedding(ids) + self.positional_embedding[:length]
        for block in self.transformer.resblocks:
            x = block(x, mask)
        ends = ids.argmax(dim=-1)
        return self.ln_final(x)[torch.arange(len(ids)), ends] @ self.text_projection


class Scale(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(width))


def offset_index(grid):
    """Row of BEiT's flat table for every pair of tokens, class token first; by plain loops."""
    h, w = grid
    places = [(y, x) for y in range(h) for x in range(w)]
    patches = (2 * h - 1) * (2 * w - 1)
    index = np.full((len(places) + 1,) * 2, patches + 2)
    index[0, 1:], index[1:, 0] = patches, patches + 1
    for i, (y, x) in enumerate(places, 1):
        for j, (v, u) in enumerate(places, 1):
            index[i, j] = (y - v + h - 1) * (2 * w - 1) + x - u + w - 1
    return torch.from_numpy(index)


class TimmAttention(nn.Module):
    def __init__(self, width, heads, bias, table):
        super().__init__()
        self.heads, self.bias = heads, bias
        self.qkv = nn.Linear(width, 3 * width, bias=bias == 'all')
        if bias == 'qv':
            self.q_bias = nn.Parameter(torch.zeros(width))
            self.v_bias = nn.Parameter(torch.zeros(width))
        if table:
            self.relative_position_bias_table = nn.Parameter(torch.zeros(table, heads))
        self.proj = nn.Linear(width, width)

    def forward(self, x, bias):
        qkv = self.qkv(x)
        if self.bias == 'qv':
            qkv = qkv + torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in qkv.chunk(3, dim=-1))
        x = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(x.transpose(1, 2).flatten(2))


class TimmBlock(nn.Module):
    def __init__(self, width, heads, bias, scale, table, eps, activation):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.attn = TimmAttention(width, heads, bias, table)
        self.mlp = FeedForward(width, ('fc1', 'fc2'), activation)
        self.scale = scale
        if scale == 'gamma':
            self.gamma_1 = nn.Parameter(torch.zeros(width))
            self.gamma_2 = nn.Parameter(torch.zeros(width))
        elif scale == 'ls':
            self.ls1, self.ls2 = Scale(width), Scale(width)

    def forward(self, x, bias):
        first = {'gamma': 'gamma_1', 'ls': 'ls1'}.get(self.scale)
        second = {'gamma': 'gamma_2', 'ls': 'ls2'}.get(self.scale)

        def scaled(name, y):
            factor = getattr(self, name) if name else 1.0
            return getattr(factor, 'gamma', factor) * y

        x = x + scaled(first, self.attn(self.norm1(x), bias))
        return x + scaled(second, self.mlp(self.norm2(x)))


class TimmViT(nn.Module):
    """timm's VisionTransformer and Beit, and what DINO, DINOv2, MAE and BEiT made of them.

    registers: (name, count). class_row: whether the position table has one for the class token.
    tables: 'none', 'shared' (`rel_pos_bias`), 'per_block', 'both'. norm: the final norm's name,
    'norm' or 'fc_norm' (after pooling: none here).
    """

    def __init__(
        self,
        *,
        width=64,
        heads=1,
        depth=2,
        patch=8,
        grid=(4, 4),
        bias='all',
        scale=None,
        tables='none',
        positions=True,
        class_row=True,
        registers=None,
        mask_token=None,
        pre_norm=False,
        norm='norm',
        eps=1e-6,
        activation='gelu',
    ):
        super().__init__()
        table = (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3
        self.grid, self.registers, self.class_row = grid, registers, class_row
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, patch, patch, bias=not pre_norm)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        if positions:
            entries = grid[0] * grid[1] + class_row
            self.pos_embed = nn.Parameter(0.1 * torch.randn(1, entries, width))
        if registers:
            setattr(self, registers[0], nn.Parameter(torch.zeros(1, registers[1], width)))
        if mask_token:
            self.mask_token = nn.Parameter(torch.zeros(*mask_token, width))
        if pre_norm:
            self.norm_pre = nn.LayerNorm(width, eps)
        if tables in ('shared', 'both'):
            self.rel_pos_bias = nn.Module()
            self.rel_pos_bias.relative_position_bias_table = nn.Parameter(torch.zeros(table, heads))
        own = table if tables in ('per_block', 'both') else None
        self.blocks = nn.ModuleList(
            TimmBlock(width, heads, bias, scale, own, eps, ACTIVATIONS[activation])
            for _ in range(depth)
        )
        setattr(self, norm, nn.LayerNorm(width, eps))

    def forward(self, images):
        """(tokens after every block, class token and registers first; the output)."""
        x = self.patch_embed.proj(images).flatten(2).transpose(1, 2)
        first = self.cls_token.expand(len(x), -1, -1)
        if hasattr(self, 'pos_embed'):
            x = x + self.pos_embed[:, int(self.class_row) :]
            if self.class_row:
                first = first + self.pos_embed[:, :1]
        if self.registers:
            first = torch.cat([first, getattr(self, self.registers[0]).expand(len(x), -1, -1)], 1)
        x = torch.cat([first, x], dim=1)
        states = [self.norm_pre(x) if hasattr(self, 'norm_pre') else x]
        index = offset_index(self.grid)
        for block in self.blocks:
            tables = [getattr(block.attn, 'relative_position_bias_table', None)]
            if hasattr(self, 'rel_pos_bias'):
                tables.append(self.rel_pos_bias.relative_position_bias_table)
            biases = [t[index].permute(2, 0, 1) for t in tables if t is not None]
            states.append(block(states[-1], sum(biases) if biases else None))
        return states, self.norm(states[-1]) if hasattr(self, 'norm') else states[-1]
