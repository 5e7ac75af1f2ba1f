package adaptertest

import (
	"context"
	"os/signal"
	"syscall"
)

func terminated() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), syscall.SIGTERM)
}
