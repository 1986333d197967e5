"""What the programs that recipes are for make of them, as JSON: called by recipes.system.ts.

recipes.py pod VALUES          the pod of a user that KubeSpawner makes of values for the Zero to JupyterHub chart
recipes.py job CONFIG          the job that BatchSpawner makes of a configuration for JupyterHub
recipes.py dockerfile FOLDER   the Dockerfile that repo2docker makes of a repository
"""

import asyncio
import atexit
import json
import os
import pwd
import sys
import tempfile
import types

command, file = sys.argv[1:]


def pod():
    import yaml

    # It wants to know of a cluster, which it does not call. The variable is read at the import.
    none = {
        "current-context": "none",
        "contexts": [{"name": "none", "context": {"cluster": "none", "user": "none"}}],
        "clusters": [{"name": "none", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "none", "user": {}}],
    }
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", delete=False) as kubeconfig:
        yaml.safe_dump(none, kubeconfig)
    atexit.register(os.unlink, kubeconfig.name)
    os.environ["KUBECONFIG"] = kubeconfig.name
    from kubernetes_asyncio.client import ApiClient
    from kubespawner import KubeSpawner
    from traitlets.config import Config

    with open(file) as text:
        user = yaml.safe_load(text)["singleuser"]
    storage = user["storage"]
    # As the chart hands its values to KubeSpawner; what is not named here would be left unread.
    known = {"image", "cmd", "extraPodConfig", "extraEnv", "uid", "fsGid", "storage", "memory", "cpu"}
    unread = set(user) - known | set(storage) - {"capacity", "homeMountPath", "extraVolumes", "extraVolumeMounts"}
    assert not unread, f"{file}: nothing here reads {unread}"
    home = {"name": "volume-alice", "persistentVolumeClaim": {"claimName": "claim-alice"}}
    config = Config()
    config.KubeSpawner = Config(
        cmd=user.get("cmd", "jupyterhub-singleuser"),
        image=f"{user['image']['name']}:{user['image']['tag']}",
        extra_pod_config=user["extraPodConfig"],
        environment=user.get("extraEnv", {}),
        uid=user.get("uid", 1000),
        fs_gid=user.get("fsGid", 100),
        mem_guarantee=user["memory"]["guarantee"],
        mem_limit=user["memory"]["limit"],
        cpu_guarantee=user.get("cpu", {}).get("guarantee"),
        volumes=[home, *storage["extraVolumes"]],
        volume_mounts=[
            {"name": home["name"], "mountPath": storage.get("homeMountPath", "/home/jovyan")},
            *storage["extraVolumeMounts"],
        ],
    )

    async def make():
        made = await KubeSpawner(_mock=True, config=config).get_pod_manifest()
        async with ApiClient() as client:
            return client.sanitize_for_serialization(made)

    return asyncio.run(make())


def job():
    from batchspawner.batchspawner import format_template
    from traitlets.config.loader import PyFileConfigLoader

    import batchspawner

    config = PyFileConfigLoader(file).load_config()
    spawner = batchspawner.SlurmSpawner(config=config)
    spawner.user = types.SimpleNamespace(name=pwd.getpwuid(os.getuid()).pw_name)
    spawner.req_keepvars = "JUPYTERHUB_API_TOKEN,JUPYTERHUB_SERVICE_URL"  # else it asks a Hub
    requests = [name for name in spawner.trait_names() if name.startswith("req_")]
    values = {name.removeprefix("req_"): getattr(spawner, name) for name in requests}
    values["cmd"] = spawner.cmd_formatted_for_batch()
    return {"script": format_template(spawner.batch_script, **values), "hub": config.JupyterHub.spawner_class}


def dockerfile():
    from repo2docker.buildpacks import CondaBuildPack

    os.chdir(file)
    pack = CondaBuildPack("docker.io/library/buildpack-deps:noble")
    pack.platform = "linux/amd64"
    assert pack.detect()
    return {"text": pack.render({}), "postBuild": pack.get_post_build_scripts()}


print(json.dumps({"pod": pod, "job": job, "dockerfile": dockerfile}[command]()))
