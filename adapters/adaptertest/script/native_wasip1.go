package script

import (
	"errors"
	"time"
)

func native(op string, next func() string) error {
	return errors.New("there are no processes, signals, terminals and networks here: " + op)
}

// used is about the CPU time of the turns of step burn so far: there is no clock
// of the CPU here, that of the wall shows what others use as well, and loops that
// can be ended at any moment are slow.
func used() time.Duration {
	turns++
	return time.Duration(turns<<16) * 10 * time.Nanosecond
}

var turns int64
