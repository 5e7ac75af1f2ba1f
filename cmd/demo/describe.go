package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/jointcloud/pcm"
	"github.com/jointcloud/pcm/adapters/rest/fake/modelarts"
	"github.com/jointcloud/pcm/adapters/rest/fake/objects"
)

// describeAct is the demo of a site that joins by a description alone.
func (s *stage) describeAct() []act {
	return []act{
		s.found,
		s.emptySite,
		s.joinDescribed,
		s.runDescribed,
	}
}

// cloud is a ModelArts of the demo's own, with the object store beside it.
type cloud struct {
	*modelarts.Cloud
	store     *objects.Store
	servers   []*http.Server
	api, data string // where they listen, as URLs
}

// openCloud starts it on loopback, with its files below dir.
func openCloud(dir string) (c *cloud, err error) {
	c = &cloud{}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	if c.store, err = objects.Open(objects.Options{Dir: filepath.Join(dir, "objects")}); err != nil {
		return c, err
	}
	if err := c.store.CreateBucket("pcm"); err != nil {
		return c, err
	}
	if c.data, err = c.listen(c.store); err != nil {
		return c, err
	}
	if c.Cloud, err = modelarts.New(modelarts.Options{Dir: filepath.Join(dir, "modelarts"), Store: c.store, StoreURL: c.data}); err != nil {
		return c, err
	}
	c.api, err = c.listen(c.Cloud)
	return c, err
}

func (c *cloud) listen(h http.Handler) (url string, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	server := &http.Server{Handler: h}
	c.servers = append(c.servers, server)
	go server.Serve(l) // until close
	return "http://" + l.Addr().String(), nil
}

// close ends it, and the jobs that it runs.
func (c *cloud) close() error {
	var errs []error
	for _, s := range c.servers {
		errs = append(errs, s.Close())
	}
	if c.Cloud != nil {
		errs = append(errs, c.Cloud.Close())
	}
	return errors.Join(errs...)
}

