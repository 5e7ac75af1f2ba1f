"""The attempts that were given to this plug-in: kept on disk, watched, read from."""

import json
import logging
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from google.protobuf import json_format

from . import adapter_pb2 as pb
from .pcm_errors import CallError, Code, is_absent

log = logging.getLogger(__name__)

OUTCOMES = {
    "ok": pb.OUTCOME_OK,
    "failed": pb.OUTCOME_FAILED,
    "time_limit": pb.OUTCOME_TIME_LIMIT,
    "memory": pb.OUTCOME_MEMORY,
    "output": pb.OUTCOME_OUTPUT,
    "stopped": pb.OUTCOME_STOPPED,
}
STATES = {"pending": pb.STATE_PENDING, "suspended": pb.STATE_SUSPENDED, "ended": pb.STATE_ENDED}


def cut(s, n):
    """One line of at most n bytes."""
    return " ".join(s.split()).encode("utf-8", "ignore")[:n].decode("utf-8", "ignore")


def failure(code):
    if code == 127:
        return "exit code 127: its program was not found"
    return f"exit code {code}: ended by signal {code - 128}" if 128 < code < 193 else f"exit code {code}"


PATIENCE_MS = 120_000  # how long the end of an attempt waits for output that can't be read


def now_ms():
    return int(time.time() * 1000)


class Attempt:
    """One that was given to the plug-in."""

    def __init__(self, owner, request):
        self.request = request
        self.id = ""  # the back end's name for it; "" while there is none
        self.note = {}  # what the back end wants to know later; saved with it
        self.owner = owner
        self.turn = threading.RLock()  # one call of the back end at a time
        self.state = pb.Status(key=request.key, fence=request.fence, state=pb.STATE_PENDING)
        self.asked = False  # stop was called
        self.doubt = request.again  # the back end may have it, though it didn't say so
        self.known = False  # it was begun
        self.gone = 0  # looks in a row that did not show it
        self.mute = 0  # since when, in ms, the output of what has ended can't be read

    @property
    def folder(self):
        return self.owner.dir / self.request.key

    def save(self):
        """Keeps the attempt on disk."""
        with self.owner.lock:
            kept = {
                "request": json_format.MessageToDict(self.request),
                "status": json_format.MessageToDict(self.state),
                "id": self.id,
                "note": self.note,
                "asked": self.asked,
                "doubt": self.doubt,
                "known": self.known,
                "sizes": {s: self.size(s) for s in ("stdout", "stderr")},  # as far as note knows of them
            }
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = self.folder / "attempt.json.new"
        fd = os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
        with open(fd, "w", encoding="utf-8") as f:
            json.dump(kept, f)
        new.rename(self.folder / "attempt.json")

    @classmethod
    def load(cls, owner, name):
        kept = json.loads(name.read_text(encoding="utf-8"))
        a = cls(owner, json_format.ParseDict(kept["request"], pb.StartRequest()))
        a.state = json_format.ParseDict(kept["status"], pb.Status())
        a.id, a.note, a.asked, a.known = kept["id"], kept["note"], kept["asked"], kept["known"]
        a.doubt = kept["doubt"] or not a.known
        for stream, size in kept.get("sizes", {}).items():
            if a.size(stream) > size:
                os.truncate(a.folder / stream, size)  # what came later comes again
        return a

    def write(self, stream, data):
        """Adds bytes to a stream, "stdout" or "stderr"."""
        most = self.request.output_cap_bytes
        if not data or 0 < most < self.size(stream):
            return  # the host ends it
        with open(self.folder / stream, "ab") as f:
            f.write(data)

    def size(self, stream):
        try:
            return (self.folder / stream).stat().st_size
        except FileNotFoundError:
            return 0

    def ended(self):
        return self.state.state == pb.STATE_ENDED

    def runs(self):
        """Tells whether the back end has it."""
        return self.known and not self.ended()

    def begin(self):
        """Looks for the attempt where it may be there, else starts it."""
        backend = self.owner.backend
        if self.doubt:
            found = backend.find(self)
            if found:
                return self.began(found)
        self.doubt = True  # until it says otherwise
        self.save()
        try:
            started = backend.start(self)
        except CallError as e:
            uncertain = e.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.CANCELLED, Code.UNKNOWN)
            self.doubt = uncertain and not e.unsent
            raise
        return self.began(started)

    def began(self, name):
        with self.owner.lock:
            self.id, self.known, self.doubt = name, True, False
            self.owner.touch(self)
        self.save()

    def see(self, look):
        """Takes a look at the back end into account."""
        with self.turn:
            if self.ended():
                return
            if look.job is not None:
                self.note["job"] = look.job
            self.gone = self.gone + 1 if look.gone else 0
            if look.gone:
                if self.gone < 3:
                    return
                look.state.state, look.state.reason = "ended", "the back end has it no more"
                look.state.outcome = "stopped" if self.asked else "lost"
            over = look.state.state == "ended"
            if not over and self.state.state == pb.STATE_PENDING:
                self.update(look, over)  # that it runs is known before what it prints, which may come slowly
            if (look.state.state != "pending" or self.asked) and not self.read(over, look.state.outcome):
                return
            look = self.owner.backend.judge(self, look)
            self.update(look, over)
            if over:
                self.save()

    def read(self, over, outcome):
        """Reads the output; tells whether its end, if it has ended, can be told."""
        try:
            self.owner.backend.logs(self, over and outcome not in ("memory", "stopped"))
        except CallError as e:
            if not (over and is_absent(e)):
                log.warning("can't read the output of %s: %s", self.request.key, e)
                self.mute = self.mute or now_ms()
                return not over or now_ms() - self.mute >= PATIENCE_MS
        self.mute = 0
        return True

    def update(self, look, over):
        judged = self.judge(look)
        judged.stdout_bytes, judged.stderr_bytes = self.size("stdout"), self.size("stderr")
        with self.owner.lock:
            was = self.state
            judged.started_ms, judged.cpu_ms = was.started_ms, max(was.cpu_ms, int(look.cpu * 1000))
            judged.memory_bytes = max(was.memory_bytes, int(look.memory))
            if not was.started_ms and judged.state != pb.STATE_PENDING:
                judged.started_ms = now_ms() - (int(look.seconds * 1000) if over else 0)
            if judged.state == pb.STATE_ENDED:
                judged.ended_ms = now_ms()
            if judged != was:
                self.state = judged
                self.owner.touch(self)

    def judge(self, look):
        """What the back end's words mean."""
        meant = look.state
        s = pb.Status(key=self.request.key, fence=self.request.fence, native=cut(look.word, 64), reason=meant.reason)
        s.state = STATES.get(meant.state, pb.STATE_RUNNING)
        if s.state == pb.STATE_ENDED:
            code = look.code or 0
            s.outcome = OUTCOMES.get(meant.outcome, pb.OUTCOME_SITE)
            if s.outcome == pb.OUTCOME_OK and code:
                s.outcome = pb.OUTCOME_FAILED
            if s.outcome == pb.OUTCOME_FAILED and code:
                s.reason = failure(code)
            if s.outcome == pb.OUTCOME_STOPPED and not self.asked:
                s.outcome, s.reason = pb.OUTCOME_SITE, "it was ended at its back end, not by its buyer"
            if s.outcome != pb.OUTCOME_OK and code <= 0:
                code = 137 if s.outcome in (pb.OUTCOME_STOPPED, pb.OUTCOME_MEMORY) else 255
            s.exit_code = code if 0 <= code <= 255 else 255
        s.reason = cut(s.reason, 240)
        return s


