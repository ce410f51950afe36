"""Kernels with an error on purpose: a tool that does not find it says nothing about the others. Needs a GPU.

`python -m bench.gpu_check.planted memcheck` writes far outside its tensor; with `racecheck`, each thread of a block
reads the word of shared memory that a thread of another warp writes, without a barrier.
"""

from __future__ import annotations

import sys

import torch
import triton
import triton.language as tl


@triton.jit
def write_outside(out_ptr, far):
    tl.store(out_ptr + far, 1.0)


@triton.jit
def race(out_ptr, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    seen = tl.inline_asm_elementwise(
        """{
        .shared .align 4 .b8 words[4096];
        .reg .u32 mine, others;
        mov.u32 mine, words;
        mov.u32 others, words;
        add.u32 mine, mine, $1;
        add.u32 others, others, $2;
        st.volatile.shared.u32 [mine], $1;
        ld.volatile.shared.u32 $0, [others];
        }""",
        "=r,r,r",
        [4 * lanes, 4 * ((lanes + 32) % BLOCK)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
    tl.store(out_ptr + lanes, seen)


def main() -> int:
    tool = sys.argv[1]
    if tool == "memcheck":
        write_outside[(1,)](torch.zeros(4, device="cuda"), 2**40)
    else:
        race[(1,)](torch.zeros(256, dtype=torch.int32, device="cuda"), BLOCK=256, num_warps=8)
    torch.cuda.synchronize()
    return 0


if __name__ == "__main__":
    sys.exit(main())
