"""What Triton kernels need of keys in 8 bits (keys_8bit.py has the formats), all in fp32 and its bits."""

import triton
import triton.language as tl


@triton.jit
def largest_of(x):
    """|x|'s largest over the last of three dims, which stays; NaN if anything is not finite."""
    return (tl.max(tl.abs(x), axis=2) + tl.sum(x * 0.0, axis=2))[:, :, None]


@triton.jit
def exponent_of(largest, INT8: tl.constexpr):
    """The scale's exponent, biased by 127 as in fp32; 255, that of infinity, for NaN."""
    bits = largest.to(tl.int32, bitcast=True)
    exponent = tl.maximum((bits + 0x01FFFF >> 23) - 6 if INT8 else (bits + 0x1FFFFF >> 23) - 8, 1)
    return tl.where(largest == largest, exponent, 255)


@triton.jit
def power_of_two(exponent):
    return (exponent << 23).to(tl.float32, bitcast=True)


@triton.jit
def rounded(x, exponent, INT8: tl.constexpr):
    """x / scale, to the nearest number of int8 or e4m3 (ties to even): what it then takes to convert is exact.

    Not by the conversion itself, since the value is needed too, and Triton's interpreter would cut it off.
    """
    x = x * power_of_two(254 - exponent)
    if INT8:
        large = 12582912.0  # 1.5 * 2^23, whose last bit weighs 1
    else:
        own = tl.maximum((x.to(tl.int32, bitcast=True) >> 23) & 255, 121)  # no less than that of 2^-6
        large = (((own + 20) << 23) | 0x400000).to(tl.float32, bitcast=True)  # whose last bit weighs an eighth of own
    return (x + large) - large


@triton.jit
def key_scale(both):
    """Of the two scales of a token's head, which are read as one number: bf16 is the upper half of fp32."""
    return (both << 16).to(tl.float32, bitcast=True)


@triton.jit
def value_scale(both):
    return ((both >> 16) << 16).to(tl.float32, bitcast=True)
