# shellcheck shell=bash disable=SC2034 # the scripts that source it use the arrays
# Environment of a run on GPUs and on TPUs, as NAME=VALUE. What is set already wins, or is added to.
# XLA ends the process on a flag it does not know, so only flags that stand in XLA's or MaxText's documentation are here.
# tests/launch/test_environment.py starts the compilers with them; docs/launch.md says what was tried.

gpu_environment=(
  # jax takes 75 % of a GPU's memory at its first use. 90 % leaves NCCL, cuBLAS and cuDNN their own.
  # XLA_PYTHON_CLIENT_MEM_FRACTION is its deprecated name; jax refuses both at once.
  "XLA_${XLA_PYTHON_CLIENT_MEM_FRACTION:+PYTHON_}CLIENT_MEM_FRACTION=\
${XLA_CLIENT_MEM_FRACTION:-${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}}"
  # Starts gathers early and ends sums late, so that matmuls run meanwhile. jax 0.12 does so without the flag.
  # Collectives are asynchronous without a flag; the old --xla_gpu_enable_async_* ones are unknown now.
  "XLA_FLAGS=--xla_gpu_enable_latency_hiding_scheduler=true${XLA_FLAGS:+ $XLA_FLAGS}"
  # One line that names the cause where a collective fails; silent otherwise. NCCL_SOCKET_IFNAME, NCCL_IB_HCA and the
  # like differ between clusters: set them before the launch, they are passed on.
  "NCCL_DEBUG=${NCCL_DEBUG:-WARN}"
)

# In LIBTPU_INIT_ARGS, not XLA_FLAGS: jax's own XLA, which the CPU backend uses, does not know them.
tpu_environment=(
  # In order: gathers as pairs of start and done; such a pair fused with the matmuls between them, gathers too; split
  # over several of those; and compute on the tensor core while a collective runs.
  "LIBTPU_INIT_ARGS=--xla_enable_async_all_gather=true \
--xla_tpu_enable_async_collective_fusion=true \
--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true \
--xla_tpu_enable_async_collective_fusion_multiple_steps=true \
--xla_tpu_overlap_compute_collective_tc=true${LIBTPU_INIT_ARGS:+ $LIBTPU_INIT_ARGS}"
)

cpu_environment=()
