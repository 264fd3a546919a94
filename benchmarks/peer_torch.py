"""The same training step in PyTorch, to compare with: DTM, ViT-B/16, CLIP-B/16-shaped teacher.

    python benchmarks/peer_torch.py [--batch=256] [--forms=eager,tuned] [--steps=20]
        [--warm_up=5] [--float32]

Needs torch; `tuned` on a CPU a C++ compiler too. `eager` is how such code is usually run: float16
autocast with a gradient scaler (bfloat16 on a CPU) and attention written out; `tuned` is bfloat16
autocast, fused attention and AdamW, `torch.compile` for the blocks of both networks. `--float32`
leaves autocast and scaler out of both. The work is that of configs/dtm_vitb.py: relative position
biases (shared and per block), layer scale, drop path, 75 of 196 patches hidden, two draws of a
schedule, bipartite matching with shapes that shrink from step to step, cosine distance of group
means over all tokens, clipping, AdamW. Masks are given and images are only normalised, where the
step of mim_jax draws masks, flips and colours too. Random images and weights. `processor` is the
time of all threads together (the least), which other programs disturb less than the clock's.
"""

import argparse
import random
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

WARM_UP = 5
MAX_STEPS = 14


class Block(nn.Module):
    """A pre-norm block, BEiT's (relative bias, layer scale, drop path) or CLIP's."""

    def __init__(self, width, heads, *, side, beit, drop_path, fused):
        super().__init__()
        self.heads, self.beit, self.fused = heads, beit, fused
        # A buffer: one compilation serves blocks of different rates.
        self.register_buffer('drop_path', torch.tensor(drop_path))
        eps = 1e-6 if beit else 1e-5
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.qkv = nn.Linear(width, 3 * width, bias=not beit)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        if beit:
            self.q_bias = nn.Parameter(torch.zeros(width))
            self.v_bias = nn.Parameter(torch.zeros(width))
            self.scale1 = nn.Parameter(torch.full((width,), 0.1))
            self.scale2 = nn.Parameter(torch.full((width,), 0.1))
            self.position = RelativePosition(side, heads)

    def attend(self, x, bias):
        batch, tokens, width = x.shape
        offset = self.qkv.bias
        if self.beit:
            offset = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, offset)
        q, k, v = qkv.view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if self.fused:
            bias = None if bias is None else bias.to(q.dtype)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        else:
            logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
            if bias is not None:
                logits = logits + bias
            y = logits.softmax(-1).to(v.dtype) @ v
        return self.out(y.transpose(1, 2).reshape(batch, tokens, width))

    def dropped(self, y):
        if not self.training:
            return y
        kept = torch.rand(len(y), 1, 1, device=y.device) >= self.drop_path
        return y * (kept / (1 - self.drop_path)).to(y.dtype)

    def scaled(self, scale, y):
        return (scale.to(y.dtype) if self.fused else scale) * y  # float32 keeps the stream in it

    def forward(self, x, bias=None):
        if self.beit:
            y = self.attend(self.norm1(x), bias + self.position())
            x = x + self.dropped(self.scaled(self.scale1, y))
            y = self.down(F.gelu(self.up(self.norm2(x))))
            return x + self.dropped(self.scaled(self.scale2, y))
        x = x + self.attend(self.norm1(x), None)
        y = self.up(self.norm2(x))
        return x + self.down(y * torch.sigmoid(1.702 * y))


class RelativePosition(nn.Module):
    """A learned bias [1, heads, S, S] by the offset of two patches; the first token has its own."""

    def __init__(self, side, heads):
        super().__init__()
        span = 2 * side - 1
        self.table = nn.Parameter(torch.zeros(span**2 + 3, heads))
        row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing='ij')
        row, column = row.flatten(), column.flatten()
        index = torch.full((side**2 + 1, side**2 + 1), span**2)
        index[1:, 1:] = (row[:, None] - row + side - 1) * span + column[:, None] - column + side - 1
        index[1:, 0] = span**2 + 1
        index[0, 0] = span**2 + 2
        self.register_buffer('index', index)

    def forward(self):
        return self.table[self.index].permute(2, 0, 1)[None]


