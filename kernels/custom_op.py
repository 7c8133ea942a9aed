"""How a Triton operation becomes known to torch: cheap to call in eager mode, one node under torch.compile.

The dispatcher and Triton's own argument look-up cost tens of microseconds a call in Python, more than many of these
kernels run. So eager calls on plain tensors go straight to an autograd.Function, and a kernel that was launched once
is launched again without that look-up. Fake tensors, torch.compile and other tracers see the registered operation.
"""

import functools

import torch

_library = torch.library.Library("mmvl", "FRAGMENT")
_PLAIN = (torch.Tensor, torch.nn.Parameter)


class Op:
    """`mmvl::name` with its fake implementation and, if given, its gradient; call it with positional arguments.

    `setup_context(ctx, inputs, output)` and `backward(ctx, *grads)` are those of torch.library.register_autograd; the
    gradients of outputs that nobody used arrive as None. `aliases(output)`, if given, replaces the outputs of an eager
    call that records gradients: an autograd.Function may return one tensor twice, a registered operation may not.
    """

    def __init__(self, schema: str, forward, fake, setup_context=None, backward=None, aliases=None):
        name = schema.partition("(")[0]
        torch.library.define(f"mmvl::{name}", schema[len(name) :], lib=_library, tags=torch.Tag.pt2_compliant_tag)
        _library.impl(name, forward, "CompositeExplicitAutograd")
        torch.library.register_fake(f"mmvl::{name}", fake, lib=_library)
        self.forward, self.function = forward, None
        if backward is not None:

            def keep(ctx, inputs, output):
                ctx.set_materialize_grads(False)
                setup_context(ctx, inputs, output)

            torch.library.register_autograd(f"mmvl::{name}", backward, setup_context=keep, lib=_library)
            self.function = _function(name, forward, keep, backward, aliases)
        self.overload = getattr(torch.ops.mmvl, name).default

    def __call__(self, *args):
        if torch.compiler.is_compiling() or not _is_eager(args):
            return self.overload(*args)
        if self.function is not None and torch.is_grad_enabled():
            return self.function.apply(*args)
        return self.forward(*args)


def _is_eager(args) -> bool:
    if torch._C._len_torch_dispatch_stack():
        return False
    for a in args:
        if isinstance(a, torch.Tensor) and type(a) not in _PLAIN:
            return False
    return True


def _function(name, run, setup_context, run_backward, aliases):
    def forward(ctx, *args):
        output = run(*args)
        if aliases is not None:
            output = aliases(output)
        setup_context(ctx, args, output)
        return output

    def backward(ctx, *grads):
        if torch.is_grad_enabled():
            raise NotImplementedError(f"mmvl::{name} can be differentiated once only; use backend='reference'")
        return run_backward(ctx, *grads)

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(f"mmvl_{name}", (torch.autograd.Function,), members)


class Launcher:
    """Launches one `@triton.jit` function whose arguments are tensors (or None), then scalars, then constants.

    The scalars must be listed in the kernel's do_not_specialize, so that the compiled kernel depends on nothing but
    the tensors' dtypes and alignment, the constants and the options.
    """

    def __init__(self, kernel):
        self.kernel, self.compiled = kernel, {}

    def __call__(self, grid: tuple[int, int, int], tensors: tuple, scalars: tuple, constants: tuple, **options):
        first = next(t for t in tensors if t is not None)
        if not first.is_cuda:  # Triton's interpreter
            self.kernel[grid](*tensors, *scalars, *constants, **options)
            return
        index, together, kinds, addresses = first.device.index, 0, [], []
        for t in tensors:
            if t is None:
                kinds.append(None)
                addresses.append(None)
            else:
                address = t.data_ptr()
                together |= address
                kinds.append(t.dtype)
                addresses.append(address)
        if index != torch._C._cuda_getDevice():
            with torch.cuda.device(index):
                self(grid, tensors, scalars, constants, **options)
            return
        if together % 16:
            self.kernel[grid](*tensors, *scalars, *constants, **options)
            return
        key = (index, *kinds, *constants, *options.values())
        compiled = self.compiled.get(key)
        if compiled is None:
            self.compiled[key] = self.kernel[grid](*tensors, *scalars, *constants, **options)
            return
        # what JITFunction.run calls in the end, without the hooks of profilers and the look-up of every pointer
        compiled.run(
            *grid, torch._C._cuda_getCurrentRawStream(index), compiled.function, compiled.packed_metadata, None, None,
            None, *addresses, *scalars, *constants,
        )  # fmt: skip


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many of them the device has; 2 where Triton's interpreter runs, so that loops over blocks are tested."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
