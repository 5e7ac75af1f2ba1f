"""What the back end's words mean."""

from .pcm_backend import State

states: dict[str, State] = {
    # pcm:begin states needed
    "queued": State("pending"),
    "running": State("running"),
    "done": State("ended", "ok"),
    "failed": State("ended", "failed"),
    "canceled": State("ended", "stopped"),
    # pcm:end states
}


def state(word: str) -> State:
    """A state of one's own: unknown words keep what runs running."""
    known = states.get(word, State(reason=f"its back end calls its state {word[:60]}, which is not known here"))
    return State(known.state, known.outcome, known.reason)
