package judge

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/flavors"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/limits"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/servers"
)

// fake is what fakecloud says of itself.
type fake struct {
	URL, Identity, User, Password, Domain, Project, Region, Image string
}

// binary is fakecloud: that of FAKECLOUD, or built from the tree around this module.
var binary = os.Getenv("FAKECLOUD")

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if binary == "" {
		dir, err := os.MkdirTemp("", "judge-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "fakecloud")
		build := exec.Command("go", "build", "-o", binary, "./adapters/rest/fake/cmd/fakecloud")
		build.Dir = "../../../../.."
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "building fakecloud: %v\n%s", err, out)
			return 1
		}
	}
	return m.Run()
}

// start starts a fake that ends with the test.
func start(t *testing.T) fake {
	t.Helper()
	cmd := exec.Command(binary, "openstack")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("fakecloud: %v", err)
		}
	})
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	var f fake
	if err := json.Unmarshal(line, &f); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return f
}

func (f fake) options() gophercloud.AuthOptions {
	return gophercloud.AuthOptions{
		IdentityEndpoint: f.Identity, Username: f.User, Password: f.Password, DomainName: f.Domain,
		Scope: &gophercloud.AuthScope{ProjectName: f.Project, DomainName: f.Domain}, AllowReauth: true,
	}
}

