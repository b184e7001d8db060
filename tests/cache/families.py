"""Tiny random models of mlx-lm's families, one small config each.

Used by test_families.py and by benchmarks/matrix.py.
"""

from attention_families import ATTENTION
from family import VOCAB_SIZE as VOCAB_SIZE
from family import Family
from state_families import STATE

FAMILIES: tuple[Family, ...] = (*ATTENTION, *STATE)
# What can't be held to law 1 on a CPU, and why; the matrix prints it.
LEFT_OUT = {
    "bitnet": "its layers are Metal kernels only",
    "muse_spark": "its layers are Metal kernels only",
    "olmo": "needs the package ai2-olmo",
    "phi3small": "mlx-lm's attention isn't causal (it adds its mask as 0 and 1), so chunks matter",
    "prism_hadamard_qwen35": "qwen3_5 with packed 2-bit weights",
}
BY_NAME = {family.name: family for family in FAMILIES}
