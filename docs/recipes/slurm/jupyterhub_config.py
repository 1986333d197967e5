"""A desktop as each user's server, in a Slurm job. For JupyterHub 5 or newer and batchspawner 1.3."""

import batchspawner  # noqa: F401  by this the Hub learns the address at which jobs report their port

c = get_config()  # noqa: F821

c.JupyterHub.spawner_class = "batchspawner.SlurmSpawner"
c.JupyterHub.hub_bind_url = "http://0.0.0.0:8081"
c.JupyterHub.hub_connect_ip = "hub.cluster.example"  # as the compute nodes call this machine

c.SlurmSpawner.batchspawner_singleuser_cmd = ""  # it can only start Python programs
c.SlurmSpawner.cmd = ["/opt/jupyter-desktop/jupyter-desktop-batch"]
c.SlurmSpawner.req_runtime = "8:00:00"
c.SlurmSpawner.req_memory = "4G"
c.SlurmSpawner.req_nprocs = "2"
c.SlurmSpawner.start_timeout = 300  # jobs wait in a queue
