"""The versions that the golden files are made with, and the check that this is them."""

import torch

TORCH = "2.15.0"


def require_pinned_torch() -> str:
    """Returns a line saying what made the file; exits if it must not be made here."""
    found = torch.__version__.split("+")[0]
    if found != TORCH:
        raise SystemExit(f"needs torch=={TORCH}, found {torch.__version__}")
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in ("AVX2", "AVX512"):
        raise SystemExit(
            f"PyTorch's CPU capability is {capability}; the goldens hold the bits of AVX2 and AVX512 (DEFAULT rounds "
            "uniform_ twice and takes other logarithms for randn): unset ATEN_CPU_CAPABILITY or use another processor"
        )
    torch.set_num_threads(1)
    return f"torch {TORCH}, CPU capability AVX2 or AVX512"
