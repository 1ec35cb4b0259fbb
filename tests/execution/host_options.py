"""Options of Dask workers that no test looks at."""

from notebook_runner_server.confinement.policy import SandboxConfig
from notebook_runner_server.execution.cluster.messages import HostOptions
from notebook_runner_server.execution.options import WarmKernels

OPTIONS = HostOptions(
    timeout=30,
    warm=WarmKernels(),
    sandbox=SandboxConfig(),
    limit_address_space=False,
    interrupt_grace=1,
    max_files_bytes=1,
)
