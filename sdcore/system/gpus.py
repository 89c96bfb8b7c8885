"""The GPUs that this process may use."""

import os


def visible() -> tuple[str, ...]:
    """Return their names, as CUDA_VISIBLE_DEVICES has them, in PyTorch's order."""
    import torch  # noqa: PLC0415 - seconds

    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return tuple(names.split(",")[:count]) if names else tuple(str(i) for i in range(count))
