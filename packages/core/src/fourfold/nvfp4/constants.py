"""The numbers NVFP4 is made of.

A weight is stored as 4-bit E2M1 codes (sign, 2 exponent bits, 1 mantissa bit), one float8 E4M3 block scale
for every 16 values along the last axis, and one float32 global scale: 4 + 8/16 = 4.5 bits a weight.
"""

from __future__ import annotations

from typing import Final

BLOCK_SIZE: Final = 16
CODES_PER_BYTE: Final = 2

#: Magnitudes of the eight E2M1 codes; code 8 + i is the negative of code i.
E2M1_GRID: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1_MAX: Final = 6.0

E4M3_MAX: Final = 448.0
#: Values up to here round to 448 (the tie goes to the even code); above, the unsaturated cast gives NaN.
E4M3_OVERFLOW: Final = 464.0
E4M3_MIN_NORMAL: Final = 2.0**-6
E4M3_MIN_SUBNORMAL: Final = 2.0**-9

#: global scale = amax / GLOBAL_SCALE_DIVISOR: the largest block then gets the largest block scale.
GLOBAL_SCALE_DIVISOR: Final = E2M1_MAX * E4M3_MAX
FLOAT32_MIN_NORMAL: Final = 2.0**-126
