"""Starts the plug-in. Written by 'pcm adapter new'."""

from .backend import Dirqueue
from .pcm_server import serve


def main():
    serve(Dirqueue(), "runs tasks of PCM on dirqueue", Dirqueue.poll_seconds)


if __name__ == "__main__":
    main()
