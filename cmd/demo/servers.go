package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"

	"github.com/moby/moby/client"

	"github.com/jointcloud/pcm/adapters/adaptertest/server"
)

// servers are private instances of the back ends that sites have.
type servers struct {
	docker *server.Engine
	slurm  *server.Slurm
	kube   *server.Kubernetes
}

// image is what containers run in where a job names none.
const image = "localhost/busybox:1"

// missing is nil where this machine has all that the servers need.
func missing() error {
	if os.Getuid() != 0 {
		return errors.New("the private servers have to be started by root")
	}
	// What the servers ask for one by one when they start, all at once.
	_, err := server.Need("dockerd", "containerd", "runc", "ctr", "busybox", "ip", "nsenter", "unshare", "setpriv",
		"munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "sinfo")
	if err != nil {
		return notHere(err)
	}
	return nil
}

func notHere(err error) error {
	return fmt.Errorf("this machine lacks something: %w\nOn Debian 12 this installs all of it, as root, and builds Kubernetes once:\n\n  .ci/backends sandbox docker slurm kubernetes", err)
}

// open starts them, all at the same time.
func (v *servers) open(ctx context.Context, manifest string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var starting sync.WaitGroup
	errs := make([]error, 3)
	for i, start := range []func(context.Context) error{v.openDocker, v.openSlurm, func(ctx context.Context) error { return v.openKubernetes(ctx, manifest) }} {
		starting.Go(func() {
			if errs[i] = start(ctx); errs[i] != nil {
				cancel() // of no use without this one
			}
		})
	}
	starting.Wait()
	for _, err := range errs {
		if errors.Is(err, server.ErrMissing) {
			return notHere(err)
		}
	}
	return errors.Join(errs...)
}

func (v *servers) openDocker(ctx context.Context) (err error) {
	if v.docker, err = server.Dockerd(ctx, false); err != nil {
		return err
	}
	return v.docker.LoadBusybox(ctx, image)
}

func (v *servers) openSlurm(ctx context.Context) (err error) {
	v.slurm, err = server.StartSlurm(ctx, server.SlurmOptions{Nodes: 2})
	return err
}

func (v *servers) openKubernetes(ctx context.Context, manifest string) error {
	k, err := server.StartKubernetes(ctx)
	if err != nil {
		return err
	}
	v.kube = k
	if err := k.Apply(ctx, manifest); err != nil {
		return err
	}
	_, err = k.AddNode(ctx, 0)
	return err
}

// close stops those that were started; each says what it had to end by force.
func (v *servers) close() error {
	var errs []error
	if v.docker != nil {
		errs = append(errs, v.docker.Close())
	}
	if v.slurm != nil {
		errs = append(errs, v.slurm.Close())
	}
	if v.kube != nil {
		errs = append(errs, v.kube.Close())
	}
	return errors.Join(errs...)
}

// ran counts the tasks that each server has run, by its own books.
func (v *servers) ran(ctx context.Context) (docker, slurm, kube int, err error) {
	docker = v.docker.Started()
	book, err := os.ReadFile(v.slurm.Path("log", "jobcomp.txt"))
	if err != nil {
		return 0, 0, 0, err
	}
	for job := range strings.Lines(string(book)) {
		if strings.Contains(job, " Name=pcm.") && strings.Contains(job, " JobState=COMPLETED ") {
			slurm++
		}
	}
	pods, err := v.kube.Started(ctx, "task")
	return docker, slurm, len(pods), err
}

// empty is nil when no server has anything left of any task.
func (v *servers) empty(ctx context.Context) error {
	containers, err := v.docker.API.ContainerList(ctx, client.ContainerListOptions{All: true})
	if err != nil {
		return err
	}
	if n := len(containers.Items); n > 0 {
		return fmt.Errorf("%d containers are left in Docker", n)
	}
	queue, err := v.slurm.Command(ctx, "squeue", "--noheader")
	if err != nil {
		return err
	}
	if queue != "" {
		return fmt.Errorf("jobs are left in Slurm:\n%s", queue)
	}
	for _, kind := range []string{"/apis/batch/v1/namespaces/pcm/jobs", "/api/v1/namespaces/pcm/pods"} {
		var list struct{ Items []any }
		if err := v.kube.Do(ctx, http.MethodGet, kind, nil, &list); err != nil {
			return err
		}
		if n := len(list.Items); n > 0 {
			return fmt.Errorf("%d objects are left in Kubernetes at %s", n, kind)
		}
	}
	return nil
}
