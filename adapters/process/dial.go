package process

import (
	"context"
	"errors"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters"
)

// Dial implements adapters.Dialer: it connects to a port on which the task
// listens, in the network where that is. In the machine's own network a port of
// somebody else is refused.
func (a *Adapter) Dial(ctx context.Context, k adapters.Key, port int) (net.Conn, error) {
	if port < 1 || port > 65535 {
		return nil, pcm.Errorf(pcm.Invalid, "%d is not a port", port)
	}
	leave, err := a.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	p, target, err := a.at(k)
	if err != nil {
		return nil, err
	}
	if !p.Cell.Spaced || p.Cell.Network {
		if !listens(append([]int{target}, a.processes(p)...), port) {
			return nil, pcm.Errorf(pcm.Unavailable, "attempt %s does not listen on port %d", k, port)
		}
		conn, err := dialLocal(port)
		if err != nil {
			return nil, pcm.Errorf(pcm.Unavailable, "can't connect to port %d of attempt %s: %w", port, k, err)
		}
		return conn, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*dialTimeout)
	defer cancel()
	c := cell{Spaced: true, Target: target, Since: startOf(target), Port: port}
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, pcm.Errorf(pcm.Unavailable, "can't connect to port %d of attempt %s: %w", port, k, err)
	}
	return conn, nil
}

// processes lists those of the task that can be found.
func (a *Adapter) processes(p place) []int {
	all := inside(p.PID, p.Wrappers)
	for _, dir := range p.Groups {
		all = append(all, procs(dir)...)
	}
	return all
}

// connect has a helper inside make the connection.
func (c cell) connect(ctx context.Context) (net.Conn, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "dial"), os.NewFile(uintptr(pair[1]), "dial")
	defer ours.Close()
	in, err := c.command(ctx, theirs)
	if err != nil {
		theirs.Close()
		return nil, err
	}
	defer in.close()
	if err := in.Start(); err != nil {
		return nil, err
	}
	in.started()
	err = in.Wait()
	if f := in.fault(); f.Reason != "" {
		return nil, errors.New(f.Reason)
	}
	if err != nil {
		return nil, err
	}
	unix.SetsockoptTimeval(pair[0], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1})
	var data [1]byte
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(pair[0], data[:], oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("recvmsg", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return nil, errors.New("no connection came out of the sandbox")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.New("no connection came out of the sandbox")
	}
	f := os.NewFile(uintptr(fds[0]), "connection")
	defer f.Close()
	return net.FileConn(f)
}