// emptySite shows what the new site has: an empty folder, and an account at a cloud.
func (s *stage) emptySite(ctx context.Context) (err error) {
	title("2. A new site: an empty folder, and an account at a cloud")
	if err := os.Mkdir(s.site(), 0o700); err != nil {
		return err
	}
	if s.cloud, err = openCloud(filepath.Join(s.dir, "cloud")); err != nil {
		return err
	}
	tell("dora has no machine to sell, but an account at Huawei Cloud ModelArts. (Here that is a fake")
	tell("which the vendor's own client takes for the real one; it runs on %s.)", s.cloud.api)
	access, secret := s.cloud.Keys()
	for name, text := range map[string]string{"ak": access, "sk": secret} {
		if err := os.WriteFile(filepath.Join(s.site(), name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	tell("All that she writes is where her account is; its keys stand in two files.")
	if err := os.WriteFile(s.siteConfig(), []byte(fmt.Sprintf(`# dora sells what she may use of ModelArts.
adapters:
  process: {enabled: false}
  wasm: {enabled: false}
  described:
    - description: modelarts
      settings:
        endpoint: %s
        project: %s
        region: cn-north-4
        obs: %s
        bucket: pcm
        image: pcm/base:1
        flavors: modelarts.vm.cpu.2u
      secrets: {access_key: "file:%s", secret_key: "file:%s"}
      allow_private: true   # the fake is on loopback
      poll: 500ms
      price: {per_task: "0.003"}
`, s.cloud.api, s.cloud.Project(), s.cloud.data, filepath.Join(s.site(), "ak"), filepath.Join(s.site(), "sk"))), 0o600); err != nil {
		return err
	}
	config, err := os.ReadFile(s.siteConfig())
	if err != nil {
		return err
	}
	fmt.Printf("\ndora$ cat dora.yaml\n%s", config)
	return nil
}

// site is the new site's folder.
func (s *stage) site() string { return filepath.Join(s.dir, "site") }

func (s *stage) siteConfig() string { return filepath.Join(s.dir, "dora.yaml") }

// joinDescribed lets the site into the mesh that is there.
func (s *stage) joinDescribed(ctx context.Context) error {
	title("3. It joins the mesh by its description")
	config, err := os.ReadFile(s.siteConfig())
	if err != nil {
		return err
	}
	if err := s.raise(ctx, []role{{"dora", "sells training jobs of ModelArts", string(config)}}); err != nil {
		return err
	}
	if err := await(ctx, func(ctx context.Context) error { return s.sold(ctx, "modelarts") }); err != nil {
		return err
	}
	for _, args := range [][]string{{"adapter", "list"}, {"pool", "list"}} {
		if _, err := s.show(ctx, "dora", args...); err != nil {
			return err
		}
	}
	tell("\ncarl, who sells nothing, sees it among what the others sell:")
	_, err = s.show(ctx, "carl", "offers")
	return err
}

// sold is nil when the buyer knows of a pool of the adapter.
func (s *stage) sold(ctx context.Context, adapter string) error {
	offers, err := s.carl().Offers(ctx)
	if err != nil {
		return err
	}
	for _, o := range offers.Items {
		if o.Pool.Adapter == adapter {
			return nil
		}
	}
	return fmt.Errorf("none of %d offers is of adapter %s", len(offers.Items), adapter)
}

const describedSpec = `name: sums
steps:
  - name: sum
    count: 4
    adapter: modelarts    # not elsewhere: to show it
    inputs: [{source: numbers.txt}]
    outputs: [sum.txt]
    command:
      - sh
      - -c
      - |
        awk -v n="$PCM_TASK_COUNT" -v i="$PCM_TASK_INDEX" 'NR % n == i { s += $1 } END { print s }' numbers.txt > sum.txt
        echo "summed $(cat sum.txt)"
`

// runDescribed runs a job there, and holds what PCM says against the cloud's books.
func (s *stage) runDescribed(ctx context.Context) error {
	title("4. A job runs there")
	var numbers bytes.Buffer
	want := 0
	for i := 1; i <= 1000; i++ {
		fmt.Fprintln(&numbers, i)
		want += i
	}
	if err := os.WriteFile(filepath.Join(s.dir, "numbers.txt"), numbers.Bytes(), 0o600); err != nil {
		return err
	}
	if err := s.file("sums.yaml", describedSpec); err != nil {
		return err
	}
	job, err := s.submit(ctx, "sums.yaml", "--wait")
	if err != nil {
		return err
	}
	_, tasks, err := s.settled(ctx, job.ID)
	if err != nil {
		return err
	}
	if _, err := s.show(ctx, "carl", "job", "get", pcm.Short(job.ID), "results"); err != nil {
		return err
	}
	got := 0
	for i := range tasks {
		text, err := os.ReadFile(filepath.Join(s.dir, "results", "sum", fmt.Sprint(i), "out", "sum.txt"))
		if err != nil {
			return err
		}
		n := 0
		if _, err := fmt.Sscan(string(text), &n); err != nil {
			return fmt.Errorf("task %d brought %q: %w", i, text, err)
		}
		got += n
	}
	if got != want {
		err = fmt.Errorf("it is %d", want)
	}
	if err := check(err, "%d tasks brought sums that make %d in all", len(tasks), got); err != nil {
		return err
	}
	if started := s.cloud.Ran(); started != len(tasks) || shares(tasks)["dora"] != len(tasks) {
		err = fmt.Errorf("the cloud ran %d, and the ledger has %v", started, shares(tasks))
	}
	if err := check(err, "ModelArts ran as many jobs as the ledger says dora sold: %d", len(tasks)); err != nil {
		return err
	}
	err = await(ctx, func(context.Context) error {
		if jobs := s.cloud.Jobs(); len(jobs) > 0 {
			return fmt.Errorf("%d are left", len(jobs))
		}
		return nil
	})
	if err := check(err, "none of them is left there"); err != nil {
		return err
	}
	if _, err := s.show(ctx, "dora", "balances"); err != nil {
		return err
	}
	if err := s.books(ctx, "dora"); err != nil {
		return err
	}
	lines, err := s.written()
	if err == nil && lines.code > 0 {
		err = fmt.Errorf("there are some")
	}
	return check(err, "lines of configuration: %d, lines of code: %d", lines.config, lines.code)
}

// written counts what the site's owner wrote: what isn't configuration or a key is code.
func (s *stage) written() (lines struct{ config, code int }, err error) {
	config, err := os.ReadFile(s.siteConfig())
	if err != nil {
		return lines, err
	}
	lines.config = strings.Count(string(config), "\n")
	files, err := os.ReadDir(s.site())
	for _, f := range files {
		if f.Name() == "ak" || f.Name() == "sk" {
			continue
		}
		data, err := os.ReadFile(filepath.Join(s.site(), f.Name()))
		if err != nil {
			return lines, err
		}
		lines.code += strings.Count(string(data), "\n")
	}
	return lines, err
}