class Attempts:
    """All there are."""

    def __init__(self, folder, backend, every):
        self.dir, self.backend, self.every = Path(folder), backend, every
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.by_key = {}
        self.serial = {}
        self.count = 0
        self.dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in sorted(self.dir.glob("*/attempt.json")):
            a = Attempt.load(self, name)
            self.by_key[a.request.key] = a
            self.touch(a)

    def touch(self, a):
        """Tells of a change."""
        with self.changed:
            self.count += 1
            self.serial[a.request.key] = self.count
            self.changed.notify_all()

    def news(self, told):
        """What has changed since, and until when that holds."""
        with self.lock:
            copies = []
            for key, n in self.serial.items():
                if n > told and key in self.by_key:
                    copy = pb.Status()
                    copy.CopyFrom(self.by_key[key].state)
                    copies.append(copy)
            return copies, self.count

    def get(self, key):
        with self.lock:
            return self.by_key.get(key)

    def list(self):
        """A sorted copy."""
        with self.lock:
            return [self.by_key[k] for k in sorted(self.by_key)]

    def ours(self):
        """Counts attempts that have not ended, by pool."""
        n = {}
        for a in self.list():
            if not a.ended():
                n[a.request.pool] = n.get(a.request.pool, 0) + 1
        return n

    def start(self, request):
        """Begins an attempt once, however often it is called."""
        with self.lock:
            a = self.by_key.get(request.key)
            if a is None:
                a = self.by_key[request.key] = Attempt(self, request)
        with a.turn:
            if not a.known and not a.ended():
                try:
                    a.begin()
                except Exception:
                    if not a.doubt:
                        self.forget(a)
                    raise
        return a

    def forget(self, a):
        with self.lock:
            if self.by_key.get(a.request.key) is a:
                del self.by_key[a.request.key]
                self.serial.pop(a.request.key, None)
        shutil.rmtree(a.folder, ignore_errors=True)

    def run(self):
        """Polls the back end for ever."""
        with ThreadPoolExecutor(8) as pool:
            while True:
                time.sleep(self.every)
                try:
                    all_of_them = [a for a in self.list() if a.runs()]
                    seen = self.backend.poll(all_of_them) if all_of_them else {}
                    done = [pool.submit(a.see, seen[a.request.key]) for a in all_of_them if a.request.key in seen]
                    for d in done:
                        d.result()
                except Exception as e:  # whatever it was, the next look may be better
                    log.warning("can't see how attempts stand: %s", e, exc_info=not isinstance(e, CallError))
