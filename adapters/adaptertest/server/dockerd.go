package server

import "context"

// Dockerd starts a Docker engine. With live, containers outlive a restart of it;
// without, as is the default of Docker, they are killed then.
func Dockerd(ctx context.Context, live bool) (*Engine, error) {
	found, err := Need("dockerd", "containerd", "runc")
	if err != nil {
		return nil, err
	}
	f, err := NewFolder("dockerd")
	if err != nil {
		return nil, err
	}
	// Apart from dockerd, as distributions have it: it outlives a crash of that.
	e := &Engine{Folder: f, path: found["dockerd"], args: []string{
		"--containerd", f.Path("containerd.sock"),
		"--data-root", f.Path("lib"), "--exec-root", f.Path("run"), "--pidfile", f.Path("pid"), "--host", "unix://" + f.Path("engine.sock"),
		"--config-file", f.Path("daemon.json"), "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--bridge=none", "--oom-score-adjust=0",
		"--exec-opt", "native.cgroupdriver=cgroupfs", "--shutdown-timeout=3", "--max-concurrent-downloads=2",
	}}
	if live {
		e.args = append(e.args, "--live-restore")
	}
	err = f.Write("daemon.json", "{}", 0o644)
	if err == nil {
		err = f.Write("containerd.toml", "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\noom_score = 0\n", 0o644)
	}
	if err == nil {
		e.below, err = f.Start("containerd", nil, found["containerd"], "--config", f.Path("containerd.toml"),
			"--root", f.Path("containerd"), "--state", f.Path("state"), "--address", f.Path("containerd.sock"))
	}
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
