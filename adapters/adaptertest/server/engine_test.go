package server_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/jointcloud/pcm/adapters/adaptertest/require"
	"github.com/jointcloud/pcm/adapters/adaptertest/server"
)

// Containers that start at the same moment are told of in any order: each counts.
func TestStartsAtOnce(t *testing.T) {
	e, err := server.Dockerd(t.Context(), false)
	require.Server(t, "docker", err)
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	const image, n = "localhost/busybox:1", 40
	if err := e.LoadBusybox(t.Context(), image); err != nil {
		t.Fatal(err)
	}
	var starting sync.WaitGroup
	var ids [n]string
	for i := range n {
		c, err := e.API.ContainerCreate(t.Context(), client.ContainerCreateOptions{
			Name: fmt.Sprintf("c%d", i), Config: &container.Config{Image: image, Cmd: []string{"true"}},
		})
		if err != nil {
			t.Fatal(err)
		}
		ids[i] = c.ID
	}
	for _, id := range ids {
		starting.Go(func() {
			if _, err := e.API.ContainerStart(t.Context(), id, client.ContainerStartOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
	starting.Wait()
	for i := range n {
		if got := e.Starts(fmt.Sprintf("c%d", i)); got != 1 {
			t.Errorf("container %d was started once, and counted %d times", i, got)
		}
	}
	for _, id := range ids {
		if _, err := e.API.ContainerRemove(t.Context(), id, client.ContainerRemoveOptions{Force: true}); err != nil {
			t.Error(err)
		}
	}
}
