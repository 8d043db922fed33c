"""GPUs by their data sheets. No torch: scripts name them in `--help`."""

from typing import NamedTuple

# Dense bf16 tensor-core peaks in FLOP/s, from the data sheets, by torch's name of the device. The
# longest match counts.
PEAK_BF16_FLOPS = {
    "NVIDIA A100": 312e12,
    "NVIDIA A10G": 70e12,
    "NVIDIA A10": 125e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA GeForce RTX 3090": 71e12,
    "NVIDIA GeForce RTX 4090": 165e12,
    "NVIDIA GeForce RTX 5090": 210e12,
}


class GPU(NamedTuple):
    device_name: str  # torch's name begins with it; a key of PEAK_BF16_FLOPS
    memory_gib: float  # the total of nvidia-smi: the data sheets round
    bandwidth: float  # of the memory, in bytes/s, from the data sheet; of H100 and A100 the SXM form's

    @property
    def peak(self):
        return PEAK_BF16_FLOPS[self.device_name]


GPUS = {
    "rtx-3090": GPU("NVIDIA GeForce RTX 3090", 24.0, 936e9),
    "rtx-4090": GPU("NVIDIA GeForce RTX 4090", 24.0, 1008e9),
    "rtx-5090": GPU("NVIDIA GeForce RTX 5090", 31.8, 1792e9),
    "a10": GPU("NVIDIA A10", 22.5, 600e9),
    "l4": GPU("NVIDIA L4", 22.5, 300e9),
    "l40s": GPU("NVIDIA L40S", 45.0, 864e9),
    "a100-40gb": GPU("NVIDIA A100", 40.0, 1555e9),
    "a100-80gb": GPU("NVIDIA A100", 80.0, 2039e9),
    "h100": GPU("NVIDIA H100", 79.6, 3350e9),
    "h200": GPU("NVIDIA H200", 140.4, 4800e9),
}


def peak_of(device_name):
    """The bf16 peak in FLOP/s of a device by torch's name, or None if unknown."""
    known = [key for key in PEAK_BF16_FLOPS if device_name.startswith(key)]
    return PEAK_BF16_FLOPS[max(known, key=len)] if known else None


def nearest_gpu(device_name, memory_gib):
    """The name in GPUS of a device by torch's name, or None if unknown. Of two with this name, the
    one nearest in memory."""
    peak = peak_of(device_name)
    known = [name for name, gpu in GPUS.items() if device_name.startswith(gpu.device_name) and gpu.peak == peak]
    return min(known, key=lambda name: abs(GPUS[name].memory_gib - memory_gib), default=None)
