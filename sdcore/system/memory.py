"""Memory that is free now."""

import psutil
import torch


def free_bytes(device: torch.device) -> int:
    """Return the bytes that this process can still take on a device.

    On a GPU that is what the driver has and what PyTorch's allocator holds without using it.
    """
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free + unused)
