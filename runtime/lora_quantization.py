"""Eight-bit A of a LoRA pair, for graphs whose slots take it: at high ranks reading A and B costs most of a token."""

from __future__ import annotations

import numpy as np

ZERO_POINT = 128  # unsigned, for kernels multiply signed bytes with saturation on CPUs without VNNI


def quantize_a(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rounds A to eight bits with a scale for each of its columns, and folds the scales into the rows of B.

    Args:
        a: float (in, r).
        b: float (r, out).

    Returns:
        (q, scaled b) with ``(q - 128.0) @ (scaled b)`` close to ``a @ b``: q is uint8 (in, r) from 1 to 255, and an
        element of A is off by at most half of its column's largest magnitude / 127.
    """
    scale = np.abs(a).max(axis=0, initial=0.0).astype(np.float32) / 127
    scale[scale == 0] = 1
    quantized = np.clip(np.rint(a / scale), -127, 127) + ZERO_POINT
    return quantized.astype(np.uint8), b * scale[:, None]
