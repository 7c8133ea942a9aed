"""What Triton kernels need of keys in fp8 (fp8_keys.py has the format), all in fp32 and its bits."""

import triton
import triton.language as tl


@triton.jit
def exponent_of(largest):
    """Of |x|'s largest: the scale's exponent, biased by 127 as in fp32."""
    return tl.maximum(((largest.to(tl.int32, bitcast=True) + 0x1FFFFF) >> 23) - 8, 1)


@triton.jit
def power_of_two(exponent):
    return (exponent << 23).to(tl.float32, bitcast=True)


@triton.jit
def rounded_to_e4m3(x, exponent):
    """x / scale, to the nearest number of e4m3 (ties to even): what it then takes to convert is exact.

    Not by the conversion itself, since the value is needed too, and Triton's interpreter would cut it off.
    """
    x = x * power_of_two(254 - exponent)
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