class Network(nn.Module):
    """The student (beit) or the teacher; patch tokens, mapped to `features`."""

    def __init__(self, *, width, depth, heads, side, patch, features, beit, fused):
        super().__init__()
        self.beit = beit
        self.patches = nn.Conv2d(3, width, patch, patch, bias=beit)
        self.class_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        if beit:
            self.mask_token = nn.Parameter(0.02 * torch.randn(width))
            self.position = RelativePosition(side, heads)
        else:
            self.table = nn.Parameter(0.02 * torch.randn(side**2 + 1, width))
            self.pre_norm = nn.LayerNorm(width)
        rates = [0.1 * i / max(1, depth - 1) if beit else 0.0 for i in range(depth)]
        common = dict(side=side, beit=beit, fused=fused)
        self.blocks = nn.ModuleList(Block(width, heads, drop_path=rate, **common) for rate in rates)
        self.norm = nn.LayerNorm(width, eps=1e-6 if beit else 1e-5)
        self.head = nn.Linear(width, features, bias=beit)

    def forward(self, images, mask=None):
        x = self.patches(images).flatten(2).transpose(1, 2)
        if mask is not None:
            x = torch.where(mask[..., None], self.mask_token.to(x.dtype), x)
        x = torch.cat([self.class_token.to(x.dtype).expand(len(x), -1, -1), x], dim=1)
        bias = None
        if self.beit:
            bias = self.position()
        else:
            x = self.pre_norm(x + self.table.to(x.dtype))
        for block in self.blocks:
            x = block(x, bias)
        return self.head(self.norm(x)[:, 1:])


