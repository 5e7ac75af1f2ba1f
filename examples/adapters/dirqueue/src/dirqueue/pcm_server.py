"""The contract's server: see adapter.proto."""

import json
import logging
import os
import re
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc

from . import adapter_pb2 as pb
from .pcm_attempts import Attempts, cut
from .pcm_backend import Config
from .pcm_errors import CallError, Code, is_absent
from .pcm_values import Fault, as_text

VERSION = 1
MESSAGE = 4 << 20

log = logging.getLogger(__name__)


class Server:
    """Answers the host."""

    def __init__(self, backend, about, state, every):
        self.backend, self.about, self.state, self.every = backend, about, state, every
        self.lock = threading.Lock()
        self.attempts = None

    def Handshake(self, r, _):
        if not r.version_min <= VERSION <= r.version_max:
            raise CallError(
                Code.FAILED_PRECONDITION,
                f"this plug-in speaks version {VERSION} of the contract, the host {r.version_min} to {r.version_max}",
            )
        try:
            settings = json.loads(r.settings_json or "{}")
            settings = {k: as_text(v) for k, v in settings.items()}
        except (ValueError, AttributeError) as e:
            raise CallError(Code.INVALID_ARGUMENT, f"the settings are no JSON object: {e}") from e
        self.backend.configure(Config(r.name, r.instance, settings, {**r.secrets}))
        with self.lock:
            if self.attempts is None:
                self.attempts = Attempts(os.path.join(self.state, "attempts"), self.backend, self.every)
                threading.Thread(target=self.attempts.run, daemon=True).start()
        return pb.HandshakeResponse(
            version=VERSION,
            nonce=os.environ.get("PCM_PLUGIN_NONCE", ""),
            about=cut(self.about, 128),
            roles=[pb.ROLE_SUSPEND] if self.backend.suspends() else [],
            logs_every_ms=500,
        )

    def all(self):
        if self.attempts is None:
            raise CallError(Code.FAILED_PRECONDITION, "the first call is Handshake")
        return self.attempts

    def known(self, key):
        a = self.all().get(key)
        if a is None:
            raise CallError(Code.NOT_FOUND, "there is no such attempt")
        return a

    def Pools(self, _, __):
        return pb.PoolsResponse(pools=self.backend.pools(self.all().ours())[:64])

    def Start(self, r, _):
        if not re.fullmatch(r"[a-z0-9-][a-z0-9.-]{0,95}", r.key):
            raise CallError(Code.INVALID_ARGUMENT, f"{r.key!r} is no key of an attempt")
        if not r.command and not r.image:
            raise CallError(Code.INVALID_ARGUMENT, "there is nothing to run")
        return pb.StartResponse(native_id=cut(self.all().start(r).id, 64))

    def Watch(self, r, context):
        attempts = guard("Watch", lambda *_: self.all())(r, context)
        beat = max(r.heartbeat_ms, 100) / 1000
        told, first = 0, True
        while context.is_active():
            news, told = attempts.news(told)
            for i in range(0, len(news), 1000):
                yield pb.WatchResponse(statuses=news[i : i + 1000])
            if first:
                yield pb.WatchResponse(snapshot_complete=True)
            first = False
            with attempts.changed:
                changed = attempts.changed.wait_for(lambda t=told: attempts.count > t, beat)
            if not changed:
                yield pb.WatchResponse()

    def List(self, r, _):
        attempts = [a for a in self.all().list() if a.request.key > r.after]
        return pb.ListResponse(statuses=[a.state for a in attempts[:1000]], more=len(attempts) > 1000)

    def Logs(self, r, _):
        a = self.known(r.key)
        ended, most = a.ended(), min(max(r.max_bytes, 1), 1 << 20)
        found = []
        for stream, offset in (("stdout", r.stdout_offset), ("stderr", r.stderr_offset)):
            try:
                with open(a.folder / stream, "rb") as f:
                    f.seek(offset)
                    found.append(f.read(most))
            except FileNotFoundError:
                found.append(b"")
        return pb.LogsResponse(stdout=found[0], stderr=found[1], eof=ended and all(len(d) < most for d in found))

    def Outputs(self, r, _):
        a = self.known(r.key)
        with a.turn:
            self.backend.outputs(a)
        return pb.OutputsResponse()

    def Stop(self, r, _):
        a = self.all().get(r.key)
        if a is None or a.ended():
            return pb.StopResponse()
        with a.turn:
            a.asked = True
            a.save()
            if not a.known:
                raise CallError(Code.UNAVAILABLE, "it is not known yet whether the back end has it")
            try:
                self.backend.stop(a, r.force)
            except CallError as e:
                if not is_absent(e):
                    raise
        return pb.StopResponse()

    def Remove(self, r, _):
        a = self.all().get(r.key)
        if a is None:
            return pb.RemoveResponse()
        if not a.ended():
            raise CallError(Code.ABORTED, "it has not ended")
        with a.turn:
            try:
                self.backend.remove(a)
            except CallError as e:
                if not is_absent(e):
                    raise
            self.all().forget(a)
        return pb.RemoveResponse()

    def Suspend(self, r, _):
        self.halt(r.key, self.backend.suspend)
        return pb.SuspendResponse()

    def Resume(self, r, _):
        self.halt(r.key, self.backend.resume)
        return pb.ResumeResponse()

    def halt(self, key, do):
        if not self.backend.suspends():
            raise CallError(Code.UNIMPLEMENTED, "this back end can't suspend")
        a = self.known(key)
        with a.turn:
            if not a.runs():
                raise CallError(Code.ABORTED, "it doesn't run")
            do(a)


