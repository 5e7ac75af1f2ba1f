package server

import "context"

// podmanConf is for machines where limits can't be raised and cgroups are of both kinds.
const podmanConf = `[containers]
default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
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
	e := &Engine{Folder: f, path: found["podman"], env: []string{"CONTAINERS_CONF=" + f.Path("containers.conf")}, args: []string{
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
