"""Plain PyTorch in the place of FlashAttention: what stays under test is how it is called."""

import sys
import types

import torch


def pretend_varlen(monkeypatch):
    stand_in = types.SimpleNamespace(varlen_attn=varlen_on_the_cpu)
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", stand_in)


def varlen_on_the_cpu(q, k, v, cu_q, cu_k, max_q, max_k, *, scale):
    """What `torch.nn.attention.varlen.varlen_attn` computes, window by window; it writes nothing in the tail."""
    q, k, v = (_PoisonedTail.apply(x, cu[-1]) for x, cu in ((q, cu_q), (k, cu_k), (v, cu_k)))
    out = torch.full_like(q, torch.nan)
    for a, b, c, d in zip(cu_q[:-1], cu_q[1:], cu_k[:-1], cu_k[1:], strict=True):
        part = torch.nn.functional.scaled_dot_product_attention(
            *(t.transpose(0, 1) for t in (q[a:b], k[c:d], v[c:d])), scale=scale
        )
        out[a:b] = part.transpose(0, 1)
    return out


class _PoisonedTail(torch.autograd.Function):
    """The tensor itself; its gradient is NaN from a place on, as memory may be that nothing is written to."""

    @staticmethod
    def forward(ctx, x, end):
        ctx.end = int(end)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        grad[ctx.end :] = torch.nan
        return grad, None
