"""Lightning attention's Gluon kernels compile for Hopper, on any machine: Gluon has no interpreter to run them in.

That they are right is tested on a GPU, by test_specialized_warps and the tests of head dim 128 in bf16 beside it.
"""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")

# As launches give them to the compiler, but for the pointers' alignment. Of the four passes the plainest and the one
# with the most in it: outputs, and gradients of k, backwards with SiLU's slope.
SCRIPT = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.experimental.gluon._runtime import GluonASTSource
from triton.runtime.jit import mangle_type
from mmvl.kernels import lightning_hopper_triton as hopper
from mmvl.kernels.lightning_tuning import SPECIALIZED

class Recorder:
    def __init__(self):
        self.launches = []
    def __getitem__(self, grid):
        return lambda *given, **named: self.launches.append((given, named))

kernel, recorder = hopper._lightning_pass, Recorder()
hopper._lightning_pass = recorder
x, do = (torch.zeros(100, 2, columns, dtype=torch.bfloat16) for columns in (384, 128))
state, table, slopes = torch.zeros(1, 2, 128, 128), torch.zeros(1, 8, dtype=torch.int32), torch.ones(2)
hopper.forward(x, slopes, state, None, table, do, state, 100, True, SPECIALIZED)
hopper.backward(do, x, slopes, state, state, state, state, table, x, state, 100, True, SPECIALIZED)
assert len(recorder.launches) == 4
for given, named in (recorder.launches[0], recorder.launches[2]):
    options = {name: named.pop(name) for name in ("num_warps", "maxnreg")}
    given = dict(zip(kernel.arg_names, given))
    constants = named | {name: None for name, value in given.items() if value is None}
    signature = {name: "constexpr" if name in constants else mangle_type(given[name]) for name in kernel.arg_names}
    source = GluonASTSource(kernel, signature, {(kernel.arg_names.index(name),): c for name, c in constants.items()})
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    print(len(compiled.asm["cubin"]), "wgmma" in compiled.asm["ptx"])
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="they run here, in the other tests")
def test_they_compile(tmp_path):
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        size, by_the_matrix_units = line.split()
        assert int(size) > 0 and by_the_matrix_units == "True"
    assert len(done.stdout.splitlines()) == 2
