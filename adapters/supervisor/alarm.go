package supervisor

import (
	"os"
	"sync"

	"github.com/jointcloud/pcm/adapters"
	"golang.org/x/sys/unix"
)

// alarm rings at a moment of the boot clock, which goes on while the machine is
// suspended and which nobody can set: Go's own timers do neither.
type alarm struct {
	file *os.File
	C    chan struct{} // one pending ring at most

	mu  sync.Mutex
	set adapters.BootTime // 0: not set
}

func newAlarm() (*alarm, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	a := &alarm{file: os.NewFile(uintptr(fd), "timerfd"), C: make(chan struct{}, 1)}
	go a.read()
	return a, nil
}

func (a *alarm) read() {
	var buf [8]byte
	for {
		if _, err := a.file.Read(buf[:]); err != nil {
			return // closed
		}
		a.mu.Lock()
		if a.set <= adapters.Now() { // else it was set anew meanwhile
			a.set = 0
		}
		a.mu.Unlock()
		select {
		case a.C <- struct{}{}:
		default:
		}
	}
}

// by makes sure that the alarm rings at t or before.
func (a *alarm) by(t adapters.BootTime) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.set != 0 && a.set <= t {
		return
	}
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(max(int64(t), 1))}
	conn, err := a.file.SyscallConn()
	if err != nil {
		return // closed
	}
	conn.Control(func(fd uintptr) {
		if unix.TimerfdSettime(int(fd), unix.TFD_TIMER_ABSTIME, &spec, nil) == nil {
			a.set = t
		}
	})
}

func (a *alarm) close() { a.file.Close() }
