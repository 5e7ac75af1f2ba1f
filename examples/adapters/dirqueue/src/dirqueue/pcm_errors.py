"""Why a call does not succeed."""

import grpc

Code = grpc.StatusCode


class CallError(Exception):
    """One of the contract's errors: see adapter.proto."""

    def __init__(self, code, text, status=0, absent=False, unsent=False):
        super().__init__(text)
        self.code = code
        self.status = status  # of HTTP; 0: no answer
        self.absent = absent  # there is no such thing
        self.unsent = unsent  # the back end has not acted on it


def is_absent(e):
    return isinstance(e, CallError) and e.absent
