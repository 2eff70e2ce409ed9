"""A pretend GPU for tests: tensors that say ``cuda`` and compute on the CPU.

A GPU is slow where the host waits for it, and fails where tensors of two devices meet;
neither shows on a CPU. `PretendGpu` counts both, and the bytes that kernels move::

    with PretendGpu() as gpu:
        loss(gpu.put(embeddings), gpu.put(labels)).backward()
    assert gpu.syncs == {}

How it works: an `OnGpu` wraps a CPU tensor and reports the device ``cuda:0`` to Python.
While a `PretendGpu` is entered, every operation of torch, those of the backward pass
too, comes to `PretendGpu.__torch_dispatch__` below autograd; there it is run on the
wrapped tensors, counted, and its results are wrapped. To torch's C++ all of it is the
CPU: autocast for ``cuda`` casts nothing, kernels are those of the CPU, and a device has
to be named with its index, as ``x.device`` names it.
"""

from __future__ import annotations

import traceback
from collections import Counter
from contextlib import ExitStack
from unittest.mock import patch

import torch
from torch import __future__, nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

GPU = torch.device("cuda", 0)
# What gives the host a number, or a shape, that only the GPU knows.
WAITING = {
    *("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select"),
    *("_unique2", "unique_dim", "unique_consecutive", "bincount", "repeat_interleave"),
}
# What returns the memory it was given, or none: no kernel runs.
FREE = {
    *("view", "_unsafe_view", "_reshape_alias", "expand", "permute", "transpose", "t"),
    *("unsqueeze", "squeeze", "slice", "select", "split", "split_with_sizes", "unbind"),
    *("detach", "alias", "as_strided", "unfold", "diagonal", "lift_fresh", "record"),
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
    *("_local_scalar_dense", "_pin_memory", "record_stream", "is_pinned"),
}


class OnGpu(torch.Tensor):
    """A tensor on the pretend GPU; ``host`` is the CPU tensor that it wraps."""

    @staticmethod
    def __new__(cls, host):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
        )
        made.host = host
        return made

    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)

    def __repr__(self, **_):
        return f"OnGpu({tuple(self.shape)}, {self.dtype})"

    def numpy(self, **_):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy

    def tolist(self):
        return self.cpu().tolist()

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        """Catch copies to the host, which C++ takes for no copies at all."""
        kwargs = kwargs or {}
        if function is torch.Tensor.cpu or (
            function is torch.Tensor.to and names_cpu([*args[1:], *kwargs.values()])
        ):
            dtypes = [a for a in tree_leaves((args, kwargs)) if type(a) is torch.dtype]
            with torch._C.DisableTorchFunctionSubclass():
                return ToHost.apply(args[0], kwargs.get("non_blocking", False), *dtypes)
        if function is torch.Tensor.new_tensor:
            like, values = args
            return torch.tensor(values, dtype=kwargs.get("dtype", like.dtype)).to(GPU)
        if function is torch.Tensor.to and not isinstance(args[0], OnGpu):
            other, *rest = args[1:]  # the tensor whose device and dtype are wanted
            args = (args[0], GPU, other.dtype, *rest)
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise RuntimeError("a tensor of PretendGpu is used outside of it")


class HostGenerator(torch.Generator):
    """A generator that is on the CPU, wherever it was asked for."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu")


def names_cpu(arguments):
    """Whether the arguments of ``Tensor.to`` name the CPU, or a tensor there."""
    for value in arguments:
        if isinstance(value, torch.Tensor):
            value = value.device
        if value == "cpu" or (type(value) is torch.device and value.type == "cpu"):
            return True
    return False


class ToHost(torch.autograd.Function):
    """A copy to the host, differentiable as torch's is."""

    @staticmethod
    def forward(ctx, tensor, non_blocking, dtype=None):
        if not isinstance(tensor, OnGpu):
            return tensor.to(dtype) if dtype else tensor.clone()
        PretendGpu.entered.count_copy("to host", waits=not non_blocking)
        return tensor.host.detach().to(dtype or tensor.dtype, copy=True)

    @staticmethod
    def backward(ctx, grad):
        return grad.to(GPU, non_blocking=True), None, None