def draw_schedule(tokens):
    """(tokens that join per step, steps)."""
    merged, steps = random.randint(0, tokens), random.randint(1, MAX_STEPS)
    up = -(-merged // steps)
    return (merged // steps if up * steps > tokens else up), steps


@torch.no_grad()
def group(target, per_step, steps):
    """Group numbers [B, N] by bipartite matching, the first token protected."""
    batch, tokens, width = target.shape
    groups = torch.arange(tokens, device=target.device).expand(batch, tokens)
    sums, sizes = target, target.new_ones(batch, tokens, 1)
    for _ in range(steps):
        live = sums.shape[1]
        merges = min(per_step, (live - 1) // 2)
        if merges < 1:
            break
        unit = F.normalize(sums / sizes, dim=-1)
        best, partner = (unit[:, 0::2] @ unit[:, 1::2].transpose(1, 2)).max(-1)
        best[:, 0] = -torch.inf
        order = best.argsort(-1, descending=True)
        joins, stays = order[:, :merges], order[:, merges:].sort(-1).values
        kept = stays.shape[1]
        position = torch.empty(batch, live, dtype=torch.long, device=target.device)
        position[:, 1::2] = kept + torch.arange(live // 2, device=target.device)
        position.scatter_(
            1, 2 * stays, torch.arange(kept, device=target.device).expand(batch, kept)
        )
        position.scatter_(1, 2 * joins, kept + partner.gather(1, joins))
        new = live - merges
        index = position[..., None]
        sums = sums.new_zeros(batch, new, width).scatter_add_(1, index.expand(-1, -1, width), sums)
        sizes = sizes.new_zeros(batch, new, 1).scatter_add_(1, index, sizes)
        groups = position.gather(1, groups)
    return groups


def average(x, groups):
    """Every token of x [B, N, D] replaced by the mean of its group."""
    index = groups[..., None].expand_as(x)
    total = torch.zeros_like(x).scatter_add_(1, index, x)
    size = x.new_zeros(groups.shape).scatter_add_(1, groups, x.new_ones(groups.shape))
    return (total / size.clamp(min=1)[..., None]).gather(1, index)


class Step:
    """One training step in the form `eager` or `tuned`."""

    def __init__(self, form, device, sizes, *, width, depth, heads, batch, float32):
        side, patch = sizes
        self.device, self.morphing = device, True
        self.tuned = form == 'tuned'
        self.dtype = torch.bfloat16 if self.tuned or device == 'cpu' else torch.float16
        if float32:
            self.dtype = torch.float32
        common = dict(side=side, patch=patch, features=512, fused=self.tuned)
        self.student = Network(width=width, depth=depth, heads=heads, beit=True, **common)
        self.teacher = Network(width=width, depth=depth, heads=heads, beit=False, **common)
        self.student.to(device).train()
        self.teacher.to(device).eval().requires_grad_(False)
        decay = [p for p in self.student.parameters() if p.ndim > 1]
        rest = [p for p in self.student.parameters() if p.ndim <= 1]
        self.parameters = decay + rest
        self.optimizer = torch.optim.AdamW(
            [dict(params=decay, weight_decay=0.05), dict(params=rest, weight_decay=0.0)],
            lr=1e-4,
            betas=(0.9, 0.98),
            fused=True if self.tuned else None,
        )
        self.scaler = torch.amp.GradScaler(device, enabled=self.dtype == torch.float16)
        if self.tuned:
            for block in [*self.student.blocks, *self.teacher.blocks]:
                block.compile()
        size = side * patch
        self.images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8).to(device)
        hidden = round(side**2 * 75 / 196)
        self.mask = torch.rand(batch, side**2).argsort(-1).lt(hidden).to(device)
        self.mean = torch.tensor([0.485, 0.456, 0.406], device=device)[:, None, None]
        self.std = torch.tensor([0.229, 0.224, 0.225], device=device)[:, None, None]

    def __call__(self):
        images = (self.images.float() / 255 - self.mean) / self.std
        lower = self.dtype != torch.float32
        with torch.autocast(self.device, dtype=self.dtype if lower else None, enabled=lower):
            prediction = self.student(images, self.mask)
            with torch.no_grad():
                target = self.teacher(images)
            losses = []
            for _ in range(2 if self.morphing else 1):
                p, t = prediction.float(), target.float()
                if self.morphing:
                    groups = group(target, *draw_schedule(target.shape[1]))
                    p, t = average(p, groups), average(t, groups)
                losses.append((1 - F.cosine_similarity(p, t, dim=-1)).mean())
            loss = sum(losses) / len(losses)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.parameters, 3.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--forms', default='eager,tuned')
    parser.add_argument('--batch', type=int, default=256)
    parser.add_argument('--steps', type=int, default=20)
    parser.add_argument('--warm_up', type=int, default=WARM_UP)
    parser.add_argument('--float32', action='store_true')
    parser.add_argument('--width', type=int, default=768)
    parser.add_argument('--depth', type=int, default=12)
    parser.add_argument('--heads', type=int, default=12)
    parser.add_argument('--side', type=int, default=14)
    options = parser.parse_args()
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    name = torch.cuda.get_device_name() if device == 'cuda' else 'cpu'
    print(f'{name}, torch {torch.__version__}, batch {options.batch}', flush=True)
    for form in options.forms.split(','):
        random.seed(0)
        torch.manual_seed(0)
        step = None
        for morphing in (True, False):
            try:
                step = step or Step(
                    form,
                    device,
                    (options.side, 16),
                    width=options.width,
                    depth=options.depth,
                    heads=options.heads,
                    batch=options.batch,
                    float32=options.float32,
                )
                step.morphing = morphing
                measure(step, form, options, device)
            except Exception as error:
                print(f'{form}: failed: {str(error).splitlines()[:1]}', flush=True)


def measure(step, form, options, device):
    """Prints the times of `options.steps` steps after the warm-up."""
    wait = torch.cuda.synchronize if device == 'cuda' else (lambda: None)
    if device == 'cuda':
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    step()
    wait()
    first = time.perf_counter() - start
    seconds, processor = [], []
    for i in range(options.warm_up - 1 + options.steps):
        wait()
        start, busy = time.perf_counter(), time.process_time()
        loss = step()
        wait()
        if i >= options.warm_up - 1:
            seconds.append(time.perf_counter() - start)
            processor.append(time.process_time() - busy)
    median = statistics.median(seconds)
    memory = torch.cuda.max_memory_allocated() / 2**30 if device == 'cuda' else 0
    print(
        f'{form}, {"morphing" if step.morphing else "no morphing"}: {1e3 * median:.1f} ms '
        f'(least {1e3 * min(seconds):.1f}, processor {1e3 * min(processor):.1f}), '
        f'{options.batch / median:.1f} img/s, '
        f'{memory:.2f} GiB, first step {first:.1f} s, loss {loss:.4f}',
        flush=True,
    )


if __name__ == '__main__':
    main()
