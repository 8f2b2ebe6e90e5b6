# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls
"""Triton device functions on the words of a packed ROI: popcounts, masks of rows, and moments of set bits."""

import triton
import triton.language as tl


@triton.jit
def rows_below(y):
    """Return a word whose bits below bit y are set: none for y ≤ 0, all for y ≥ 32."""
    y = tl.minimum(tl.maximum(y, 0), 32)
    return ((1 << (y & 31)) - 1) | -(y >> 5)


@triton.jit
def popcount(bits):
    """Count the set bits of each uint32, int32. LLVM recognises the idiom and uses the device's own instruction."""
    bits = bits - ((bits >> 1) & 0x55555555)
    bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
    return ((((bits + (bits >> 4)) & 0x0F0F0F0F) * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def bit_moments(bits):
    """Return the number of set bits of each uint32 and the sum of their positions, int32.

    As in a popcount, neighbouring fields of 1, 2 and 4 bits are added up.
    """
    odd = (bits >> 1) & 0x55555555
    count = (bits & 0x55555555) + odd
    high = (count >> 2) & 0x33333333
    place = (odd & 0x33333333) + ((odd >> 2) & 0x33333333) + (high << 1)
    count = (count & 0x33333333) + high
    high = (count >> 4) & 0x0F0F0F0F
    place = (place & 0x0F0F0F0F) + ((place >> 4) & 0x0F0F0F0F) + (high << 2)
    count = (count & 0x0F0F0F0F) + high
    ones = (count * 0x01010101) >> 24
    places = ((place * 0x01010101) >> 24) + ((count * 0x00010203) >> 24) * 8
    return ones.to(tl.int32), places.to(tl.int32)