class PretendGpu(TorchDispatchMode):
    """Counts what happens on the pretend GPU while it is entered.

    Attributes:
        syncs: how often the host waited for the GPU, by what and where.
        copies: between host and GPU, by direction and where.
        mixed: operations on tensors of both devices, by what and where. A GPU refuses
            them; a 0-dim tensor of the host is allowed.
        launches: kernels, by operation.
        moved: bytes that kernels read and write, by operation: each argument and each
            result once, as if nothing stayed in a cache.
    """

    entered = None

    def __init__(self):
        super().__init__()
        self.syncs, self.copies, self.mixed = Counter(), Counter(), Counter()
        self.launches, self.moved = Counter(), Counter()

    def __enter__(self):
        self.patches = ExitStack()
        for target, name, value in (
            (torch.cuda, "_lazy_init", lambda: None),
            (torch.cuda, "is_available", lambda: True),
            (torch.cuda, "device_count", lambda: 1),
            (torch, "Generator", HostGenerator),
            (PretendGpu, "entered", self),
        ):
            self.patches.enter_context(patch.object(target, name, value))
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.patches.close()

    def put(self, value):
        """A tensor or module, on the pretend GPU; modules in place. Not counted."""
        if not isinstance(value, nn.Module):
            return OnGpu(value.detach()).requires_grad_(value.requires_grad)
        keep = __future__.get_overwrite_module_params_on_conversion()
        __future__.set_overwrite_module_params_on_conversion(True)  # of another type
        try:
            value._apply(lambda x: OnGpu(x.detach()))  # as Module.to, overrides too
        finally:
            __future__.set_overwrite_module_params_on_conversion(keep)
        for module in value.modules():
            if hasattr(module, "_device"):  # mmengine's preprocessors keep it
                module._device = GPU
        return value

    def count_copy(self, direction, waits):
        """One copy between host and GPU."""
        self.copies[direction, caller()] += 1
        if waits:
            self.syncs[f"copy {direction}", caller()] += 1

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = function.overloadpacket.__name__
        plain = name.rstrip("_")
        tensors = [
            x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)
        ]
        there = [x for x in tensors if isinstance(x, OnGpu)]
        wanted = kwargs.get("device")
        on_gpu = bool(there) if wanted is None else torch.device(wanted).type == "cuda"
        if there and plain.startswith(("_to_copy", "new_")):
            on_gpu = True  # C++ takes an OnGpu for a tensor of the CPU
        if wanted is not None:
            kwargs["device"] = torch.device("cpu")
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        if plain == "_pin_memory":
            return args[0].clone()
        if plain == "is_pinned":
            return False
        if plain in ("copy", "_to_copy"):
            source = args[1] if plain == "copy" else args[0]
            to_gpu = isinstance(args[0], OnGpu) if plain == "copy" else on_gpu
            if isinstance(source, OnGpu) != to_gpu:
                position = args[2] if plain == "copy" and len(args) > 2 else False
                waits = not kwargs.get("non_blocking", position)
                self.count_copy("to GPU" if to_gpu else "to host", waits)
        elif there:
            self._look(name, plain, args, tensors)

        host = tree_map_only(OnGpu, lambda x: x.host, (args, kwargs))
        with torch.no_grad():
            out = function(*host[0], **host[1])
        if not on_gpu or not isinstance(out, (torch.Tensor, list, tuple)):
            return out
        if plain not in FREE:
            self.launches[plain] += 1
            self.moved[plain] += traffic(plain, there, tree_leaves(out))
        wrapped = tree_map_only(torch.Tensor, OnGpu, out)
        if there and plain != "_to_copy":
            return return_and_correct_aliasing(function, args, kwargs, wrapped)
        return wrapped

    def _look(self, name, plain, args, tensors):
        """Count what makes the host wait, and what mixes devices."""
        if plain in WAITING:
            self.syncs[name, caller()] += 1
        indices = args[1] if plain in ("index", "index_put") else []
        for index in indices:
            if index is not None and not isinstance(index, OnGpu):
                self.count_copy("to GPU", waits=True)  # torch allows it
                tensors = [x for x in tensors if x is not index]
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                self.syncs["index by a mask", caller()] += 1
        if any(x.dim() and not isinstance(x, OnGpu) for x in tensors):
            self.mixed[name, caller()] += 1


def traffic(plain, arguments, results):
    """Bytes that a kernel reads and writes."""

    def size(values):
        tensors = [x for x in values if isinstance(x, torch.Tensor)]
        return sum(x.numel() * x.element_size() for x in tensors)

    if plain in ("index", "index_select", "gather", "embedding"):  # picked rows alone
        return 2 * size(results) + size(arguments[1:])
    if plain in ("index_copy", "index_put"):  # written in place, the rest is not read
        return 2 * size(arguments[-1:])
    if plain in ("copy", "fill", "zero"):  # what is overwritten is not read
        return size(arguments[1:]) + size(results)
    return size(arguments) + size(results)


def caller():
    """File and line, outside of torch, of what runs now."""
    for frame in reversed(traceback.extract_stack()[:-1]):
        if "/torch/" not in frame.filename and frame.filename != __file__:
            return "/".join(frame.filename.split("/")[-2:]) + f":{frame.lineno}"
    return "autograd"