def guard(name, method):
    """Makes statuses of gRPC of what a method raises."""

    def answer(request, context):
        try:
            return method(request, context)
        except CallError as e:
            code, text = e.code, str(e)
        except Fault as e:
            code, text = Code.INVALID_ARGUMENT, str(e)
        except Exception as e:
            log.exception("%s fails", name)
            code, text = Code.INTERNAL, f"the plug-in has a fault: {e}"
        context.abort(code, cut(text, 1000))

    return answer


def handlers(server):
    service = pb.DESCRIPTOR.services_by_name["Adapter"]
    table = {}
    for m in service.methods:
        method = getattr(server, m.name, None)
        if method is None:
            continue  # of a role that this plug-in doesn't have
        kind = grpc.unary_stream_rpc_method_handler if m.server_streaming else grpc.unary_unary_rpc_method_handler
        request, response = getattr(pb, m.input_type.name), getattr(pb, m.output_type.name)
        if not m.server_streaming:
            method = guard(m.name, method)
        table[m.name] = kind(method, request.FromString, response.SerializeToString)
    return grpc.method_handlers_generic_handler(service.full_name, table)


def serve(backend, about, every):
    """Runs the plug-in until it is told to end; every is the seconds between polls."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(message)s")
    socket, state = os.environ.get("PCM_PLUGIN_SOCKET"), os.environ.get("PCM_PLUGIN_STATE")
    if not socket or not state:
        raise SystemExit(
            "PCM_PLUGIN_SOCKET or PCM_PLUGIN_STATE is not set: PCM starts this program, as adapters.plugins of its configuration says"
        )
    limits = [("grpc.max_receive_message_length", MESSAGE), ("grpc.max_send_message_length", MESSAGE)]
    g = grpc.server(ThreadPoolExecutor(32), options=limits)
    g.add_generic_rpc_handlers((handlers(Server(backend, about, state, every)),))
    g.add_insecure_port("unix:" + socket)
    ended = threading.Event()
    for s in (signal.SIGTERM, signal.SIGINT):
        signal.signal(s, lambda *_: ended.set())
    g.start()
    ended.wait()
    g.stop(None)
    logging.shutdown()
    os._exit(0)  # calls of the back end may hang
