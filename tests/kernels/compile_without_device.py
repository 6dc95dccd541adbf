"""Compiles the packed product for a TPU or an H200 on a machine that has neither; lowering alone checks less.

pip install "libtpu==0.0.42.*"                                     # for jax 0.10.2
pip install --no-deps jax-cuda12-pjrt==0.10.2 jax-cuda12-plugin==0.10.2 nvidia-cuda-nvcc-cu12
python tests/kernels/compile_without_device.py v5e:2x2 h200
"""

import os
import sys

os.environ |= {  # before JAX is imported
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from vitjax.kernels import binary_matmul

H200 = """
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 } threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 62914560 device_memory_size: 150000000000
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" device_description_str: "NVIDIA H200"
dnn_version_info { major: 9 minor: 8 } runtime_version { major: 12 minor: 8 }
"""
SHAPES = [(1, 64, 5), (49, 100, 70), (197, 384, 1536), (196, 2048, 512)]


def topology(name):
    """The platform and the devices of a TPU topology such as v5e:2x2, or of "h200"."""
    if name == "h200":
        described = topologies.get_topology_desc("h200", "cuda", topology="1x1x1", target_config=H200)
        return "cuda", described.devices
    return "tpu", topologies.get_topology_desc(platform="tpu", topology_name=name).devices


def compile_for(name):
    platform, devices = topology(name)
    on_it = SingleDeviceSharding(devices[0])
    for m, k, n in SHAPES:
        for values in ("pm1", "01"):
            product = jax.jit(lambda a, b, v=values: binary_matmul(a, b, a_values=v, backend="packed"))
            for batch in ((), (2, 3)):
                operands = [
                    jax.ShapeDtypeStruct((*batch, *shape), jnp.float32, sharding=on_it)
                    for shape in ((m, k), (k, n))
                ]
                product.trace(*operands).lower(lowering_platforms=(platform,)).compile()
        print(f"{name}: {m}x{k} by {k}x{n} compiles", flush=True)


if __name__ == "__main__":
    for name in sys.argv[1:] or sys.exit(__doc__):
        compile_for(name)
