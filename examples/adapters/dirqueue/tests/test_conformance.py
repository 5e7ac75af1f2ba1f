"""PCM's conformance suite, which all adapters pass.

It needs a back end: ADAPTER_SETTINGS is a JSON object of the settings, and the secrets
are in the environment under their names. PCM is the program, if it isn't in PATH.
ADAPTER_TRIAL, also JSON, is what else 'pcm adapter test --config' should know.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SECRETS = []


def test_conformance(tmp_path):
    settings = os.environ.get("ADAPTER_SETTINGS")
    if settings is None:
        pytest.skip("ADAPTER_SETTINGS does not say where a back end to test with is")
    program = Path(sys.executable).with_name("dirqueue-adapter")
    assert program.exists(), "install the project first: pip install ."
    trial = {
        "name": "dirqueue",
        "command": [str(program)],
        "settings": json.loads(settings),
        "secrets": {name: "env:" + name for name in SECRETS if os.environ.get(name)},
        "unsupported": UNSUPPORTED,
        **json.loads(os.environ.get("ADAPTER_TRIAL", "{}")),
    }
    config = tmp_path / "trial.yaml"
    config.write_text(json.dumps(trial), encoding="utf-8")
    pcm = os.environ.get("PCM") or shutil.which("pcm")
    assert pcm, "PCM does not say where the program pcm is"
    done = subprocess.run([pcm, "adapter", "test", "--config", config], capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    assert done.returncode == 0


UNSUPPORTED = {
    # pcm:begin unsupported
    "memory limit": "the queue knows no limits",
    "out of memory": "the queue knows no limits",
    "too little memory": "the queue knows no limits",
    "use of CPU": "the queue does not measure",
    "use of memory": "the queue does not measure",
    "accelerators": "the queue has none",
    "no network": "jobs have the machine's network",
    "read-only inputs": "a job has copies of its own",
    "images": "it runs programs of its own machine",
    "arrays": "the queue has no arrays",
    "suspend and resume": "the queue can't halt a job",
    "exec": "the queue can't",
    "copy": "the queue can't",
    "service": "the queue gives no address",
    "back end hung": "a command can't hang for all",
    "back end restarted": "there is no server",
    "waiting": "nothing fills the queue here",
    # pcm:end unsupported
}
