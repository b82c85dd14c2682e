r"""Layers whose gradient is differentiated again, at the price of differentiating once.

A force is a gradient, and a loss teaches through it: with :math:`y = W * x` and a cotangent
:math:`g` of :math:`y`, the input's gradient is :math:`W^\top * g`, and for a cotangent :math:`v` of
that,

.. math::
    \bar g = W * v, \qquad \bar W = \text{the weight gradient of } (v, g).

Both are what any backward pass computes, for which every platform has a fast kernel. PyTorch's own
second derivative takes :math:`\bar W` as a convolution with a kernel of the size of the volume and
swapped axes instead. The three products here are closed under differentiation, to any order.

`TwiceDifferentiable` puts them in the place of ``torch.conv3d``, and a shorter second derivative
in that of ``silu``, wherever a network calls these while it is active. First-order results are
those of PyTorch, bit for bit; parameters and their names do not change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from medvae3d.numerics import float32_island

Spec = tuple[Sequence[int], Sequence[int], Sequence[int], bool, Sequence[int], int]
"""Stride, padding, dilation, not transposed, no output padding, groups: as PyTorch orders them."""

HALVES = (torch.float32, torch.float16, torch.bfloat16)


class TwiceDifferentiable(TorchFunctionMode):
    """While active, convolutions and SiLUs are ready to be differentiated twice."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv3d:
            return convolve(*args, **kwargs)
        if func is F.silu and not kwargs.get("inplace", len(args) > 1 and args[1]):
            return _Silu.apply(args[0] if args else kwargs["input"])
        return func(*args, **kwargs)


def convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor:
    """The same as ``torch.conv3d``, autocast included.

    Shape:
        - ``input``: :math:`(B, C, I, J, K)`; ``weight``: :math:`(O, C / groups, i, j, k)`
    """
    if isinstance(padding, str) or input.ndim != 5:
        return torch.conv3d(input, weight, bias, stride, padding, dilation, groups)
    kind = input.device.type
    if torch.is_autocast_enabled(kind) and input.dtype in HALVES:
        dtype = torch.get_autocast_dtype(kind)
        input, weight = input.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    spec = (_triple(stride), _triple(padding), _triple(dilation), False, (0, 0, 0), groups)
    made: Tensor = _Convolution.apply(input, weight, bias, spec)
    return made


def _triple(value: int | Sequence[int]) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * 3 if len(values) == 1 else values


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, spec: Spec, wanted: Sequence[bool]
) -> tuple[Any, Any, Any]:
    """Gradients to input, weight and bias, those that are wanted."""
    sizes = [len(weight)] if wanted[2] else None
    found: tuple[Any, Any, Any] = torch.ops.aten.convolution_backward(
        grad, x, weight, sizes, *spec, list(wanted)
    )
    return found


def _wanted(ctx: Any, count: int) -> list[bool]:
    """Which of the first inputs this very pass needs a gradient of.

    A function written in Python is told what needs gradients at all. The pass that makes a force
    needs those of the latent alone, and gradients of weights would be a third of its work.
    """
    ask = getattr(torch._C, "_will_engine_execute_node", None)
    found = []
    for needed, (node, _) in zip(ctx.needs_input_grad[:count], ctx.next_functions, strict=False):
        if needed and ask is not None and node is not None:
            try:
                needed = bool(ask(node))
            except RuntimeError:  # it does not answer for a leaf that is asked for by name
                needed = True
        found.append(bool(needed))
    return found + [False] * (count - len(found))


class _Convolution(torch.autograd.Function):
    """Linear in the input and in the weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, spec: Spec) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.spec = spec
        with float32_island(x.device.type):
            return torch.convolution(x, weight, bias, *spec)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        wanted = _wanted(ctx, 3)
        if not torch.is_grad_enabled():  # the last time: all at once
            return *_gradients(grad, x, weight, ctx.spec, wanted), None
        return (
            _ToInput.apply(grad, weight, x.detach(), ctx.spec) if wanted[0] else None,
            _ToWeight.apply(grad, x, weight.detach(), ctx.spec) if wanted[1] else None,
            grad.sum((0, 2, 3, 4)) if wanted[2] else None,
            None,
        )


class _ToInput(torch.autograd.Function):
    """The gradient of a convolution to its input; of ``x`` only the form is used."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, weight: Tensor, x: Tensor, spec: Spec) -> Tensor:
        ctx.save_for_backward(grad, weight)
        ctx.spec = spec
        found: Tensor = _gradients(grad, x, weight, spec, (True, False, False))[0]
        return found

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        grad, weight = ctx.saved_tensors
        to_grad, to_weight = _wanted(ctx, 2)
        return (
            _Convolution.apply(cotangent, weight, None, ctx.spec) if to_grad else None,
            _ToWeight.apply(grad, cotangent, weight.detach(), ctx.spec) if to_weight else None,
            None,
            None,
        )


class _ToWeight(torch.autograd.Function):
    """The gradient of a convolution to its weight; of ``weight`` only the form is used."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, spec: Spec) -> Tensor:
        ctx.save_for_backward(grad, x)
        ctx.spec = spec
        found: Tensor = _gradients(grad, x, weight, spec, (False, True, False))[1]
        return found

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        grad, x = ctx.saved_tensors
        to_grad, to_input = _wanted(ctx, 2)
        return (
            _Convolution.apply(x, cotangent, None, ctx.spec) if to_grad else None,
            _ToInput.apply(grad, cotangent, x.detach(), ctx.spec) if to_input else None,
            None,
            None,
        )


class _Silu(torch.autograd.Function):
    r""":math:`x\,\sigma(x)`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.silu(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return _SiluSlope.apply(grad, x)


class _SiluSlope(torch.autograd.Function):
    """The gradient of a SiLU."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(grad, x)
        found: Tensor = torch.ops.aten.silu_backward(grad, x)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        grad, x = ctx.saved_tensors
        to_x = None
        if ctx.needs_input_grad[1]:
            # The second derivative is s (1 - s) (2 + x (1 - 2 s)) with s the sigmoid of x.
            s = x.sigmoid()
            bent = torch.rsub(s, 1, alpha=2).mul_(x).add_(2)
            to_x = s.addcmul_(s, s, value=-1).mul_(bent).mul_(grad).mul_(cotangent)
        return torch.ops.aten.silu_backward(cotangent, x), to_x