// nova logs in and finds Nova in the catalogue.
func (f fake) nova(t *testing.T) *gophercloud.ServiceClient {
	t.Helper()
	provider, err := openstack.AuthenticatedClient(t.Context(), f.options())
	if err != nil {
		t.Fatal(err)
	}
	client, err := openstack.NewComputeV2(provider, gophercloud.EndpointOpts{Region: f.Region})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func wait(t *testing.T, client *gophercloud.ServiceClient, id, status string) *servers.Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := servers.WaitForStatus(ctx, client, id, status); err != nil {
		t.Fatalf("the server does not become %s: %v", status, err)
	}
	s, err := servers.Get(ctx, client, id).Extract()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func order(f fake, name, script string) servers.CreateOpts {
	return servers.CreateOpts{
		Name: name, ImageRef: f.Image, FlavorRef: "1", Networks: "auto", Metadata: map[string]string{"pcm": name},
		UserData: []byte("#!/bin/sh\n" + script),
	}
}

// A server is made, watched, paused, stopped, started and deleted by a client that
// knows real clouds only.
func TestServer(t *testing.T) {
	f := start(t)
	client := f.nova(t)
	client.Microversion = "2.37" // from which on networks may be "auto"
	ctx := t.Context()
	s, err := servers.Create(ctx, client, order(f, "one", "echo hello; trap 'echo bye; exit' TERM; while :; do sleep 0.1; done"), nil).Extract()
	if err != nil || s.ID == "" || s.AdminPass == "" {
		t.Fatalf("%+v, %v", s, err)
	}
	got := wait(t, client, s.ID, "ACTIVE")
	if got.Name != "one" || got.Metadata["pcm"] != "one" || got.Created.IsZero() || got.Image["id"] != f.Image || got.Flavor["id"] != "1" || got.VmState != "active" || got.PowerState != servers.RUNNING || got.LaunchedAt.IsZero() {
		t.Errorf("%+v", got)
	}
	for end := time.After(time.Minute); ; {
		text, err := servers.ShowConsoleOutput(ctx, client, s.ID, servers.ShowConsoleOutputOpts{Length: 50}).Extract()
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(text, "hello\n") {
			break
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-end:
			t.Fatalf("console: %q", text)
		}
	}
	for _, step := range []struct {
		do     func(context.Context, *gophercloud.ServiceClient, string) error
		status string
		power  servers.PowerState
	}{
		{func(ctx context.Context, c *gophercloud.ServiceClient, id string) error {
			return servers.Pause(ctx, c, id).ExtractErr()
		}, "PAUSED", servers.PAUSED},
		{func(ctx context.Context, c *gophercloud.ServiceClient, id string) error {
			return servers.Unpause(ctx, c, id).ExtractErr()
		}, "ACTIVE", servers.RUNNING},
		{func(ctx context.Context, c *gophercloud.ServiceClient, id string) error {
			return servers.Suspend(ctx, c, id).ExtractErr()
		}, "SUSPENDED", servers.SHUTDOWN},
		{func(ctx context.Context, c *gophercloud.ServiceClient, id string) error {
			return servers.Resume(ctx, c, id).ExtractErr()
		}, "ACTIVE", servers.RUNNING},
		{func(ctx context.Context, c *gophercloud.ServiceClient, id string) error {
			return servers.Stop(ctx, c, id).ExtractErr()
		}, "SHUTOFF", servers.SHUTDOWN},
		{func(ctx context.Context, c *gophercloud.ServiceClient, id string) error {
			return servers.Start(ctx, c, id).ExtractErr()
		}, "ACTIVE", servers.RUNNING},
	} {
		if err := step.do(ctx, client, s.ID); err != nil {
			t.Fatalf("on the way to %s: %v", step.status, err)
		}
		if got := wait(t, client, s.ID, step.status); got.PowerState != step.power {
			t.Errorf("%s has power state %s", step.status, got.PowerState)
		}
	}
	if err := servers.Unpause(ctx, client, s.ID).ExtractErr(); !gophercloud.ResponseCodeIs(err, http.StatusConflict) {
		t.Errorf("unpause of what runs: %v", err)
	}
	if err := servers.Delete(ctx, client, s.ID).ExtractErr(); err != nil {
		t.Fatal(err)
	}
	if _, err := servers.Get(ctx, client, s.ID).Extract(); !gophercloud.ResponseCodeIs(err, http.StatusNotFound) {
		t.Errorf("what was deleted: %v", err)
	}
}

// Lists go on from page to page, flavors have their extra specs, quotas are told and kept.
func TestListsAndQuotas(t *testing.T) {
	f := start(t)
	client := f.nova(t)
	ctx := t.Context()
	client.Microversion = "2.61"
	pages, err := flavors.ListDetail(client, flavors.ListOpts{Limit: 1}).AllPages(ctx)
	if err != nil {
		t.Fatal(err)
	}
	all, err := flavors.ExtractFlavors(pages)
	if err != nil || len(all) != 3 || all[0].VCPUs != 1 || all[0].RAM != 2048 || all[0].Disk != 20 || all[2].ExtraSpecs["pci_passthrough:alias"] != "a100:1" {
		t.Fatalf("%+v, %v", all, err)
	}
	client.Microversion = ""
	l, err := limits.Get(ctx, client, nil).Extract()
	if err != nil || l.Absolute.MaxTotalCores != 8 || l.Absolute.MaxTotalInstances != 10 || l.Absolute.TotalCoresUsed != 0 {
		t.Fatalf("%+v, %v", l, err)
	}
	client.Microversion = "2.37"
	for i := range 8 {
		if _, err := servers.Create(ctx, client, order(f, fmt.Sprintf("many-%d", i), "true"), nil).Extract(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := servers.Create(ctx, client, order(f, "more", "true"), nil).Extract(); !gophercloud.ResponseCodeIs(err, http.StatusForbidden) || !strings.Contains(err.Error(), "Quota exceeded for cores") {
		t.Errorf("over the quota: %v", err)
	}
	if l, err = limits.Get(ctx, client, nil).Extract(); err != nil || l.Absolute.TotalCoresUsed != 8 || l.Absolute.TotalInstancesUsed != 8 || l.Absolute.TotalRAMUsed != 8*2048 {
		t.Errorf("%+v, %v", l, err)
	}
	list, err := servers.List(client, servers.ListOpts{Name: "^many-", Limit: 3}).AllPages(ctx)
	if err != nil {
		t.Fatal(err)
	}
	found, err := servers.ExtractServers(list)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range found {
		names = append(names, s.Name)
	}
	if slices.Sort(names); len(slices.Compact(names)) != 8 {
		t.Errorf("%q", names)
	}
	bad := order(f, "bad", "true")
	bad.FlavorRef = "none"
	if _, err := servers.Create(ctx, client, bad, nil).Extract(); !gophercloud.ResponseCodeIs(err, http.StatusBadRequest) {
		t.Errorf("a flavor that isn't there: %v", err)
	}
}

// Who can't log in is told so, and no more.
func TestLogIn(t *testing.T) {
	f := start(t)
	for name, spoil := range map[string]func(*gophercloud.AuthOptions){
		"password": func(o *gophercloud.AuthOptions) { o.Password = "wrong" },
		"user":     func(o *gophercloud.AuthOptions) { o.Username = "nobody" },
		"project":  func(o *gophercloud.AuthOptions) { o.Scope.ProjectName = "other" },
		"domain":   func(o *gophercloud.AuthOptions) { o.DomainName = "Other" },
	} {
		o := f.options()
		spoil(&o)
		if _, err := openstack.AuthenticatedClient(t.Context(), o); !gophercloud.ResponseCodeIs(err, http.StatusUnauthorized) {
			t.Errorf("%s: %v", name, err)
		}
	}
	provider, err := openstack.AuthenticatedClient(t.Context(), f.options())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openstack.NewComputeV2(provider, gophercloud.EndpointOpts{Region: "Nowhere"}); err == nil {
		t.Error("there is a Nova in a region that isn't there")
	}
	client := f.nova(t)
	client.SetToken("gAAAAA-forged")
	client.ReauthFunc = nil
	if _, err := limits.Get(t.Context(), client, nil).Extract(); !gophercloud.ResponseCodeIs(err, http.StatusUnauthorized) {
		t.Errorf("a forged token: %v", err)
	}
}
