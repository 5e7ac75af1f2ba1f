"""The back end: what you write stands between pcm:begin and pcm:end."""

from . import adapter_pb2 as pb  # noqa: F401
from .pcm_attempts import Attempt
from .pcm_backend import Backend, Config, Seen
from .pcm_errors import CallError, Code  # noqa: F401
from .states import state  # noqa: F401
# pcm:begin imports
import os
import shutil
from pathlib import Path

from .pcm_tool import call, task_words
from .pcm_values import fShell
# pcm:end imports


class Dirqueue(Backend):
    """See pcm_backend.Backend for what its methods owe; adapter.proto for what the host does with it."""

    poll_seconds = 1.0

    # pcm:begin own
    poll_seconds = 0.2

    def dirq(self, *args: str) -> str:
        env = {**os.environ, "DIRQ": self.config.settings["folder"], "DIRQ_SLOTS": self.config.settings.get("slots", "4")}
        return call(self.config.settings["dirq"], *args, env=env).decode()

    def jobs(self) -> dict[str, list[str]]:
        return {line.split()[0]: line.split()[1:] for line in self.dirq("list").splitlines()}

    def name(self, a: Attempt) -> str:
        return self.config.instance + "." + a.request.key
    # pcm:end own

    def configure(self, c: Config) -> None:
        # pcm:begin configure needed
        self.config = c
        for name in ("dirq", "folder"):
            if not c.settings.get(name, "").startswith("/"):
                raise CallError(Code.INVALID_ARGUMENT, f"setting {name} is no absolute path")
        # pcm:end configure

    def pools(self, ours: dict[str, int]) -> list[pb.Pool]:
        # pcm:begin pools needed
        self.dirq("list")
        slots = int(self.config.settings.get("slots", "4"))
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        size = pb.Resources(cpu_milli=(os.cpu_count() or 1) * 1000 * slots, memory_bytes=pages)
        return [pb.Pool(id="queue", capacity=size, slots=slots, features=[pb.FEATURE_COMMAND, pb.FEATURE_NETWORK])]
        # pcm:end pools

    def find(self, a: Attempt) -> str:
        # pcm:begin find needed
        return self.name(a) if self.name(a) in self.jobs() else ""
        # pcm:end find

    def start(self, a: Attempt) -> str:
        # pcm:begin start needed
        r, work = a.request, Path(a.request.work)
        if r.image or r.module or r.resources.gpus:
            raise CallError(Code.FAILED_PRECONDITION, "the queue runs commands without images, modules and GPUs")
        for x in r.inputs:
            target = work / x.target
            target.parent.mkdir(parents=True, exist_ok=True)
            if os.path.isdir(x.path):
                shutil.copytree(x.path, target, dirs_exist_ok=True)
            else:
                shutil.copy(x.path, target)
        script = a.folder / "script"
        script.write_text(f"cd {fShell(str(work))} && exec {task_words(r, work)} >>{fShell(str(a.folder / 'stdout'))} 2>>{fShell(str(a.folder / 'stderr'))}\n")
        self.dirq("submit", self.name(a), str(script))
        return self.name(a)
        # pcm:end start

    def poll(self, attempts: list[Attempt]) -> dict[str, Seen]:
        # pcm:begin poll needed
        jobs, seen = self.jobs(), {}
        for a in attempts:
            word, code = jobs.get(a.id, ["gone", "0"])
            seen[a.request.key] = Seen(state(word), word, gone=word == "gone", code=int(code) or None)
        return seen
        # pcm:end poll

    def logs(self, a: Attempt, ended: bool) -> None:
        # pcm:begin logs needed
        return  # the job writes them itself
        # pcm:end logs

    def stop(self, a: Attempt, force: bool) -> None:
        # pcm:begin stop needed
        self.dirq("cancel", a.id, *(["--kill"] if force else []))
        # pcm:end stop

    def outputs(self, a: Attempt) -> None:
        # pcm:begin outputs needed
        return  # the job works where the host looks
        # pcm:end outputs

    def remove(self, a: Attempt) -> None:
        # pcm:begin remove needed
        self.dirq("forget", a.id)
        # pcm:end remove
