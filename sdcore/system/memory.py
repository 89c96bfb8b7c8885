"""Memory that is free now, and memory that is given back."""

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


def give_back() -> None:
    """Give memory that was freed back to the operating system.

    glibc keeps it, in pieces between what is still in use. The tensors of the next stage often do
    not fit into them, so that a long run on a CPU would take the sum of its stages' peaks.
    """
    psutil.heap_trim()
