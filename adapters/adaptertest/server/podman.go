package server

import (
	"context"
	"time"
)

// podmanConf is for machines where limits can't be raised and cgroups are of both
// kinds. Its locks are files: those in memory are shared by all services of the
// machine, each new one forgets whose they are, and one that hangs keeps the others
// waiting. A process stays behind for each command that was run in a container, until
// its end may be asked for no more: five minutes, unless told.
const podmanConf = `[containers]
default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
exit_command_delay = 5
runtime = "runc"
`

// Podman starts Podman's service of the Docker Engine API.
func Podman(ctx context.Context) (*Engine, error) {
	found, err := Need("podman", "conmon", "runc")
	if err != nil {
		return nil, err
	}
	f, err := NewFolder("podman")
	if err != nil {
		return nil, err
	}
	e := &Engine{Folder: f, linger: 10 * time.Second, path: found["podman"], env: []string{"CONTAINERS_CONF=" + f.Path("containers.conf")}, args: []string{
		"--root", f.Path("lib"), "--runroot", f.Path("run"), "--tmpdir", f.Path("tmp"), "--cgroup-manager", "cgroupfs", "--events-backend", "file",
		"--runtime", "runc", "--network-config-dir", f.Path("net"), "system", "service", "--time=0", "unix://" + f.Path("engine.sock"),
	}}
	err = f.Write("containers.conf", podmanConf, 0o644)
	if err == nil {
		err = e.open(ctx)
	}
	if err == nil {
		err = e.bridge(ctx)
	}
	if err != nil {
		e.Close()
		return nil, err
	}
	return e, nil
}
