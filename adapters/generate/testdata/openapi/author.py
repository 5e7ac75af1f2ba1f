# What an author writes into the project of jobs.yaml in Python, by region.
# pcm:begin imports
import tarfile
import tempfile

from . import api_types as t
from . import pcm_tar
from .pcm_tool import most_of_outputs
# pcm:end imports

    # pcm:begin own
    poll_seconds = 0.2

    def name(self, a: Attempt) -> str:
        return self.config.instance + "." + a.request.key

    def jobs(self, attempts: list[Attempt]) -> dict[str, t.Job]:
        found = self.api.list_jobs(name=[self.name(a) for a in attempts])
        return {job.get("name", ""): job for job in found.get("jobs", [])}
    # pcm:end own

    # pcm:begin pools
        all_of_them = []
        for s in self.api.list_sizes().get("sizes", []):
            size = pb.Resources(cpu_milli=s.get("cpu_milli", 0), memory_bytes=s.get("memory_bytes", 0))
            features = [pb.FEATURE_COMMAND, pb.FEATURE_NETWORK]
            all_of_them.append(pb.Pool(id=s.get("name", ""), capacity=size, slots=s.get("slots", 0), features=features))
        return all_of_them
    # pcm:end pools

    # pcm:begin find
        return self.jobs([a]).get(self.name(a), {}).get("id", "")
    # pcm:end find

    # pcm:begin start
        r = a.request
        if r.image or r.module or r.resources.gpus:
            raise CallError(Code.FAILED_PRECONDITION, "the service runs commands without images, modules and GPUs")
        spec: t.JobSpec = {"name": self.name(a), "size": r.pool or "small", "command": [*r.command, *r.args], "environment": dict(r.env)}
        if r.inputs:
            with tempfile.TemporaryFile() as f:
                pcm_tar.pack(f, [(x.path, x.target) for x in r.inputs])
                f.seek(0)
                spec["files"] = self.api.put_files(f).get("id")
        return self.api.make_job(spec).get("id", "")
    # pcm:end start

    # pcm:begin poll
        jobs, seen = self.jobs(attempts), {}
        for a in attempts:
            job = jobs.get(self.name(a), {})
            word = job.get("state", "")
            seen[a.request.key] = Seen(state(word), word, gone=not word, code=job.get("exit_code"))
        return seen
    # pcm:end poll

    # pcm:begin logs
        for stream in ("stdout", "stderr"):
            had, rounds = -1, 0
            while had < a.size(stream) and (ended or rounds < 8):
                had, rounds = a.size(stream), rounds + 1
                a.write(stream, self.api.read_output(id=a.id, stream=stream, from_=had))
    # pcm:end logs

    # pcm:begin stop
        self.api.signal_job({"signal": "KILL" if force else "TERM"}, id=a.id)
    # pcm:end stop

    # pcm:begin outputs
        declared, most = list(a.request.outputs), most_of_outputs(a.request)
        if not declared:
            return
        with tempfile.TemporaryFile() as f:
            self.api.get_files(f, most, id=a.id, path=declared, most_=most)
            size = f.tell()
            f.seek(0)
            try:
                if size:
                    pcm_tar.unpack(f, a.request.work, declared)
            except tarfile.TarError:
                if size < most:
                    raise
    # pcm:end outputs

    # pcm:begin remove
        self.api.delete_job(id=a.id)
    # pcm:end remove
