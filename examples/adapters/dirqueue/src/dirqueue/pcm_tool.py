"""Back ends that are driven by programs: calling those, tasks as texts for a shell,
and what such a task leaves in its folder."""

import io
import os
import signal
import subprocess
import threading

from .pcm_errors import CallError, Code
from .pcm_values import fShell

AT_ONCE = threading.BoundedSemaphore(8)


def call(*command, stdin=subprocess.DEVNULL, seconds=20, most=4 << 20, to=None, env=None):
    """Runs a program and gives what it prints, or writes that to a file. Any end but a good one is an error.

    Some run at once, others wait. Of what it says on its standard error the end is in the error.
    """
    with AT_ONCE:
        return run(command, stdin, seconds, most, to or io.BytesIO(), env)


def run(command, stdin, seconds, most, to, env):
    why, words, size = "", bytearray(), 0
    pipe = subprocess.PIPE
    try:
        p = subprocess.Popen(command, stdin=stdin, stdout=pipe, stderr=pipe, env=env, start_new_session=True)
    except OSError as e:
        raise CallError(Code.UNAVAILABLE, f"{command[0]}: {e}") from e

    def end(reason=f"it takes more than {seconds} s"):
        nonlocal why
        why = why or reason
        try:
            os.killpg(p.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def listen():
        while part := p.stderr.read1(4096):
            words.extend(part)
            del words[:-1000]

    late, ear = threading.Timer(seconds, end), threading.Thread(target=listen, daemon=True)
    late.start()
    ear.start()
    try:
        while not why and (part := p.stdout.read1(1 << 16)):
            size += len(part)
            if size > most:
                end(f"it prints more than {most} bytes")
            else:
                to.write(part)
        code = p.wait()
    finally:
        late.cancel()
        if p.poll() is None:
            end("it was given up")
            p.wait()
        ear.join(1)
        p.stdout.close()
    if why or code != 0:
        said = words.decode(errors="replace").strip()
        raise CallError(Code.UNAVAILABLE, f"{command[0]}: {why or f'exit code {code}'}: {said}")
    return to.getvalue() if isinstance(to, io.BytesIO) else b""


def task_words(r, home):
    """The task as words for a shell, with no variables but its own."""
    env = {"HOME": str(home), "PATH": "/usr/local/bin:/usr/bin:/bin", **r.env}
    return fShell(["env", "-i", *(f"{k}={v}" for k, v in env.items()), *r.command, *r.args])


def task_script(r, folder):
    """The text for sh that runs the task in a folder, which has a folder "work" in it.

    Its streams, its process ID and in the end its exit code become files of the folder. It must lead
    a session: whose processes end with the task, and by signals to it; SIGTERM doesn't end the text
    itself. The task does not have descriptor 9, so that a lock of the starter's there tells how long
    the text runs.
    """
    return f"""# PCM made this for attempt {r.key}.
cd {fShell(str(folder))} && trap : TERM && echo $$ >pid.new && mv pid.new pid || exit 125
(cd work && exec 9>&- && exec {task_words(r, f"{folder}/work")}) </dev/null >stdout 2>stderr
echo $? >code.new && mv code.new code
pkill -KILL -s $$
"""


# The text for sh that prints a tar of a task's outputs. Its parameters are the folder that task_script
# had, how many bytes to print at most, and the outputs. Nothing is taken from elsewhere by way of links.
OUTPUTS_SCRIPT = """\
cd "$1/work" && where=$(pwd -P) && most=$2 && shift 2 || exit 125
for o; do
  shift
  case $o in */*) up=./${o%/*} ;; *) up=. ;; esac
  up=$(cd -P "$up" 2>/dev/null && pwd -P)/
  case $up in "$where"/*) [ ! -e "./$o" ] && [ ! -L "./$o" ] || set -- "$@" "./$o" ;; esac
done
[ $# -eq 0 ] || tar -cf - "$@" | head -c "$most"
"""


def most_of_outputs(r):
    """How many bytes OUTPUTS_SCRIPT may print: more is over the cap, which shows in what of it is unpacked."""
    return (r.output_cap_bytes or 1 << 40) + (16 << 20)


def follow(a, sizes, read):
    """Adds what is new of both streams, of which sizes says how much there is: read gives what stands from a byte on."""
    for stream, size in zip(("stdout", "stderr"), sizes, strict=False):
        had = -1
        while had < a.size(stream) < size:
            had = a.size(stream)
            a.write(stream, read(stream, had))
